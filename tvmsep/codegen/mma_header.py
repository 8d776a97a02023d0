"""`mma.h` for NVRTC: the fragments of tensor cores that our kernels use, by the PTX instructions.

The wheel of CUDA's runtime has an `mma.h` without what it includes, which is in the wheel of a
whole compiler. Only float16 into float32 is here, in rows, from and to shared memory.
"""

from __future__ import annotations

SHAPES = ((16, 16), (8, 32), (32, 8))
"""Rows and columns of accumulators, for a depth of 16."""

_HEAD = """
#pragma once
#include <cuda_fp16.h>
namespace nvcuda { namespace wmma {
struct matrix_a {}; struct matrix_b {}; struct accumulator {};
struct row_major {}; struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
template <class Use, int m, int n, int k, class T, class Layout = void> struct fragment {
  unsigned x[8];
};
template <int m, int n, int k> struct fragment<accumulator, m, n, k, float> { float x[8]; };
template <class Fragment> __device__ __forceinline__ void fill_fragment(Fragment& f, float v) {
#pragma unroll
  for (int i = 0; i < 8; i++) f.x[i] = v;
}
"""


def _registers(first: int) -> str:
    return "{" + ", ".join(f"%{first + i}" for i in range(8)) + "}"


def _operands(kind: str, name: str) -> str:
    return ", ".join(f'"{kind}"({name}.x[{i}])' for i in range(8))


def _load(use: str, shape: str, numbers: str) -> str:
    return f"""
__device__ __forceinline__ void load_matrix_sync(
    fragment<matrix_{use}, {numbers}, half, row_major>& f, const half* p, unsigned stride) {{
  asm volatile("wmma.load.{use}.sync.aligned.row.{shape}.shared.f16 {_registers(0)}, [%8], %9;"
      : {_operands("=r", "f")}
      : "r"((unsigned)__cvta_generic_to_shared(p)), "r"(stride) : "memory");
}}"""


def _functions(m: int, n: int) -> str:
    shape, numbers = f"m{m}n{n}k16", f"{m}, {n}, 16"
    return f"""{_load("a", shape, numbers)}{_load("b", shape, numbers)}
__device__ __forceinline__ void store_matrix_sync(
    float* p, const fragment<accumulator, {numbers}, float>& f, unsigned stride, layout_t) {{
  asm volatile("wmma.store.d.sync.aligned.row.{shape}.shared.f32 [%0], {_registers(1)}, %9;"
      :: "r"((unsigned)__cvta_generic_to_shared(p)), {_operands("f", "f")}, "r"(stride)
      : "memory");
}}
__device__ __forceinline__ void mma_sync(
    fragment<accumulator, {numbers}, float>& d,
    const fragment<matrix_a, {numbers}, half, row_major>& a,
    const fragment<matrix_b, {numbers}, half, row_major>& b,
    const fragment<accumulator, {numbers}, float>& c) {{
  asm volatile("wmma.mma.sync.aligned.row.row.{shape}.f32.f32 "
      "{_registers(0)}, {_registers(8)}, {_registers(16)}, {_registers(24)};"
      : {_operands("=f", "d")}
      : {_operands("r", "a")}, {_operands("r", "b")}, {_operands("f", "c")});
}}"""


MMA_H = _HEAD + "".join(_functions(m, n) for m, n in SHAPES) + "\n}}\n"
