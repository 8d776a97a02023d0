"""CUDA C to machine code by NVRTC, from the wheel that pip installs: no driver, no GPU, no nvcc.

One wheel of CUDA 12 compiles for everything from compute capability 5.3 to 12.x. Headers that TVM's
source includes are given in memory; `cuda_fp16.h` comes from the wheel of CUDA's runtime.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache
from importlib import util
from pathlib import Path

from tvmsep.codegen.link import LinkError, LinkRefused
from tvmsep.codegen.mma_header import MMA_H
from tvmsep.contracts import Gpu

_ADVICE = "`pip install 'tvmsep[cuda]'` brings it, for Linux on x86-64 and AArch64"

_TYPES = {
    "int8_t": "signed char",
    "uint8_t": "unsigned char",
    "int16_t": "short",
    "uint16_t": "unsigned short",
    "int32_t": "int",
    "uint32_t": "unsigned int",
    "int64_t": "long long",
    "uint64_t": "unsigned long long",
}
_TRAITS = """
template <class T, T v> struct integral_constant { static constexpr T value = v; };
using true_type = integral_constant<bool, true>;
using false_type = integral_constant<bool, false>;
template <class A, class B> struct is_same : false_type {};
template <class A> struct is_same<A, A> : true_type {};
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;
template <class T> struct is_floating_point
    : integral_constant<bool, is_same_v<T, float> || is_same_v<T, double>> {};
template <class T> struct is_unsigned
    : integral_constant<bool, is_same_v<T, bool> || is_same_v<T, unsigned char> ||
      is_same_v<T, unsigned short> || is_same_v<T, unsigned int> || is_same_v<T, unsigned long> ||
      is_same_v<T, unsigned long long>> {};
template <class T> struct is_integral
    : integral_constant<bool, is_unsigned<T>::value || is_same_v<T, char> ||
      is_same_v<T, signed char> || is_same_v<T, short> || is_same_v<T, int> ||
      is_same_v<T, long> || is_same_v<T, long long>> {};
template <class T> struct is_signed
    : integral_constant<bool, is_floating_point<T>::value ||
      (is_integral<T>::value && !is_unsigned<T>::value)> {};
template <bool yes, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { using type = T; };
template <bool yes, class A, class B> struct conditional { using type = A; };
template <class A, class B> struct conditional<false, A, B> { using type = B; };
"""


def _in_std(body: str) -> str:
    return f"#pragma once\nnamespace cuda {{ namespace std {{\n{body}\n}} }}\n"


HEADERS = {
    "cuda/std/cstdint": _in_std("\n".join(f"typedef {c} {name};" for name, c in _TYPES.items())),
    "cuda/std/type_traits": _in_std(_TRAITS),
    "mma.h": MMA_H,
}
"""What TVM's source includes under NVRTC, by name."""


class DeviceCodeRefused(LinkRefused):
    """The compiler of device code refuses a kernel: a failure of what was compiled."""


def _wheel_file(package: str, *parts: str) -> Path | None:
    try:
        spec = util.find_spec(package)
    except ModuleNotFoundError:
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, *parts)).exists():
            return path
    return None


@cache
def library() -> ctypes.CDLL:
    """NVRTC.

    Raises:
        LinkError: its wheel is not installed, or cannot be loaded.
    """
    path = _wheel_file("nvidia.cuda_nvrtc", "lib", "libnvrtc.so.12")
    if path is None:
        raise LinkError(f"no compiler for CUDA targets: {_ADVICE} (nvidia-cuda-nvrtc-cu12)")
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise LinkError(f"NVRTC cannot be loaded ({error}): {_ADVICE}") from error


def _half_header() -> Path:
    path = _wheel_file("nvidia.cuda_runtime", "include")
    if path is None:
        raise LinkError(f"no cuda_fp16.h for float16 kernels: {_ADVICE} (nvidia-cuda-runtime-cu12)")
    return path


def compile_image(source: str, gpu: Gpu, *, ptx: bool = False) -> bytes:
    """The cubin of CUDA C, or its PTX.

    Arithmetic is IEEE's but that multiply-adds are fused: no fast-math.

    Raises:
        DeviceCodeRefused: NVRTC or ptxas refuses it; with their words.
        LinkError: a wheel is missing.
    """
    nvrtc = library()
    options = [
        f"--gpu-architecture={gpu.arch.replace('sm_', 'compute_') if ptx else gpu.arch}",
        "--std=c++17",
        # Without it ptxas may spill some bytes to let one block more onto a multiprocessor.
        f"--maxrregcount={gpu.registers_per_thread}",
        # INFINITY and NAN are math.h's, which NVRTC does not have.
        "-DINFINITY=__int_as_float(0x7f800000)",
        "-DNAN=__int_as_float(0x7fffffff)",
    ]
    if "cuda_fp16.h" in source:
        options.append(f"--include-path={_half_header()}")
    program = ctypes.c_void_p()
    names, texts = zip(*HEADERS.items(), strict=True)
    status = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernels.cu", len(names), _texts(texts),
        _texts(names),
    )  # fmt: skip
    if status:
        raise DeviceCodeRefused(f"NVRTC takes no program: error {status}")
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(options), _texts(options))
        if status:
            log = _get(nvrtc, "ProgramLog", program)
            raise DeviceCodeRefused(f"NVRTC for {gpu.arch}: {_words(log)}")
        return _get(nvrtc, "PTX" if ptx else "CUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _texts(values: tuple[str, ...] | list[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(values))(*(v.encode() for v in values))


def _get(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    status = nvrtc[f"nvrtcGet{what}Size"](program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    if status or (status := nvrtc[f"nvrtcGet{what}"](program, buffer)):
        raise DeviceCodeRefused(f"NVRTC hands no {what} out: error {status}")
    return buffer.raw


def _words(log: bytes) -> str:
    """What it complains of, without its warnings about old architectures; the first few lines."""
    lines = log.rstrip(b"\0").decode(errors="replace").splitlines()
    kept = [x for x in lines if re.search(r"error|fatal", x)] or [x for x in lines if x.strip()]
    return "; ".join(kept[:4])[:2000] or "no reason given"
