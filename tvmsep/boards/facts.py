"""What a board says about itself, typed, and whether it suits a target."""

from __future__ import annotations

import msgspec

from tvmsep.contracts import BoardError, Target
from tvmsep.measure import facts as collected


class Cache(msgspec.Struct, frozen=True):
    """One cache of core 0."""

    level: int
    kind: str
    """`data`, `instruction` or `unified`."""
    bytes: int
    shared_by: str
    """CPUs, as Linux lists them: `0-3`."""


class Facts(msgspec.Struct, frozen=True):
    """What `tvmsep.measure.facts` collects; defaults stand for what a board cannot say."""

    machine: str = ""
    """`x86_64`, `aarch64`, ...: the kernel's."""
    bits: int = 0
    """Of a pointer in its Python: 32 below a 64-bit kernel is a 32-bit system; 0 if unknown."""
    system: str = ""
    kernel: str = ""
    libc: str = ""
    python: str = ""
    home: str = ""
    disk_free_bytes: int = 0
    cores: int = 0
    """That the server may use."""
    threads: int = 0
    """Of TVM's pool; no session can have more."""
    load: float = 0.0
    """Mean number of runnable processes over the last minute."""
    timer_ns: int = 0
    caches: tuple[Cache, ...] = ()
    tvm: str = ""
    tvm_ffi: str = ""
    tvmsep: str = ""
    cpu: str = ""
    vendor: str = ""
    parts: tuple[str, ...] = ()
    """`IMPLEMENTER PART` of each kind of ARM core."""
    features: tuple[str, ...] = ()
    memory_bytes: int = 0
    available_bytes: int = 0
    governors: tuple[str, ...] = ()
    mhz: float | None = None
    max_mhz: float | None = None
    celsius: float | None = None
    throttled: bool | None = None
    cuda_driver: int = 0
    """CUDA of the GPU's driver, 13000 for 13.0; 0 if there is none or that is unknown."""
    cuda_runtime: int = 0
    """Of the runtime library that TVM needs."""

    def cache_bytes(self, level: int) -> int:
        """Size of a data cache, 0 if unknown or absent."""
        sizes = [c.bytes for c in self.caches if c.level == level and c.kind != "instruction"]
        return max(sizes, default=0)


def parse(text: str) -> Facts:
    """Facts from the JSON that a board answered.

    Raises:
        BoardError: it is not what this version of tvmsep understands.
    """
    try:
        return msgspec.json.decode(text, type=Facts)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BoardError(
            f"the board's description of itself makes no sense ({error}); "
            "install the same tvmsep on both ends"
        ) from error


def here() -> Facts:
    """This machine's facts."""
    return msgspec.convert(collected.collect(), Facts)


def version_mismatch(tvm: str, ours: str) -> str | None:
    """Why two TVMs cannot work together, or None if they can or one is unknown."""
    if not tvm or tvm == ours:
        return None
    return f"the board has TVM {tvm}, this machine {ours}; install the same on both"


def misfit(facts: Facts, target: Target) -> str | None:
    """Why code for `target` cannot run on a board, or None if it can or that is unknown."""
    wanted = target.machine
    if facts.machine and facts.machine != wanted:
        return f"target {target.name} is for {wanted}, the board is {facts.machine}"
    missing = [f for f in target.requires if f not in facts.features] if facts.features else []
    if missing:
        return f"target {target.name} needs {', '.join(missing)}, which the board's CPU lacks"
    if target.vendor and facts.vendor and facts.vendor != target.vendor:
        return f"target {target.name} is for {target.vendor}, the board's CPU is {facts.vendor}"
    return None
