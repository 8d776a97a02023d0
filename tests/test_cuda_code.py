"""Device code for CUDA targets: compiled without a driver, read back, embedded, refused."""

from __future__ import annotations

import ctypes
import os
import random
import re
import struct
import subprocess
from pathlib import Path

import msgspec
import pytest

from tvmsep.codegen import kernel, link_shared, nvrtc
from tvmsep.codegen.cubin import CubinError, kernel_resources, occupancy
from tvmsep.codegen.cuda import building, compile_cuda, device_object
from tvmsep.codegen.imports import ImportsError, cuda_modules, imports_of, with_images
from tvmsep.codegen.link import LinkError, zig
from tvmsep.codegen.nvrtc import DeviceCodeRefused, compile_image
from tvmsep.contracts import Config, Gpu, Target, Workload
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target, local_target, misfit, target_names

GPUS = [n for n in target_names() if load_target(n).gpu is not None]
SPILLS = """
extern "C" __global__ void __launch_bounds__(1024) crowded(const float* x, float* y) {
  __shared__ float s[256];
  float a[96];
#pragma unroll
  for (int i = 0; i < 96; i++) a[i] = x[threadIdx.x + i * 128];
  s[threadIdx.x & 255] = a[0];
  __syncthreads();
  for (int j = 0; j < 1000; j++) {
#pragma unroll
    for (int i = 0; i < 96; i++) a[i] = fmaf(a[i], a[(i * 7 + 3) % 96], s[(j + i) & 255]);
  }
#pragma unroll
  for (int i = 0; i < 96; i++) y[threadIdx.x + i * 128] = a[i];
}
extern "C" __global__ void __launch_bounds__(64) plain(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x] + 1.0f;
}
"""


def gpu_of(name: str) -> Gpu:
    gpu = load_target(name).gpu
    assert gpu is not None
    return gpu


def ptxas(source: str, arch: str) -> dict[str, dict[str, int]]:
    """What ptxas itself says of each kernel."""
    lib = nvrtc.library()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"x.cu", 0, None, None)
    options = [f"--gpu-architecture={arch}".encode(), b"--maxrregcount=255", b"--ptxas-options=-v"]
    assert lib.nvrtcCompileProgram(program, 3, (ctypes.c_char_p * 3)(*options)) == 0
    lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(program, log)
    found = {}
    for name, text in re.findall(
        r"entry function '(\w+)'(.*?)Compile time", log.value.decode(), re.S
    ):

        def number(pattern: str, text: str = text) -> int:
            match = re.search(pattern, text)
            return int(match.group(1)) if match else 0

        found[name] = {
            "registers": number(r"Used (\d+) registers"),
            "stack": number(r"(\d+) bytes stack frame"),
            "spills": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
            "shared": number(r"(\d+) bytes smem"),
        }
    return found


@pytest.mark.parametrize("name", [n for n in GPUS if n != "cuda"])
def test_resources_are_what_ptxas_says(name: str) -> None:
    gpu = gpu_of(name)
    said = ptxas(SPILLS, gpu.arch)
    read = {k.name: k for k in kernel_resources(compile_image(SPILLS, gpu), gpu)}
    assert read.keys() == said.keys() == {"crowded", "plain"}
    for kernel_name, want in said.items():
        got = read[kernel_name]
        assert (got.registers, got.stack_bytes, got.shared_bytes) == (
            want["registers"], want["stack"], want["shared"],
        )  # fmt: skip
        assert got.spill_bytes == want["spills"]
    assert read["crowded"].spill_bytes > 0 and read["plain"].spill_bytes == 0
    assert (read["crowded"].threads, read["plain"].threads) == (1024, 64)
    # Where two blocks of 1024 threads fit, ptxas spills to have both: one is enough for us.
    (crowded, _) = compile_cuda(SPILLS, gpu).resources
    two = gpu.threads_per_sm == 2048 and gpu.registers_per_block == 65536
    assert (crowded.spill_bytes < read["crowded"].spill_bytes) == two


def oracle(folder: Path) -> ctypes.CDLL:
    """NVIDIA's own occupancy calculator, a header, as a library."""
    header = nvrtc._half_header()
    assert (header / "cuda_occupancy.h").exists()
    source = folder / "occ.c"
    source.write_text(
        """
#define __CUDA_OCCUPANCY_INLINE
#include "cuda_occupancy.h"
int blocks(int major, int minor, int most, int sm_threads, int regs_block, int regs_sm,
           int shared_block, int shared_sm, int reserved, int threads, int regs, int shared) {
  cudaOccDeviceProp p;
  __builtin_memset(&p, 0, sizeof p);
  p.computeMajor = major, p.computeMinor = minor, p.maxThreadsPerBlock = most;
  p.maxThreadsPerMultiprocessor = sm_threads, p.regsPerBlock = regs_block;
  p.regsPerMultiprocessor = regs_sm, p.warpSize = 32, p.sharedMemPerBlock = shared_block;
  p.sharedMemPerMultiprocessor = shared_sm, p.numSms = 1;
  p.sharedMemPerBlockOptin = shared_block, p.reservedSharedMemPerBlock = reserved;
  cudaOccFuncAttributes a;
  __builtin_memset(&a, 0, sizeof a);
  a.maxThreadsPerBlock = most, a.numRegs = regs, a.sharedSizeBytes = shared;
  a.partitionedGCConfig = PARTITIONED_GC_OFF, a.maxDynamicSharedSizeBytes = 0;
  cudaOccDeviceState s;
  __builtin_memset(&s, 0, sizeof s);
  s.cacheConfig = CACHE_PREFER_SHARED, s.carveoutConfig = 100;
  cudaOccResult r;
  if (cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &s, threads, 0)) return -1;
  return r.activeBlocksPerMultiprocessor;
}
"""
    )
    out = source.with_suffix(".o")
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    subprocess.run(
        [zig(), "cc", "-c", "-O1", "-fPIC", "-fno-sanitize=all", f"-I{header}", str(source),
         "-o", str(out)],
        check=True, timeout=100, env={**os.environ, **caches},
    )  # fmt: skip
    link_shared([out], folder / "occ.so", local_target())
    return ctypes.CDLL(str(folder / "occ.so"))


def test_occupancy_is_what_nvidias_calculator_says(tmp_path: Path) -> None:
    blocks = oracle(tmp_path).blocks
    rng = random.Random(0)
    seen = set()
    for _ in range(4000):
        gpu = gpu_of(rng.choice(GPUS))
        threads, registers = rng.randint(1, 1024), rng.randint(16, 255)
        shared = rng.choice((0, rng.randint(1, gpu.shared_per_block)))
        major, minor = divmod(gpu.compute_capability, 10)
        want = blocks(
            major, minor, gpu.threads_per_block, gpu.threads_per_sm, gpu.registers_per_block,
            gpu.registers_per_sm, gpu.shared_per_block, gpu.shared_per_sm,
            1024 if major >= 8 else 0, threads, registers, shared,
        )  # fmt: skip
        assert want >= 0
        share = want * -(-threads // 32) * 32 / gpu.threads_per_sm
        got = occupancy(gpu, threads, registers, shared)
        assert got == pytest.approx(share), (gpu.arch, threads, registers, shared)
        seen.add(got)
    assert len(seen) > 20 and 0.0 in seen and 1.0 in seen


def test_arithmetic_is_not_fast() -> None:
    source = 'extern "C" __global__ void k(float* x) { x[0] = x[0] / x[1] + sqrtf(x[2]); }'
    text = compile_image(source, gpu_of("t4"), ptx=True).decode()
    assert "div.rn.f32" in text and "sqrt.rn.f32" in text
    assert ".approx" not in text and ".ftz" not in text


def test_the_compilers_words_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = gpu_of("jetson-orin")
    with pytest.raises(DeviceCodeRefused, match="sm_87.*error.*nonsense"):
        compile_cuda('extern "C" __global__ void k(float* x) { nonsense; }', gpu)
    too_much = 'extern "C" __global__ void k(float* x) { __shared__ float s[20000]; s[0] = x[0]; '
    with pytest.raises(DeviceCodeRefused, match="shared data"):
        compile_cuda(too_much + "__syncthreads(); x[1] = s[threadIdx.x]; }", gpu)
    monkeypatch.setattr(nvrtc, "_wheel_file", lambda *_: None)
    nvrtc.library.cache_clear()
    with pytest.raises(LinkError, match=r"pip install 'tvmsep\[cuda\]'"):
        compile_image("", gpu)


PW = Workload(
    op="pointwise", ic=16, ih=8, iw=8, oc=32, in_block=4, out_block=4, epilogue=("bias", "relu"),
)  # fmt: skip


def built(t: Target) -> tuple[object, object]:
    import tvm

    template = TEMPLATES["cuda_pointwise"]
    func = kernel(PW, t, template.name, template.default(PW, t, 1), name="pw")
    with building(t):
        return func, tvm.tirx.build(func, tvm.target.Target(t.tvm_dict()))


@pytest.mark.parametrize(
    ("name", "machine"), [("t4", 62), ("jetson-orin", 183), ("jetson-nano", 183), ("cuda", 62)]
)
def test_a_library_holds_machine_code_and_no_source(
    name: str, machine: int, tmp_path: Path
) -> None:
    t = load_target(name)
    assert t.gpu is not None
    _, module = built(t)
    objects = [tmp_path / "host.o", tmp_path / "device.o"]
    module.write_to_file(str(objects[0]), "o")  # type: ignore[attr-defined]
    code = device_object(module, t)
    assert code is not None
    objects[1].write_bytes(code)
    link_shared(objects, tmp_path / "k.so", t)
    library = (tmp_path / "k.so").read_bytes()
    assert struct.unpack_from("<H", library, 18) == (machine,)
    assert b"__global__" not in library
    packed = imports_of(library)
    assert packed is not None
    (held,) = cuda_modules(packed)
    assert held.compiled and not held.dynamic
    if t.gpu.ptx:
        assert held.code.startswith(b"//") and b".target sm_75" in held.code
        with pytest.raises(CubinError, match="PTX"):
            kernel_resources(held.code, t.gpu)
    else:
        (found,) = kernel_resources(held.code, t.gpu)
        assert found.name == "pw_kernel" and found.spill_bytes == 0 < found.occupancy <= 1
    for cut in (40, len(library) // 2):
        with pytest.raises(ImportsError):
            imports_of(library[:cut])
    with pytest.raises(ImportsError):
        list(cuda_modules(packed[: len(packed) // 2]))
    with pytest.raises(CubinError):
        kernel_resources(b"\x7fELF" + bytes(100), t.gpu)
    assert with_images(packed, lambda _: ("cubin", b"")) == (packed, 0)  # no source is left


def test_what_breaks_a_devices_limits_is_refused() -> None:
    t = load_target("t4")
    assert t.gpu is not None
    template = TEMPLATES["cuda_pointwise"]
    config: Config = template.default(PW, t, 1)
    kernel(PW, t, template.name, config)
    for limit, words in (
        ({"threads_per_block": 8}, "8 threads a block"),
        ({"shared_per_block": 16}, "16 bytes of shared memory"),
    ):
        small = msgspec.structs.replace(t, gpu=msgspec.structs.replace(t.gpu, **limit))
        with pytest.raises(DeviceCodeRefused, match=words):
            kernel(PW, small, template.name, config)


def test_building_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TVM_COMPILE_FORCE_FALLBACK"
    monkeypatch.delenv(name, raising=False)
    with building(load_target("t4")):
        assert os.environ[name] == "1"
    assert name not in os.environ
    with building(load_target("x86-avx2")):
        assert name not in os.environ


@pytest.mark.parametrize("name", GPUS)
def test_facts_of_devices_fit_each_other(name: str) -> None:
    t = load_target(name)
    gpu = t.gpu
    assert gpu is not None and t.source
    # Lanes of a multiprocessor: two FLOPs each, every clock.
    lanes = {53: 128, 75: 64, 80: 64}.get(gpu.compute_capability, 128)
    peak = 2 * lanes * gpu.sms * gpu.clock_ghz * 1e9
    assert gpu.fp32_flops == pytest.approx(peak, rel=0.03)
    assert gpu.shared_per_block < gpu.shared_per_sm and gpu.threads_per_sm % gpu.warp == 0
    assert gpu.compile_only == (name == "jetson-nano")


def test_local_is_never_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import tvmsep.targets

    assert misfit(load_target("t4")) is None or local_target().machine != "x86_64"
    monkeypatch.setattr(tvmsep.targets, "misfit", lambda t: None if t.gpu else "not here")
    with pytest.raises(tvmsep.targets.TargetError, match="no target fits"):
        local_target()
