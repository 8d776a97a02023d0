"""What stands on the page: from what logs tell to words, cards, and rows of tables."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Sequence

import msgspec

from tvmsep.report.sources import Sources
from tvmsep.report.story import Story, tell

FAR = 5.0
"""Bars of the network that are so many times the median are cut."""


class NetworkRow(msgspec.Struct, frozen=True, kw_only=True):
    """One bar: what the network takes."""

    name: str
    threads: int
    seconds: float
    ratio: float | None
    """To the tuned network's time at as many threads."""
    source: str
    ours: bool


class RoofPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A layer under the roof; bound and share are unknown without a profile."""

    label: str
    group: str
    threads: int
    seconds: float
    intensity: float
    flops_per_s: float
    bytes_per_s: float
    bound: str = ""
    share: float | None = None


class RoofLine(msgspec.Struct, frozen=True, kw_only=True):
    """A limit: `min(peak, rate * intensity)`; a rate of 0 is the FMA peak alone."""

    name: str
    peak: float
    rate: float
    dash: str


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the templates show."""

    title: str
    subtitle: str
    story: Story
    notes: tuple[str, ...]
    cards: tuple[tuple[str, str, str], ...]
    networks: tuple[NetworkRow, ...]
    cut_s: float | None
    """Where the network's bars are cut, if one is far longer than the others."""
    network_words: str
    counted: bool
    all_inside: bool
    templates: tuple[str, ...]
    roof_words: str
    roof_points: tuple[RoofPoint, ...]
    roofs: tuple[RoofLine, ...]
    roof_limits: str
    pauses: bool
    thinned: bool
    first_knob: int
    facts: tuple[tuple[str, str], ...]
    commands: tuple[tuple[str, str], ...]


def compose(sources: Sources, command: Sequence[str]) -> Page:
    """The page of some sources.

    Args:
        sources: what was read.
        command: what wrote the page.
    """
    s = tell(sources.trials, counts=sources.counts, target=sources.target)
    counted = bool(s.networks) and all(n.counted for n in s.networks)
    manifest = sources.manifest
    title = manifest.name if manifest else ", ".join(dict.fromkeys(p.stem for p in sources.logs))
    networks = _networks(sources, s)
    points, roofs, limits = _roof(sources, s)
    return Page(
        title=title,
        subtitle=_subtitle(s, sources),
        story=s,
        notes=tuple(_notes(sources, s)),
        cards=tuple(_cards(s)),
        networks=tuple(networks),
        cut_s=_cut(networks),
        network_words=_network_words(sources, s, counted),
        counted=counted,
        all_inside=all(t.inside for t in s.tasks),
        templates=tuple(sorted({t.template for t in s.tasks})),
        roof_words=_roof_words(sources),
        roof_points=tuple(points),
        roofs=tuple(roofs),
        roof_limits=limits,
        pauses=s.pauses > 0,
        thinned=s.trials > 5000,
        first_knob=max(range(len(s.knobs)), key=lambda i: _size(s, i), default=0),
        facts=s.machine.facts if s.trials else (),
        commands=tuple(_commands(sources, command)),
    )


def _size(s: Story, knob: int) -> int:
    return sum(len(row[3]) for row in s.knobs[knob].rows)


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _subtitle(s: Story, sources: Sources) -> str:
    if not s.trials:
        return "Waiting for the first trial"
    target = sources.trials[0].target
    day = s.last.replace("T", " ").partition("+")[0].partition(".")[0]
    return f"{_plural(s.trials, 'trial')} for {target}, the last at {day} UTC"


def _notes(sources: Sources, s: Story) -> list[str]:
    found = []
    if s.trials and not s.measured:
        boards = ", ".join(sorted({t.board for t in sources.trials}))
        found.append(
            f"Nothing here was measured: board {boards} answers from a model, a log or a formula."
        )
    if any(t.emulated for t in sources.trials):
        found.append(
            "The device was emulated by a CPU: its times say nothing about speed, and winners are "
            "not a device's."
        )
    kinds = {(t.cpu, t.tvm) for t in sources.trials}
    if len(kinds) > 1:
        found.append(
            f"The trials come from {len(kinds)} kinds of machine or versions of TVM: their times "
            "do not compare, and winners are chosen across them."
        )
    if sources.bundle is not None and sources.counts is None:
        found.append(
            "The bundle was built by a tvmsep that did not write down what its kernels compute, so "
            "it does not say how often each runs: build it again."
        )
    return found


def _cards(s: Story) -> list[tuple[str, str, str]]:
    cards = []
    for n in s.networks:
        what = "Network" if n.counted else "All tasks once"
        name = f"{what}, {_plural(n.threads, 'thread')}"
        if n.after_s is None:
            cards.append((name, "–", f"{_plural(n.missing, 'task')} without a time"))
            continue
        more = ""
        if n.before_s is not None:
            more = f"{n.before_s * 1e3:.2f} ms before: {n.before_s / n.after_s:.2f}× faster"
        cards.append((name, f"{n.after_s * 1e3:.2f} ms", more))
    again = s.trials - s.search
    cards.append(("Trials", f"{s.trials:,}", f"{again:,} of them the best ones again"))
    cards.append(("Tasks", f"{len(s.tasks) + s.tasks_left_out:,}", ""))
    cards.append(("Failed trials", f"{s.failed:,}", ""))
    pauses = f"without {_plural(s.pauses, 'pause')}" if s.pauses else ""
    cards.append(("Tuning took", _minutes(s.wall_s), pauses))
    return cards


def _networks(sources: Sources, s: Story) -> list[NetworkRow]:
    rows: list[NetworkRow] = []
    tuned: dict[int, float] = {}

    def add(name: str, threads: int, seconds: float, source: str, ours: bool = False) -> None:
        ratio = seconds / tuned[threads] if threads in tuned else None
        rows.append(
            NetworkRow(
                name=name, threads=threads, seconds=seconds, ratio=ratio, source=source, ours=ours
            )
        )

    for n in s.networks:
        if n.after_s is None:
            continue
        if n.counted or not sources.counts:
            tuned[n.threads] = n.after_s
        source = "sum of the tasks" + ("" if n.counted else ", each once")
        if n.before_s is not None:
            add("before tuning", n.threads, n.before_s, source)
        add("after tuning", n.threads, n.after_s, source, ours=True)
    for profile in sources.profiles:
        add("the bundle, as a whole", profile.threads, profile.network_s, "profile", ours=True)
    several = len({p.network for p in sources.peers}) > 1
    for peer in sources.peers:
        name = f"{peer.engine}, {peer.network}" if several else peer.engine
        add(name, peer.threads, peer.seconds, "benchmark")
    return sorted(rows, key=lambda r: r.threads)


def _cut(rows: Sequence[NetworkRow]) -> float | None:
    """Where to cut bars, so that one engine's ten times the others' does not flatten them."""
    usual = statistics.median(r.seconds for r in rows) if rows else 0.0
    kept = [r.seconds for r in rows if r.seconds <= FAR * usual]
    return 1.05 * max(kept) if len(kept) < len(rows) else None


def _network_words(sources: Sources, s: Story, counted: bool) -> str:
    if not s.trials:
        return "Nothing has been measured yet."
    if counted:
        words = "Each task's time, as often as the network runs it, added up."
    else:
        words = (
            "A log does not say how often the network runs each kernel, so every task counts once "
            "here: give the bundle with --bundle for the network's own time."
        )
    if sources.profiles:
        words += (
            " The bundle as a whole was timed by its profile: another run, at another time, so "
            "small differences from the log's times say nothing."
        )
    else:
        words += " For the network timed as a whole, give a profile with --profile."
    if sources.peers:
        words += (
            " The engines' times are the lowest of several processes' medians, from a run of their "
            "own: compare them with tvmsep's row of that run."
        )
    else:
        words += " For other engines, give a benchmark's times with --peers."
    return words


def _roof(sources: Sources, s: Story) -> tuple[list[RoofPoint], list[RoofLine], str]:
    points: list[RoofPoint] = []
    roofs: list[RoofLine] = []
    dashes = ("solid", "dash", "dot", "dashdot")
    if sources.profiles:
        limits = []
        for p in sources.profiles:
            points += [
                RoofPoint(
                    label=r.layer, group=r.template or "operator", threads=p.threads,
                    seconds=r.seconds, intensity=r.flop_per_byte, flops_per_s=r.flops_per_s,
                    bytes_per_s=r.bytes_per_s, bound=r.bound, share=r.share,
                )
                for r in p.layers
            ]  # fmt: skip
            roofs += [
                RoofLine(name=f"{level}, {p.threads}t", peak=p.peak_flops, rate=rate, dash=dash)
                for (level, rate), dash in zip(p.bandwidths.items(), dashes, strict=False)
                if p.holds_bytes[level] != 0  # weights are a part of what intensity counts
            ]
            rates = ", ".join(f"{k} {v / 1e9:.0f} GB/s" for k, v in p.bandwidths.items())
            peak_text = f"FMA peak {p.peak_flops / 1e9:.0f} GFLOP/s"
            limits.append(f"{_plural(p.threads, 'thread')}: {peak_text}, {rates}")
        return points, roofs, "; ".join(limits)
    peak = sources.manifest.peak_gflops_per_core if sources.manifest else None
    if peak:
        roofs = [
            RoofLine(name=f"FMA peak, {n}t", peak=peak * 1e9 * n, rate=0.0, dash=dash)
            for n, dash in zip(s.threads, dashes, strict=False)
        ]
    for t in s.tasks:
        if math.isfinite(t.best_s) and (t.runs or not any(n.counted for n in s.networks)):
            points.append(
                RoofPoint(
                    label=t.label, group=t.template, threads=t.threads, seconds=t.best_s,
                    intensity=t.flops / t.bytes, flops_per_s=t.flops_per_s,
                    bytes_per_s=t.bytes / t.best_s,
                )
            )  # fmt: skip
    return points, roofs, f"{peak:.0f} GFLOP/s a core" if peak else ""


def _roof_words(sources: Sources) -> str:
    if sources.profiles:
        return (
            "Each layer timed inside its network by tvmsep profile, against the measured FMA peak "
            "and the measured bandwidth of each level of the memory. Bytes are the model's own: "
            "input, weights and output once. Layers without FLOPs are in the table only."
        )
    return (
        "The winners' times from the log. For the machine's measured limits, and for what holds "
        "each layer back: tvmsep profile BUNDLE --json > profile.json, then give --profile."
    )


def _commands(sources: Sources, command: Sequence[str]) -> list[tuple[str, str]]:
    found = [("This page", shlex.join(command))]
    if not sources.trials:
        return found
    manifest, first = sources.manifest, sources.trials[0]
    source = dict(manifest.source) if manifest else {}
    model = source.get("spec") or source.get("path") or "MODEL"
    variants = manifest.variants if manifest else sources.trials
    threads = ",".join(map(str, sorted({v.threads for v in variants})))
    common = [model, "--target", first.target, "--threads", threads]
    logs = [word for path in sources.logs for word in ("--log", str(path))]
    seeds = sorted({t.seed for t in sources.trials})
    go_on = ["tvmsep", "tune", *common, "--seed", str(seeds[-1]), "--log", str(sources.logs[0])]
    found.append(("Go on tuning", shlex.join(go_on)))
    found.append(("Build the bundle", shlex.join(["tvmsep", "build", *common, *logs])))
    bundle = str(sources.bundle) if sources.bundle else "BUNDLE"
    found.append(("Profile it", shlex.join(["tvmsep", "profile", bundle])))
    return found
