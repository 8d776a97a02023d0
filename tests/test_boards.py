"""Trackers and boards as a user meets them: they stay up, stay registered, and leave nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from boards_kit import LOOPBACK, Running, children, free_port, listening, run, running, tree, until
from test_tuner import a_trial

from tvmsep.boards import doctor, new_target
from tvmsep.boards.examine import Steadiness
from tvmsep.boards.facts import Cache, Facts, here, misfit
from tvmsep.boards.lookup import summary
from tvmsep.contracts import BoardError
from tvmsep.logs import LogFile
from tvmsep.measure import facts as collected
from tvmsep.rpc.protocol import PUT, REQUEST, SUMMARY, UPDATE_INFO, TrackerLine
from tvmsep.targets import load_target

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MODEL = "mobilenet_v1:width=0.25,resolution=32"
OURS = {"machine": "x86_64", "features": ["avx2", "fma", "bmi2"], "tvm": here().tvm}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Running, int]]:
    """A tracker and a board, for tests that leave both as they were."""
    folder, port = tmp_path_factory.mktemp("boards"), free_port()
    with ExitStack() as stack:
        tracker = stack.enter_context(running(folder, "tracker", "--port", str(port)))
        words = ["--key", "pi", "--tracker", f"127.0.0.1:{port}", "--port", "0"]
        board = stack.enter_context(running(folder, "board", "serve", *words))
        board.hears("registered as pi")
        yield tracker, board, port


def state(port: int, key: str = "pi") -> str:
    """`free`, `busy`, or nothing while the tracker or the board is away."""
    try:
        boards = summary(("127.0.0.1", port)).of(key)
    except BoardError:
        return ""
    return boards[0].state if len(boards) == 1 else ""


def request(port: int, key: str = "pi") -> Any:
    from tvm import rpc

    return rpc.connect_tracker("127.0.0.1", port).request(key, session_timeout=60, max_retry=1)


def test_sessions_through_the_tracker(up: tuple[Running, Running, int]) -> None:
    _, _, port = up
    for _ in range(3):  # a new ticket each time
        remote = request(port)
        until(lambda: state(port) == "busy", "busy")
        facts = json.loads(remote.get_function("tvmsep.facts")())
        assert facts["tvm"] == here().tvm and facts["cores"] == here().cores
        seen = summary(("127.0.0.1", port)).of("pi")[0]
        assert seen.state_s is not None and seen.state_s < 60 and seen.trials == 0
        del remote
        until(lambda: state(port) == "free", "free again")


def test_a_quarantined_board_is_shown_until_a_run_takes_it_back(
    up: tuple[Running, Running, int], tmp_path: Path
) -> None:
    _, _, port = up
    words = ["boards", "--rpc", f"127.0.0.1:{port}", "--key", "pi"]
    for why in ("it is odd\nindeed", ""):
        remote = request(port)
        remote.get_function("tvmsep.quarantine")(why)
        del remote
        until(lambda: state(port) == ("quarantined" if why else "free"), "the verdict")  # noqa: B023
        shown, board = run(*words).stdout, summary(("127.0.0.1", port)).of("pi")[0]
        assert board.state_s is not None and board.state_s < 60
        assert ("is quarantined: it is odd indeed" in shown) == bool(why)
    assert request(port).get_function("tvmsep.cpu")()  # it was lent all the time
    log = tmp_path / "log.jsonl"
    with LogFile(log) as file:
        file.append(a_trial(failure="crash", times_s=(), board="pi@here"))
        file.append(a_trial(failure="compile_error", times_s=()))
    shown = run(*words, "--log", str(log)).stdout
    assert "quarantined config" in shown and "pi@here" in shown and "compile" not in shown
    (bad,) = json.loads(run(*words, "--log", str(log), "--json").stdout)["quarantined"]
    assert bad["failure"] == "crash" and bad["since"]


def test_a_ticket_that_nobody_uses_is_replaced(up: tuple[Running, Running, int]) -> None:
    _, _, port = up
    with TrackerLine(("127.0.0.1", port)) as line:
        code, (_, _, ticket) = line.call(REQUEST, "pi", "", 1)
        assert code == 0 and ticket.startswith("pi:")
        assert summary(("127.0.0.1", port)).queues["pi"].free == 0
        until(lambda: summary(("127.0.0.1", port)).queues["pi"].free == 1, "a new ticket", 30)


def test_a_direct_client_withdraws_the_board(up: tuple[Running, Running, int]) -> None:
    from tvm import rpc

    _, board, port = up
    at = int(board.out.read_text().rsplit(":", 1)[1])
    remote = rpc.connect("127.0.0.1", at, "pi")
    until(lambda: state(port) == "busy", "busy")
    until(lambda: summary(("127.0.0.1", port)).queues["pi"].free == 0, "no ticket")
    del remote
    until(lambda: summary(("127.0.0.1", port)).queues["pi"].free == 1, "a ticket again")


def test_the_tracker_survives_garbage(up: tuple[Running, Running, int]) -> None:
    tracker, _, port = up
    (child,) = children(tracker.proc.pid, "tracker_child")
    magic = struct.pack("<i", 0x2F271)
    lines = []
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n", b"\0", os.urandom(8192), magic + b"\xff" * 4,
        magic + struct.pack("<i", 3) + b"\xff\xfe{", magic + struct.pack("<i", 1 << 30),
        magic + struct.pack("<i", 4) + b"null", magic + struct.pack("<i", 2) + b"[]",
    ):  # fmt: skip
        line = socket.create_connection(("127.0.0.1", port), timeout=5)
        line.sendall(garbage[:4])
        time.sleep(0.05)
        line.sendall(garbage[4:])
        lines.append(line)  # held open: nobody may wait for it
    assert state(port) == "free"
    for line in lines:
        line.close()
    assert children(tracker.proc.pid, "tracker_child") == [child]


def test_default_commands_listen_on_loopback_only(
    up: tuple[Running, Running, int], tmp_path: Path
) -> None:
    for it in up[:2]:
        found = listening(tree(it.proc.pid))
        assert found and all(a.startswith(LOOPBACK) for a in found), found
    proc = subprocess.Popen(
        [sys.executable, "-m", "tvmsep.cli", "tune", MODEL, "--trials", "3", "--threads", "1"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seen: set[str] = set()
    while proc.poll() is None:
        seen |= listening(tree(proc.pid))
        time.sleep(0.1)
    assert proc.returncode == 0
    assert seen and all(a.startswith(LOOPBACK) for a in seen), seen


def test_the_check_of_sockets_sees_an_open_one() -> None:
    with socket.create_server(("0.0.0.0", 0)):
        assert not all(a.startswith(LOOPBACK) for a in listening([os.getpid()]))


@pytest.mark.parametrize("who", ["the board's server", "the tracker"])
def test_a_killed_process_is_replaced(up: tuple[Running, Running, int], who: str) -> None:
    tracker, board, port = up
    it, word = (tracker, "tracker_child") if "tracker" in who else (board, "measure.server")
    (pid, *_) = children(it.proc.pid, word)
    os.kill(pid, signal.SIGKILL)
    until(lambda: children(it.proc.pid, word) not in ([], [pid]), "another process")
    until(lambda: state(port) == "free", "the board at the tracker", 30)
    remote = request(port)
    assert remote.get_function("tvmsep.cpu")()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_orphans(tmp_path: Path, number: int) -> None:
    port = free_port()
    at = f"127.0.0.1:{port}"
    tracker = Running(tmp_path, "tracker", "--port", str(port))
    tracker.hears("tracker at")
    board = Running(tmp_path, "board", "serve", "--key", "pi", "--tracker", at, "--port", "0")
    board.hears("registered as pi")
    remote = request(port)  # a session's process is there too
    until(lambda: len(children(board.proc.pid, "measure.server")) == 2, "a session")
    codes = [it.stop(number) for it in (board, tracker)]
    assert codes == ([-9, -9] if number == signal.SIGKILL else [0, 0])
    del remote


def test_a_board_waits_for_its_tracker(tmp_path: Path) -> None:
    port = free_port()
    at = f"127.0.0.1:{port}"
    with running(tmp_path, "board", "serve", "--key", "pi", "--tracker", at, "--port", "0") as it:
        it.hears("no registration with the tracker")
        for _ in range(2):  # the tracker comes, goes, and comes back
            with running(tmp_path, "tracker", "--port", str(port)):
                until(lambda: state(port) == "free", "the board at the tracker", 30)


def test_boards_lists_stock_servers_too(up: tuple[Running, Running, int]) -> None:
    _, _, port = up
    with TrackerLine(("127.0.0.1", port)) as line:
        line.call(UPDATE_INFO, {"key": "server:orin", "addr": [None, 9]})
        line.call(PUT, "orin", [9, "orin:0.5"], None)
        done = run("boards", "--rpc", f"127.0.0.1:{port}", "--json")
        rows = {b["key"]: b for b in json.loads(done.stdout)["boards"]}
        assert rows["orin"]["state"] == "free" and not rows["orin"]["ours"]
        assert rows["pi"]["facts"]["tvm"] == here().tvm and rows["pi"]["state"] == "free"
        with TrackerLine(("127.0.0.1", port)) as client:
            client.call(REQUEST, "orin", "", 1)
            assert state(port, "orin") == "busy"
            table = run("boards", "--rpc", f"127.0.0.1:{port}", "--key", "orin").stdout
            assert "127.0.0.1:9  busy" in table and "pi" not in table


# What is refused, and how


def refused(*words: str, says: list[str]) -> None:
    start = time.monotonic()
    done = run(*words)
    took = time.monotonic() - start
    assert done.returncode == 2 and done.stdout == "", (done.returncode, done.stdout, done.stderr)
    assert took < 10, f"{took:.1f} s"
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    print(f"{took:.1f} s  {error}")  # pytest -s
    assert "Traceback" not in done.stderr
    for text in says:
        assert text in error, error


@pytest.fixture
def fake() -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """A tracker of a few lines, whose boards the test invents."""
    boards: list[dict[str, Any]] = []

    def serve() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            with line:
                line.sendall(line.recv(4))
                size = struct.unpack("<i", line.recv(4))[0]
                assert json.loads(line.recv(size)) == [SUMMARY]
                answer = json.dumps([0, {"queue_info": {}, "server_info": boards}]).encode()
                line.sendall(struct.pack("<i", len(answer)) + answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], boards
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({**OURS, "tvm": "0.26.0"}, ["TVM 0.26.0", here().tvm, "on both"]),
        ({**OURS, "machine": "aarch64"}, ["is for x86_64", "board is aarch64"]),
        ({**OURS, "features": ["avx2"]}, ["fma, bmi2", "lacks"]),
    ],
    ids=["version", "machine", "features"],
)
def test_tune_refuses_a_board_that_does_not_suit(
    fake: tuple[int, list[dict[str, Any]]], about: dict[str, Any], says: list[str]
) -> None:
    port, boards = fake
    boards.append({"key": "server:pi", "addr": ["127.0.0.1", 9], "tvmsep": about})
    at = f"127.0.0.1:{port}"
    refused("tune", MODEL, "--target", "x86-avx2", "--rpc", at, "--key", "pi", says=says)


def test_tune_refuses_a_wrong_key_and_a_wrong_tracker(
    up: tuple[Running, Running, int], tmp_path: Path
) -> None:
    _, board, port = up
    server = board.out.read_text().split()[-1]
    nobody = f"127.0.0.1:{free_port()}"

    def tune(at: str, *key: str, says: list[str]) -> None:
        refused("tune", MODEL, "-o", str(tmp_path / "n.tvmsep"), "--rpc", at, *key, says=says)

    tune(f"127.0.0.1:{port}", "--key", "rpi4", says=["lends no board rpi4", "it has pi"])
    tune(f"127.0.0.1:{port}", says=["--key NAME"])
    tune(nobody, "--key", "pi", says=[nobody, "refused", "tvmsep tracker"])
    tune(server, "--key", "pi", says=[server, "not a tracker"])
    tune("no-such-host.invalid:9190", "--key", "pi", says=["no-such-host.invalid:9190"])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        tune(at, "--key", "pi", says=[at, "no answer within 5 s"])
    assert not list(tmp_path.iterdir())


def test_doctor_and_targets_new_refuse(up: tuple[Running, Running, int], tmp_path: Path) -> None:
    _, board, port = up
    server = board.out.read_text().split()[-1]
    tracker, nobody = f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}"
    new = ["targets", "new", "t", "-o", str(tmp_path / "t.toml")]
    for words in (["board", "doctor"], new):
        refused(*words, "--rpc", tracker, "--key", "x", says=["no board x", "it has pi"])
        refused(*words, "--rpc", server, "--key", "x", says=[server, "another key"])
        refused(*words, "--rpc", nobody, "--key", "pi", says=[nobody, "refused", "tvmsep tracker"])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        refused("boards", "--rpc", at, says=["no answer within 5 s"])
    refused("boards", "--rpc", server, says=[server, "not a tracker"])
    refused("tracker", "--port", str(port), says=[str(port), "in use", "--port"])
    at = server.rsplit(":", 1)[1]
    refused("board", "serve", "--key", "pi", "--port", at, says=[at, "in use", "--port"])
    refused("board", "serve", "--key", "a b", says=["'a b'", "letters"])
    refused("boards", "--rpc", "h:²", says=["h:²", "write host:9190"])
    refused("boards", "--rpc", "a..b:9190", says=["--rpc", "'a..b'", "no host"])
    refused("tracker", "--host", "a..b", says=["--host", "'a..b'", "no host"])
    refused("board", "serve", "--key", "pi", "--host", "a..b", says=["--host", "no host"])
    nowhere = str(tmp_path / "none" / "x.json")
    for more in ([], ["--detach"]):
        refused("board", "serve", "--key", "pi", "--port", "0", "--state", nowhere, *more,
                says=["cannot write", str(tmp_path / "none"), "choose another"])  # fmt: skip
    refused("board", "serve", "--key", "pi", "--tracker", "192.0.2.1:9190", says=["--host"])
    assert not list(tmp_path.iterdir())


def test_an_address_that_is_none_is_not_reached() -> None:
    """As a tracker may name it: an error like any other of a socket."""
    with pytest.raises(OSError, match="is no address"):
        TrackerLine(("a..b", 9))


def test_an_open_port_is_warned_of(tmp_path: Path) -> None:
    with running(tmp_path, "tracker", "--host", "0.0.0.0", "--port", "0") as it:
        it.hears("tracker at")
        assert it.said("no password") and it.said("runs code")


# Doctor and target files


def levels(findings: list[dict[str, str]]) -> dict[str, str]:
    return {f["check"]: f["level"] for f in findings}


def test_doctor_on_a_board(up: tuple[Running, Running, int], tmp_path: Path) -> None:
    _, _, port = up
    words = ["board", "doctor", "--rpc", f"127.0.0.1:{port}", "--key", "pi", "--json"]
    done = run(*words, "--target", "local")
    assert done.returncode == 0, done.stdout + done.stderr
    seen = levels(json.loads(done.stdout)["findings"])
    for check in ("reachable", "TVM", "ISA", "threads", "timer", "kernel"):
        assert seen[check] == "ok", done.stdout
    assert seen["noise"] in ("ok", "warn")
    arm = tmp_path / "arm.toml"
    arm.write_text(Path("targets/x86-avx2.toml").read_text().replace("x86_64", "aarch64"))
    done = run(*words, "--target", str(arm))
    assert done.returncode == 1
    seen = levels(json.loads(done.stdout)["findings"])
    assert seen["ISA"] == "bad" and "kernel" not in seen


def test_doctor_leaves_a_stock_server_as_it_was(tmp_path: Path) -> None:
    """It stops listening when a client is cut off; so both examinations must find it."""
    port = free_port()
    at = ["--rpc", f"127.0.0.1:{port}", "--key", "pi"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1", "--key", "pi",
             "--port", str(port), "--port-end", str(port + 1)],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: "bind to" in (tmp_path / "log").read_text(), "the stock server")
        for _ in range(2):
            done = run("board", "doctor", *at, "--target", "local", "--json")
            assert done.returncode == 0, done.stdout + done.stderr
            seen = levels(json.loads(done.stdout)["findings"])
            assert (seen["TVM"], seen["ISA"], seen["kernel"]) == ("unknown", "ok", "ok")
        new = ["targets", "new", "t", "-o", str(tmp_path / "t.toml")]
        refused(*new, *at, says=["stock TVM server", "board serve"])
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(timeout=10)


def test_doctor_on_this_host() -> None:
    done = run("board", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GFLOP/s on one core" in done.stdout and "\ncan be tuned" in done.stdout


@pytest.mark.parametrize("folder", ["boards/new", "~/boards", "~nobody-here/x", "/boards/new"])
def test_facts_about_a_folder_that_is_yet_to_be(folder: str) -> None:
    done = subprocess.run(
        [sys.executable, "-", folder],
        input=Path(collected.__file__).read_bytes(), capture_output=True, timeout=30,
    )  # fmt: skip
    seen = json.loads(done.stdout)
    assert seen["disk_free_bytes"] > 0 and seen["bits"] == here().bits in (32, 64)


def test_doctor_judges() -> None:
    good = Facts(cores=4, timer_ns=50, memory_bytes=4 << 30, available_bytes=3 << 30,
                 governors=("performance",), throttled=False)  # fmt: skip

    def of(**changes: Any) -> dict[str, str]:
        found = doctor.judge(msgspec.structs.replace(good, **changes))
        return {f.check: f.level for f in found if f.level != "ok"}

    assert of() == {}
    assert of(timer_ns=1_000_000) == {"timer": "warn"}
    assert of(governors=("ondemand", "performance")) == {"clock": "warn"}
    assert of(throttled=True) == {"clock": "warn"}
    assert of(celsius=82.0) == {"clock": "warn"}
    assert of(governors=(), throttled=None) == {"clock": "unknown"}
    assert of(available_bytes=100 << 20) == {"memory": "warn"}
    assert of(parts=("0x41 0xd03", "0x41 0xd09")) == {"cores": "warn"}
    assert of(load=9.0) == {"load": "warn"}


def test_doctor_sees_noise_and_slowing_down() -> None:
    def of(times: list[float]) -> dict[str, str]:
        return {f.check: f.level for f in doctor.steady(Steadiness(tuple(times), 1e9))}

    assert of([1.0, 1.001] * 50) == {"noise": "ok"}
    assert of([1.0, 1.1] * 60) == {"noise": "warn"}
    assert of([1 + 0.001 * i for i in range(100)])["drift"] == "warn"


def test_targets_new_writes_what_tune_takes(
    up: tuple[Running, Running, int], tmp_path: Path
) -> None:
    _, _, port = up
    out = tmp_path / "pi.toml"
    words = ["targets", "new", "pi", "-o", str(out)]
    done = run(*words, "--from-board", f"127.0.0.1:{port}/pi")
    assert done.returncode == 0, done.stderr
    target, facts = load_target(str(out)), here()
    assert (target.name, target.cores) == ("pi", facts.cores)
    assert target.l2_bytes == (facts.cache_bytes(2) or 262144)
    assert facts.cpu in target.source and f"127.0.0.1:{port}" in target.source
    assert misfit(facts, target) is None
    refused(*words, says=["exists"])
    refused("targets", "new", "No Name", says=["no name of a target"])
    assert [p.name for p in tmp_path.iterdir()] == ["pi.toml"]
    assert run("targets").stdout.startswith("target")


PI4 = Facts(
    machine="aarch64", system="Linux", cpu="Raspberry Pi 4 Model B Rev 1.4", cores=4,
    parts=("0x41 0xd08",), features=("asimd", "crc32", "fp"), memory_bytes=4 << 30,
    caches=(Cache(1, "data", 32 << 10, "0"), Cache(2, "unified", 1 << 20, "0-3")),
)  # fmt: skip


def test_a_target_for_an_arm_board(tmp_path: Path) -> None:
    target, unknown = new_target.guess(PI4, "pi4", "a test")
    path = tmp_path / "pi4.toml"
    path.write_text(new_target.as_toml(target, unknown, PI4))
    assert load_target(str(path)) == target
    assert (target.mcpu, target.lanes, target.l2_bytes) == ("cortex-a72", 4, 1 << 20)
    assert "check it" in path.read_text() and "Cortex-A72" in target.source
    assert misfit(PI4, target) is None and misfit(here(), target) is not None
    pi5 = msgspec.structs.replace(PI4, parts=("0x41 0xd0b",), features=("asimd", "asimdhp"))
    able = new_target.guess(pi5, "pi5", "a test")[0]
    assert able.half_arithmetic and not target.half_arithmetic and misfit(PI4, able) is not None
    odd = msgspec.structs.replace(PI4, parts=("0x61 0x22",))
    assert new_target.guess(odd, "m1", "a test")[0].mcpu == "generic"
    with pytest.raises(BoardError, match="armv7l"):
        new_target.guess(msgspec.structs.replace(PI4, machine="armv7l"), "x", "a test")
