"""A campaign of faults: boards die, hang, are restarted and slow while a farm measures.

    python benchmarks/faults.py --boards 4 --minutes 5 --seed 0

Boards are servers of ours on this machine behind the small tracker of the tests; each claims to be
a machine of its own, so that they work at one time, and their times mean nothing. Every few
seconds something happens to one of them, or to the tracker. Prints what happened and whether every
candidate was answered exactly once, rightly, and no process was left. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from farm_kit import KEY, BoardServer, Tracker, children  # noqa: E402

from tvmsep.codegen import kernel  # noqa: E402
from tvmsep.contracts import Config, Task, Workload  # noqa: E402
from tvmsep.measure import Farm, Measured, builder, dispatch, host  # noqa: E402
from tvmsep.schedules import TEMPLATES  # noqa: E402
from tvmsep.targets import load_target  # noqa: E402

W = Workload(
    op="pointwise", ic=32, oc=40, ih=7, iw=7, in_block=16, out_block=16, epilogue=("bias", "relu6")
)
BATCH = 400


class Campaign:
    """What happens to the boards, one thing at a time."""

    def __init__(self, tracker: Tracker, boards: list[BoardServer], rng: random.Random) -> None:
        self.tracker, self.boards, self.rng = tracker, boards, rng
        self.frozen: dict[BoardServer, list[int]] = {}
        self.dead: set[BoardServer] = set()
        self.counts: Counter[str] = Counter()

    def strike(self) -> None:
        """One fault, or one recovery; a board is always left."""
        well = [b for b in self.boards if b not in self.dead and b not in self.frozen]
        deeds = ["wake"] * bool(self.frozen) + ["restart"] * bool(self.dead) + ["tracker"]
        deeds += ["kill", "freeze", "end session"] * (len(well) > 1)
        deed = self.rng.choice(deeds)
        self.counts[deed] += 1
        if deed == "tracker":
            self.tracker.close()
            time.sleep(self.rng.uniform(0, 1))
            self.tracker = Tracker(self.tracker.place[1])
            for board in self.boards:
                board.tracker = self.tracker
                if board not in self.dead:
                    self.tracker.add(board.place)
        elif deed == "wake":
            board, pids = self.frozen.popitem()
            for pid in pids:
                if pid == board.proc.pid or pid in children(board.proc.pid):
                    os.kill(pid, signal.SIGCONT)
        elif deed == "restart":
            self.dead.pop().start()
        else:
            board = self.rng.choice(well)
            if deed == "kill":
                board.kill()
                self.dead.add(board)
            elif deed == "freeze":
                self.frozen[board] = board.freeze()
            else:
                for pid in children(board.proc.pid):
                    os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--every", type=float, default=3.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    dispatch.POLL_S = 0.5
    names = iter(range(10**9))
    host.machine_of = lambda reported, address: f"machine-{next(names)}"
    target = load_target("local")
    task = Task(workload=W, target=target.name, threads=1, template="pointwise@1")
    func = kernel(W, target, "pointwise", TEMPLATES["pointwise"].default(W, target, 1))
    tracker, rng = Tracker(), random.Random(args.seed)
    boards = [BoardServer(tracker, 1, 0.005 if i == 0 else 0.0) for i in range(args.boards)]
    campaign = Campaign(tracker, boards, rng)
    answered, failures, by = 0, Counter[str](), Counter[str]()
    wrong = 0
    end = time.monotonic() + 60 * args.minutes
    strike_at = time.monotonic() + args.every
    try:
        with tempfile.TemporaryDirectory() as folder:
            good = builder.link_candidate(func, task, target, Path(folder))
            with Farm(target, builders=0, tracker=tracker.place, key=KEY, run_timeout_s=3.0) as f:
                f.connect()
                while time.monotonic() < end:
                    seen: Counter[int] = Counter()
                    for at, answer in f.start([(task, Config(), good)] * BATCH):
                        seen[at] += 1
                        if isinstance(answer, Measured):
                            by[answer.board] += 1
                        else:
                            failures[answer.failure] += 1
                        if time.monotonic() > strike_at:
                            campaign.strike()
                            strike_at = time.monotonic() + args.every
                    answered += len(seen)
                    wrong += sum(n != 1 for n in seen.values()) + (len(seen) != BATCH)
        for board in boards:  # frozen ones wake up to see that their clients have gone
            for pid in [board.proc.pid, *children(board.proc.pid)]:
                os.kill(pid, signal.SIGCONT) if board.proc.poll() is None else None
        time.sleep(3.0)
        left = [p for b in boards for p in children(b.proc.pid)]
    finally:
        for board in boards:
            board.close()
        campaign.tracker.close()
    print(f"{answered} candidates answered; lost or twice: {wrong}; sessions left: {len(left)}")
    print(f"measured by board: {dict(by)}; failures: {dict(failures)}")
    print(f"what happened: {dict(campaign.counts)}")
    sys.exit(bool(wrong or left))


if __name__ == "__main__":
    main()
