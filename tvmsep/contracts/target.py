"""A target is a kind of hardware: declared data, one TOML file in `targets/`."""

from __future__ import annotations

import msgspec

CUDA = 13
"""Major version of CUDA that TVM's wheels are linked with; from driver 580."""
INTEGRATED = frozenset({53, 62, 72, 87})
"""Compute capabilities of Tegra: NVIDIA promises binary compatibility only among other devices."""


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a shared library for this target is linked."""

    flavour: str = "elf"
    """`elf` (LLD, no libc needed) or `macho`."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Facts about a CUDA device. Sizes are bytes, rates are per second of the whole device."""

    arch: str
    """What kernels are compiled for: `sm_87`."""
    ptx: bool = False
    """Whether kernels ship as PTX, which a driver compiles for its device: `arch` or newer."""
    newest_cuda: int = 0
    """Newest CUDA major version that drivers for the device have; 0 where that is the latest."""
    sms: int
    """Streaming multiprocessors."""
    warp: int = 32
    """Threads that run in step."""
    threads_per_block: int = 1024
    threads_per_sm: int
    blocks_per_sm: int
    registers_per_sm: int = 65536
    """32-bit registers."""
    registers_per_block: int = 65536
    registers_per_thread: int = 255
    shared_per_block: int = 49152
    """Shared memory a block gets without asking for more."""
    shared_per_sm: int
    l2_bytes: int
    bandwidth: float
    """Bytes of device memory that can be read each second, as the data sheet has it."""
    fp32_flops: float
    """Peak of float32 multiply-adds outside tensor cores, two FLOPs each."""
    clock_ghz: float
    """The boost clock for which the peak is stated."""

    @property
    def compute_capability(self) -> int:
        """87 of `sm_87`."""
        return int(self.arch.removeprefix("sm_").rstrip("a"))

    @property
    def compile_only(self) -> bool:
        """Whether no TVM that pip installs can run on it: those need `CUDA` or newer."""
        return 0 < self.newest_cuda < CUDA


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Facts about one kind of hardware, read from `targets/<name>.toml`.

    Sizes are bytes, frequencies GHz, lanes are fp32 elements of one vector register.
    """

    name: str
    description: str
    triple: str
    mcpu: str
    mattr: tuple[str, ...] = ()
    cores: int
    """Cores to tune for; 0 in a TOML file means as many as the host has."""
    lanes: int
    vector_registers: int
    fma_latency_cycles: int
    """Until a multiply-add's accumulator can be added to again."""
    fma_per_cycle: float
    """Full-width vector fused multiply-adds a core starts each cycle."""
    broadcast_operand: bool
    """Whether an FMA can take a broadcast scalar from memory (AVX-512)."""
    lane_operand: bool = False
    """Whether an FMA can take one lane of a register as its scalar (NEON)."""
    half_arithmetic: bool = False
    """Whether vectors hold, add and multiply twice as many float16 elements (`fullfp16`)."""
    half_width_is_free: bool = False
    """Whether vectors of half the lanes run at the same FLOP rate (double-pumped units)."""
    l2_bytes: int
    """Of one core."""
    l3_bytes: int = 0
    """Last-level cache that the cores share; 0 where there is none."""
    requires: tuple[str, ...] = ()
    """CPU feature flags, as the operating system names them, that a host must report."""
    vendor: str = ""
    """CPU vendor id that a host must report, where the flags alone do not tell."""
    parts: tuple[str, ...] = ()
    """Cores (implementer and part number, `0x41 0xd08`) on which this is the `local` target."""
    mca_cpu: str = ""
    """CPU whose tables llvm-mca should model this core with; none where it has no right ones."""
    in_order: bool = False
    """Whether the core issues instructions in their order: the cycle model asks."""
    mca_dispatch: int = 0
    """Operations that the core dispatches a cycle, where llvm-mca's table has another number."""
    source: str = ""
    """Where the facts come from."""
    clock_ghz: float = 0.0
    """What a core runs at under load, for modelled times; 0 where the file does not say."""
    bandwidth: float = 0.0
    """Bytes of memory that all cores together can read each second, as the data sheet has it."""
    link: Link = Link()
    gpu: Gpu | None = None
    """The device that kernels run on; all other facts are then its host's."""

    @property
    def machine(self) -> str:
        """The kind of machine, as `uname -m` names it there."""
        kind = self.triple.split("-")[0]
        return "armv7l" if kind.startswith("armv7") else kind

    def elements(self, dtype: str) -> int:
        """Elements of a dtype in one vector register."""
        return 2 * self.lanes if dtype == "float16" else self.lanes

    def tvm_dict(self) -> dict[str, object]:
        """The dictionary that `tvm.target.Target` takes."""
        if self.gpu is not None:
            return {
                "kind": "cuda",
                "arch": self.gpu.arch,
                "max_threads_per_block": self.gpu.threads_per_block,
                "max_shared_memory_per_block": self.gpu.shared_per_block,
                "thread_warp_size": self.gpu.warp,
                "host": self._host_dict(),
            }
        return self._host_dict()

    def _host_dict(self) -> dict[str, object]:
        spec: dict[str, object] = {
            "kind": "llvm",
            "mtriple": self.triple,
            "mcpu": self.mcpu,
            "num-cores": self.cores,
            # O3's code generator takes 2.5 times as long for the same speed: the schedules
            # have done by hand what it looks for.
            "opt-level": 2,
        }
        if self.mattr:
            spec["mattr"] = list(self.mattr)
        return spec
