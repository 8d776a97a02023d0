"""The command line as a user meets it: a process, its text, its exit status, what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from boards_kit import running

from tvmsep.contracts import ModelError
from tvmsep.frontends import load_model

MODEL = "mobilenet_v1:width=0.25,resolution=32"
TIMEOUT_S = 400


def tvmsep(
    *words: str, cwd: Path, prelude: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line; `prelude` is shell text that runs before it in the same process."""
    command = [sys.executable, "-m", "tvmsep.cli", *words]
    if prelude:
        command = ["bash", "-c", f'{prelude}; exec "$@"', "bash", *command]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL, env={**os.environ, **env},
    )  # fmt: skip


def refused(
    *words: str, cwd: Path, says: Sequence[str], prelude: str = "", left: Sequence[str] = ()
) -> None:
    """The command ends with 2, one line that holds all of `says`, and leaves no new file."""
    before = {p.name for p in cwd.iterdir()}
    done = tvmsep(*words, cwd=cwd, prelude=prelude)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert len(errors) == 1 and done.stderr.endswith(errors[0] + "\n"), done.stderr
    assert "Traceback" not in done.stderr
    for text in says:
        assert text in errors[0], errors[0]
    assert done.stdout == ""
    assert {p.name for p in cwd.iterdir()} - before == set(left)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model file and every way to break one."""
    import onnx
    from onnx import TensorProto, helper

    from tvmsep.frontends import builtin

    folder = tmp_path_factory.mktemp("models")
    proto = builtin.builtin_proto(builtin.parse_spec(MODEL))
    whole = proto.SerializeToString()
    (folder / "good.onnx").write_bytes(whole)
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "garbage.onnx").write_bytes(bytes(range(256)) * 16)
    value = helper.make_tensor_value_info
    odd = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"], name="det")], "g",
        [value("x", TensorProto.FLOAT, [1, 3, 4, 4])], [value("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    onnx.save(
        helper.make_model(odd, opset_imports=[helper.make_opsetid("", 17)]), folder / "odd.onnx"
    )
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(proto, folder / "dynamic.onnx")
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle that was really tuned, for a few trials, and its log."""
    folder = tmp_path_factory.mktemp("tuned")
    done = tvmsep("tune", MODEL, "-o", "net.tvmsep", "--threads", "1", "--trials", "3", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_tune_says_what_it_did(tuned: Path) -> None:
    assert sorted(p.name for p in tuned.iterdir()) == ["net.jsonl", "net.tvmsep"]
    lines = [json.loads(x) for x in (tuned / "net.jsonl").read_text().splitlines()]
    assert sum(x.get("phase", "search") == "search" for x in lines) == 3


def test_build_verify_run_as_json(models: Path, tmp_path: Path) -> None:
    good, log = str(models / "good.onnx"), "good.jsonl"
    done = tvmsep("tune", good, "-o", "good.tvmsep", "--threads", "1", "--trials", "2",
                  cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    built = tvmsep("build", good, "--log", log, "--threads", "1", "-o", "b.tvmsep", "--json",
                   cwd=tmp_path)  # fmt: skip
    assert built.returncode == 0, built.stderr
    report = json.loads(built.stdout)
    assert (
        1 <= report["tuned_tasks"] <= 2
        and report["bytes"] == (tmp_path / "b.tvmsep").stat().st_size
    )
    checked = tvmsep("verify", "b.tvmsep", good, "--json", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["float64"] < 1e-4


def test_build_takes_the_log_inside_a_bundle(tuned: Path, tmp_path: Path) -> None:
    done = tvmsep("build", MODEL, "--log", str(tuned / "net.tvmsep"), "--threads", "1",
                  "-o", "b.tvmsep", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(x) for x in (tuned / "net.jsonl").read_text().splitlines()]
    count = len({json.dumps(x["workload"]) for x in lines if "failure" not in x})
    assert f"{count} of " in done.stdout and "wrote b.tvmsep" in done.stdout and count


def test_help_is_quick_and_names_every_verb() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = tvmsep("--help", cwd=Path.cwd())
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
    verbs = "tune build verify inspect targets run bench show export tracker boards board"
    for verb in verbs.split():
        assert f"\n  {verb}" in done.stdout
    assert min(times) < 0.6  # 0.15 s where nothing else runs


# Models


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("garbage.onnx", ["garbage.onnx", "not an ONNX model"]),
        ("cut.onnx", ["cut.onnx", "cut off"]),
        ("empty.onnx", ["empty.onnx", "is empty"]),
        ("odd.onnx", ["node det", "Det", "not supported"]),
        ("dynamic.onnx", ["[N,3,32,32]", "--shape input=1,3,32,32"]),
        ("missing.onnx", ["missing.onnx", "check the path"]),
    ],
)
def test_bad_models(models: Path, tmp_path: Path, file: str, says: list[str]) -> None:
    refused("build", str(models / file), "--no-logs", "-o", "o.tvmsep", cwd=tmp_path, says=says)


def test_tune_refuses_a_bad_model_before_anything_is_written(models: Path, tmp_path: Path) -> None:
    refused("tune", str(models / "cut.onnx"), "-o", "o.tvmsep", cwd=tmp_path, says=["cut.onnx"])


def test_the_shape_that_the_message_names_works(models: Path, tmp_path: Path) -> None:
    words = ["inspect", str(models / "dynamic.onnx"), "--shape", "input=1,3,32,32", "--json"]
    done = tvmsep(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layers"]


# Arguments


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["build", "nosuch"], ["nosuch", "mobilenet_v1", "zoo:mobilenet_v2"]),
        (["build", "zoo:nosuch"], ["nosuch", "mobilenet_v2"]),
        (["build", MODEL, "--target", "nosuch"], ["'nosuch'", "x86-avx2"]),
        (["build", MODEL, "--threads", "x"], ["'x'", "write 2 or 1,2"]),
        (["build", MODEL, "--threads", "0"], ["'0'"]),
        (["build", MODEL, "--threads", "1000"], ["threads is 1000", "give 1 to"]),
        (["build", MODEL, "--shape", "input"], ["'input'", "name=1,3,224,224"]),
        (["build", MODEL, "--shape", "nosuch=1,2"], ["nosuch", "inputs are input"]),
        (["build", MODEL, "--labels", "nosuch.txt"], ["nosuch.txt", "No such file"]),
        (["build", MODEL, "--preprocess", "nosuch.toml"], ["nosuch.toml", "No such file"]),
        (["build", MODEL, "--log", "nosuch.jsonl"], ["nosuch.jsonl", "No such file"]),
        (["build", MODEL, "--log", "a.jsonl", "--no-logs"], ["contradict"]),
        (["tune", MODEL, "--budget", "3x"], ["'3x'", "90s, 3m or 1h"]),
        (["tune", MODEL, "--budget", "0"], ["'0'"]),
        (["tune", MODEL, "--rpc", "board"], ["'board'", "host:9190"]),
        (["tune", MODEL, "--rpc", "127.0.0.1:9190"], ["--key"]),
        (["tune", MODEL, "--key", "pi"], ["--rpc"]),
        (["tune", MODEL, "--log", "o.tvmsep"], ["o.tvmsep", "--log"]),
        (["inspect", MODEL, "--budget", "1m"], ["--savings"]),
    ],
    ids=lambda v: "_".join(v[1:]) if v[0] in ("build", "tune", "inspect") else "",
)
def test_bad_arguments(tmp_path: Path, words: list[str], says: list[str]) -> None:
    out = [] if words[0] == "inspect" else ["-o", "o.tvmsep"]
    refused(*words, *out, cwd=tmp_path, says=says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tune", MODEL, "--trials", "0"], ["'--trials'", "1", "; tvmsep tune --help lists"]),
        (["build", MODEL, "--nosuch"], ["no such option: --nosuch", "tvmsep build --help"]),
        (["nosuch"], ["no such command 'nosuch'", "tvmsep --help"]),
        (["tune"], ["missing argument 'MODEL'", "tvmsep tune --help"]),
        (["board", "nosuch"], ["'nosuch'", "tvmsep board --help"]),
        (["export", "x", "--format", "odd", "-o", "y"], ["'odd'", "'header'", "export --help"]),
        (["tune", MODEL, "--log"], ["--log", "requires an argument"]),
        (["tune", MODEL, "--log", ""], ["--log got an empty value", "leave it out"]),
        (["build", MODEL, "--log=", "-o", "x"], ["--log got an empty value"]),
        (["build", "", "-o", "x"], ["an empty argument"]),
    ],
)
def test_what_the_parser_refuses(tmp_path: Path, words: list[str], says: list[str]) -> None:
    refused(*words, cwd=tmp_path, says=says)


def test_no_words_at_all_are_answered_by_help(tmp_path: Path) -> None:
    for words in ((), ("board",)):
        done = tvmsep(*words, cwd=tmp_path)
        assert "Commands:" in done.stdout + done.stderr and "error" not in done.stderr


def _zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "{}")


def test_files_that_are_no_models(tuned: Path, tmp_path: Path) -> None:
    """Each is called what it is, whatever its name says."""
    _zip(tmp_path / "a.zip", "notes.txt")
    _zip(tmp_path / "b.zip", "net/model.onnx")
    _zip(tmp_path / "a.keras", "metadata.json", "config.json", "model.weights.h5")
    _zip(tmp_path / "a.pt", "a/data.pkl", "a/data/0")
    _zip(tmp_path / "b.pt", "b/data.pkl", "b/code/net.py")
    _zip(tmp_path / "c.pt2", "c/data.pkl")
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    for name, data in (
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(50)),
        ("b.onnx", b"\xff\xd8\xff\xe0" + bytes(50)),
        ("a.tflite", b"\x1c\0\0\0TFL3" + bytes(50)),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(50)),
        ("a.pth", b"\x80\x02}q\x00."),
        ("a.safetensors", struct.pack("<Q", 2) + b"{}"),
        ("a.pb", b"\n\x05\n\x03abc" * 5),
        ("a.pdmodel", b"\n\x99abc"),
        ("a.gz", b"\x1f\x8b\x08" + bytes(20)),
        ("a.jsonl", b'{"a": 1}\n'),
    ):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/saved_model.pb").write_bytes(b"x")
    (tmp_path / "net").write_bytes((tuned / "net.tvmsep").read_bytes())
    for name, *says in (
        ("a.zip", "zip file without an .onnx"),
        ("b.zip", "unpack it and give net/model.onnx"),
        ("a.keras", "Keras", "format='onnx'"),
        ("a.pt", "checkpoint", "torch.export"),
        ("b.pt", "TorchScript", "torch.export"),
        ("c.pt2", "checkpoint", "torch.export"),
        ("a.npz", "arrays", "tvmsep run"),
        ("a.png", "picture", "tvmsep run"),
        ("b.onnx", "picture"),
        ("a.tflite", "TensorFlow Lite", "--tflite"),
        ("a.h5", "Keras"),
        ("a.pth", "pickle", "torch.export"),
        ("a.safetensors", "weights without a graph"),
        ("a.pb", "TensorFlow graph", "--graphdef"),
        ("a.pdmodel", "Paddle", "paddle2onnx"),
        ("a.gz", "gzip", "unpack"),
        ("a.jsonl", "tuning log", "--log"),
        ("saved", "SavedModel", "--saved-model"),
        ("net", "is a bundle", "tvmsep run"),
        ("nosuch.pt", "no model file"),
    ):
        with pytest.raises(ModelError) as told:
            load_model(tmp_path / name)
        assert name in str(told.value) and all(s in str(told.value) for s in says), told.value
    refused("build", "a.png", "--no-logs", "-o", "o", cwd=tmp_path, says=["a.png is a picture"])


def test_files_that_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for file, says in (("empty.txt", "is empty"), ("binary.txt", "not text in UTF-8")):
        refused("build", MODEL, "--labels", file, "-o", "o", cwd=tmp_path, says=[file, says])


# Outputs


def test_output_places_that_cannot_be_written(tmp_path: Path, models: Path) -> None:
    (tmp_path / "folder").mkdir()
    for out, says in (
        ("folder", "is a folder"),
        ("nosuch/o.tvmsep", "No such file"),
        ("/sys/o.tvmsep", "cannot write /sys/o.tvmsep"),
    ):
        refused("build", MODEL, "-o", out, cwd=tmp_path, says=[out, says, "-o"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; /sys stands in above")
def test_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    refused("build", MODEL, "-o", str(folder / "o"), cwd=tmp_path, says=["Permission denied"])


def test_the_model_is_never_overwritten(tmp_path: Path, models: Path) -> None:
    good = (models / "good.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(good)
    refused("build", "m.onnx", "-o", "m.onnx", cwd=tmp_path, says=["is the model itself"])
    assert (tmp_path / "m.onnx").read_bytes() == good


def test_disk_full(tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: writing fails in the middle, as there."""
    (tmp_path / "o.tvmsep").write_text("yesterday's")
    refused(
        "build", MODEL, "--no-logs", "-o", "o.tvmsep", cwd=tmp_path, prelude="ulimit -f 500",
        says=["cannot write o.tvmsep", "File too large"],
    )  # fmt: skip
    assert (tmp_path / "o.tvmsep").read_text() == "yesterday's"
    assert [p.name for p in tmp_path.iterdir()] == ["o.tvmsep"]


def test_disk_full_on_a_real_file_system(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        refused(
            "build", MODEL, "--no-logs", "-o", "o.tvmsep", cwd=small,
            says=["cannot write o.tvmsep", "No space left"],
        )  # fmt: skip
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)


# Logs


def test_logs_that_are_none(tuned: Path, models: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no newline")
    (tmp_path / "folder").mkdir()
    (tmp_path / "cut.tvmsep").write_bytes((tuned / "net.tvmsep").read_bytes()[:-500])
    for verb in ("build", "tune"):
        refused(verb, MODEL, "--log", "notes.txt", "-o", "o", cwd=tmp_path,
                says=["notes.txt, line 1: not a trial"])  # fmt: skip
        refused(verb, MODEL, "--log", "cut.tvmsep", "-o", "o", cwd=tmp_path,
                says=["cut.tvmsep is a damaged bundle"])  # fmt: skip
        refused(verb, MODEL, "--log", "folder", "-o", "o", cwd=tmp_path,
                says=["folder", "is no file"])  # fmt: skip
    assert (tmp_path / "notes.txt").read_text() == "no newline"


def test_tune_does_not_append_to_a_bundle(tuned: Path, tmp_path: Path) -> None:
    data = (tuned / "net.tvmsep").read_bytes()
    (tmp_path / "b.tvmsep").write_bytes(data)
    refused("tune", MODEL, "--log", "b.tvmsep", "-o", "o", cwd=tmp_path, says=["is a bundle"])
    assert (tmp_path / "b.tvmsep").read_bytes() == data


def test_log_of_another_target(tuned: Path, tmp_path: Path) -> None:
    text = (tuned / "net.jsonl").read_text()
    here = json.loads(text.splitlines()[0])["target"]
    other = text.replace(f'"{here}"', '"elsewhere"')
    (tmp_path / "other.jsonl").write_text(other)
    for verb in ("build", "tune"):
        refused(verb, MODEL, "--log", "other.jsonl", "--threads", "1", "-o", "o", cwd=tmp_path,
                says=["other.jsonl is for elsewhere", here])  # fmt: skip
    assert (tmp_path / "other.jsonl").read_text() == other


# Trackers


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def answering(server: socket.socket, *parts: bytes) -> threading.Thread:
    def serve() -> None:
        line, _ = server.accept()
        with line:
            for part in parts:
                line.recv(64)
                line.sendall(part)
            with contextlib.suppress(ConnectionResetError):  # who has heard enough hangs up
                line.recv(64)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def rpc(port: int) -> list[str]:
    return ["tune", MODEL, "--rpc", f"127.0.0.1:{port}", "--key", "pi", "-o", "o.tvmsep"]


def test_nobody_listens(tmp_path: Path, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    refused(*rpc(port), cwd=tmp_path, says=[f"127.0.0.1:{port}", "refused", "tracker"])


def test_a_server_that_says_nothing(tmp_path: Path, listener: socket.socket) -> None:
    start = time.monotonic()
    refused(*rpc(listener.getsockname()[1]), cwd=tmp_path, says=["no answer within 5 s"])
    assert time.monotonic() - start < 15


def test_a_server_that_is_no_tracker(tmp_path: Path, listener: socket.socket) -> None:
    answering(listener, b"HTTP/1.1 400 Bad Request\r\n")
    refused(*rpc(listener.getsockname()[1]), cwd=tmp_path, says=["not a TVM RPC tracker"])


def test_a_tracker_without_such_a_board(tmp_path: Path, listener: socket.socket) -> None:
    summary = json.dumps([0, {"queue_info": {}, "server_info": [{"key": "server:orin"}]}]).encode()
    magic = struct.pack("<i", 0x2F271)
    answering(listener, magic, struct.pack("<i", len(summary)) + summary)
    refused(*rpc(listener.getsockname()[1]), cwd=tmp_path, says=["no board pi", "it has orin"])


def test_a_real_tracker_without_boards(tmp_path: Path) -> None:
    folder = tmp_path / "tracker"
    folder.mkdir()
    with running(folder, "tracker", "--port", "0") as it:
        it.hears("tracker at")
        port = int(it.out.read_text().rsplit(":", 1)[1])
        refused(*rpc(port), cwd=tmp_path, says=["no board pi", "no board has registered"])
