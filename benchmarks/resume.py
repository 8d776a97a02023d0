"""Kill a tuning run at random moments and start it again: what is lost, what is done twice.

    python benchmarks/resume.py --kills 20

Each run is `tvmsep tune` on this machine, killed with SIGKILL at a random moment of its first
seconds: while it starts, searches, measures the best again or writes its bundle. After every second
kill the log also loses a part of its last line, as it may when power fails. The last run goes to
its end. Lost are lines that were in the log at a kill, whole, and are not in their place later;
repeated are configs that the search logged twice. Exit status 1 if there is any, if a process
outlives its run, or a file is left.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from campaign.park import MARK, marked, wait_for

from tvmsep.logs import read_log

ENDS_S = 10.0
"""Workers and servers have so long to end after their owner was killed."""


def tear(log: Path, rng: random.Random) -> bool:
    """Cut into a log's last line; whether there was one."""
    data = log.read_bytes() if log.exists() else b""
    start = data.rstrip(b"\n").rfind(b"\n") + 1
    if start >= len(data):
        return False
    os.truncate(log, rng.randrange(start + 1, len(data)))
    return True


def whole(log: Path) -> list[bytes]:
    """A log's lines, without a torn last one."""
    data = log.read_bytes() if log.exists() else b""
    return data[: data.rfind(b"\n") + 1].splitlines()


def main() -> None:
    """Kill, resume, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--model", default="mobilenet_v1:width=0.25,resolution=32")
    parser.add_argument("--trials", type=int, default=60, help="of each run")
    parser.add_argument("--span", type=float, default=12.0, help="seconds in which a kill falls")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng, token = random.Random(args.seed), secrets.token_hex(8)
    env = {**os.environ, MARK: token}
    kept: list[bytes] = []
    kills = torn = ended = lost = 0
    with tempfile.TemporaryDirectory(prefix="tvmsep-resume-") as name:
        folder = Path(name)
        log = folder / "net.jsonl"
        command = [sys.executable, "-m", "tvmsep.cli", "tune", args.model, "-o", "net.tvmsep"]
        command += ["--threads", "1", "--cold", "--trials", str(args.trials)]
        last = False
        while not last:
            proc = subprocess.Popen(
                command, cwd=folder, env=env, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            last = kills == args.kills
            try:
                words = proc.communicate(timeout=300 if last else rng.uniform(0.5, args.span))[1]
                if proc.returncode:
                    sys.exit(f"a run that nobody killed failed: {words}")
                ended += 1
            except subprocess.TimeoutExpired:
                proc.kill()
                proc.communicate()
                kills += not last
            wait_for(lambda: not marked(token), "the end of all processes", ENDS_S)
            now = whole(log)
            lost += sum(i >= len(now) or now[i] != line for i, line in enumerate(kept))
            print(f"kill {kills}: {len(now)} lines, {len(now) - len(kept)} new", file=sys.stderr)
            if kills % 2 and not last:
                torn += tear(log, rng)
            kept = whole(log)
        trials = [t for t in read_log(log) if t.phase == "search"]
        again = sum(n - 1 for n in Counter((t.task_key, t.as_config()) for t in trials).values())
        odd = sorted(p.name for p in folder.iterdir() if p.name not in ("net.jsonl", "net.tvmsep"))
    print(
        f"{kills} kills, {torn} torn lines, {ended} runs that ended before their kill or without: "
        f"{len(trials)} search trials, {lost} lost, {again} repeated; files left: {odd or 'none'}"
    )
    sys.exit(bool(lost or again or odd))


if __name__ == "__main__":
    main()
