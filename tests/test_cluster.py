"""Builders on other machines: a Dask scheduler and a worker on loopback stand for them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from boards_kit import alive, free_port, run, tree, until
from test_tuner import TARGET, pointwise, space

from tvmsep import api
from tvmsep.contracts import BoardError, Config
from tvmsep.logs import read_log
from tvmsep.measure import Built, Failed, Farm, cluster
from tvmsep.measure.cluster import Cluster
from tvmsep.targets import load_target

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
MODEL = "mobilenet_v1:width=0.25,resolution=32"
TASK = pointwise(7, 32, 32)


class Dask:
    """A scheduler, and a worker with one thread and its nanny, as their commands start them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard"
        )
        self.worker: subprocess.Popen[bytes] | None = None
        log = self.folder / "scheduler.log"
        until(lambda: "Scheduler at" in log.read_text(), "the scheduler")

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{words[0]}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{words[0]}", *words[1:]],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip

    def add_worker(self) -> None:
        self.worker = self._start(
            "worker", self.address, "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard",
            "--local-directory", str(self.folder),
        )  # fmt: skip

    def close(self) -> None:
        for proc in (self.worker, self.scheduler):
            if proc is not None:
                family = tree(proc.pid)
                proc.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    proc.wait(timeout=20)
                proc.kill()
                proc.wait(timeout=10)
                until(lambda: not [p for p in family if alive(p)], "the end of Dask", 20)  # noqa: B023


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    it = Dask(tmp_path_factory.mktemp("dask"))
    try:
        it.add_worker()
        yield it
    finally:
        it.close()


@pytest.fixture(scope="module")
def there(dask: Dask) -> Iterator[Cluster]:
    it = Cluster(dask.address, 60.0)
    yield it
    it.close()


def test_the_cluster_builds_what_this_host_builds(there: Cluster, tmp_path: Path) -> None:
    jobs = [(TASK, c) for c in space(TASK)[:6]]
    answers = there.build(jobs, TARGET, tmp_path, 60.0)
    with Farm(TARGET, builders=1) as farm:
        here = farm.build(jobs)
        assert all(isinstance(a, Built) for a in answers), answers
        for a, b in zip(answers, here, strict=True):
            assert isinstance(a, Built) and isinstance(b, Built)
            assert a.program == b.program and a.so.parent == tmp_path
            assert a.object and b.object and a.object.read_bytes() == b.object.read_bytes()
            assert a.so.read_bytes()[:4] == b"\x7fELF"
    assert there.count == 1


def test_failures_come_back_typed(there: Cluster, tmp_path: Path) -> None:
    good, bad = space(TASK)[0], Config()
    crooked, sound = there.build([(TASK, bad), (TASK, good)], TARGET, tmp_path, 60.0)
    assert isinstance(crooked, Failed) and crooked.failure == "compile_error"
    assert isinstance(sound, Built)
    (late,) = there.build([(TASK, good)], TARGET, tmp_path, 1e-4)
    assert isinstance(late, Failed) and late.failure == "build_timeout"
    (again,) = there.build([(TASK, good)], TARGET, tmp_path, 60.0)
    assert isinstance(again, Built)


def test_a_killed_builder_costs_one_candidate(dask: Dask, there: Cluster, tmp_path: Path) -> None:
    answers: list[Built | Failed] = []
    jobs = [(TASK, c) for c in space(TASK)]
    work = threading.Thread(
        target=lambda: answers.extend(there.build(jobs, TARGET, tmp_path, 60.0))
    )
    work.start()
    time.sleep(0.2)
    assert dask.worker is not None
    family = tree(dask.worker.pid)
    builders = [p for p in family if "measure.worker" in Path(f"/proc/{p}/cmdline").read_text()]
    for pid in builders[:1]:
        os.kill(pid, signal.SIGKILL)
    work.join(timeout=120)
    assert len(answers) == len(jobs)
    assert sum(isinstance(a, Failed) for a in answers) <= len(builders)


def test_a_model_is_tuned_by_builders_elsewhere(dask: Dask, tmp_path: Path) -> None:
    report = api.tune(
        MODEL, out=tmp_path / "net.tvmsep", threads=1, trials=60, builders=dask.address
    )
    trials = [t for t in read_log(tmp_path / "net.jsonl") if t.phase == "search"]
    assert report.check is not None and len(trials) == 60
    assert not [t.detail for t in trials if t.failure]


def test_a_cluster_that_goes_away_leaves_the_work_to_this_host(tmp_path: Path) -> None:
    it = Dask(tmp_path)
    try:
        it.add_worker()
        with Farm(load_target("local"), builders=it.address) as farm:
            jobs = [(TASK, c) for c in space(TASK)[:3]]
            assert all(isinstance(a, Built) for a in farm.build(jobs))
            it.close()
            assert all(isinstance(a, Built) for a in farm.build(jobs))
            (note,) = farm.notes
            assert f"the builders at {it.address} have gone" in note
            assert farm.builders >= 1
    finally:
        it.close()


def refused(address: str) -> str:
    start = time.monotonic()
    done = run("tune", MODEL, "--builders", address, "-o", "refused.tvmsep")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert time.monotonic() - start < 30
    return next(line for line in done.stderr.splitlines() if line.startswith("error: "))


def test_what_is_no_address_is_refused() -> None:
    for text in ("0", "udp://a:1", "tcp://a", "many"):
        assert "--builders" in refused(text)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "no Dask scheduler" in refused(f"tcp://127.0.0.1:{silent.getsockname()[1]}")


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 3.0)
    with pytest.raises(BoardError, match="no Dask scheduler answers"):
        Cluster(f"tcp://127.0.0.1:{free_port()}", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(BoardError, match="no Dask scheduler answers"):
            Cluster(f"tcp://127.0.0.1:{silent.getsockname()[1]}", 1.0)


def test_no_worker_and_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = Dask(tmp_path)
    monkeypatch.setattr(cluster, "CONNECT_S", 3.0)
    try:
        with pytest.raises(BoardError, match="no worker; `dask worker tcp://"):
            Cluster(it.address, 1.0)
        it.add_worker()
        until(lambda: "Registered to" in (tmp_path / "worker.log").read_text(), "the worker")
        monkeypatch.setattr(cluster, "metadata", SimpleNamespace(version=lambda package: "0.1"))
        with pytest.raises(BoardError, match="install the same on both"):
            Cluster(it.address, 1.0)
    finally:
        it.close()
