"""Elementary functions of Triton kernels, and how a float64 argument reaches one.

No libdevice and no inline assembly: the interpreter runs these very formulas, which are those of
``kernels/cpu/math.h`` (errors below 3 ulp; NaN and infinities as in libm). Triton's own float32
``exp`` and ``/`` are approximations whose error grows with the argument.
"""

from __future__ import annotations

import struct

import triton
import triton.language as tl


def float64_bits(value: float) -> int:
    """What :func:`from_bits` turns back into ``value``.

    A Python float reaches a kernel as float32; the bits of a float64 as an integer lose nothing.
    """
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


@triton.jit
def from_bits(bits):
    """The float64 whose bits these are."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def divide(a, b):
    """a / b rounded to nearest."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def quotient(a, b):
    """a / b within 1 ulp for 2⁻⁶⁰ < b < 2⁶⁰, without a branch.

    The rounded division keeps exceptional cases in a subroutine, and what is live across the call
    to it ends up on the stack.
    """
    r = (1.0 / b.to(tl.float32)).to(b.dtype)
    if b.dtype == tl.float64:
        r = r * (2.0 - b * r)
        r = r * (2.0 - b * r)
    q = a * r
    return q + (a - q * b) * r


@triton.jit
def _reduced_exp32(x):
    """p and integer k of eˣ = 2ᵏ (1 + p), |p| < 0.42."""
    # 1.5·2²³: adding it leaves the rounded integer in the low mantissa bits.
    shifted = x * 1.44269502162933349609 + 12582912.0
    n = shifted - 12582912.0
    # ln 2 in two parts: n times the first is exact.
    r = (x - n * 0.693145751953125) - n * 1.42860676533018703e-06
    q = r * 0.00019890990824673654 + 0.001393364999630925
    q = q * r + 0.0083333109254809008
    q = q * r + 0.041666464925285905
    q = q * r + 0.16666666681623231
    q = q * r + 0.50000000134658092
    return r + r * r * q, shifted.to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def _exp32(x):
    # Comparisons keep NaN on the unclamped side; outside, the result is infinite or 0.
    x = tl.where(x > 89.0, 89.0, x)
    x = tl.where(x < -104.0, -104.0, x)
    p, k = _reduced_exp32(x)
    # Two factors: the result may be denormal or infinite where 2ᵏ alone is not a number.
    half = k >> 1
    low = ((half + 127) << 23).to(tl.float32, bitcast=True)
    high = ((k - half + 127) << 23).to(tl.float32, bitcast=True)
    return (1.0 + p) * low * high


@triton.jit
def _reduced_exp64(x):
    shifted = x * 1.4426950408889634074 + 6755399441055744.0
    n = shifted - 6755399441055744.0
    r = (x - n * 0.69314718036912381649) - n * 1.9082149292705877e-10
    q = r * 2.5100385495510319078e-8 + 2.7620088445409748161e-7
    q = q * r + 2.7557268459997064772e-6
    q = q * r + 2.4801521295954375131e-5
    q = q * r + 0.00019841269863053616878
    q = q * r + 0.0013888888917213716901
    q = q * r + 0.0083333333333300618325
    q = q * r + 0.041666666666624127873
    q = q * r + 0.16666666666666667453
    q = q * r + 0.50000000000000010221
    return r + r * r * q, shifted.to(tl.int64, bitcast=True) - 0x4338000000000000


@triton.jit
def _exp64(x):
    x = tl.where(x > 710.0, 710.0, x)
    x = tl.where(x < -746.0, -746.0, x)
    p, k = _reduced_exp64(x)
    half = k >> 1
    low = ((half + 1023) << 52).to(tl.float64, bitcast=True)
    high = ((k - half + 1023) << 52).to(tl.float64, bitcast=True)
    return (1.0 + p) * low * high


@triton.jit
def exp(x):
    """eˣ in x's dtype."""
    if x.dtype == tl.float32:
        return _exp32(x)
    else:
        return _exp64(x)


@triton.jit
def logistic(x):
    """1/(1 + e⁻ˣ) in x's dtype, without overflow on either side."""
    e = exp(-tl.abs(x))
    return quotient(tl.where(x < 0.0, e, 1.0), 1.0 + e)


@triton.jit
def tanh(x):
    """tanh x in x's dtype."""
    # u/(u + 2) with u = e²ᵃ − 1 = 2ᵏ p + (2ᵏ − 1), a = |x|: no cancellation near zero.
    a = tl.abs(x)
    if x.dtype == tl.float32:
        a = tl.where(a > 10.0, 10.0, a)
        p, k = _reduced_exp32(a + a)
        scale = ((k + 127) << 23).to(tl.float32, bitcast=True)
    else:
        a = tl.where(a > 20.0, 20.0, a)
        p, k = _reduced_exp64(a + a)
        scale = ((k + 1023) << 52).to(tl.float64, bitcast=True)
    u = scale * p + (scale - 1.0)
    t = quotient(u, u + 2.0)
    return tl.where(x < 0.0, -t, t)


@triton.jit
def log1p(u):
    """log(1 + u) in float64 for 0 ≤ u < 2⁶⁰; NaN stays."""
    w = 1.0 + u
    # w = 2ᵏ m with √½ ≤ m < √2.
    bits = w.to(tl.int64, bitcast=True) + (0x3FF0000000000000 - 0x3FE6A09E667F3BCD)
    k = (bits >> 52) - 1023
    m = ((bits & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD).to(tl.float64, bitcast=True)
    # What rounding 1 + u lost, to first order; with k = 0 nothing is lost as u itself is used.
    lost = tl.where(u > 1.0, 1.0 - (w - u), u - (w - 1.0))
    exact = k == 0
    f = tl.where(exact, u, m - 1.0)
    correction = tl.where(exact, 0.0, quotient(lost, w))
    s = quotient(f, 2.0 + f)
    z = s * s
    half = f * f * 0.5
    q = z * 0.14616585424888621989 + 0.15331710618210771568
    q = q * z + 0.18182889455674946039
    q = q * z + 0.22222211130259877029
    q = q * z + 0.28571428626003268742
    q = q * z + 0.39999999999899443233
    q = q * z + 0.66666666666666696883
    kf = k.to(tl.float64)
    tail = s * (half + z * q) + (kf * 1.9082149292705877e-10 + correction)
    y = kf * 0.69314718036912381649 - ((half - tail) - f)
    # Tiny arguments keep their denormals; NaN has no exponent to take apart.
    return tl.where((u >= 2.7755575615628914e-17) | (u != u), tl.where(u != u, u, y), u)
