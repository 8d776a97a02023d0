"""The CUDA emulator: what kernels compute, what it finds wrong with them, how TVM sees it."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from cuda_kit import device, target

from tvmsep import emulator
from tvmsep.codegen import cuda
from tvmsep.emulator import EmulatorError, LaunchError, Program, compile_source

__all__ = ["device"]  # a fixture

KERNEL = 'extern "C" __global__ void __launch_bounds__({threads}) {name}({args}) {{\n{body}\n}}\n'


def source(body: str, args: str = "float* x, float* y", threads: int = 64, name: str = "k") -> str:
    return KERNEL.format(threads=threads, name=name, args=args, body=body)


def run(
    code: str, *args: np.ndarray[Any, Any] | np.generic, grid: int = 1, block: int = 64,
    seed: int = 0, check: bool = True, shared: int = 0,
) -> None:  # fmt: skip
    program = Program(compile_source(code, check))
    program.launch("k", [grid], [block], args, shared, seed)


def floats(n: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(n).standard_normal(n, dtype=np.float32)


def refused(kind: str, code: str, *args: Any, **more: Any) -> str:
    with pytest.raises(LaunchError) as caught:
        run(code, *args, **more)
    assert caught.value.kind == kind, caught.value
    return str(caught.value)


# --- what kernels compute -------------------------------------------------------------------------

ROTATE = """
  __shared__ alignas(64) float tile[64];
  int i = blockIdx.x * 64 + threadIdx.x;
  tile[threadIdx.x] = x[i];
  __syncthreads();
  y[i] = tile[(threadIdx.x + 1) % 64] * 2.0f;
"""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("check", [False, True])
def test_threads_meet_at_barriers_in_any_order(check: bool, seed: int) -> None:
    x, y = floats(192), np.zeros(192, np.float32)
    run(source(ROTATE), x, y, grid=3, seed=seed, check=check)
    np.testing.assert_array_equal(y.reshape(3, 64), np.roll(x.reshape(3, 64), -1, 1) * 2)


def test_dynamic_shared_memory_and_scalars() -> None:
    body = """
  extern __shared__ __align__(64) uchar room[];
  ((float*)room)[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = ((float*)room)[63 - threadIdx.x] + by;
"""
    x, y = floats(64), np.zeros(64, np.float32)
    code = "#define uchar unsigned char\n" + source(body, "float* x, float* y, float by")
    run(code, x, y, np.float32(0.5), shared=256)
    np.testing.assert_array_equal(y, x[::-1] + np.float32(0.5))
    assert "past the end" in refused("address", code, x, y, np.float32(0.5), shared=252)


def test_warps_exchange() -> None:
    body = """
  float v = x[threadIdx.x];
  unsigned mask = __activemask();
  for (int d = 16; d > 0; d /= 2) v += __shfl_down_sync(mask, v, d, 32);
  v = __shfl_sync(mask, v, 0, 32);
  if (threadIdx.x < 8) y[threadIdx.x] = __shfl_xor_sync(__activemask(), x[threadIdx.x], 1, 8);
  y[threadIdx.x + 64] = v;
  y[threadIdx.x + 128] = __ballot_sync(0xffffffffu, threadIdx.x % 32 < 3);
"""
    x, y = floats(64), np.zeros(192, np.float32)
    run(source(body), x, y, seed=7)
    np.testing.assert_array_equal(y[:8], x[:8].reshape(4, 2)[:, ::-1].reshape(-1))
    np.testing.assert_allclose(y[64:128], x.reshape(2, 32).sum(1).repeat(32), rtol=1e-5)
    np.testing.assert_array_equal(y[128:], 7)


def test_a_lane_outside_the_mask_holds_nothing() -> None:
    body = "  y[threadIdx.x] = __shfl_down_sync(__activemask(), x[threadIdx.x], 1, 32);"
    x, y = floats(8), np.zeros(8, np.float32)
    run(source(body), x, y, block=8)
    np.testing.assert_array_equal(y[:7], x[1:])
    assert np.isnan(y[7])


def test_half_rounds_each_operation() -> None:
    body = "  int i = threadIdx.x;\n  y[i] = max(x[i] * x[i] + x[i], __float2half_rn(0.0f));"
    preamble = "#include <cuda_fp16.h>\nhalf max(half a, half b) { return __hgt(a, b) ? a : b; }\n"
    x, y = floats(64).astype(np.float16), np.zeros(64, np.float16)
    run(preamble + source(body, "half* x, half* y"), x, y)
    want = x * x + x
    np.testing.assert_array_equal(y, np.where(want > 0, want, np.float16(0)))


def test_shared_memory_starts_undefined() -> None:
    body = "  __shared__ float tile[64];\n  y[threadIdx.x] = tile[threadIdx.x];"
    y = np.zeros(64, np.float32)
    run(source(body), floats(64), y)
    assert np.isnan(y).all()


ASYNC = """
  __shared__ alignas(64) float tile[256];
  unsigned at = __cvta_generic_to_shared(tile + threadIdx.x * 4);
  const float* from = x + threadIdx.x * 4;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" :: "r"(at), "l"(from), "n"(16));
  asm volatile("cp.async.commit_group;" : : );
  asm volatile("cp.async.wait_group 0;" :  :  : "memory");
  __syncthreads();
  y[threadIdx.x] = tile[255 - threadIdx.x];
"""


def test_asynchronous_copies_have_arrived_when_waited_for() -> None:
    x, y = floats(256), np.zeros(64, np.float32)
    run(source(ASYNC), x, y)
    np.testing.assert_array_equal(y, x[:-65:-1])
    never = source(re.sub(".*wait_group.*", "", ASYNC))
    assert "to which an asynchronous copy is under way" in refused("race", never, x, y)
    run(never, x, y, check=False)
    assert np.isnan(y).all()
    refused("race", source(ASYNC.replace("__syncthreads();", "")), x, y)
    refused(
        "misaligned",
        source(ASYNC.replace("from, ", "from + 1, ").replace('"l"(from', '"l"(x + 1')),
        x,
        y,
    )


# --- what is found wrong --------------------------------------------------------------------------


def test_without_its_barrier_a_kernel_races_and_depends_on_the_order() -> None:
    code = source(ROTATE.replace("__syncthreads();", ""))
    x, y, z = floats(64), np.zeros(64, np.float32), np.zeros(64, np.float32)
    said = refused("race", code, x, y)
    assert "shared memory" in said and "thread" in said and "kernel k" in said
    run(code, x, y, seed=0, check=False)
    run(code, x, z, seed=1, check=False)
    assert np.isnan(y[:-1]).all() and np.isnan(z[-1:]).all() and not np.isnan(z[:-1]).any()


@pytest.mark.parametrize(
    ("body", "grid"),
    [
        ("y[threadIdx.x / 2] = x[threadIdx.x];", 1),
        ("y[threadIdx.x] = x[blockIdx.x];", 2),
        ("if (blockIdx.x == 0) y[threadIdx.x] = y[threadIdx.x + 64];\n"
         "else y[threadIdx.x + 64] = 1;", 2),
        ("__syncwarp(); y[threadIdx.x % 32] = 1;", 1),
        ("y[threadIdx.x % 16] = 1; __syncwarp(0xffffu << threadIdx.x % 32 / 16 * 16);"
         "if (threadIdx.x >= 16 && threadIdx.x < 32) y[threadIdx.x % 16] = 2;", 1),
    ],
    ids=["threads", "blocks", "read-write", "warps", "half-warps"],
)  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1])
def test_conflicts_in_global_memory(body: str, grid: int, seed: int) -> None:
    refused("race", source(body), floats(64), np.zeros(128, np.float32), grid=grid, seed=seed)


@pytest.mark.parametrize(
    "body",
    [
        "y[threadIdx.x] = x[0]; __syncthreads(); y[63 - threadIdx.x] += x[1];",
        "if (threadIdx.x < 32) { y[threadIdx.x] = x[0]; __syncwarp(); y[31 - threadIdx.x] += 1; }",
        "atomicAdd(y, x[threadIdx.x]);",
        "y[threadIdx.x + blockIdx.x * 64] = x[threadIdx.x];",
    ],
    ids=["barrier", "warp-barrier", "atomic", "apart"],
)
def test_no_conflict_is_made_up(body: str) -> None:
    grid = 2 if "blockIdx" in body else 1
    run(source(body), floats(64), np.zeros(128, np.float32), grid=grid, seed=3)


def test_accesses_outside_tensors() -> None:
    x, y = floats(64), np.zeros(64, np.float32)
    past = refused("address", source("y[threadIdx.x] = x[threadIdx.x + 1];"), x, y)
    assert "read of 4 bytes" in past and "past the end of a tensor of 256 bytes" in past
    assert "thread 63,0,0" in past
    before = refused("address", source("y[(int)threadIdx.x - 1] = x[0];"), x, y)
    assert "write of 4 bytes, 4 bytes before a tensor" in before
    vector = "*(float4*)(y + threadIdx.x) = *(float4*)(x + threadIdx.x);"
    assert "read of 16 bytes" in refused("misaligned", source(vector), x, y)
    refused("address", source("y[threadIdx.x] = ((float*)8)[threadIdx.x];"), x, y, check=False)


@pytest.mark.parametrize("check", [False, True])
def test_threads_that_never_meet(check: bool) -> None:
    some = "if (threadIdx.x < 40) __syncthreads();\n  y[threadIdx.x] = 1;"
    said = refused("divergence", source(some), floats(64), np.zeros(64, np.float32), check=check)
    assert "40 of 64 threads wait at a barrier" in said
    body = "if (threadIdx.x < 16) y[0] = __shfl_sync(0xffffffffu, x[0], 0, 32);\n  __syncthreads();"
    refused("divergence", source(body), floats(64), np.zeros(64, np.float32), check=check)
    run(source(ROTATE), floats(64), np.zeros(64, np.float32))  # fibres that were left are well


def test_limits_of_a_launch() -> None:
    x, y = floats(64), np.zeros(64, np.float32)
    refused("bad_launch", source(ROTATE), x, y, block=65)
    refused("bad_launch", source(ROTATE, threads=2048), x, y, block=1025)
    refused("bad_launch", source(ROTATE), x, y, shared=10**6)
    with pytest.raises(LaunchError, match="no kernel other"):
        Program(compile_source(source(ROTATE), False)).launch("other", [1], [1], [x, y])


def test_sources_that_are_refused() -> None:
    for code, what in (
        ("int f() { return 1; }", "no kernel"),
        (source("y[0] = nonsense(x[0]);"), "nonsense"),
        (source('asm volatile("bar.sync 0;");'), "assembly"),
    ):
        with pytest.raises(EmulatorError, match=what):
            compile_source(code)


# --- kernels as TVM writes them -------------------------------------------------------------------


def product(scope: str) -> Any:
    """A tiled matrix product, its operands in shared memory."""
    from tvm import s_tir, te

    a = te.placeholder((32, 64), name="a")
    b = te.placeholder((32, 64), name="b")
    k = te.reduce_axis((0, 32), name="k")
    c = te.compute((64, 64), lambda i, j: te.sum(a[k, i] * b[k, j], axis=k), name="c")
    sch = s_tir.Schedule(te.create_prim_func([a, b, c]))
    block = sch.get_sblock("c")
    i, j, kk = sch.get_loops(block)
    bi, ti, ii = sch.split(i, [None, 8, 4])
    bj, tj, jj = sch.split(j, [None, 8, 4])
    ko, ki = sch.split(kk, [None, 8])
    sch.reorder(bi, bj, ti, tj, ko, ki, ii, jj)
    for loop, thread in zip((bi, bj, ti, tj), ("blockIdx.y", "blockIdx.x", "threadIdx.y",
                                               "threadIdx.x"), strict=True):  # fmt: skip
        sch.bind(loop, thread)
    for operand in (0, 1):
        copy = sch.cache_read(block, operand, scope)
        sch.compute_at(copy, ko)
        flat = sch.fuse(*sch.get_loops(copy)[-2:])
        _, ty, tx, vector = sch.split(flat, [None, 8, 8, 4])
        sch.bind(ty, "threadIdx.y")
        sch.bind(tx, "threadIdx.x")
        sch.vectorize(vector)
    sch.decompose_reduction(block, ko)
    return sch.mod["main"].with_attr("global_symbol", "k")


def built(function: Any) -> tuple[Any, str]:
    """A function's module before its device code is compiled, and its CUDA C."""
    import tvm

    t = target()
    with cuda.building(t):
        module = tvm.tirx.build(tvm.IRModule({"k": function}), tvm.target.Target(t.tvm_dict()))
    return module, module.imports[0].inspect_source()


@pytest.mark.parametrize("scope", ["shared", "shared.dyn"])
def test_each_barrier_of_a_product_is_needed(scope: str) -> None:
    _, code = built(product(scope))
    code = code.replace("k_kernel", "k")
    barriers = [m.span() for m in re.finditer(r"__syncthreads\(\);", code)]
    assert len(barriers) == 2
    a, b, c = floats(32 * 64), floats(32 * 64)[::-1].copy(), np.zeros((64, 64), np.float32)
    args, shared = (a, b, c), 4096 if scope == "shared.dyn" else 0

    def launch(text: str, seed: int) -> None:
        Program(compile_source(text, True)).launch("k", [2, 2], [8, 8], args, shared, seed)

    for seed in (0, 1, 2):
        launch(code, seed)
        want = a.reshape(32, 64).T.astype(float) @ b.reshape(32, 64)
        np.testing.assert_allclose(c, want, atol=1e-5)
        for start, end in barriers:
            with pytest.raises(LaunchError) as caught:
                launch(code[:start] + code[end:], seed)
            assert caught.value.kind == "race"


def test_variables_that_say_nonsense_are_refused() -> None:
    emulator.check_environment(
        {"TVMSEP_EMULATOR_ARCH": "sm_120", "TVMSEP_EMULATOR_SEED": "7", "TVMSEP_EMULATOR_CHECK": "",
         "TVMSEP_EMULATOR_FAULT": "memory:1048576,launch:k_kernel,hang:*", "OTHER": "x"}
    )  # fmt: skip
    for name, value in (
        ("ARCH", "foo"), ("ARCH", "87"), ("SEED", "x"), ("SEED", "-1"), ("FAULT", "bogus"),
        ("FAULT", "memory:much"), ("FAULT", "launch:a,launch"), ("CHECK", "yes"), ("SPEED", "1"),
    ):  # fmt: skip
        with pytest.raises(EmulatorError, match=f"TVMSEP_EMULATOR_{name} is "):
            emulator.check_environment({f"TVMSEP_EMULATOR_{name}": value})
    done = subprocess.run(
        [sys.executable, "-m", "tvmsep.cli", "targets"], capture_output=True, text=True, timeout=60,
        env={**os.environ, "TVMSEP_EMULATOR_ARCH": "foo"},
    )  # fmt: skip
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == (
        "error: TVMSEP_EMULATOR_ARCH is 'foo': give a compute capability, such as sm_87, or leave "
        "it out\n"
    )


# --- as TVM's runtime sees it ---------------------------------------------------------------------


@pytest.fixture
def loaded(device: Any, tmp_path: Any) -> Any:
    """The product in a library, through TVM's loader, and its arguments on the device."""
    import tvm

    from tvmsep.codegen import link_shared

    def load(scope: str = "shared", rewrite: tuple[str, str] = ("", "")) -> Any:
        module, _ = built(product(scope))
        host, code, out = (tmp_path / f"{scope}{i}" for i in ("host.o", "code.o", "k.so"))
        module.write_to_file(str(host), "o")
        original = emulator.compile_source
        with pytest.MonkeyPatch.context() as patch:
            changed = lambda text: original(text.replace(*rewrite))  # noqa: E731
            patch.setattr(emulator, "compile_source", changed)
            code.write_bytes(cuda.device_object(module, target()) or b"")
        link_shared([host, code], out, target())
        return tvm.runtime.load_module(str(out))["k"]

    yield load
    emulator.reset()


def tensors(device: Any) -> list[Any]:
    import tvm

    arrays = [floats(2048).reshape(32, 64), floats(2049)[1:].reshape(32, 64)]
    return [tvm.runtime.tensor(a, device) for a in (*arrays, np.zeros((64, 64), np.float32))]


def test_tvm_runs_kernels_on_it(device: Any, loaded: Any) -> None:
    import tvm

    assert device.exist and device.device_name == "emulated CUDA device"
    assert (device.compute_version, device.max_threads_per_block) == ("8.7", 1024)
    assert device.max_shared_memory_per_block == 48 * 1024 and device.warp_size == 32
    for scope in ("shared", "shared.dyn"):
        a, b, c = tensors(device)
        run = loaded(scope)
        run(a, b, c)
        np.testing.assert_allclose(c.numpy(), a.numpy().T @ b.numpy(), atol=1e-4)
    library = tvm.runtime.empty((4,), "float32", device)
    assert np.isnan(library.numpy()).all()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("launch:k_kernel", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"),
        ("address:k_kernel", "cudaErrorIllegalAddress"),
        ("failed:*", "cudaErrorLaunchFailure"),
        ("address:other,launch:*", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"),
    ],
)
def test_faults_on_request(
    fault: str, error: str, device: Any, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = tensors(device)
    run = loaded()
    monkeypatch.setenv("TVMSEP_EMULATOR_FAULT", fault)
    with pytest.raises(Exception, match=error):
        run(a, b, c)
        device.sync()
    if "launch" not in fault:
        with pytest.raises(Exception, match=error):  # the device is of no use to this process
            c.numpy()
    emulator.reset()


def test_a_race_is_a_failed_launch_that_says_why(device: Any, loaded: Any) -> None:
    a, b, c = tensors(device)
    run = loaded(rewrite=("__syncthreads();", ""))
    with pytest.raises(Exception, match=r"719.*unspecified launch failure \(emulator: race: "):
        run(a, b, c)
        device.sync()
    emulator.reset()


def test_memory_ends(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests of this process still hold counts too: the end comes 1 MiB beyond it."""
    import tvm

    gc.collect()
    held = device.total_global_memory - device.available_global_memory
    monkeypatch.setenv("TVMSEP_EMULATOR_FAULT", f"memory:{held + 1048576}")
    small = tvm.runtime.empty((64, 1024), "float32", device)
    with pytest.raises(Exception, match="cudaErrorMemoryAllocation.*out of memory"):
        tvm.runtime.empty((512, 1024), "float32", device)
    del small
    tvm.runtime.empty((200, 1024), "float32", device)


def test_machine_code_of_a_device_is_refused(
    device: Any, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cubin = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + (190).to_bytes(2, "little")
    monkeypatch.setattr(cuda, "device_code", lambda *_: cuda.DeviceCode(cubin + bytes(99), ()))
    a, b, c = tensors(device)
    run = loaded()
    with pytest.raises(Exception, match="CUDA_ERROR_NO_BINARY_FOR_GPU"):
        run(a, b, c)


def test_a_new_process_finds_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import tvm; d = tvm.cuda(0); print(d.exist, d.exist and d.compute_version)"
    environment = {**os.environ, "TVMSEP_EMULATOR_ARCH": "sm_120"}
    environment.pop("LD_LIBRARY_PATH", None)
    with_it = {**environment, "LD_LIBRARY_PATH": str(emulator.stand_in())}
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
        ).stdout.strip()
        for env in (environment, with_it)
    ]
    assert said == ["False False", "True 12.0"]
