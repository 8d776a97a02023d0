// Half precision by the compiler's own type: each operation rounds once, as the device's do.
#pragma once

typedef _Float16 __half;
typedef _Float16 half;

struct __attribute__((aligned(4))) __half2 {
  half x, y;
};
typedef __half2 half2;

#define EMU_HALF_UNARY(name, f) \
  inline half name(half a) { return (half)f((float)a); }
EMU_HALF_UNARY(hexp, expf)
EMU_HALF_UNARY(hexp2, exp2f)
EMU_HALF_UNARY(hexp10, exp10f)
EMU_HALF_UNARY(hlog, logf)
EMU_HALF_UNARY(hlog2, log2f)
EMU_HALF_UNARY(hlog10, log10f)
EMU_HALF_UNARY(hsqrt, sqrtf)
EMU_HALF_UNARY(hrsqrt, rsqrtf)
EMU_HALF_UNARY(hrcp, 1.0f /)
EMU_HALF_UNARY(hsin, sinf)
EMU_HALF_UNARY(hcos, cosf)
EMU_HALF_UNARY(htanh, tanhf)
EMU_HALF_UNARY(hfloor, floorf)
EMU_HALF_UNARY(hceil, ceilf)
EMU_HALF_UNARY(htrunc, truncf)
EMU_HALF_UNARY(hrint, rintf)
EMU_HALF_UNARY(__habs, fabsf)
#undef EMU_HALF_UNARY

inline half __float2half(float a) { return (half)a; }
inline half __float2half_rn(float a) { return (half)a; }
inline float __half2float(half a) { return (float)a; }
inline half __int2half_rn(int a) { return (half)a; }
inline int __half2int_rz(half a) { return (int)a; }
inline half2 make_half2(half x, half y) { return {x, y}; }
inline half2 __halves2half2(half x, half y) { return {x, y}; }
inline half2 __float2half2_rn(float a) { return {(half)a, (half)a}; }
inline half2 __floats2half2_rn(float x, float y) { return {(half)x, (half)y}; }
inline half2 __float22half2_rn(float2 a) { return {(half)a.x, (half)a.y}; }
inline float2 __half22float2(half2 a) { return {(float)a.x, (float)a.y}; }
inline half2 __half2half2(half a) { return {a, a}; }
inline half __low2half(half2 a) { return a.x; }
inline half __high2half(half2 a) { return a.y; }

inline half __hadd(half a, half b) { return a + b; }
inline half __hsub(half a, half b) { return a - b; }
inline half __hmul(half a, half b) { return a * b; }
inline half __hdiv(half a, half b) { return a / b; }
inline half __hneg(half a) { return -a; }
inline half __hfma(half a, half b, half c) { return (half)fmaf((float)a, (float)b, (float)c); }
inline half __hmax(half a, half b) { return (half)fmaxf((float)a, (float)b); }
inline half __hmin(half a, half b) { return (half)fminf((float)a, (float)b); }
inline bool __heq(half a, half b) { return a == b; }
inline bool __hne(half a, half b) { return a != b; }
inline bool __hlt(half a, half b) { return a < b; }
inline bool __hle(half a, half b) { return a <= b; }
inline bool __hgt(half a, half b) { return a > b; }
inline bool __hge(half a, half b) { return a >= b; }
inline bool __hisnan(half a) { return a != a; }

inline half2 __hadd2(half2 a, half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
inline half2 __hsub2(half2 a, half2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
inline half2 __hmul2(half2 a, half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
inline half2 __hmax2(half2 a, half2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
inline half2 __hmin2(half2 a, half2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
inline half2 __hfma2(half2 a, half2 b, half2 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline half2 operator+(half2 a, half2 b) { return __hadd2(a, b); }
inline half2 operator-(half2 a, half2 b) { return __hsub2(a, b); }
inline half2 operator*(half2 a, half2 b) { return __hmul2(a, b); }
