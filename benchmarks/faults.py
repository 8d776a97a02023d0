"""A campaign of faults against one tuning run, and whether the run survived them as it should.

    python benchmarks/faults.py --faults 100 --model mobilenet_v2

A tracker and three boards on loopback, as `tvmsep tracker` and `tvmsep board serve` run them, each
board behind a link of ours. One run of `tvmsep.tune` is left in peace, one meets the faults, dealt
at random over its trials: servers killed and stopped, candidates that crash, hang or write NaN,
uploads cut off half way, links that drop and stall, a tracker that is killed, boards ten times
slower, a full disk under the log. Then it is checked that

- the run ended by itself, and every fault met something;
- every trial that a board measured is in the log, and nothing else;
- no config was measured twice in the search;
- no process is left;
- the winners are as fast as those of the undisturbed run: both bundles timed in turn in fresh
  processes, medians of all rounds, within 5 %.

Prints a table; exit status 1 if any of it does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from campaign.deeds import KINDS, Answers, Campaign, hurt
from campaign.park import KEY, MARK, Park, marked, wait_for

from tvmsep import api
from tvmsep.contracts import Trial
from tvmsep.logs import read_log
from tvmsep.measure import Measured
from tvmsep.tuner import TuneState

NEAR = 0.05
"""Winners whose times differ by no more are equally good."""
ENDS_S = 20.0
"""Processes have so long to end after the run."""


@dataclass(frozen=True)
class Check:
    """One claim, and what was found."""

    claim: str
    found: str
    holds: bool


def tune(args: argparse.Namespace, out: Path, park: Park, campaign: Campaign | None) -> Answers:
    """One run; what its boards answered to the search."""

    def progress(state: TuneState) -> None:
        if campaign is not None:
            campaign.trials = state.trials

    with hurt(campaign) as answers:
        if campaign is not None:
            campaign.start()
        started = time.monotonic()
        try:
            report = api.tune(
                args.model, out=out, threads=1, trials=args.trials, tracker=park.place, key=KEY,
                warm_start=(), seed=args.seed, progress=progress, say=_say,
            )  # fmt: skip
        finally:
            if campaign is not None:
                campaign.stop()
    assert report.result is not None
    _say(f"{out.name}: {report.result.reason} after {report.result.state.trials} trials and "
         f"{time.monotonic() - started:.0f} s")  # fmt: skip
    return answers


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def against_the_log(answers: Answers, log: list[Trial]) -> list[Check]:
    """Whether the log holds what boards answered, each once."""
    search = [t for t in log if t.phase == "search"]
    lines = Counter(
        (t.task_key, t.as_config(), t.times_s, t.failure)
        for t in search
        if t.program and not t.detail.startswith("equal program")
    )
    measured = [(key, c, a) for key, c, a in answers if isinstance(a, Measured)]
    given = Counter(
        (key, c, tuple(a.times_s), None) if isinstance(a, Measured) else (key, c, (), a.failure)
        for key, c, a in answers
    )
    lost, more = sum((given - lines).values()), sum((lines - given).values())
    twice = Counter((key, c) for key, c, _ in measured)
    logged = Counter((t.task_key, t.as_config()) for t in search if t.times_s)
    again = sum(n - 1 for n in twice.values()) + sum(n - 1 for n in logged.values())
    return [
        Check("every measured trial is in the log",
              f"{len(measured)} measured, {lost} missing, {more} not measured", lost + more == 0),
        Check("no config measured twice", f"{len(logged)} configs, {again} again", again == 0),
    ]  # fmt: skip


def compare(ours: Path, theirs: Path, rounds: int, seed: int) -> Check:
    """Time two bundles in turn, each time in a fresh process."""
    seconds: dict[Path, list[float]] = {ours: [], theirs: []}
    rng = random.Random(seed)
    for _ in range(rounds):
        for bundle in rng.sample([ours, theirs], 2):
            words = ["bench", str(bundle), "--threads", "1", "--json"]
            done = subprocess.run(
                [sys.executable, "-m", "tvmsep.cli", *words],
                check=True, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            seconds[bundle].append(json.loads(done.stdout)["results"][0]["median_s"])
    ratio = statistics.median(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))
    mine, other = (1e3 * statistics.median(s) for s in seconds.values())
    return Check(
        "winners as fast as the undisturbed run's",
        f"{mine:.3f} ms against {other:.3f}, {ratio - 1:+.1%} in {rounds} rounds",
        abs(ratio - 1) <= NEAR,
    )


def print_table(campaign: Campaign, log: list[Trial], checks: list[Check]) -> None:
    """What was done, what the log says of it, and what holds."""
    print("| fault | times |\n|---|---|")
    for kind in KINDS:
        print(f"| {kind} | {campaign.done[kind]} |")
    failures = Counter(t.failure for t in log if t.failure)
    boards = Counter(t.board for t in log if t.times_s and t.phase == "search")
    print(f"\nfailures in the log: {dict(failures)}; measured by: {sorted(boards.values())}\n")
    print("| claim | found | |\n|---|---|---|")
    for c in checks:
        print(f"| {c.claim} | {c.found} | {'holds' if c.holds else 'DOES NOT HOLD'} |")


def main() -> None:
    """Run both, check, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--boards", type=int, default=3)
    parser.add_argument("--trials", type=int, help="of each run; by default six a fault")
    parser.add_argument(
        "--rounds", type=int, default=9, help="of timing both winners; 0 for no undisturbed run"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--undisturbed", type=Path, help="bundle of the undisturbed run: kept there"
    )
    args = parser.parse_args()
    args.trials = args.trials or max(60, 6 * args.faults)

    token = os.environ[MARK] = secrets.token_hex(8)
    kinds = [KINDS[i % len(KINDS)] for i in range(args.faults)]
    with tempfile.TemporaryDirectory(prefix="tvmsep-faults-") as name:
        folder = Path(name)
        calm, hit = args.undisturbed or folder / "calm.tvmsep", folder / "hit.tvmsep"
        with Park(folder, args.boards) as park:
            if args.rounds and not calm.exists():
                tune(args, folder / "new.tvmsep", park, None)
                shutil.move(folder / "new.tvmsep", calm)
            campaign = Campaign(park, kinds, args.trials, args.seed)
            started = time.monotonic()
            answers = tune(args, hit, park, campaign)
            took_s = time.monotonic() - started
        try:
            wait_for(lambda: not marked(token), "the end of all processes", ENDS_S)
        except TimeoutError:
            pass
        left, log = marked(token), read_log(hit.with_suffix(".jsonl"))
        done = sum(campaign.done.values())
        checks = [
            Check("the run ended by itself", f"after {took_s:.0f} s, {done} faults, "
                  f"{campaign.left} met nothing", campaign.left == 0 and done == args.faults),
            *against_the_log(answers, log),
            Check("no process is left", f"{len(left)} left", not left),
        ]  # fmt: skip
        if args.rounds:
            checks.append(compare(hit, calm, args.rounds, args.seed))
        print_table(campaign, log, checks)
    sys.exit(not all(c.holds for c in checks))


if __name__ == "__main__":
    main()
