"""What a page is made from: logs, and if given a bundle, profiles and times of peers."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tvmsep.bundle import Manifest, Package
from tvmsep.compiler.batch import IMAGES
from tvmsep.contracts import InputError, Target, TargetError, Trial, Workload
from tvmsep.logs import read_log
from tvmsep.profile import Profile
from tvmsep.targets import load_target

_FUNCTION = re.compile(r"^    def (\w+)\(", re.MULTILINE)
_WORKLOAD = re.compile(r'"tvmsep\.workload": ("(?:[^"\\]|\\.)*")')
_TASK = re.compile(r'"tvmsep\.task": "(\w+) (\d+)"')
_CALL = re.compile(r"\bR\.call_tir\(cls\.(\w+),")


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """What another engine takes for a network, in seconds."""

    network: str
    engine: str
    threads: int
    seconds: float


Counts = Mapping[int, Mapping[tuple[str, int], int]]
"""By thread count, how often a bundle's network runs each task: key of its workload, and thread
count, which is 1 where a batch has an image a thread."""


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was read."""

    logs: tuple[Path, ...]
    trials: tuple[Trial, ...]
    target: Target | None
    """None if neither the bundle nor this tvmsep knows it."""
    bundle: Path | None = None
    manifest: Manifest | None = None
    counts: Counts | None = None
    profiles: tuple[Profile, ...] = ()
    peers: tuple[Peer, ...] = ()


def read_sources(
    logs: Sequence[Path],
    bundle: Path | None = None,
    profiles: Sequence[Path] = (),
    peers: Path | None = None,
    *,
    growing: bool = False,
) -> Sources:
    """Read all of them.

    Args:
        logs: tuning logs of one target, or bundles with logs.
        bundle: says how often the network runs each kernel.
        profiles: what `tvmsep profile --json` printed.
        peers: what `benchmarks/x86.py --json` wrote.
        growing: whether a log may not be there yet.

    Raises:
        TvmsepError: one cannot be read, or they are of different targets.
    """
    trials: list[Trial] = []
    for path in logs:
        if not (growing and not path.exists()):
            trials += read_log(path)
    if not trials and not growing:
        raise InputError(f"{logs[0]} holds no trial: give the log of a tuning run")
    manifest, counts = None, None
    if bundle is not None:
        with Package(bundle) as package:
            package.check_members()
            manifest = package.manifest
            texts = {v.threads: package.read(v.relax).decode() for v in manifest.variants}
        counts = {
            n: {(key, threads or n): count for (key, threads), count in found.items()}
            for n, text in texts.items()
            if (found := kernel_counts(text))
        }
        known = {key for found in counts.values() for key, _ in found}
        if known and trials and not known & {t.workload.key for t in trials}:
            raise InputError(
                f"{bundle} is of another network: the log has none of its kernels; give the bundle "
                "that was made with it"
            )
    read = tuple(_profile(p) for p in profiles)
    names = sorted({t.target for t in trials})
    asked = [("bundle", manifest.target.name)] if manifest else []
    asked += [("profile", p.target) for p in read]
    if len(names) > 1:
        raise InputError(f"the logs are for {', '.join(names)}: give logs of one target")
    for what, name in asked:
        if names and name != names[0]:
            raise InputError(
                f"the {what} is for {name}, the log is for {names[0]}: give those of one target"
            )
    return Sources(
        logs=tuple(logs),
        trials=tuple(trials),
        target=manifest.target if manifest else _known(names),
        bundle=bundle,
        manifest=manifest,
        counts=counts or None,
        profiles=tuple(sorted(read, key=lambda p: p.threads)),
        peers=() if peers is None else _peers(peers),
    )


def _known(names: Sequence[str]) -> Target | None:
    try:
        return load_target(names[0]) if names else None
    except TargetError:
        return None


def kernel_counts(relax: str) -> dict[tuple[str, int | None], int]:
    """How often a bundle's Relax text runs each task: key of its workload, and thread count.

    The count is None in bundles of a tvmsep that did not write it: then it is the network's. Empty
    for those of one that did not write workloads into the text.
    """
    tasks: dict[str, tuple[str, int | None]] = {}
    for chunk in re.split(r"(?m)^    @", relax):
        name, said, task = (p.search(chunk) for p in (_FUNCTION, _WORKLOAD, _TASK))
        if name and said:
            text = ast.literal_eval(said.group(1))
            key = msgspec.json.decode(text, type=Workload).key
            tasks[name.group(1)] = (task[1], int(task[2])) if task else (key, None)
    found: Counter[tuple[str, int | None]] = Counter()
    for chunk in re.split(r"(?m)^    @", relax):
        name = _FUNCTION.search(chunk)
        turns = 1  # of the function that computes a part of a batch
        if name and name.group(1) == IMAGES:
            turns = len(re.findall(rf"\bcls\.{IMAGES}\(", relax))
        for called in _CALL.findall(chunk):
            if called in tasks:
                found[tasks[called]] += turns
    return dict(found)


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {flag} {path}: {error.strerror or error}") from error


def _profile(path: Path) -> Profile:
    try:
        return msgspec.json.decode(_read(path, "--profile"), type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"--profile {path} is no profile ({error}): write one with "
            f"tvmsep profile BUNDLE --json > {path.name}"
        ) from error


class _Result(msgspec.Struct):
    engine: str
    threads: int
    lowest_s: float | None = None
    failure: object = None


class _Network(msgspec.Struct):
    spec: str
    results: list[_Result]


class _Benchmark(msgspec.Struct):
    networks: list[_Network]


def _peers(path: Path) -> tuple[Peer, ...]:
    try:
        found = msgspec.json.decode(_read(path, "--peers"), type=_Benchmark)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"--peers {path} holds no times of engines ({error}): give what "
            "benchmarks/x86.py --json wrote"
        ) from error
    return tuple(
        Peer(network=n.spec, engine=r.engine, threads=r.threads, seconds=r.lowest_s)
        for n in found.networks
        for r in n.results
        if r.lowest_s is not None
    )
