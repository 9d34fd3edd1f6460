"""Elementary functions for compiled loops in float32: without calls, so that loops over them use vector instructions.

The mathematics library's functions take one number a call, some 30 ns; these take 2 ns a number in a loop.
"""

# numba types the arguments of a compiled function.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from carv3d.kernels.jit import inlined

f4 = np.float32


@inlined
def _parts(x):
    """exp(x) = power + share * power; x is taken for at most 87 and at least -87, a not-a-number stays one."""
    inside = min(max(x, f4(-87)), f4(87))
    n = math.floor(inside * f4(1.4426950408889634) + f4(0.5))
    r = inside - n * f4(0.693359375) + n * f4(2.12194440e-4)  # log 2 in two parts
    p = f4(1.9875691500e-4)  # of exp(r) = 1 + r + p r^2, |r| <= log(2) / 2: minimax, Cephes' expf (Moshier 1992)
    p = p * r + f4(1.3981999507e-3)
    p = p * r + f4(8.3334519073e-3)
    p = p * r + f4(4.1665795894e-2)
    p = p * r + f4(1.6666665459e-1)
    p = p * r + f4(5.0000001201e-1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)  # 2^n
    return power, p * r * r + r + x * f4(0)


@inlined
def exp(x):
    """`exp(x)`, relative error 2e-7."""
    power, share = _parts(x)
    return share * power + power


@inlined
def expm1(x):
    """`exp(x) - 1`, relative error 2e-7."""
    power, share = _parts(x)
    return share * power + (power - f4(1))


@inlined
def sigmoid(x):
    """`1 / (1 + exp(-x))`."""
    return f4(1) / (f4(1) + exp(-x))


@inlined
def softplus(x):
    """`log(1 + exp(x))`, relative error 5e-7."""
    y = exp(-abs(x))  # in (0, 1]
    s = y / (f4(2) + y)  # log(1 + y) = 2 artanh(s), s <= 1/3
    q = s * s
    series = f4(1 / 13)
    series = series * q + f4(1 / 11)
    series = series * q + f4(1 / 9)
    series = series * q + f4(1 / 7)
    series = series * q + f4(1 / 5)
    series = series * q + f4(1 / 3)
    return max(x, f4(0)) + f4(2) * s * (f4(1) + q * series)
