"""
The exact result of an SGD step, with a bound on the rounding error of correct implementations.

This module imports no torch. It computes in twice the precision of float64. If a number is computed by the formula of
`torch.optim.SGD`, and each operation is rounded to nearest in a given precision or a wider one, it differs by at most
`ExactWithBound.error_bound` from the exact number, `ExactWithBound.high + ExactWithBound.low`. A fused multiply-add or
a wider intermediate result takes fewer roundings, so it satisfies the same bound.

Error-free transformations: Knuth's sum and Dekker's product (Ogita, Rump & Oishi 2005, "Accurate sum and dot product",
SIAM J. Sci. Comput. 26(6), algorithms 3.1 to 3.3). Running error bounds: Higham 2002, "Accuracy and Stability of
Numerical Algorithms", section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lenet.oracle import Array, Precision


@dataclass(frozen=True)
class ExactWithBound:
    """Exact numbers, high + low, to 106 bits, and a bound on the rounding error of a correct implementation."""

    high: Array
    low: Array
    error_bound: Array

    def error_of(self, got: Array) -> Array:
        """Return the distance of `got` from the exact numbers."""
        difference, remainder = _exact_sum(got, -self.high)
        return np.abs(difference + (remainder - self.low))


@dataclass(frozen=True)
class SGD:
    """
    The settings and the step of `torch.optim.SGD`, with the same defaults.

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
    ) -> tuple[ExactWithBound, ExactWithBound | None]:
        """
        Return the parameter and the momentum buffer after a step, of any shape; the buffer is None without momentum.

        In the first step `buffer` is None, and the new buffer is the gradient with weight decay and without dampening.
        """
        at = _Roundings(precision)
        weight, direction = _exact(parameter), _exact(-gradient if self.maximize else gradient)
        if self.weight_decay:
            direction = at.plus(direction, at.times(at.constant(self.weight_decay), weight))
        velocity = None
        if self.momentum:
            velocity = direction
            if buffer is not None:
                undampened = at.plus(at.constant(1.0), at.constant(-self.dampening))
                velocity = at.times(at.constant(self.momentum), _exact(buffer))
                velocity = at.plus(velocity, at.times(undampened, direction))
            direction = (
                at.plus(direction, at.times(at.constant(self.momentum), velocity)) if self.nesterov else velocity
            )
        return at.plus(weight, at.times(at.constant(-self.lr), direction)), velocity


class _Roundings:
    """Sums and products of exact numbers, with the rounding error that they may have in a precision."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision

    def constant(self, number: float) -> ExactWithBound:
        """Return a setting, which has a rounding error if the precision cannot represent it."""
        mantissa = np.frexp(number)[0] / self.precision.unit
        error = 0.0 if mantissa == np.round(mantissa) else self.precision.unit * abs(number)
        return ExactWithBound(np.asarray(number), np.asarray(0.0), np.asarray(error))

    def plus(self, a: ExactWithBound, b: ExactWithBound) -> ExactWithBound:
        """Return a + b."""
        high, low = _exact_sum(a.high, b.high)
        return self._rounded(high, low + (a.low + b.low), a.error_bound + b.error_bound, 0.0)

    def times(self, a: ExactWithBound, b: ExactWithBound) -> ExactWithBound:
        """Return a * b."""
        high, low = _exact_product(a.high, b.high)
        error = np.abs(a.high) * b.error_bound + np.abs(b.high) * a.error_bound + a.error_bound * b.error_bound
        return self._rounded(high, low + (a.high * b.low + a.low * b.high), error, self.precision.underflow)

    def _rounded(self, high: Array, low: Array, error: Array, underflow: float) -> ExactWithBound:
        """Return high + low with the bound of one more rounding; `error` is the bound inherited from the operands."""
        high, low = _exact_sum(high, low)
        return ExactWithBound(high, low, error + self.precision.unit * (np.abs(high) + error) + underflow)


def _exact(numbers: Array) -> ExactWithBound:
    return ExactWithBound(numbers, np.zeros_like(numbers), np.zeros_like(numbers))


def _exact_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a + b as the nearest float64 number and the remainder."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _exact_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a * b as the nearest float64 number and the remainder, which is exact unless it underflows."""
    factor = 2.0**27 + 1
    product = a * b
    a_high, b_high = factor * a - (factor * a - a), factor * b - (factor * b - b)
    a_low, b_low = a - a_high, b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
