"""exp, sigmoid, tanh and erf as polynomials that LLVM vectorises; fp32, no call of libm.

LLVM lowers `exp` of a vector to one libm call an element; what stands here stays in vector
registers: arithmetic, comparisons that become a minimum or a blend, and shifts of exponents.

All of them
    1. reduce: x = k ln(2) + r, |r| <= ln(2) / 2 (Cody and Waite, Software Manual for the
       Elementary Functions, 1980: ln(2) in two parts, so that k ln(2) loses no bits);
    2. e**r from a polynomial, in a form that keeps e**r - 1 exact near r = 0;
    3. 2**k from the bits of k, shifted into the exponent.

Rounding to k adds 1.5 * 2**23, which leaves k in the low bits of the sum: no rounding instruction
(older ARM has none), and no conversion to an integer, which is undefined for NaN. Comparisons
select `x` where it is NaN, so NaN in is NaN out.

Values that are used twice are bound by `Let`, and still one of these functions should not be given
the result of another in the same expression: several of TVM's passes put a bound value in place
of its variable to simplify it, and compiling two in a row takes seconds, three for ever. Let the
first one's result go through a buffer.

The errors in the docstrings are the largest against float64 over every 61st of the 2**32 values
with fused multiply-adds (AVX-512), and over every 241st without (SSE2); rounding alone is 0.5 ulp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm.tirx import PrimExpr

_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2**23: the sum's last bit is worth 1
_SIGN = -(2**31)
# (e**r - 1 - r) / r**2 on [-ln(2)/2, ln(2)/2], highest power first: Cephes' expf (Moshier, 1992).
_EXP = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
# Minimax for the relative error of erf, by Lawson's iteration: least squares on 2000 Chebyshev
# points whose weights are multiplied by the error, 400 times; then rounded to fp32.
_ERF_CUT, _ERF_ONE = 0.93, 4.0
# erf(x) / x - 1 in powers of x**2 up to the cut: off by 1.8e-8.
_ERF_NEAR = (
    -0.0005953761865384877,
    0.004985945299267769,
    -0.026761723682284355,
    0.11281684082746506,
    -0.3761247992515564,
    0.12837915122509003,
)
# -ln(1 - erf(t)) in powers of t from the cut to 4: off by 1.5e-9 in erf.
_ERF_FAR = (
    -0.00019477764726616442,
    0.0030318195931613445,
    -0.02218138612806797,
    0.10383690148591995,
    0.6372904181480408,
    1.1276111602783203,
    0.00021131316316314042,
)


def exp(x: PrimExpr) -> PrimExpr:
    """e**x, off by 1.0 ulp; denormal results by 0.8 of their last bit.

    Infinite from 88.722839 on as in IEEE arithmetic, 0 below -104. 2**k is applied in two
    factors, because k = 128 and k < -126 have no fp32 power.
    """
    # Clamped past both ends, where the factors still have exponents.
    bounded = _at_least(_at_most(x, 100.0), -120.0)

    def scaled(k: PrimExpr, r: PrimExpr) -> PrimExpr:
        half = k >> _i32(1)
        return let(half, lambda h: (_expm1(r) + _f32(1.0)) * _pow2(h) * _pow2(k - h), "int32")

    return _reduced(bounded, scaled)


def sigmoid(x: PrimExpr) -> PrimExpr:
    """1 / (1 + e**-x), off by 2.4 ulp where the result is normal (from -87.3 on).

    Exactly 0 below -88.38, so that x * sigmoid(x) vanishes however large -x is.
    """
    # One factor 2**k: k = 128 makes the bits of infinity, whose inverse is the 0 that is wanted.
    power = _exp_bounded(_at_least(_at_most(_f32(0.0) - x, 88.6), -80.0))
    return _f32(1.0) / (_f32(1.0) + power)


def tanh(x: PrimExpr) -> PrimExpr:
    """(e**2|x| - 1) / (e**2|x| + 1) with the sign of x, off by 2.5 ulp.

    From e**y - 1, so nothing cancels near 0: denormals and -0 come back as they are.
    """

    def value(x: PrimExpr) -> PrimExpr:
        def quotient(k: PrimExpr, r: PrimExpr) -> PrimExpr:
            power = _pow2(k)
            # 2**k (e**r - 1) + (2**k - 1): the second term is exact while it matters.
            less = let(power, lambda p: _expm1(r) * p + (p - _f32(1.0)))
            return let(less, lambda m: m / (m + _f32(2.0)))

        size = _at_most(_abs(x), 10.0)  # tanh is 1 in fp32 from 9.02 on
        return _with_sign(_reduced(size * _f32(2.0), quotient), x)

    return let(x, value)


def erf(x: PrimExpr) -> PrimExpr:
    """X + x P(x**2) up to 0.93, beyond it 1 - e**-Q(|x|) with the sign of x; off by 1.5 ulp.

    The idea of two ranges with an exponential for the outer one: N. Juffa's erff; the
    polynomials are our own fits.
    """
    from tvm import tirx

    def value(x: PrimExpr) -> PrimExpr:
        near = let(x * x, lambda s: x * _poly(_ERF_NEAR, s) + x)
        far = let(
            _at_most(_abs(x), _ERF_ONE),
            lambda t: _f32(1.0) - _exp_bounded(_f32(0.0) - _poly(_ERF_FAR, t)),
        )
        return tirx.Select(_abs(x) < _f32(_ERF_CUT), near, _with_sign(far, x))

    return let(x, value)


def _f32(value: float) -> PrimExpr:
    from tvm import tirx

    return tirx.const(value, "float32")


def _i32(value: int) -> PrimExpr:
    from tvm import tirx

    return tirx.const(value, "int32")


def let(value: PrimExpr, body: Callable[[PrimExpr], PrimExpr], dtype: str = "float32") -> PrimExpr:
    """`body` of a value that it may use several times.

    An expression that contains a `let` may stand in another only once: TVM refuses a variable
    that is defined twice.
    """
    from tvm import tirx

    var = tirx.Var("v", dtype)
    return tirx.Let(var, value, body(var))


def _bits(x: PrimExpr) -> PrimExpr:
    from tvm import tirx

    return tirx.reinterpret("int32", x)


def _float(bits: PrimExpr) -> PrimExpr:
    from tvm import tirx

    return tirx.reinterpret("float32", bits)


def _at_most(x: PrimExpr, high: float) -> PrimExpr:
    from tvm import tirx

    return let(x, lambda v: tirx.Select(v > _f32(high), _f32(high), v))


def _at_least(x: PrimExpr, low: float) -> PrimExpr:
    from tvm import tirx

    return let(x, lambda v: tirx.Select(v < _f32(low), _f32(low), v))


def _abs(x: PrimExpr) -> PrimExpr:
    return _float(_bits(x) & _i32(~_SIGN))


def _with_sign(size: PrimExpr, x: PrimExpr) -> PrimExpr:
    return _float(_bits(size) | (_bits(x) & _i32(_SIGN)))


def _pow2(k: PrimExpr) -> PrimExpr:
    """2**k for -127 <= k <= 128, where -127 gives 0 and 128 infinity."""
    return _float((k + _i32(127)) << _i32(23))


def _poly(coefficients: Sequence[float], x: PrimExpr) -> PrimExpr:
    return reduce(lambda acc, c: acc * x + _f32(c), coefficients[1:], _f32(coefficients[0]))


def _expm1(r: PrimExpr) -> PrimExpr:
    """e**r - 1 for |r| <= ln(2) / 2."""
    return _poly(_EXP, r) * (r * r) + r


def _reduced(x: PrimExpr, then: Callable[[PrimExpr, PrimExpr], PrimExpr]) -> PrimExpr:
    """`then(k, r)` with x = k ln(2) + r."""

    def split(x: PrimExpr) -> PrimExpr:
        def rest(shifted: PrimExpr) -> PrimExpr:
            k = shifted - _f32(_ROUND)
            r = let(k, lambda k: x - k * _f32(_LN2_HIGH) - k * _f32(_LN2_LOW))
            whole = _bits(shifted) - _bits(_f32(_ROUND))
            return let(whole, lambda w: let(r, lambda r: then(w, r)), "int32")

        return let(x * _f32(_LOG2E) + _f32(_ROUND), rest)

    return let(x, split)


def _exp_bounded(x: PrimExpr) -> PrimExpr:
    """e**x for x from -87.3 to 88.6; infinite from 88.38 on."""
    return _reduced(x, lambda k, r: (_expm1(r) + _f32(1.0)) * _pow2(k))
