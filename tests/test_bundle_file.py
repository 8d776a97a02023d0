"""Bundle files are written whole or not at all, and checked before anything of them runs."""

import hashlib
import json
import os
import resource
import stat
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bundle_kit import LOG, WEIGHTS, X, write
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmsep.bundle import (
    Bundle,
    Package,
    read_log,
    runtime_version,
)
from tvmsep.bundle.archive import Archive, check_replaceable, write_archive, write_file
from tvmsep.bundle.weights import ALIGN, arena, decode_weights, encode_weights
from tvmsep.contracts import BundleError, InputError, Target

# The file


def test_equal_contents_make_equal_files(
    affine_path: Path, built: Path, target: Target, tmp_path: Path
) -> None:
    again = write(tmp_path / "again.tvmsep", built, target)
    assert again.read_bytes() == affine_path.read_bytes()
    other = write(tmp_path / "other.tvmsep", built, target, licence="MIT")
    assert other.read_bytes() != affine_path.read_bytes()


def test_any_zip_tool_reads_it(affine_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(affine_path) as z:
        assert z.testzip() is None
        assert z.namelist() == sorted(z.namelist())
        manifest = json.loads(z.read("manifest.json"))
        for name, digest in manifest["members"].items():
            assert hashlib.sha256(z.read(name)).hexdigest() == digest
    assert manifest["tvm"] == runtime_version()
    assert manifest["log_lines"] == 2 and manifest["log_total"] == 9
    assert read_log(affine_path) == LOG


def test_weights_are_safetensors(affine_path: Path) -> None:
    from safetensors.numpy import load

    with Package(affine_path) as package:
        theirs = load(package.read("weights.safetensors"))
        ours = package.weights()
    assert list(ours) == list(WEIGHTS)
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(ours[name], array)
        assert ours[name].ctypes.data % ALIGN == 0


DTYPES = ("float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 9), max_size=4)), max_size=6
    )
)
def test_weights_round_trip(specs: list[tuple[str, list[int]]]) -> None:
    from safetensors.numpy import load

    rng = np.random.default_rng(0)
    weights = {f"w/{i}": rng.integers(0, 2, s).astype(d) for i, (d, s) in enumerate(specs)}
    data = encode_weights(weights)
    back, theirs = decode_weights(memoryview(data), "it"), load(data)
    assert set(back) == set(theirs) == set(weights)
    for name, array in weights.items():
        assert back[name].dtype == array.dtype and theirs[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
        np.testing.assert_array_equal(theirs[name], array)
        assert back[name].ctypes.data % ALIGN == 0 or back[name].size == 0


def open_all(path: Path) -> None:
    """What loading checks before anything of the bundle runs."""
    with Package(path) as package:
        package.weights()
        package.check_members()


def test_every_flipped_byte_is_noticed(affine_path: Path, tmp_path: Path) -> None:
    good = affine_path.read_bytes()
    rng = np.random.default_rng(1)
    with Archive(affine_path) as archive:
        headers = [i for m in archive.members.values() for i in range(m.offset, m.data_offset)]
    tail = range(len(good) - 700, len(good))
    spots = {*headers, *tail, *rng.integers(0, len(good), 400).tolist()}
    damaged = tmp_path / "damaged.tvmsep"
    for at in spots:
        flipped = bytearray(good)
        flipped[at] ^= 1 << int(rng.integers(8))
        damaged.write_bytes(flipped)
        with pytest.raises(BundleError, match="damaged"):
            open_all(damaged)
    damaged.write_bytes(good)
    open_all(damaged)


def test_every_truncation_is_noticed(affine_path: Path, tmp_path: Path) -> None:
    good = affine_path.read_bytes()
    cut = tmp_path / "cut.tvmsep"
    spots = {*range(120), *range(len(good) - 100, len(good))}
    for at in {*spots, *range(0, len(good), 997)}:
        cut.write_bytes(good[:at])
        with pytest.raises(BundleError):
            open_all(cut)
    cut.write_bytes(good + b"\0")
    with pytest.raises(BundleError):
        open_all(cut)


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.tvmsep"
    for start in (b"", b"PK\3\4"):
        path.write_bytes(start + data)
        with pytest.raises(BundleError):
            open_all(path)


def repack(path: Path, out: Path, **changes: bytes | None) -> Path:
    """Write the members again with some replaced, hashes and CRCs right."""
    with Archive(path) as archive:
        contents = {name: archive.read(name) for name in archive.members}
    manifest = json.loads(contents["manifest.json"])
    for name, data in changes.items():
        if data is None:
            del contents[name], manifest["members"][name]
        else:
            contents[name] = data
            if name != "manifest.json":
                manifest["members"][name] = hashlib.sha256(data).hexdigest()
    if "manifest.json" not in changes:
        contents["manifest.json"] = json.dumps(manifest).encode()
    write_archive(out, contents)
    return out


def edited(path: Path, **changes: Any) -> bytes:
    with Archive(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    return json.dumps({**manifest, **changes}).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "rebuild from the log inside: tvmsep build MODEL --log"),
        ({"format": "x"}, "malformed"),
        ({"tvm": "0.1"}, "built with apache-tvm 0.1, installed is"),
        ({"inputs": []}, "must not be empty"),
        ({"inputs": [{"name": "x", "shape": [1, -3], "dtype": "float32"}]}, "malformed"),
        ({"inputs": [{"name": "x", "shape": [1 << 40], "dtype": "float32"}]}, "too large"),
        ({"inputs": [{"name": "x", "shape": [1], "dtype": "complex"}]}, "unknown dtype"),
        ({"weights": ["w", "b"]}, "odd"),
        ({"weights": ["w", "b", "b"]}, "same name"),
        ({"members": {}}, "malformed"),
        ({"variants": []}, "must not be empty"),
        ({"surprise": 1}, "malformed"),
        ({"name": None}, "malformed"),
    ],
)
def test_absurd_manifest(
    affine_path: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    manifest = edited(affine_path, **changes)
    path = repack(affine_path, tmp_path / "absurd.tvmsep", **{"manifest.json": manifest})
    with pytest.raises(BundleError, match=message):
        Bundle.load(path)
    assert read_log(path) == LOG  # what a rebuild needs can still be had


def test_arity_is_checked_before_a_call(affine_path: Path, tmp_path: Path) -> None:
    two = [msgspec.to_builtins(X), {"name": "z", "shape": [1], "dtype": "float32"}]
    manifest = edited(affine_path, inputs=two)
    path = repack(affine_path, tmp_path / "two.tvmsep", **{"manifest.json": manifest})
    with pytest.raises(BundleError, match="takes 4 parameters, the manifest lists 2 inputs and 3"):
        Bundle.load(path)


def test_unfit_members(affine_path: Path, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "unfit.tvmsep"
    with pytest.raises(BundleError, match="its library cannot be loaded"):
        Bundle.load(repack(affine_path, out, **{"lib/threads2.so": b"not ELF"}), threads=2)
    library = (built / "affine.so").read_bytes()
    for keep in (10, 64, 900, len(library) // 2):
        with pytest.raises(BundleError, match="its library cannot be loaded: it"):
            Bundle.load(repack(affine_path, out, **{"lib/threads2.so": library[:keep]}), threads=2)
    with pytest.raises(BundleError, match="weights .* malformed"):
        Bundle.load(repack(affine_path, out, **{"weights.safetensors": b"\xff" * 40}))
    for name in ("lib/threads1.so", "log.jsonl", "relax/threads2.txt"):
        with pytest.raises(BundleError, match=f"lacks {name}"):
            Bundle.load(repack(affine_path, out, **{name: None}))
    with Archive(affine_path) as archive:
        contents = {name: archive.read(name) for name in archive.members}
    write_archive(out, {**contents, "extra.txt": b""})
    with pytest.raises(BundleError, match="extra.txt"):
        Bundle.load(out)
    del contents["manifest.json"]
    write_archive(out, contents)
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        Bundle.load(out)


@pytest.mark.parametrize("name", ["../evil", "/etc/x", "a/../b", "a//b", ".hidden", "a\\b", ""])
def test_no_member_leaves_the_folder(
    affine_path: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "slip.tvmsep"
    with pytest.raises(BundleError, match="cannot name"):
        write_archive(out, {name: b"x"})
    assert not out.exists()
    import re

    from tvmsep.bundle import archive

    with monkeypatch.context() as patched:
        patched.setattr(archive, "_NAME", re.compile(".*"))
        write_archive(out, {name: b"x"})
    with pytest.raises(BundleError, match="has a member named"):
        Archive(out)


def test_other_hosts_are_refused(built: Path, target: Target, tmp_path: Path) -> None:
    def refused(message: str, **facts: Any) -> None:
        other = msgspec.structs.replace(target, name="other", **facts)
        path = write(tmp_path / "other.tvmsep", built, other)
        with pytest.raises(BundleError, match=f"built for target other.*{message}"):
            Bundle.load(path)
        open_all(path)  # reading and exporting it is fine anywhere

    machine, _, system = target.triple.partition("-")
    refused("it is for riscv64", triple=f"riscv64-{system}")
    refused("this CPU lacks no_such_flag", requires=(*target.requires, "no_such_flag"))
    elsewhere = "apple-darwin" if sys.platform != "darwin" else "unknown-linux-gnu"
    refused(f"{elsewhere}, this host runs", triple=f"{machine}-{elsewhere}")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        Bundle.load(tmp_path / "none.tvmsep")
    with pytest.raises(BundleError, match="cannot read"):
        Bundle.load(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(BundleError, match="is empty"):
        Bundle.load(tmp_path / "empty")


def test_nothing_is_left_when_writing_fails(built: Path, target: Target, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot write"):
        write(tmp_path / "none/x.tvmsep", built, target)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot write"):
        write(tmp_path / "file/x.tvmsep", built, target)
    old = tmp_path / "x.tvmsep"
    old.write_bytes(b"the one before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # stands for a full disk
    try:
        with pytest.raises(BundleError, match="cannot write"):
            write(old, built, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert old.read_bytes() == b"the one before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "x.tvmsep"]


def test_parts_that_do_not_fit_are_not_written(built: Path, target: Target, tmp_path: Path) -> None:
    path = tmp_path / "x.tvmsep"
    with pytest.raises(BundleError, match="must be the same"):
        write(path, built, target, relax={1: ""})
    with pytest.raises(BundleError, match="dtype"):
        write(path, built, target, weights={"c": np.zeros(3, np.complex64)})
    with pytest.raises(BundleError, match="must not be empty"):
        write(path, built, target, outputs=[])
    assert not path.exists()


def test_an_output_replaces_neither_devices_nor_what_is_read(tmp_path: Path) -> None:
    pipe, there = tmp_path / "pipe", tmp_path / "x.npy"
    os.mkfifo(pipe)
    there.write_bytes(b"x")
    for path in (pipe, Path("/dev/null"), there):
        with pytest.raises(InputError, match=rf"cannot write {path}: it is"):
            check_replaceable(path, there)
    with pytest.raises(InputError, match="a device or a pipe"):
        write_file(pipe, lambda file: file.write(b"y"))
    assert stat.S_ISFIFO(pipe.stat().st_mode) and sorted(tmp_path.iterdir()) == [pipe, there]
    check_replaceable(there, tmp_path / "other", "not there")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_large_weights_ask_for_huge_pages() -> None:
    """As the kernel sees it: the mapping is private, advised, and begins where a huge page may."""
    memory = arena(5 << 20)
    at = np.frombuffer(memory, np.uint8).ctypes.data
    assert len(memory) == 5 << 20 and at % (2 << 20) == 0
    maps = Path("/proc/self/smaps").read_text().split("VmFlags:")
    for text, after in zip(maps, maps[1:], strict=False):
        spans = [line.split()[0].split("-") for line in text.splitlines() if "-" in line.split()[0]]
        begin, end = (int(part, 16) for part in spans[-1])
        if begin <= at < end:
            flags = after.splitlines()[0].split()
            assert "sh" not in flags
            assert "hg" in flags or not Path("/sys/kernel/mm/transparent_hugepage").exists()
            return
    pytest.fail("no such mapping")
