"""Deploying to a board over ssh, for real: an sshd on loopback stands in for the board."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from boards_kit import Running, Sshd, alive, free_port, run, running, sshd, tree, until
from runtime_kit import BUILD_TIMEOUT_S, cache

from tvmsep.boards import background, deploy, deploy_runtime, remove, wheel
from tvmsep.boards.facts import Facts, here
from tvmsep.boards.ssh import Ssh
from tvmsep.boards.supervise import START_TIMEOUT_S as SUPERVISED_S
from tvmsep.contracts import BoardError
from tvmsep.targets import load_target

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
DESTINATION = f"{getpass.getuser()}@127.0.0.1"


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    # pytest's own folders have names too long for a Unix socket.
    with tempfile.TemporaryDirectory(prefix="tvmsep-ssh-") as folder, sshd(Path(folder)) as it:
        yield it


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[tuple[Running, str]]:
    port = free_port()
    with running(tmp_path, "tracker", "--port", str(port)) as it:
        it.hears("tracker at")
        yield it, f"127.0.0.1:{port}"


def board(server: Sshd, *words: str, state: Path, timeout: float = 300.0, **env: str) -> str:
    done = run("board", words[0], DESTINATION, *words[1:], *server.options, timeout=timeout,
               XDG_STATE_HOME=str(state), **env)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_deploy_reconnect_undeploy(
    server: Sshd, tracker: tuple[Running, str], tmp_path: Path
) -> None:
    folder = server.folder / "board"
    said = board(
        server, "deploy", "--target", "local", "--key", "pi", "--dir", str(folder),
        "--python", sys.executable, "--no-install", "--tracker", tracker[1], state=tmp_path,
    )  # fmt: skip
    assert f"tvmsep tune MODEL --target local --rpc {tracker[1]} --key pi" in said
    (local,) = (tmp_path / "tvmsep" / "boards").iterdir()
    pids = [remove.holder(str(p)) for p in (folder / "serve.lock", local / "tunnel.lock")]
    try:
        assert all(pids)
        port = background.running(local / "tunnel.json")["port"]  # type: ignore[index]

        def listed() -> bool:
            done = run("boards", "--rpc", tracker[1])
            return f"127.0.0.1:{port}  free" in done.stdout

        until(listed, "the board at the tracker")
        seen = run("board", "doctor", "--rpc", tracker[1], "--key", "pi", "--target", "local")
        assert seen.returncode == 0 and "on both ends" in seen.stdout, seen.stdout + seen.stderr

        # A dead connection and a dead server both come back by themselves.
        os.kill(tree(pids[1])[1], signal.SIGKILL)
        os.killpg(pids[0], signal.SIGKILL)
        until(lambda: remove.holder(str(folder / "serve.lock")) not in (0, pids[0]), "a server")
        until(listed, "the board at the tracker again")
        pids[0] = remove.holder(str(folder / "serve.lock"))
    finally:
        said = board(server, "undeploy", state=tmp_path)
    assert "ended the tunnel" in said and f"removed {folder}" in said
    assert not folder.exists() and not local.exists()
    until(lambda: not any(map(alive, pids)), "the end of server and tunnel", 10)


def test_a_board_without_python(server: Sshd, tracker: tuple[Running, str], tmp_path: Path) -> None:
    folder = server.folder / "bare"
    words = (
        "deploy", "--target", "local", "--key", "bare", "--dir", str(folder), "--runtime",
        "--tracker", tracker[1],
    )  # fmt: skip
    said = board(server, *words, state=tmp_path, timeout=BUILD_TIMEOUT_S, **cache())
    (local,) = (tmp_path / "tvmsep" / "boards").iterdir()
    pids = [remove.holder(str(p)) for p in (folder / "serve.lock", local / "tunnel.lock")]
    try:
        assert all(pids) and "copying the runtime" in said
        port = background.running(local / "tunnel.json")["port"]  # type: ignore[index]

        def listed() -> bool:
            done = run("boards", "--rpc", tracker[1])
            return f"127.0.0.1:{port}  free" in done.stdout

        until(listed, "the board at the tracker")
        seen = run("board", "doctor", "--rpc", tracker[1], "--key", "bare", "--target", "local")
        assert seen.returncode == 0 and "on both ends" in seen.stdout, seen.stdout + seen.stderr
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: remove.holder(str(folder / "serve.lock")) not in (0, pids[0]), "a server")
        until(listed, "the board at the tracker again")
        again = board(server, *words, state=tmp_path, **cache())
        assert "installed there already" in again
        pids = [remove.holder(str(p)) for p in (folder / "serve.lock", local / "tunnel.lock")]
    finally:
        said = board(server, "undeploy", state=tmp_path)
    assert "ended the tunnel" in said and f"removed {folder}" in said and "stopped" in said
    assert not folder.exists() and not local.exists()
    until(lambda: not any(map(alive, pids)), "the end of server and tunnel", 10)


def test_undeploy_with_a_shell_alone(tmp_path: Path) -> None:
    folder = tmp_path / "board"
    (folder / "runtime").mkdir(parents=True)
    assert deploy_runtime.remove(Here("board"), str(folder)) == "absent" and folder.exists()
    (folder / remove.MARK).touch()
    program = folder / "runtime" / "tvmsep-server"
    program.write_text("#!/bin/sh\necho does not end >&2\nexit 2\n")
    program.chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError):
        deploy_runtime.remove(Here("board"), str(folder))
    assert folder.exists()
    program.write_text('#!/bin/sh\necho "was not running $1 ${2##*/}"\n')
    assert deploy_runtime.remove(Here("board"), str(folder)) == "was not running stop serve.json"
    assert not folder.exists()


def test_a_wheel_that_pip_installs(server: Sshd, tmp_path: Path) -> None:
    """The installation itself, but for the requirements, which take minutes."""
    name, data = wheel.build()
    assert wheel.build() == (name, data)
    (tmp_path / name).write_bytes(data)
    command = f"{sys.executable} -m pip install --quiet --no-deps --no-index --target {tmp_path}/x"
    assert os.system(f"{command} {tmp_path / name}") == 0
    for file in ("cli/board_cmds.py", "targets/x86-avx2.toml", "schedules/__init__.py", "py.typed"):
        assert (tmp_path / "x" / "tvmsep" / file).is_file(), file
    done = os.popen(
        f"cd {tmp_path} && PYTHONPATH=x {sys.executable} -P -c "
        "'import tvmsep; print(tvmsep.__file__)'"
    ).read()
    assert done.startswith(str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dir", "{full}"], ["is not empty", "--dir"]),
        (["--python", "/nonexistent/python"], ["no /nonexistent/python", "--python"]),
        (["--wheels", "{full}"], ["holds no wheel"]),
        (["--runtime", "--no-install"], ["--runtime needs no Python"]),
        (["--runtime", "--target", "{arm}"], ["is for aarch64", "x86_64"]),
        (["--tracker", "192.0.2.1:9190"], ["192.0.2.1", "board serve"]),
        (["--target", "{arm}"], ["is for aarch64", "x86_64"]),
        (["--ssh-option", "-o PubkeyAuthentication=no"], ["Permission denied", "ssh-copy-id"]),
        (["--ssh-option", "-o UserKnownHostsFile=/dev/null"], ["host's key", "fingerprint"]),
        (["--ssh-option", "-p 1"], ["refused", "-p PORT"]),
    ],
    ids=lambda v: v[0].strip("-") if v[0].startswith("-") else "",
)
def test_what_cannot_be_deployed(
    server: Sshd, tmp_path: Path, words: list[str], says: list[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("x")
    arm = tmp_path / "arm.toml"
    arm.write_text(Path("targets/x86-avx2.toml").read_text().replace("x86_64", "aarch64"))
    words = [w.format(full=full, arm=arm) for w in words]
    common = [] if "--target" in words else ["--target", "local"]
    where = [] if "--dir" in words else ["--dir", str(tmp_path / "new")]
    # The first value of an ssh option counts.
    done = run("board", "deploy", DESTINATION, *common, *where, *words, *server.options,
               XDG_STATE_HOME=str(tmp_path / "state"))  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for text in says:
        assert text in error, error
    assert (full / "precious").exists()
    assert not (tmp_path / "state").exists()


def test_undeploy_removes_nothing_that_is_not_ours(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    said = board(server, "undeploy", "--dir", str(tmp_path), state=tmp_path / "state")
    assert "no " in said and (tmp_path / "precious").exists()


def test_limits_enclose_those_within() -> None:
    """Else the outer one strikes first, and its message says nothing."""
    assert SUPERVISED_S < background.START_TIMEOUT_S < deploy.SERVER_TIMEOUT_S
    assert deploy.SERVER_TIMEOUT_S + SUPERVISED_S < deploy.TUNNEL_TIMEOUT_S


class Here(Ssh):
    """This machine's shell in the place of a board's."""

    def run(
        self, command: Sequence[str] | str, *, send: bytes = b"", timeout_s: float = 30.0
    ) -> str:
        words = ["sh", "-c", command] if isinstance(command, str) else command
        return subprocess.run(
            words, input=send, stdout=subprocess.PIPE, check=True, timeout=timeout_s
        ).stdout.decode()


PYTHON = f"""#!/bin/sh
case "$1 $2" in
"- stop") exec {sys.executable} "$@" ;;
"-m venv")
    mkdir -p "$4/bin" && cp "$0" "$4/bin/python"
    flock -n "$4/../serve.lock" true && echo cleared >> "$4/../log" ;;
esac
"""
"""Makes venvs in no time; says so if no server runs meanwhile."""


def asked(folder: Path) -> deploy.Asked:
    return deploy.Asked(
        load_target("x86-avx2"), "pi", str(folder), 0, "h:1", None, None, True, None
    )


def test_what_is_installed_already(tmp_path: Path) -> None:
    pythons = [tmp_path / name for name in ("one", "two")]
    for python in pythons:
        python.write_text(PYTHON)
        python.chmod(0o755)
    folder = tmp_path / "board"
    folder.mkdir()
    (folder / remove.MARK).touch()
    code = f"import time; from tvmsep.boards.background import *; s = State(Path({str(folder)!r}"
    server = subprocess.Popen([sys.executable, "-c", code + ") / 'serve.json'); time.sleep(60)"])
    until(lambda: remove.holder(str(folder / "serve.lock")), "a server")
    facts = here()

    def installs(python: Path, facts: Facts) -> bool:
        said: list[str] = []
        made = deploy.install(
            Here("board"), str(python), facts, asked(folder), str(folder), said.append
        )
        assert made == f"{folder}/venv/bin/python"
        return "this tvmsep is installed there already" not in said

    try:
        assert installs(pythons[0], facts)
        assert server.wait(timeout=10) == -signal.SIGTERM
    finally:
        server.kill()
    assert not installs(pythons[0], facts)
    assert installs(pythons[1], facts)
    assert installs(pythons[1], msgspec.structs.replace(facts, python="3.99.0"))
    (folder / "venv/bin/python").write_text("#!/nonexistent/python\n")
    assert installs(pythons[1], msgspec.structs.replace(facts, python="3.99.0"))
    assert (folder / "log").read_text() == 4 * "cleared\n"


def test_a_32_bit_system_is_refused() -> None:
    """Its kernel may well be a 64-bit one, which is what `uname` speaks of."""
    board = msgspec.structs.replace(
        here(), machine="x86_64", bits=32, features=(), vendor="", python="3.11.2"
    )
    with pytest.raises(BoardError, match="32-bit Python on a 64-bit kernel.*install the 64-bit"):
        list(deploy.check(board, asked(Path("/x"))))
