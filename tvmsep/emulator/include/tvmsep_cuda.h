// CUDA C for this CPU: what the sources that TVM writes use, as the language defines it.
//
// A thread of a block is a fibre of the runtime (native/runtime.c). What the compiler must not move
// over a barrier is behind a call that it cannot see into.
#pragma once

#define __CUDACC_RTC__ 1
#define __CUDACC__ 1
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#define __host__
#define __device__
#define __global__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
// As a GNU attribute it may stand behind `static`, where an alignas may not.
#define alignas(n) __attribute__((aligned(n)))

typedef unsigned long size_t;

extern "C" {
// The calls into native/runtime.c.
struct emu_index {
  unsigned x, y, z;
};
__attribute__((const)) emu_index emu_thread_index(void);
__attribute__((const)) emu_index emu_block_index(void);
__attribute__((const)) emu_index emu_block_size(void);
__attribute__((const)) emu_index emu_grid_size(void);
__attribute__((const)) void* emu_dynamic_shared(void);
__attribute__((convergent)) void emu_barrier(void);
__attribute__((convergent)) unsigned emu_active_mask(void);
__attribute__((convergent)) void emu_warp_barrier(unsigned mask);
__attribute__((convergent)) unsigned long emu_exchange(int kind, unsigned mask, unsigned long value,
                                                       int lane, int width);
void emu_async_copy(unsigned to, const void* from, unsigned bytes, int predicate);
void emu_async_commit(void);
void emu_async_wait(unsigned newest);

float expf(float), exp2f(float), exp10f(float), logf(float), log2f(float), log10f(float);
float log1pf(float), powf(float, float), sqrtf(float), sinf(float), cosf(float), tanf(float);
float asinf(float), acosf(float), atanf(float), atan2f(float, float), sinhf(float), coshf(float);
float tanhf(float), asinhf(float), acoshf(float), atanhf(float), erff(float), floorf(float);
float ceilf(float), truncf(float), roundf(float), rintf(float), nearbyintf(float), fabsf(float);
float fmodf(float, float), fmaf(float, float, float), fmaxf(float, float), fminf(float, float);
float hypotf(float, float), copysignf(float, float), ldexpf(float, int), cbrtf(float);
double exp(double), exp2(double), exp10(double), log(double), log2(double), log10(double);
double pow(double, double), sqrt(double), sin(double), cos(double), tan(double), tanh(double);
double erf(double), floor(double), ceil(double), trunc(double), round(double), rint(double);
double nearbyint(double), fabs(double), fmod(double, double), fma(double, double, double);
double fmax(double, double), fmin(double, double), atan(double), log1p(double);
void* memcpy(void*, const void*, size_t);
void* memset(void*, int, size_t);
}

#define threadIdx (emu_thread_index())
#define blockIdx (emu_block_index())
#define blockDim (emu_block_size())
#define gridDim (emu_grid_size())
#define warpSize 32

// --- vectors -------------------------------------------------------------------------------------

#define EMU_VECTORS(T, N, a2, a3, a4)                                          \
  struct N##1 {                                                                \
    T x;                                                                       \
  };                                                                           \
  struct __attribute__((aligned(a2))) N##2 {                                   \
    T x, y;                                                                    \
  };                                                                           \
  struct N##3 {                                                                \
    T x, y, z;                                                                 \
  };                                                                           \
  struct __attribute__((aligned(a4))) N##4 {                                   \
    T x, y, z, w;                                                              \
  };                                                                           \
  inline N##1 make_##N##1(T x) { return {x}; }                                 \
  inline N##2 make_##N##2(T x, T y) { return {x, y}; }                         \
  inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }                 \
  inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(signed char, char, 2, 1, 4)
EMU_VECTORS(unsigned char, uchar, 2, 1, 4)
EMU_VECTORS(short, short, 4, 2, 8)
EMU_VECTORS(unsigned short, ushort, 4, 2, 8)
EMU_VECTORS(int, int, 8, 4, 16)
EMU_VECTORS(unsigned, uint, 8, 4, 16)
EMU_VECTORS(long, long, 16, 8, 16)
EMU_VECTORS(unsigned long, ulong, 16, 8, 16)
EMU_VECTORS(long long, longlong, 16, 8, 16)
EMU_VECTORS(unsigned long long, ulonglong, 16, 8, 16)
EMU_VECTORS(float, float, 8, 4, 16)
EMU_VECTORS(double, double, 16, 8, 16)
#undef EMU_VECTORS

struct dim3 {
  unsigned x, y, z;
};

// --- synchronisation -----------------------------------------------------------------------------

__attribute__((convergent)) inline void __syncthreads() { emu_barrier(); }
__attribute__((convergent)) inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emu_warp_barrier(mask);
}
__attribute__((convergent)) inline unsigned __activemask() { return emu_active_mask(); }
inline void __threadfence() { asm volatile("" ::: "memory"); }
inline void __threadfence_block() { asm volatile("" ::: "memory"); }

#define EMU_SHUFFLE(name, kind)                                                          \
  template <class T>                                                                     \
  __attribute__((convergent)) inline T name(unsigned mask, T value, int lane, int width = 32) { \
    static_assert(sizeof(T) <= 8);                                                       \
    unsigned long bits = 0;                                                              \
    __builtin_memcpy(&bits, &value, sizeof(T));                                          \
    bits = emu_exchange(kind, mask, bits, lane, width);                                  \
    __builtin_memcpy(&value, &bits, sizeof(T));                                          \
    return value;                                                                        \
  }
EMU_SHUFFLE(__shfl_sync, 0)
EMU_SHUFFLE(__shfl_up_sync, 1)
EMU_SHUFFLE(__shfl_down_sync, 2)
EMU_SHUFFLE(__shfl_xor_sync, 3)
#undef EMU_SHUFFLE
__attribute__((convergent)) inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return (unsigned)emu_exchange(4, mask, predicate != 0, 0, 32);
}
__attribute__((convergent)) inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
__attribute__((convergent)) inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, !predicate) == 0;
}

#define EMU_ATOMIC(T)                                                                       \
  inline T atomicAdd(T* p, T v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }      \
  inline T atomicMax(T* p, T v) { return __atomic_fetch_max(p, v, __ATOMIC_RELAXED); }      \
  inline T atomicMin(T* p, T v) { return __atomic_fetch_min(p, v, __ATOMIC_RELAXED); }      \
  inline T atomicExch(T* p, T v) { return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }    \
  inline T atomicCAS(T* p, T old, T v) {                                                    \
    __atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);     \
    return old;                                                                             \
  }
EMU_ATOMIC(int)
EMU_ATOMIC(unsigned)
EMU_ATOMIC(unsigned long long)
#undef EMU_ATOMIC
inline float atomicAdd(float* p, float v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }

inline unsigned __cvta_generic_to_shared(const void* p) { return (unsigned)(size_t)p; }

// --- arithmetic ----------------------------------------------------------------------------------

#define EMU_ORDER(T)                                     \
  inline T min(T a, T b) { return b < a ? b : a; }       \
  inline T max(T a, T b) { return a < b ? b : a; }
EMU_ORDER(int)
EMU_ORDER(unsigned)
EMU_ORDER(long)
EMU_ORDER(unsigned long)
EMU_ORDER(long long)
EMU_ORDER(unsigned long long)
#undef EMU_ORDER
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline double min(double a, double b) { return __builtin_fmin(a, b); }
inline double max(double a, double b) { return __builtin_fmax(a, b); }
inline int abs(int a) { return a < 0 ? -a : a; }
inline long abs(long a) { return a < 0 ? -a : a; }
inline long long abs(long long a) { return a < 0 ? -a : a; }
inline float abs(float a) { return __builtin_fabsf(a); }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline float rsqrt(float a) { return 1.0f / sqrtf(a); }
inline double rsqrt(double a) { return 1.0 / sqrt(a); }
inline float erf(float a) { return erff(a); }
inline float exp(float a) { return expf(a); }
inline float __expf(float a) { return expf(a); }
inline float __exp10f(float a) { return exp10f(a); }
inline float __logf(float a) { return logf(a); }
inline float __log2f(float a) { return log2f(a); }
inline float __log10f(float a) { return log10f(a); }
inline float __sinf(float a) { return sinf(a); }
inline float __cosf(float a) { return cosf(a); }
inline float __tanf(float a) { return tanf(a); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __saturatef(float a) { return fminf(fmaxf(a, 0.0f), 1.0f); }
inline int __float_as_int(float a) { return __builtin_bit_cast(int, a); }
inline float __int_as_float(int a) { return __builtin_bit_cast(float, a); }
inline unsigned __float_as_uint(float a) { return __builtin_bit_cast(unsigned, a); }
inline float __uint_as_float(unsigned a) { return __builtin_bit_cast(float, a); }
inline int __float2int_rn(float a) { return (int)rintf(a); }
inline int __float2int_rz(float a) { return (int)a; }
inline int __float2int_rd(float a) { return (int)floorf(a); }
inline float __int2float_rn(int a) { return (float)a; }
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __clz(int a) { return a ? __builtin_clz((unsigned)a) : 32; }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline int __mul24(int a, int b) { return a * b; }
template <class T>
inline T __ldg(const T* p) {
  return *p;
}

// --- the table of kernels ------------------------------------------------------------------------

struct emu_kernel {
  const char* name;
  void (*call)(void** arguments);
  unsigned max_threads, granule;
  char *shared, *shared_end;
};

template <auto F>
struct emu_call;
template <class... A, void (*F)(A...)>
struct emu_call<F> {
  template <class I, I... N>
  struct sequence {
    __attribute__((no_sanitize("thread"))) static void call(void** a) { F(*(A*)a[N]...); }
  };
  using by_number = __make_integer_seq<sequence, int, sizeof...(A)>;
};
