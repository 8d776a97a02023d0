"""Board runtimes for ARM, emulated: no Python on the board, a network tuned and run over RPC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import emulated
from boards_kit import free_port, run, running
from elftools.elf.elffile import ELFFile
from runtime_kit import Server, build

import tvmsep
from tvmsep.api import prepare
from tvmsep.bundle import Package
from tvmsep.check import relative_errors
from tvmsep.logs import read_log
from tvmsep.targets import load_target

SMALL = "mobilenet_v1:width=0.25,resolution=64"
LIMIT = 1e-5
"""Largest error, relative to the largest output, against the same network built for this host."""
BOARDS = {"aarch64": ("aarch64", "arm64", 64), "armv7-neon": ("arm", "armhf", 32)}
LIBC = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2"}


@pytest.fixture(scope="module", params=BOARDS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def front(name: str) -> tuple[str, ...]:
    machine, arch, _ = BOARDS[name]
    return (emulated.qemu(machine), "-L", str(emulated.files(arch)))


@pytest.fixture(scope="module")
def runtime(
    name: str, front: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    yield build(name, tmp_path_factory.mktemp("built") / "runtime")


def test_the_program_is_for_the_board(name: str, runtime: Path) -> None:
    with (runtime / "tvmsep-server").open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_machine"] == {"aarch64": "EM_AARCH64", "armv7-neon": "EM_ARM"}[name]
        assert elf.elfclass == BOARDS[name][2]
        needed = {t.needed for t in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")}
        offers = {s.name for s in elf.get_section_by_name(".dynsym").iter_symbols()}
    assert {n for n in needed if not n.startswith("ld-linux")} <= LIBC
    assert {"TVMFFIFunctionCall", "TVMBackendParallelLaunch"} <= offers


def test_tuned_and_run(name: str, runtime: Path, front: tuple[str, ...], tmp_path: Path) -> None:
    port = free_port()
    at, out = f"127.0.0.1:{port}", tmp_path / "net.tvmsep"
    with running(tmp_path, "tracker", "--port", str(port)):
        words = ("--tracker", at, "--threads", "2")
        server = Server(runtime, tmp_path / "scratch", *words, front=front)
        try:
            server.hears("registered as k")
            tune = ["tune", SMALL, "--target", name, "--rpc", at, "--key", "k", "--cold"]
            done = run(*tune, "--threads", "1", "--trials", "4", "-o", str(out), timeout=500)
            assert done.returncode == 0, done.stderr
            measured = [t for t in read_log(out.with_suffix(".jsonl")) if t.failure is None]
            assert len(measured) >= 3
            prepared = prepare(SMALL, target=load_target(name), threads=[1])
            (shape,) = prepared.graph.inputs.values()
            x = np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
            got = on_board(out, x, server.port, tmp_path)
        finally:
            server.stop()
    tvmsep.build(SMALL, threads=[1], logs=(), out=tmp_path / "here.tvmsep")
    with tvmsep.Bundle.load(tmp_path / "here.tvmsep") as net:
        assert relative_errors([got], [net(x)]) <= LIMIT


def on_board(path: Path, x: Any, port: int, folder: Path) -> Any:
    """A bundle's library on the board, its weights and input sent there."""
    from tvm import rpc
    from tvm.runtime import tensor
    from tvm.runtime.vm import VirtualMachine

    with Package(path) as package:
        variant = package.pick(1, 1)
        library = folder / "net.so"
        library.write_bytes(package.read(variant.library))
        kept = package.weights()
        weights = [kept[n] for n in package.manifest.weights]
    remote = rpc.connect("127.0.0.1", port, "k", session_timeout=120)
    remote.upload(str(library), "net.so")
    vm = VirtualMachine(remote.load_module("net.so"), remote.cpu())
    vm.set_input("main", *(tensor(a, remote.cpu()) for a in (x, *weights)))
    vm.invoke_stateful("main")
    return vm.module["get_output"]("main").numpy()
