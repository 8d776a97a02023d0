"""Whether a board can be tuned, in plain words: `tvmsep board doctor`.

Each finding is `ok`, `warn` (times will be worse than they could be), `bad` (tuning will fail) or
`unknown` (a stock TVM server cannot say).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from importlib import metadata
from typing import Literal

import msgspec

from tvmsep.boards.examine import Examiner, Steadiness, WrongKey
from tvmsep.boards.facts import Facts, misfit, version_mismatch
from tvmsep.boards.lookup import Reached
from tvmsep.boards.new_target import guess
from tvmsep.contracts import BoardError, Gpu, Target
from tvmsep.contracts.words import counted
from tvmsep.measure.device import Device
from tvmsep.measure.device import misfit as unlike
from tvmsep.measure.local import LOCAL_KEY, LocalServer
from tvmsep.measure.lock import HostLock
from tvmsep.targets import host_cores

HOT_CELSIUS = 75.0
COARSE_TIMER_NS = 2_000
"""A trial lasts some milliseconds, a repeat some microseconds."""
LITTLE_MEMORY = 512 << 20
NOISE_WARN, NOISE_HIGH = 0.02, 0.10
"""Coefficients of variation of a burst of a millisecond."""
DRIFT_WARN = 0.03
CUDA_NEEDED = 13000
"""Of the driver: the runtime that TVM's wheels are linked with."""
_UNKNOWN = "the board's server cannot say; ours can (`tvmsep board serve`)"

Level = Literal["ok", "warn", "bad", "unknown"]


class Finding(msgspec.Struct, frozen=True):
    """One line of the answer."""

    check: str
    level: Level
    says: str
    advice: str = ""


def our_tvm() -> str:
    """The version of the TVM that compiles here."""
    return metadata.version("apache-tvm")


def examine_board(at: Reached, target: Target | None) -> list[Finding]:
    """Examine a board over RPC.

    Args:
        at: the board.
        target: what it shall be tuned for; None for what its CPU looks like.

    Raises:
        WrongKey: the server has another key.
        BoardError: nothing on this machine can be started; what is wrong with the board is a
            finding.
    """
    with Examiner(at) as examiner:
        return list(_findings(examiner, at, target))


def examine_host(target: Target | None) -> list[Finding]:
    """Examine this machine, through a server on loopback, as tuning does.

    Raises:
        BoardError: the server does not start, or another tvmsep measures here for too long.
    """
    lock = HostLock(timeout_s=60.0)
    server = LocalServer(host_cores())
    try:
        server.start()
        with lock.hold(exclusive=True):
            at = Reached("127.0.0.1", server.port, LOCAL_KEY, False)
            return examine_board(at, target)
    finally:
        server.stop()
        lock.close()


def _findings(examiner: Examiner, at: Reached, target: Target | None) -> Iterator[Finding]:
    try:
        board = examiner.identify()
    except WrongKey:
        raise
    except BoardError as error:
        yield Finding("reachable", "bad", str(error), "see that the server runs and is idle")
        return
    kind = "our server" if board.ours else "a stock TVM server"
    yield Finding("reachable", "ok", f"{at.name}: {kind}, {board.facts.cpu or 'unknown CPU'}")
    yield _tvm(board.facts)
    yield from _isa(board.facts, target)
    yield _threads(board.facts, board.threads, target)
    if board.ours:
        yield from judge(board.facts)
    else:
        for check in ("timer", "clock", "memory"):
            yield Finding(check, "unknown", _UNKNOWN)
    if target is None:
        try:
            target, _ = guess(board.facts, "guess", at.name)
        except BoardError as error:
            yield Finding("noise", "unknown", f"no reference kernel: {error}", "give --target")
            return
    if target.gpu is not None:
        try:
            device = examiner.device()
        except BoardError as error:
            yield Finding("GPU", "bad", str(error), no_cuda(board.facts) if board.ours else "")
            return
        found = list(judge_device(device, board.facts, target.gpu, target.name))
        yield from found
        if any(f.level == "bad" for f in found):
            return
    if misfit(board.facts, target) is None:
        yield from _noise(examiner, target)


def _tvm(facts: Facts) -> Finding:
    ours = our_tvm()
    if not facts.tvm:
        return Finding("TVM", "unknown", f"{ours} here; {_UNKNOWN}")
    why = version_mismatch(facts.tvm, ours)
    if why:
        return Finding("TVM", "bad", why, f"pip install apache-tvm=={ours} on the board")
    return Finding("TVM", "ok", f"{ours} on both ends")


def _isa(facts: Facts, target: Target | None) -> Iterator[Finding]:
    if target is None:
        return
    why = misfit(facts, target)
    if why:
        advice = "`tvmsep targets` lists others, `tvmsep targets new` writes one for this board"
        yield Finding("ISA", "bad", why, advice)
    elif not facts.machine:
        yield Finding("ISA", "unknown", _UNKNOWN)
    else:
        rest = "" if facts.features else "; its CPU features are unknown"
        yield Finding("ISA", "ok", f"{facts.machine}, as target {target.name} says{rest}")


def _threads(facts: Facts, pool: int, target: Target | None) -> Finding:
    if not pool:
        return Finding("threads", "unknown", _UNKNOWN)
    wanted = max(facts.cores, target.cores if target else 0)
    if pool < wanted:
        return Finding(
            "threads",
            "warn",
            f"TVM's pool has {pool}, of {wanted} cores",
            "start the server with --threads, or with TVM_NUM_THREADS in its environment",
        )
    return Finding("threads", "ok", f"up to {pool}")


def judge(facts: Facts) -> Iterator[Finding]:
    """What the facts say about clock, timer, memory and cores."""
    coarse = facts.timer_ns > COARSE_TIMER_NS
    yield Finding(
        "timer",
        "warn" if coarse else "ok",
        f"resolution {facts.timer_ns} ns",
        "a better clock source: see /sys/devices/system/clocksource" if coarse else "",
    )
    yield _clock(facts)
    little = 0 < facts.available_bytes < LITTLE_MEMORY
    yield Finding(
        "memory",
        "warn" if little else "ok",
        f"{facts.available_bytes / 2**20:,.0f} of {facts.memory_bytes / 2**20:,.0f} MiB free",
        "end what else runs there: tensors and weights need some 300 MiB" if little else "",
    )
    if len(facts.parts) > 1:
        yield Finding(
            "cores",
            "warn",
            f"{len(facts.parts)} kinds of cores: {', '.join(facts.parts)}",
            "start the server under `taskset -c` with the strong ones only",
        )
    if facts.load > facts.cores + 0.5:
        yield Finding(
            "load", "warn", f"load average {facts.load:.1f} on {facts.cores} cores",
            "end what else runs there",
        )  # fmt: skip


def no_cuda(facts: Facts) -> str:
    """What a board lacks of what TVM's CUDA runtime needs."""
    if not facts.cuda_driver:
        return "install NVIDIA's driver, 580 or newer: libcuda.so.1 cannot be loaded there"
    if facts.cuda_driver < CUDA_NEEDED:
        return f"update NVIDIA's driver to 580 or newer: it has CUDA {_version(facts.cuda_driver)}"
    if not facts.cuda_runtime:
        return (
            "pip install 'tvmsep[cuda-run]' there and start the server again: CUDA 13's "
            "libcudart.so.13 cannot be loaded"
        )
    return "`nvidia-smi` on the board says what is wrong with the GPU"


def judge_device(device: Device, facts: Facts, gpu: Gpu, target: str) -> Iterator[Finding]:
    """Whether a CUDA device suits a target, and what its times are worth."""
    why = unlike(device, gpu, target)
    if why:
        advice = "`tvmsep targets` lists others; a copy of the TOML file with that arch is one"
        yield Finding("GPU", "bad", why, advice)
        return
    versions = [
        f"{what} {_version(number)}"
        for what, number in (("CUDA", device.runtime), ("driver for CUDA", facts.cuda_driver))
        if number
    ]
    says = [device.label, counted("multiprocessor", device.sms), *versions]
    if device.emulated:
        advice = "use it to try things; tune on the device itself"
        yield Finding("GPU", "warn", ", ".join(says) + ": a CPU's time, not a device's", advice)
    elif device.sms and device.sms != gpu.sms:
        advice = "tuning works; give a target with its facts for better defaults"
        text = f"{', '.join(says)}, where target {target} says {gpu.sms}"
        yield Finding("GPU", "warn", text, advice)
    else:
        yield Finding("GPU", "ok", ", ".join(says))
    little = 0 < device.free_bytes < LITTLE_MEMORY
    if device.memory_bytes and device.free_bytes:
        yield Finding(
            "GPU memory",
            "warn" if little else "ok",
            f"{device.free_bytes / 2**20:,.0f} of {device.memory_bytes / 2**20:,.0f} MiB free",
            "end what else runs there: tensors and weights need some 300 MiB" if little else "",
        )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _clock(facts: Facts) -> Finding:
    says = [f"governor {g}" for g in facts.governors]
    if facts.mhz and facts.max_mhz:
        says.append(f"{facts.mhz:.0f} of {facts.max_mhz:.0f} MHz")
    if facts.celsius is not None:
        says.append(f"{facts.celsius:.0f} degrees Celsius")
    if facts.throttled:
        text = ", ".join(["throttled by its firmware (heat or low voltage)", *says])
        return Finding("clock", "warn", text, "a fan, a better power supply")
    if facts.celsius is not None and facts.celsius > HOT_CELSIUS:
        return Finding("clock", "warn", ", ".join(says), "near throttling: cool the board")
    slow = [g for g in facts.governors if g != "performance"]
    if slow:
        advice = "sudo cpupower frequency-set -g performance, on the board"
        return Finding("clock", "warn", ", ".join(says), advice)
    if not facts.governors and facts.throttled is None:
        says.append("the system does not tell about frequency scaling")
        return Finding("clock", "unknown", ", ".join(says))
    return Finding("clock", "ok", ", ".join(says) or "not throttled")


def _noise(examiner: Examiner, target: Target) -> Iterator[Finding]:
    try:
        seen = examiner.steadiness(target)
    except BoardError as error:
        yield Finding("kernel", "bad", str(error), "is it the right target?")
        return
    where = "on one core" if target.gpu is None else "on the GPU"
    yield Finding("kernel", "ok", f"{seen.flops / 1e9:.1f} GFLOP/s {where}")
    yield from steady(seen)


def steady(seen: Steadiness) -> Iterator[Finding]:
    """Noise as a coefficient of variation, and whether the board slowed down meanwhile."""
    times = seen.times_s
    noise = statistics.stdev(times) / statistics.fmean(times)
    says = f"coefficient of variation {100 * noise:.1f} % over {len(times)} equal runs"
    if noise > NOISE_HIGH:
        advice = "something else runs there: end it; more repeats and --budget help a little"
        yield Finding("noise", "warn", says, advice)
    elif noise > NOISE_WARN:
        yield Finding("noise", "warn", says, "fix the clock, end what else runs there")
    else:
        yield Finding("noise", "ok", says)
    third = len(times) // 3
    first, last = statistics.median(times[:third]), statistics.median(times[-third:])
    if last > first * (1 + DRIFT_WARN):
        yield Finding(
            "drift", "warn", f"{100 * (last / first - 1):.1f} % slower at the end than at first",
            "the clock falls under load: cool the board, or fix a frequency that it can hold",
        )  # fmt: skip
