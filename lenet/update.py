"""
The update of SGD in twice the precision of float64, and how far from it correct roundings may lead.

Imports no torch. What holds: a number that is computed by the formula of `torch.optim.SGD`, each operation rounded to
nearest in a precision or in a wider one, lies within `Rounded.error` of `Rounded.high + Rounded.low`. A fused
multiply-add or a wider intermediate takes fewer roundings, and so lies within as well.

Error-free transformations: Knuth's sum and Dekker's product (Ogita, Rump & Oishi 2005, "Accurate sum and dot product",
SIAM J. Sci. Comput. 26(6), algorithms 3.1 to 3.3). Running error bounds: Higham 2002, "Accuracy and Stability of
Numerical Algorithms", section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lenet.oracle import Array, Precision


@dataclass(frozen=True)
class Rounded:
    """Exact numbers, high + low, to 106 bits; and how far from them correct roundings may lead."""

    high: Array
    low: Array
    error: Array

    def missed(self, got: Array) -> Array:
        """How far `got` is from the exact numbers."""
        rest, tail = _exact_sum(got, -self.high)
        return np.abs(rest + (tail - self.low))


@dataclass(frozen=True)
class SGD:
    """
    The settings and the step of `torch.optim.SGD`.

    https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    @np.errstate(invalid="ignore", over="ignore")  # infinite gradients have no exact update
    def step(
        self, parameter: Array, gradient: Array, buffer: Array | None, precision: Precision
    ) -> tuple[Rounded, Rounded | None]:
        """
        The parameter and the momentum buffer after a step, of any shape; without momentum there is no buffer.

        The first buffer (`buffer` is None) is the gradient itself, decayed but not dampened.
        """
        at = _Roundings(precision)
        weight, slope = _exactly(parameter), _exactly(-gradient if self.maximize else gradient)
        if self.weight_decay:
            slope = at.plus(slope, at.times(at.constant(self.weight_decay), weight))
        velocity = None
        if self.momentum:
            velocity = slope
            if buffer is not None:
                kept = at.plus(at.constant(1.0), at.constant(-self.dampening))
                velocity = at.times(at.constant(self.momentum), _exactly(buffer))
                velocity = at.plus(velocity, at.times(kept, slope))
            slope = at.plus(slope, at.times(at.constant(self.momentum), velocity)) if self.nesterov else velocity
        return at.plus(weight, at.times(at.constant(-self.lr), slope)), velocity


class _Roundings:
    """Sums and products of exact numbers, with the error that rounding them to a precision may add."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision

    def constant(self, number: float) -> Rounded:
        """A setting, which is rounded to the precision where it does not fit."""
        mantissa = np.frexp(number)[0] / self.precision.unit
        error = 0.0 if mantissa == np.round(mantissa) else self.precision.unit * abs(number)
        return Rounded(np.asarray(number), np.asarray(0.0), np.asarray(error))

    def plus(self, a: Rounded, b: Rounded) -> Rounded:
        """a + b."""
        high, low = _exact_sum(a.high, b.high)
        return self._once_more(high, low + (a.low + b.low), a.error + b.error, 0.0)

    def times(self, a: Rounded, b: Rounded) -> Rounded:
        """a * b."""
        high, low = _exact_product(a.high, b.high)
        error = np.abs(a.high) * b.error + np.abs(b.high) * a.error + a.error * b.error
        return self._once_more(high, low + (a.high * b.low + a.low * b.high), error, self.precision.underflow)

    def _once_more(self, high: Array, low: Array, error: Array, underflow: float) -> Rounded:
        high, low = _exact_sum(high, low)
        return Rounded(high, low, error + self.precision.unit * (np.abs(high) + error) + underflow)


def _exactly(numbers: Array) -> Rounded:
    return Rounded(numbers, np.zeros_like(numbers), np.zeros_like(numbers))


def _exact_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b as the nearest number and what it leaves."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _exact_product(a: Array, b: Array) -> tuple[Array, Array]:
    """a * b as the nearest number and what it leaves; exact where nothing underflows."""
    factor = 2.0**27 + 1
    product = a * b
    a_high, b_high = factor * a - (factor * a - a), factor * b - (factor * b - b)
    a_low, b_low = a - a_high, b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
