// Fragments of tensor cores: each lane of a warp holds its share of a matrix.
//
// How the hardware deals elements out is unspecified; here it is mixed, so that no lane by chance
// holds what it wrote itself. So is the order of sums: here from first to last in float32. Products need what other lanes hold: those are handed
// over in a place of each warp, which the checks do not look at. Nothing here orders memory.
#pragma once
#include "cuda_fp16.h"

extern "C" __attribute__((convergent)) void emu_matrix(const void* place, unsigned row_bytes);

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int m, int n, int k>
struct emu_shape;
template <int m, int n, int k>
struct emu_shape<matrix_a, m, n, k> {
  enum { rows = m, columns = k };
};
template <int m, int n, int k>
struct emu_shape<matrix_b, m, n, k> {
  enum { rows = k, columns = n };
};
template <int m, int n, int k>
struct emu_shape<accumulator, m, n, k> {
  enum { rows = m, columns = n };
};

template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment {
  enum { rows = emu_shape<Use, m, n, k>::rows, columns = emu_shape<Use, m, n, k>::columns };
  enum { num_elements = rows * columns / 32 };
  T x[num_elements];
};

inline unsigned emu_thread_number() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

inline int emu_element(int i, int lane) { return i * 32 + (11 * lane + 7 * i + 5) % 32; }

template <class F, class T>
inline void fill_fragment(F& f, T value) {
  emu_matrix(nullptr, 0);
  for (int i = 0; i < F::num_elements; i++) f.x[i] = value;
}

template <class Use, int m, int n, int k, class T>
inline void load_matrix_sync(fragment<Use, m, n, k, T, row_major>& f, const T* p, unsigned stride) {
  typedef fragment<Use, m, n, k, T, row_major> F;
  emu_matrix(p, stride * sizeof(T));
  for (int i = 0, lane = emu_thread_number() % 32; i < F::num_elements; i++) {
    int at = emu_element(i, lane);
    f.x[i] = p[at / F::columns * stride + at % F::columns];
  }
}

template <int m, int n, int k, class T>
inline void store_matrix_sync(T* p, const fragment<accumulator, m, n, k, T>& f, unsigned stride,
                              layout_t layout) {
  emu_matrix(p, stride * sizeof(T));
  for (int i = 0, lane = emu_thread_number() % 32; i < f.num_elements; i++) {
    int at = emu_element(i, lane), row = at / n, column = at % n;
    p[layout == mem_row_major ? row * stride + column : column * stride + row] = f.x[i];
  }
}

template <int m, int n, int k>
struct emu_product {
  float a[m * k], b[k * n];
};

template <int m, int n, int k, class A, class B>
__attribute__((no_sanitize("thread"), noinline)) void mma_sync(
    fragment<accumulator, m, n, k, float>& d, const fragment<matrix_a, m, n, k, half, A>& a,
    const fragment<matrix_b, m, n, k, half, B>& b,
    const fragment<accumulator, m, n, k, float>& c) {
  static emu_product<m, n, k> places[32];
  int number = (int)emu_thread_number(), lane = number % 32;
  emu_product<m, n, k>& at = places[number / 32];
  for (int i = 0; i < a.num_elements; i++) at.a[emu_element(i, lane)] = (float)a.x[i];
  for (int i = 0; i < b.num_elements; i++) at.b[emu_element(i, lane)] = (float)b.x[i];
  emu_matrix(nullptr, 0);
  for (int i = 0; i < d.num_elements; i++) {
    int element = emu_element(i, lane), row = element / n, column = element % n;
    float sum = c.x[i];
    for (int j = 0; j < k; j++) sum += at.a[row * k + j] * at.b[j * n + column];
    d.x[i] = sum;
  }
  emu_matrix(nullptr, 0);
}

}  // namespace wmma
}  // namespace nvcuda
