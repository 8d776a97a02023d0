"""Board runtimes: built, served on loopback, hurt by candidates; and what cannot be built."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards_kit import Running, free_port, run, running, until
from runtime_kit import Server, build

from tvmsep.boards import build_runtime
from tvmsep.codegen import kernel
from tvmsep.contracts import InputError, Target, Task, Workload
from tvmsep.measure import Built, builder, facts, harness, host
from tvmsep.measure import load as loads
from tvmsep.measure.lock import Scratch
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a runtime for Linux boards")
W = Workload(
    op="pointwise", ic=32, oc=40, ih=7, iw=7, in_block=16, out_block=16, epilogue=("bias", "relu6")
)
HANG = 'for i in range(2000000000):\n    T.evaluate(T.call_extern("int32", "usleep", 10))'
SMALL = "mobilenet_v1:width=0.25,resolution=32"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("local", tmp_path_factory.mktemp("built") / "runtime")


@pytest.fixture
def server(runtime: Path, tmp_path: Path) -> Iterator[Server]:
    it = Server(runtime, tmp_path / "scratch")
    yield it
    it.stop()


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("local")


@pytest.fixture(scope="module")
def task(target: Target) -> Task:
    return Task(workload=W, target=target.name, threads=target.cores, template="pointwise@1")


@pytest.fixture
def candidate(target: Target, task: Task, tmp_path: Path) -> Callable[[str], Built]:
    """Makes a library of a kernel body in TVMScript, or of the default config for ""."""

    def make(body: str) -> Built:
        import tvm

        if not body:
            config = TEMPLATES["pointwise"].default(W, target, task.threads)
            func = kernel(W, target, "pointwise", config)
        else:
            shapes = {"x": W.in_shape, "w": (3, 32, 16), "bias": (3, 16), "out": W.out_shape}
            params = ", ".join(f'{n}: T.Buffer({s}, "float32")' for n, s in shapes.items())
            head = f"@T.prim_func(s_tir=True)\ndef main({params}):\n"
            func = tvm.script.from_source(head + textwrap.indent(body, "    "))
        folder = tmp_path / f"candidate{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return builder.link_candidate(func, task, target, folder)

    return make


def load(server: Server, built: Built, limit_s: float = 30) -> tuple[Any, Any, list[Any]]:
    from tvm import rpc
    from tvm.runtime import tensor

    remote = rpc.connect("127.0.0.1", server.port, "k", session_timeout=limit_s)
    remote.upload(str(built.so), "k.so")
    shapes = (W.in_shape, (3, 32, 16), (3, 16), W.out_shape)
    args = [tensor(np.ones(s, np.float32), remote.cpu()) for s in shapes]
    return remote, remote.load_module("k.so"), args


def sound(server: Server, built: Built) -> None:
    """A session that computes and is timed."""
    remote, module, args = load(server, built)
    timed = module.time_evaluator(harness.KERNEL, remote.cpu(), number=3)(*args)
    assert timed.mean > 0
    assert (args[3].numpy() == 6).all()
    assert remote.download("k.so") == built.so.read_bytes()


def test_a_stock_client_is_served(
    server: Server, target: Target, candidate: Callable[[str], Built]
) -> None:
    from tvm import rpc

    with pytest.raises(RuntimeError, match="key=client:another"):
        rpc.connect("127.0.0.1", server.port, "another")
    sound(server, candidate(""))
    remote = rpc.connect("127.0.0.1", server.port, "k", session_timeout=30)
    assert remote.get_function("runtime.NumThreads")() == target.cores
    assert remote.get_function(host.FUNCTION)() == host.host_id()
    here, there = facts.collect(), json.loads(remote.get_function("tvmsep.facts")())
    same = ("machine", "bits", "cpu", "vendor", "cores", "parts", "features", "caches", "governors",
            "memory_bytes", "kernel", "tvm", "tvm_ffi", "tvmsep", "throttled", "home")  # fmt: skip
    assert {k: here[k] for k in same} == {k: there[k] for k in same}
    said = json.loads(remote.get_function(loads.FUNCTION)())
    known = loads.reading()
    assert said.keys() == known.keys() and len(said["ticks"]) == len(known["ticks"])
    assert loads.between(said, said, 1.0).others in (0.0, None)
    assert remote.get_function("tvmsep.config_threads")(1) == 1
    with pytest.raises(Exception, match="linked"):
        remote.get_function("tvm.rpc.server.download_linked_module")("k.tar")


def test_a_crash_takes_only_its_session(server: Server, candidate: Callable[[str], Built]) -> None:
    _, module, args = load(server, candidate('T.evaluate(T.call_extern("int32", "abort"))'))
    with pytest.raises(RuntimeError):
        module[harness.KERNEL](*args)
    server.hears("ended by signal 6")
    del module, args
    sound(server, candidate(""))


def test_its_folder_is_its_own(
    server: Server, candidate: Callable[[str], Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other servers leave it alone, a removed one is made anew, a dead server's is removed."""
    built = candidate("")
    (own,) = server.scratch.iterdir()
    left = server.scratch / (own.name[:-6] + "000000")
    left.mkdir()
    for folder in (own, left):
        os.utime(folder, (time.time() - 60,) * 2)
    monkeypatch.setattr("tempfile.tempdir", str(server.scratch))
    Scratch("tvmsep-server-").close()
    assert own.is_dir()
    shutil.rmtree(own)
    sound(server, built)
    (again,) = [p for p in server.scratch.iterdir() if p != left]
    second = Server(server.runtime, server.scratch.with_name("second"), within=server.scratch)
    assert again.is_dir() and not left.exists()
    second.stop(empty=False)


def test_a_session_has_a_limit(server: Server, candidate: Callable[[str], Built]) -> None:
    _, module, args = load(server, candidate(HANG), limit_s=1.5)
    start = time.monotonic()
    with pytest.raises(RuntimeError):
        module[harness.KERNEL](*args)
    assert time.monotonic() - start < 10
    server.hears("reached its time limit")
    del module, args
    sound(server, candidate(""))


def test_a_client_that_leaves_leaves_nothing(
    server: Server, candidate: Callable[[str], Built]
) -> None:
    code = f"""
        import numpy as np
        from tvm import rpc
        from tvm.runtime import tensor
        remote = rpc.connect("127.0.0.1", {server.port}, "k")
        remote.upload({str(candidate(HANG).so)!r}, "k.so")
        args = [tensor(np.ones(s, np.float32), remote.cpu())
                for s in ({W.in_shape}, (3, 32, 16), (3, 16), {W.out_shape})]
        module = remote.load_module("k.so")
        print("now", flush=True)
        module[{harness.KERNEL!r}](*args)
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None and client.stdout.readline() == b"now\n"
        time.sleep(0.2)
        assert server.sessions()
        client.kill()
    until(lambda: not server.sessions(), "the end of the session", 10)
    server.hears("client left in mid-computation")
    sound(server, candidate(""))


def test_registered_tuned_and_quarantined(runtime: Path, tmp_path: Path) -> None:
    from tvm import rpc

    port = free_port()
    at = f"127.0.0.1:{port}"

    def listed() -> Any:
        said = run("boards", "--rpc", at, "--json").stdout or '{"boards": []}'
        (board,) = json.loads(said)["boards"] or (None,)  # a tracker that starts says nothing yet
        return board

    with running(tmp_path, "tracker", "--port", str(port)) as tracker:
        server = Server(runtime, tmp_path / "scratch", "--tracker", at)
        try:
            server.hears("registered as k")
            board = listed()
            assert board["ours"] and board["state"] == "free"
            assert board["facts"]["cpu"] == facts.collect()["cpu"]
            seen = run("board", "doctor", "--rpc", at, "--key", "k", "--target", "local")
            assert seen.returncode == 0 and "on both ends" in seen.stdout, seen.stdout + seen.stderr
            words = ["tune", SMALL, "--rpc", at, "--key", "k", "--target", "local", "--cold"]
            words += [
                "--threads",
                "1",
                "--trials",
                "3",
                "-o",
                str(tmp_path / "net.tvmsep"),
                "--json",
            ]
            done = run(*words, timeout=300)
            assert done.returncode == 0, done.stderr
            assert (tmp_path / "net.tvmsep").exists()
            until(lambda: listed()["state"] == "free", "the board free again", 20)
            assert listed()["trials"] >= 3
            remote = rpc.connect("127.0.0.1", server.port, "k", session_timeout=30)
            until(lambda: listed()["state"] == "busy", "the board busy", 20)
            remote.get_function("tvmsep.quarantine")('it is "odd"')
            del remote
            until(lambda: listed()["state"] == "quarantined", "the quarantine", 20)
            assert listed()["why"] == 'it is "odd"'
            tracker.stop()
            with running(tmp_path, "tracker", "--port", str(port)) as again:
                assert isinstance(again, Running)
                until(lambda: server.log.read_text().count("registered as k") >= 2, "it again", 30)
                until(lambda: listed() is not None, "the board at the new tracker", 20)
        finally:
            server.stop()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--key KEY"),
        (("--key", "a b"), "letters, digits"),
        (("--key", "k", "--port", "x"), "--port x"),
        (("--key", "k", "--colour", "red"), "--colour: unknown"),
        (("--key", "k", "--threads"), "--threads: unknown, or without its value"),
        (("--key", "k", "--tracker", "here"), "write host:9190"),
        (("--key", "k", "--tracker", "192.0.2.1:9190"), "add --host"),
        (("--key", "k", "--host", "192.0.2.1"), "cannot listen on 192.0.2.1"),
    ],
)
def test_a_mistake_is_answered(runtime: Path, words: tuple[str, ...], says: str) -> None:
    done = subprocess.run(
        [runtime / "tvmsep-server", *words], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_an_open_port_is_warned_of(runtime: Path) -> None:
    words = [runtime / "tvmsep-server", "--key", "k", "--host", "0.0.0.0", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as proc:
        assert proc.stderr is not None
        assert "has no password" in proc.stderr.readline()
        proc.send_signal(signal.SIGINT)
        assert proc.wait(timeout=10) == 0


def test_folder_is_whole(runtime: Path) -> None:
    about = json.loads((runtime / "runtime.json").read_text())
    assert about["versions"]["tvm"] == facts.collect()["tvm"]
    assert {*about["sha256"], "runtime.json"} == {
        str(p.relative_to(runtime)) for p in runtime.rglob("*") if p.is_file()
    }
    assert os.access(runtime / "tvmsep-server", os.X_OK)
    text = (runtime / "README.md").read_text()
    assert "{" not in text and about["triple"] in text
    licences = {p.name for p in (runtime / "licenses").iterdir()}
    assert {"tvm-NOTICE.txt", "tvm-ffi-LICENSE.txt", "libcxx-LICENSE.txt"} <= licences


# Building


def written(tmp_path: Path, triple: str) -> str:
    text = (Path(__file__).parents[1] / "targets/aarch64.toml").read_text()
    path = tmp_path / "other.toml"
    path.write_text(text.replace("aarch64-unknown-linux-gnu", triple))
    return str(path)


def refused(tmp_path: Path, *words: str, **env: str) -> str:
    out = tmp_path / "out"
    done = run("board", "build-runtime", "-o", str(out), *words, **env)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert not out.exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]
    return done.stderr


def test_targets_without_a_runtime(tmp_path: Path) -> None:
    assert "no-such" in refused(tmp_path, "--target", "no-such")
    for triple in ("arm64-apple-macos", "aarch64-unknown-linux-musl"):
        said = refused(tmp_path, "--target", written(tmp_path, triple))
        assert f"({triple}) is not Linux with glibc" in said


def test_a_compiler_that_fails(tmp_path: Path) -> None:
    other = written(tmp_path, "powerpc64le-unknown-linux-gnu")
    said = refused(tmp_path, "--target", other, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert "facts.cc does not compile for powerpc64le" in said and "unknown machine" in said
    assert not list((tmp_path / "cache").rglob("runtime.json"))


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_target("aarch64")
    with pytest.raises(InputError, match="exists"):
        build_runtime.build(target, tmp_path, print)
    with pytest.raises(InputError, match="is no folder"):
        build_runtime.build(target, tmp_path / "a/b", print)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    with pytest.raises(InputError, match="cannot write /proc/none"):
        build_runtime.build(target, tmp_path / "new", print)
    assert not list(tmp_path.iterdir())


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmsep.codegen import link

    monkeypatch.setattr(link.util, "find_spec", lambda _: None)
    link.zig.cache_clear()
    try:
        with pytest.raises(link.LinkError, match="pip install"):
            build_runtime.build(load_target("aarch64"), tmp_path / "new", print)
    finally:
        link.zig.cache_clear()


def test_two_at_once_and_a_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    together, made = threading.Barrier(2), []

    def make(triple: str, folder: Path, cache: Path) -> Path:
        made.append(triple)
        if len(made) <= 2:
            together.wait(timeout=20)
        folder /= "made"
        folder.mkdir()
        (folder / "tvmsep-server").write_text("program")
        digest = build_runtime._sha256(folder / "tvmsep-server")
        about = {"sha256": {"tvmsep-server": digest}}
        (folder / build_runtime.ABOUT).write_text(json.dumps(about))
        return folder

    monkeypatch.setattr(build_runtime, "_make", make)
    target, outs = load_target("aarch64"), [tmp_path / "a", tmp_path / "b"]
    compiled: list[bool] = []

    def one(out: Path) -> None:
        compiled.append(build_runtime.build(target, out, lambda _: None))

    threads = [threading.Thread(target=one, args=(out,)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert compiled == [True, True]
    for out in outs:
        assert (out / "tvmsep-server").read_text() == "program"
    assert not build_runtime.build(target, tmp_path / "c", print)
    (kept,) = (tmp_path / "cache/tvmsep/runtimes").iterdir()
    (kept / "tvmsep-server").write_text("progra")
    assert build_runtime.build(target, tmp_path / "d", print)
    assert (tmp_path / "d/tvmsep-server").read_text() == "program"
    assert not build_runtime.build(target, tmp_path / "e", print) and len(made) == 3
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]
