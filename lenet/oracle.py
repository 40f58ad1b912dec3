"""
Exact logits, losses and gradients of the network, each with its rounding budget.

This module imports NumPy alone and no torch, so that it is an independent implementation. `solve` computes a case in
float64, which counts as exact: its rounding errors are 2**29 times smaller than float32's. (A subject in float64 has
rounding errors as large as the oracle's; its measured errors, at most 3.4 budgets, contain both.) With each result
comes a rounding budget, the unit in which the error of a result under test is measured.

**Rounding errors.** Budgets are estimated by Monte Carlo arithmetic (Parker 1997, "Monte Carlo Arithmetic: exploiting
randomness in floating-point arithmetic", UCLA CSD-970002; Denis, de Oliveira Castro & Petit 2016, "Verificarlo",
ARITH 23). The network is computed in several replicas, which lie along axis 0 of every array:

- the first replica is exact;
- the next `REPLICAS` are perturbed: each adds a random error, of the size of the rounding error, to every operation;
- the last rounds each result once, to nearest, as hardware does; it decides near ties (see below).

The random error of a dot product z = sum_k a_k b_k + c of n terms is

    sqrt((n + 1) * v**2 + u**2) * sqrt(sum_k (a_k b_k)**2 + c**2 + z**2) * (xi + xi_shared)

where u is the unit roundoff of the stored result and v that of the accumulator. The first factor counts roundings:
n + 1 in the accumulator and one when the result is stored. If the operands are first rounded to a unit roundoff w, as
in TF32, 2 * w**2 is added under its root. The second factor is the magnitude of what is rounded: partial sums grow like
the root of the sum of squares if the terms have random signs, and like z if they all have one sign. xi is a standard
normal number for each element; xi_shared is one number for the entire operation, because identical units round
identically and their errors may add up coherently.

The squared budget of an element is the mean square deviation of its perturbed replicas from the exact one, plus the
mean of the same over similar elements, because there are few replicas: over the logits of an image, over the pixels of
an image's gradient, over a bias; for a weight, the product of the means over its unit and over its input. The rounding
errors of a gradient's own sum need no replicas, since nothing else is computed from it: the square of their size above,
twice, is added instead. In the 16-bit precisions, which accumulate in float32, a sum over a batch may be stored after
each image, as PyTorch's convolutions on the CPU do. Where rounding may carry a value out of the range of the precision,
its budget is infinite, and so are the budgets of all values computed from it. The same holds if a partial sum that may
be stored, such as that of any of the images, may be out of the range.

**Decisions.** ReLU and max-pooling select one of several candidates. A gradient is not continuous in this decision, so
its effect is budgeted separately. Outputs are widened where too few replicas may show a flip. The backward passes of
all replicas take the decisions of the exact computation. A decision is undecided if rounding may flip it: its margin is
less than `THRESHOLD` standard deviations of the margin over the replicas. If any decision is undecided, the backward
pass is repeated, `REPLICAS` times with random shares of the gradient moved between the candidates, and once with the
decisions of the last replica, in which near ties are exact ties, as on hardware. The variance of the gradients over
these passes is added to the square of their budgets. So ties and kinks can be judged like any other input. The softmax
of large logits is a decision too, see `cross_entropy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Parameters: TypeAlias = Mapping[str, Array]

THRESHOLD = 8.0
"""The largest error allowed, in budgets: the power of two above twice the worst error in `properties/calibration.json`.

Twice, because other machines, engines and examples may be worse than those that were measured.
"""

REPLICAS = 6
"""The number of perturbed replicas. It can be small because a budget also averages over the elements of a tensor."""

SHAPES: dict[str, tuple[int, ...]] = {
    "conv1.weight": (6, 1, 5, 5),
    "conv1.bias": (6,),
    "conv2.weight": (16, 6, 5, 5),
    "conv2.bias": (16,),
    "fc1.weight": (120, 400),
    "fc1.bias": (120,),
    "fc2.weight": (84, 120),
    "fc2.bias": (84,),
    "fc3.weight": (10, 84),
    "fc3.bias": (10,),
}
"""The shapes of the ten parameters in the order of `net.parameters()`: 61,706 numbers."""


@dataclass(frozen=True)
class Precision:
    """A floating-point precision in which a computation stores, accumulates and multiplies."""

    name: str
    unit: float
    """The unit roundoff of a stored result: half the distance from 1 to the next larger number."""
    underflow: float
    """The largest error of a result that underflows: half the smallest positive number."""
    largest: float
    """The largest finite number."""
    sum_precision: Precision | None = None
    """The precision of the accumulator if it differs from that of the stored result."""
    operand_unit: float = 0.0
    """The unit roundoff to which operands are rounded before they are multiplied; 0 if they are used as stored."""

    @property
    def accumulator(self) -> Precision:
        """The precision of sums."""
        return self.sum_precision or self

    @property
    def coarsest_unit(self) -> float:
        """The largest unit roundoff of operands and results; integers up to its inverse are exact everywhere."""
        return max(self.unit, self.operand_unit)


_FLOAT64 = Precision("float64", 2.0**-53, 2.0**-1074, float(np.finfo(np.float64).max))  # 2**-1075 underflows to zero
_FLOAT32 = Precision("float32", 2.0**-24, 2.0**-150, 2.0**128 - 2.0**104)
_BFLOAT16 = Precision("bfloat16", 2.0**-8, 2.0**-134, 2.0**128 - 2.0**120, _FLOAT32)
_FLOAT16 = Precision("float16", 2.0**-11, 2.0**-25, 65504.0, _FLOAT32)
_TF32 = Precision("tf32", 2.0**-24, 2.0**-150, _FLOAT32.largest, operand_unit=2.0**-11)
PRECISIONS = {precision.name: precision for precision in (_FLOAT64, _FLOAT32, _BFLOAT16, _FLOAT16)}
"""The precisions that are dtypes, by name."""

CLAIMS = PRECISIONS | {_TF32.name: _TF32}
"""The precisions that a computation may claim: the dtypes, and TF32, which is float32 with 11-bit operands."""


def claimed_precision(name: str, stored: str) -> Precision:
    """
    Return the precision `name`, claimed by a computation whose parameters and images have the dtype `stored`.

    If `stored` is wider than the claim, operands are rounded to the claim before they are multiplied.
    """
    precision = CLAIMS[name]
    if PRECISIONS[stored].unit >= precision.unit:
        return precision
    return replace(precision, operand_unit=precision.coarsest_unit)


@dataclass(frozen=True)
class Budgeted:
    """An exact tensor and the rounding budget of each of its elements, two arrays of one shape."""

    value: Array
    budget: Array

    def ratio(self, got: Array) -> Array:
        """
        Return the error of each element of `got` in budgets, |got - value| / budget.

        It is 0 where `got` equals the exact value (infinity and NaN included) and where the budget is infinite, since
        any value is then correct. Otherwise it is infinite where the budget is 0 or `got` is NaN.
        """
        same = (got == self.value) | (np.isnan(got) & np.isnan(self.value)) | np.isinf(self.budget)
        with np.errstate(all="ignore"):
            ratio = np.abs(got - self.value) / self.budget
        return np.where(same, 0.0, np.where(np.isnan(ratio), np.inf, ratio))


@dataclass(frozen=True)
class Answer:
    """The exact logits, loss and gradients of one case, each with its budget."""

    logits: Budgeted  # N,10
    loss: Budgeted  # a scalar, shape ()
    gradients: dict[str, Budgeted]  # of the loss with respect to each parameter
    input_gradient: Budgeted | None  # of the loss with respect to the images, N,1,32,32, if requested
    has_undecided: bool  # whether rounding may flip a decision
    largest_sum_of_squares: float  # over the terms of any dot product; for integers, a bound on every partial sum


_SMALLEST_SQUARED = 2.0**-511
"""The smallest number whose square is a normal one; smaller ones, which only float64 can have, are not told apart."""


@dataclass(frozen=True)
class _Sum:
    """Sums of several terms, in all replicas, with what their rounding errors depend on."""

    z: Array  # R,...: the sums
    sum_of_squares: Array  # of the terms, in the exact replica: ...
    terms: int
    images: int = 1  # that the sum runs over: a result narrower than the accumulator may be stored after each
    products: bool = False  # the terms are products, whose operands are rounded if the precision has an operand unit
    underflows: int = 1  # the errors of so many results that may underflow add up
    partial_sums: Callable[[], Array] | None = None  # the largest magnitude of those that may be stored: ...


class _Rounding:
    """
    Arithmetic on replicas of one computation, which lie along axis 0 of every array.

    There are R = `replicas` + 2 of them: the first is exact, the last rounds each result once to nearest, and the
    `replicas` between are perturbed. Without a precision, all replicas that the operands have are computed exactly.
    """

    def __init__(self, precision: Precision | None, seed: int = 0, replicas: int = REPLICAS) -> None:
        self.precision = precision
        self.replicas = replicas
        self.largest_sum_of_squares = 0.0
        self.shared: list[Array] = []  # errors that `_shared_errors` has yet to return
        self.random = np.random.default_rng(seed)

    def dot(
        self, a: Array, b: Array, c: Array | None = None, repeats: int = 1, images: int = 1, copies: int = 1
    ) -> Array:
        """
        Return a @ b + c with rounding errors, (R,m,n) @ (R,n,k) -> (R,m,k); axis 0 may be 1 for exact operands.

        `repeats` budgets the sum as if each product were the sum of that many equal ones. `images` is the number of
        images that the sum runs over, in the order of its terms.
        """
        if self.precision is None:
            return a @ b if c is None else a @ b + c
        total = _sum_of_products(a, b, c, repeats, images, copies)
        if unit := self.precision.operand_unit:
            z = self._all_replicas(total.z)
            z[-1] = _round_to_nearest(a[-1], unit) @ _round_to_nearest(b[-1], unit) + (0.0 if c is None else c[-1])
            total = replace(total, z=z)
        return self.perturb(total)

    def perturb(self, total: _Sum) -> Array:
        """
        Return the sums (R,...) with rounding errors.

        Values that may leave the range become infinite in all but the exact replica. So do those whose partial sums may
        leave it, if the precision may store them.
        """
        if self.precision is None:
            return total.z
        scale = self._error_size(total)
        z = self._all_replicas(total.z)
        z[1:-1] += scale * self._errors(z.shape[1:])
        z[-1] = _round_to_nearest(z[-1], self.precision.unit)
        return self._in_range(z, total)

    def estimate(self, total: _Sum, similar: Callable[[Array], Array]) -> Budgeted:
        """
        Return the exact sums (...) with budgets; for results that no other operation uses.

        The errors of the sums themselves need no samples: with xi and xi_shared, their variance is twice the square of
        their size. Those of the operands add their mean square over the replicas, and the mean of that over `similar`
        elements.
        """
        assert self.precision is not None
        exact, result, accumulator = total.z[0], self.precision, self.precision.accumulator
        variance = 2 * self._error_size(total) ** 2
        if len(total.z) > 1:
            variance += _increased(_mean_square(total.z[1:-1] - exact), similar)
        cauchy_schwarz = np.sqrt((total.terms + 1) * total.sum_of_squares)  # no partial sum is larger
        if not max(np.abs(exact).max(initial=0.0), cauchy_schwarz.max(initial=0.0)) <= result.largest / 4:
            largest = np.abs(exact)
            if total.partial_sums and result is not accumulator:
                largest = np.maximum(largest, total.partial_sums())
            beyond = (largest + THRESHOLD * np.sqrt(variance) > result.largest) | (cauchy_schwarz > accumulator.largest)
            variance[beyond] = np.inf
        return Budgeted(exact, np.sqrt(variance))

    def _error_size(self, total: _Sum) -> Array:
        """Return the size of the rounding errors of the sums, (...): what the module calls the factor of xi."""
        assert self.precision is not None
        result, accumulator = self.precision, self.precision.accumulator
        stores = total.images if result is not accumulator else 1
        self.largest_sum_of_squares = max(self.largest_sum_of_squares, float(total.sum_of_squares.max(initial=0.0)))
        operands = 2 * self.precision.operand_unit**2 if total.products else 0.0
        roundings = (total.terms + 1) * accumulator.unit**2 + stores * result.unit**2 + operands
        size: Array = np.sqrt(roundings * (total.sum_of_squares + total.z[0] ** 2))
        underflow = total.underflows * (np.sqrt(total.terms + 1) * accumulator.underflow + stores * result.underflow)
        may_underflow = (total.sum_of_squares > 0) | (total.z[0] != 0)  # a tiny z has a square of 0
        size += np.where(may_underflow, max(underflow, _SMALLEST_SQUARED), 0.0)
        return size

    def _all_replicas(self, z: Array) -> Array:
        """Return a copy of z (R,...) with all replicas, also if all are equal and z has one."""
        return np.broadcast_to(z, (self.replicas + 2, *z.shape[1:])).copy()

    def _in_range(self, z: Array, total: _Sum) -> Array:
        """Return z with infinity where all but the exact replica may leave the range; z itself may be overwritten."""
        if self.precision is None:
            return z
        result, accumulator = self.precision, self.precision.accumulator
        cauchy_schwarz = np.sqrt((total.terms + 1) * total.sum_of_squares)  # no partial sum is larger
        reach = max(z.max(initial=0.0), -z.min(initial=0.0), cauchy_schwarz.max(initial=0.0))
        if not reach <= min(result.largest / 4, accumulator.largest):  # reach is NaN if any replica is
            largest = np.abs(z[0])
            if total.partial_sums and result is not accumulator:
                largest = np.maximum(largest, total.partial_sums())
            beyond = largest + THRESHOLD * _spread(z) > result.largest
            beyond |= cauchy_schwarz > accumulator.largest
            z[1:] = np.where(beyond, np.copysign(np.inf, z[0]), z[1:])
        return z

    def widen(self, values: Array, function: Callable[[Array], Array], argument: Array) -> Array:
        """
        Return values = function(argument), (R,...), with the large errors that too few replicas may not have.

        If s is the spread of the argument, then a value whose argument is off by k * s should be off by at most k
        budgets, for every k up to THRESHOLD. So the spread of the value has to be at least the largest
        |function(exact + k * s) - function(exact)| / k. A linear function has this spread already. Where the slope
        changes within a few s, as at a kink, few or none of the replicas may be beyond it, and their errors are
        increased at random. An argument of a single replica is exact, as is everything without a precision.
        """
        if self.precision is None or len(argument) == 1:
            return values
        exact, step = argument[0], _spread(argument)
        needed = np.zeros(exact.shape)
        for k in range(1, int(THRESHOLD) + 1):
            for moved in (exact + k * step, exact - k * step):
                needed = np.maximum(needed, np.abs(function(moved) - function(exact)) / k)
        missing = np.sqrt(np.maximum(needed**2 - _spread(values) ** 2, 0.0))
        widened = values.copy()
        widened[1:-1] += missing * self._errors(values.shape[1:])
        return widened

    def open(self, gate: _Gate) -> Array:
        """
        Return the gate's output (R,N,...), with the errors of decisions that too few replicas may flip.

        As in `widen`: if a margin m has the spread s, then errors of k * s change the output by k * s - m. A single
        perturbed replica, as in training, is a run of its own, whose outputs have the errors that they have.
        """
        if self.precision is None or len(gate.z) == 1 or self.replicas == 1:
            return gate.output
        margin, spread = gate.margins
        needed = np.maximum(spread - margin / THRESHOLD, 0.0).max(axis=-1)
        missing = np.sqrt(np.maximum(needed**2 - _spread(gate.output) ** 2, 0.0))
        missing[~np.isfinite(missing)] = 0.0  # the output overflows as well
        output: Array = gate.output.copy()
        output[1:-1] += missing * self._errors(missing.shape)
        return output

    def _errors(self, shape: tuple[int, ...]) -> Array:
        """Return the random numbers xi + xi_shared of the perturbed replicas, (replicas, *shape)."""
        shared = self._shared_errors().reshape(-1, *[1] * len(shape))
        errors: Array = self.random.standard_normal((self.replicas, *shape), np.float32) + shared
        return errors

    def _shared_errors(self) -> Array:
        """
        Return one random number for each perturbed replica, (replicas,), with mean square 1.

        Results of successive calls are orthogonal, in groups of `replicas`. So a few replicas estimate reliably how
        shared errors add up, even if all errors of a network are shared, as with constant weights.
        """
        if not self.shared:
            basis, _ = np.linalg.qr(self.random.standard_normal((self.replicas, self.replicas)))
            self.shared = list(basis.T * np.sqrt(self.replicas))
        return self.shared.pop()


class _RangeOnly(_Rounding):
    """Arithmetic without rounding errors on replicas that take other decisions than the first; they may overflow."""

    def perturb(self, total: _Sum) -> Array:
        """Return the sums, infinite in all but the first replica where a flipped decision may carry them so far."""
        return total.z if len(total.z) == 1 else self._in_range(total.z, total)


def _sum_of_products(
    a: Array, b: Array, c: Array | None = None, repeats: int = 1, images: int = 1, copies: int = 1
) -> _Sum:
    """Return a @ b + c, see `_Rounding.dot`."""
    sum_of_squares = a[0] ** 2 @ b[0] ** 2 / repeats
    if c is not None:
        sum_of_squares += c[0] ** 2

    def partial_sums() -> Array:
        by_image = a[0].reshape(a.shape[1], images, -1).swapaxes(0, 1)
        return _largest_partial_sum(by_image @ b[0].reshape(images, -1, b.shape[-1]))

    return _Sum(
        a @ b if c is None else a @ b + c,
        sum_of_squares,
        terms=a.shape[-1] * repeats,
        images=images * repeats,
        products=True,
        underflows=copies,
        partial_sums=partial_sums if images > 1 else None,
    )


def _spread(replicas: Array) -> Array:
    """Return the root mean square deviation of the perturbed replicas (R,...) from the exact one."""
    spread: Array = np.sqrt(_mean_square(replicas[1:-1] - replicas[0]))
    return spread


def _mean_square(deviations: Array) -> Array:
    """Return the mean square over axis 0, and overwrite the deviations."""
    return np.asarray(np.square(deviations, out=deviations).mean(axis=0))


def _largest_partial_sum(shares: Array) -> Array:
    """
    Return the largest magnitude of the partial sums of the images' shares (images,...), added in any order, (...).

    It is that of the sum of all positive or of all negative shares.
    """
    largest: Array = np.maximum(np.maximum(shares, 0.0).sum(axis=0), np.maximum(-shares, 0.0).sum(axis=0))
    return largest


def _round_to_nearest(values: Array, unit: float) -> Array:
    """Round to the nearest numbers with this unit roundoff and an unlimited exponent range."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa / unit) * unit, exponent)


class _Gate:
    """
    ReLU and max-pooling in one: the maximum of zero and the candidates on the last axis, (R,N,...,m) -> (R,N,...).

    m is 4 for a pooling window in row-major order and 1 for a ReLU alone. Ties go to zero and then to the first
    candidate, as in the backward passes of `torch.nn.functional.relu` and `max_pool2d`.
    """

    def __init__(self, z: Array) -> None:
        self.z = z
        self.output: Array = np.maximum(z.max(axis=-1), 0.0)
        self.selected = _winner(z[0])  # N,...,m: the exact decision

    @cached_property
    def margins(self) -> tuple[Array, Array]:
        """The exact winner's lead over each candidate, its own over zero, and their standard deviations (N,...,m)."""
        winner = np.where(self.selected, self.z, 0.0).sum(axis=-1, keepdims=True)
        margin = winner - np.where(self.selected, 0.0, self.z)
        return margin[0].copy(), _spread(margin)

    def flip_likelihood(self) -> Array:
        """
        Return how likely rounding makes each candidate the winner, (N,...,m): about the square root of a probability.

        The winner's own element holds the likelihood that zero wins instead. A margin m whose standard deviation over
        the replicas is s gives exp(-(m / s)**2 / 4), but at least 2 / THRESHOLD, so that a single flip, however
        unlikely, takes at most half of the error allowed. It gives 0 if m >= THRESHOLD * s.
        """
        margin, spread = self.margins
        with np.errstate(invalid="ignore", divide="ignore"):
            likelihood = np.maximum(np.exp(-((margin / spread) ** 2) / 4), 2 / THRESHOLD)
        return np.where(margin < THRESHOLD * spread, likelihood, 0.0)

    def sample_flips(self, likelihood: Array, random: np.random.Generator) -> Array:
        """
        Return samples of the share of the gradient that each candidate gets, (REPLICAS + 1,N,...,m).

        Each candidate gains its flip likelihood times a random number, and the winner loses what the others gain.
        Identical units round identically, so the random numbers are independent in every third sample, the same for all
        images in the next, and the same for all windows as well in the one after. They have a random sign and a random
        magnitude; with signs alone, two flips could cancel in every sample. The last sample has the decisions of the
        rounded replica.
        """
        batch, *places, m = likelihood.shape
        shapes = ((batch, *places, m), (1, *places, m), (1, *[1] * len(places), m))
        factors = [
            random.choice([-1.0, 1.0], shapes[i % 3]) * random.uniform(0.5, 1.5, shapes[i % 3]) for i in range(REPLICAS)
        ]
        gained = np.stack([factor * likelihood for factor in factors])
        lost = np.where(self.selected, 0.0, gained).sum(axis=-1, keepdims=True)
        return np.concatenate([self.selected * (1 - lost) + gained, _winner(self.z[-1])[None]])


def _winner(z: Array) -> NDArray[np.bool_]:
    """Select the first of the largest candidates on the last axis, or none if zero is as large."""
    first = z.argmax(axis=-1)[..., None] == np.arange(z.shape[-1])
    return np.asarray(first & (z > 0))


@dataclass(frozen=True)
class _ForwardPass:
    """The results of a forward pass that the backward pass needs; axis 0 of every array holds the replicas."""

    rows: dict[str, Array]  # the input of each layer as rows that its weight matrix multiplies: R,rows,inputs
    gates: list[_Gate]  # after conv1, conv2, fc1, fc2
    logits: Array  # R,N,10


def _im2col(maps: Array) -> Array:
    """Arrange every 5x5 patch of all channels as a row: (R,N,C,H,W) -> (R, N*(H-4)*(W-4), C*25)."""
    patches = sliding_window_view(maps, (5, 5), axis=(-2, -1)).transpose(0, 1, 3, 4, 2, 5, 6)
    replicas, batch, height, width, channels, _, _ = patches.shape
    return patches.reshape(replicas, batch * height * width, channels * 25)


def _col2im(
    delta: Array, weight: Array, batch: int, channels: int, size: int, of: Callable[[Array], Array] | None = None
) -> Array:
    """
    Add the rows of delta @ weight where `_im2col` took the patches from, -> (R,N,channels,size,size).

    With `of`, add this function of each of the 25 addends instead.
    """
    places = size - 4
    parts = weight.swapaxes(-1, -2) @ delta.swapaxes(-1, -2)  # R,channels*25,rows
    parts = (of(parts) if of else parts).reshape(len(parts), channels, 25, batch, places, places)
    maps = np.zeros((len(parts), channels, batch, size, size))
    for offset in range(25):
        i, j = divmod(offset, 5)
        maps[..., i : i + places, j : j + places] += parts[:, :, offset]
    return maps.swapaxes(1, 2)


def _pooling_windows(rows: Array, batch: int, size: int) -> Array:
    """Group the rows of a convolution's output by 2x2 window: (R, N*size*size, C) -> (R,N,size/2,size/2,C,4)."""
    half, channels = size // 2, rows.shape[-1]
    grid = rows.reshape(len(rows), batch, half, 2, half, 2, channels)
    return grid.transpose(0, 1, 2, 4, 6, 3, 5).reshape(len(rows), batch, half, half, channels, 4)


def _rows_of_windows(windows: Array) -> Array:
    """Invert `_pooling_windows`: (R,N,h,h,C,4) -> (R, N*4*h*h, C)."""
    r, n, h, _, c, _ = windows.shape
    return windows.reshape(r, n, h, h, c, 2, 2).transpose(0, 1, 2, 5, 3, 6, 4).reshape(r, n * 4 * h * h, c)


def _weight_matrix(weight: Array) -> Array:
    """Return a layer's weight (R,O,...) as the matrix (R,I,O) that its input rows are multiplied by."""
    return weight.reshape(len(weight), weight.shape[1], -1).swapaxes(-1, -2)


def _forward(p: Parameters, images: Array, rounding: _Rounding) -> _ForwardPass:
    rows: dict[str, Array] = {}

    def layer(name: str, inputs: Array) -> Array:
        rows[name] = inputs
        return rounding.dot(inputs, _weight_matrix(p[f"{name}.weight"]), p[f"{name}.bias"][:, None, :])

    batch = len(images)
    gate1 = _Gate(_pooling_windows(layer("conv1", _im2col(images[None])), batch, 28))
    pooled1 = rounding.open(gate1).transpose(0, 1, 4, 2, 3)  # R,N,6,14,14
    gate2 = _Gate(_pooling_windows(layer("conv2", _im2col(pooled1)), batch, 10))
    pooled2 = rounding.open(gate2).transpose(0, 1, 4, 2, 3)  # R,N,16,5,5
    gate3 = _Gate(layer("fc1", pooled2.reshape(len(pooled2), batch, 400))[..., None])
    gate4 = _Gate(layer("fc2", rounding.open(gate3))[..., None])
    return _ForwardPass(rows, [gate1, gate2, gate3, gate4], layer("fc3", rounding.open(gate4)))


def _backward(
    p: Parameters, shares: Sequence[NDArray[Any]], delta: Array, rounding: _Rounding, repeats: int = 1
) -> dict[str, Array]:
    """
    Return the gradient with respect to each layer's output, R,rows,outputs.

    `delta` (R,N,10) is the gradient with respect to the logits. `shares` has, for each gate, the share of the gradient
    that each of its candidates gets. All gradients are sums over `repeats` copies of each image.
    """

    def weight(layer: str) -> Array:
        return _weight_matrix(p[f"{layer}.weight"]).swapaxes(-1, -2)

    batch = delta.shape[1]
    share1, share2, share3, share4 = shares
    delta4 = rounding.dot(delta, weight("fc3"), copies=repeats) * share4[..., 0]
    delta3 = rounding.dot(delta4, weight("fc2"), copies=repeats) * share3[..., 0]
    flat = rounding.dot(delta3, weight("fc1"), copies=repeats)
    pooled2 = flat.reshape(len(flat), batch, 16, 5, 5)
    delta2 = _rows_of_windows(pooled2.transpose(0, 1, 3, 4, 2)[..., None] * share2)  # R,N*100,16
    pooled1 = rounding.perturb(_convolution_input_gradient(delta2, weight("conv2"), (batch, 6, 14), repeats))
    delta1 = _rows_of_windows(pooled1.transpose(0, 1, 3, 4, 2)[..., None] * share1)  # R,N*784,6
    return {"conv1": delta1, "conv2": delta2, "fc1": delta3, "fc2": delta4, "fc3": delta}


def _convolution_input_gradient(delta: Array, weight: Array, maps: tuple[int, int, int], copies: int = 1) -> _Sum:
    """
    Return the gradient with respect to a convolution's input, (R,N,C,size,size) for `maps` (N, C, size).

    PyTorch's native kernels store it after each of its 25 offsets, so that the partial sums must be in range. Their
    roundings count as one: the budget suffices without the others (`properties/calibration.json`). Their underflows do
    not, since all are of the same size.
    """

    def partial_sums() -> Array:
        positive = _col2im(delta[:1], weight[:1], *maps, of=lambda part: np.maximum(part, 0.0))
        negative = _col2im(delta[:1], weight[:1], *maps, of=lambda part: np.maximum(-part, 0.0))
        largest: Array = np.maximum(positive, negative)[0]
        return largest

    z, sum_of_squares = _col2im(delta, weight, *maps), _col2im(delta[:1] ** 2, weight[:1] ** 2, *maps)[0]
    terms = weight.shape[1] * 25
    underflows = 5 * copies  # those of 25 offsets, independent of each other
    return _Sum(z, sum_of_squares, terms, products=True, underflows=underflows, partial_sums=partial_sums)


def _parameter_gradients(deltas: dict[str, Array], rows: dict[str, Array], repeats: int = 1) -> dict[str, _Sum]:
    """Return the gradient with respect to each parameter, R,..., from those of the layers' outputs and their inputs."""
    images, gradients = deltas["fc3"].shape[1], {}
    for layer, delta in deltas.items():
        gradients[f"{layer}.weight"] = _sum_of_products(delta.swapaxes(-1, -2), rows[layer], None, repeats, images)
        gradients[f"{layer}.bias"] = _Sum(
            delta.sum(axis=1),
            (delta[0] ** 2).sum(axis=0) / repeats,
            delta.shape[1] * repeats,
            images=images * repeats,
            partial_sums=partial(_largest_partial_sum_of_rows, delta[0], images),
        )
    return gradients


def _largest_partial_sum_of_rows(rows: Array, images: int) -> Array:
    """Return the largest magnitude of the partial sums of the images' rows (images * positions,outputs), (outputs,)."""
    return _largest_partial_sum(rows.reshape(images, -1, rows.shape[-1]).sum(axis=1))


def _input_gradient(p: Parameters, deltas: dict[str, Array], batch: int) -> _Sum:
    """Return the gradient with respect to the images, R,N,1,32,32."""
    return _convolution_input_gradient(deltas["conv1"], p["conv1.weight"].reshape(-1, 6, 25), (batch, 1, 32))


Loss: TypeAlias = Callable[[Array, Array, _Rounding, int], tuple[Array, Array]]
"""(logits (R,N,10), targets (N,10), rounding, repeats) -> the loss (R,) and its gradient by the logits (R,N,10)."""


def mse(logits: Array, targets: Array, rounding: _Rounding, repeats: int = 1) -> tuple[Array, Array]:
    """Return the mean squared error, mean((logits - targets)**2), and its gradient."""
    difference = rounding.perturb(_Sum(logits - targets, (logits[0] - targets) ** 2, 1))
    square = rounding.perturb(_Sum(difference**2, np.zeros(targets.shape), 1))
    loss = _mean(square, targets.size, rounding, repeats)
    delta = 2 * difference / max(1, targets.size)
    return loss, rounding.perturb(_Sum(delta, delta[0] ** 2, 1, underflows=repeats))


def cross_entropy(logits: Array, targets: Array, rounding: _Rounding, repeats: int = 1) -> tuple[Array, Array]:
    """
    Return the mean over the images of -sum(targets * log_softmax(logits)), and its gradient.

    The targets may be any weights, such as probabilities or one-hot labels. The logarithms are stored, and the
    softmax in the gradient is their exponential. The sum of the exponentials is stored as well, as by PyTorch's CPU
    kernel: in 16 bits, the logarithm of a softmax near 1 is off by up to a unit roundoff, and can be 0.

    If rounding errors of the logits are larger than 1, as those of large logits are, the softmax is a decision that
    rounding may flip: it is almost 0 or 1, and near 1/2 only in ties. The logarithm has a kink there. The perturbed
    replicas show either a flip or nothing, so that their spread says little about a flip that is unlikely, and nothing
    about shares of a tie. Both are functions of the logits' log odds, whose errors have no such jump, so both are
    widened by the spread of the log odds.
    """
    log_odds = _log_odds(logits)
    shifted = logits - logits.max(axis=-1, keepdims=True, initial=-np.inf)
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    normalizer = rounding.perturb(_Sum(np.log(total), np.ones(total.shape[1:]), 10))
    logarithm = rounding.perturb(_Sum(shifted - normalizer, shifted[0] ** 2 + normalizer[0] ** 2, 2))
    logarithm = rounding.widen(logarithm, _log_sigmoid, log_odds)
    terms = rounding.perturb(_Sum(-targets * logarithm, np.zeros(targets.shape), 1))
    loss = _mean(terms, len(targets), rounding, repeats)
    softmax = rounding.widen(np.exp(_log_sigmoid(log_odds)), lambda odds: np.exp(_log_sigmoid(odds)), log_odds)
    sum_of_squares = softmax[0] ** 2 * (shifted[0] ** 2 + normalizer[0] ** 2 + logarithm[0] ** 2)
    softmax = softmax + rounding.perturb(
        _Sum(np.zeros((1, *targets.shape)), sum_of_squares, 2)
    )  # of the stored logarithm
    softmax = softmax * targets.sum(axis=-1, keepdims=True)
    delta = (softmax - targets) / max(1, len(targets))
    sum_of_squares = (softmax[0] ** 2 + targets**2) / max(1, len(targets)) ** 2
    return loss, rounding.perturb(_Sum(delta, sum_of_squares, 10, underflows=repeats))


def _log_odds(logits: Array) -> Array:
    """Return log(p / (1 - p)) for each p of the softmax of the logits (R,N,10): logit - log(sum(exp(others)))."""
    others = np.where(np.eye(logits.shape[-1], dtype=bool), -np.inf, logits[..., None, :])
    largest = others.max(axis=-1)
    log_odds: Array = logits - largest - np.log(np.exp(others - largest[..., None]).sum(axis=-1))
    return log_odds


def _log_sigmoid(log_odds: Array) -> Array:
    """Return log(p) of the log odds of p."""
    return -np.logaddexp(0.0, -log_odds)


def dot(logits: Array, targets: Array, rounding: _Rounding, repeats: int = 1) -> tuple[Array, Array]:
    """Return sum(targets * logits) and its gradient, which is the targets without any rounding."""
    terms = logits * targets
    total, sum_of_squares = terms.sum(axis=(1, 2), keepdims=True), np.sum(terms[0] ** 2, keepdims=True)
    loss = rounding.perturb(_Sum(total, sum_of_squares, terms[0].size * repeats))
    return loss[:, 0, 0], targets[None]


def scaled(loss: Loss, factor: float) -> Loss:
    """Return the loss function times a factor; its value and its gradient are each rounded once more."""

    def times(logits: Array, targets: Array, rounding: _Rounding, repeats: int = 1) -> tuple[Array, Array]:
        value, delta = loss(logits, targets, rounding, repeats)
        value = rounding.perturb(_Sum(factor * value, np.zeros(()), 1))
        return value, rounding.perturb(_Sum(factor * delta, (factor * delta[0]) ** 2, 1, underflows=repeats))

    return times


def _mean(terms: Array, count: int, rounding: _Rounding, repeats: int) -> Array:
    """Return the sum of the terms (R,N,10) divided by `count`, (R,); NaN if `count` is 0."""
    with np.errstate(invalid="ignore"):
        mean = np.sum(terms, axis=(1, 2), keepdims=True) / np.float64(count)
        sum_of_squares = np.sum(terms[0] ** 2, keepdims=True) / np.float64(count) ** 2
    return rounding.perturb(_Sum(mean, sum_of_squares / repeats, terms[0].size * repeats))[:, 0, 0]


def _estimate(replicas: Array, precision: Precision) -> Budgeted:
    """Return the exact replica, a scalar or rows, with the budget that the perturbed ones give."""
    square = np.where(np.isnan(replicas[0]), 0.0, _mean_square(replicas[1:-1] - replicas[0]))
    return budgeted(replicas[0], np.sqrt(_increased(square, _mean_over_row)), precision)


def _increased(variance: Array, similar: Callable[[Array], Array]) -> Array:
    """Return the variance (...) plus its mean over similar elements; one that is not finite becomes infinite."""
    if np.isfinite(variance).all():
        return variance + similar(variance)
    finite = np.isfinite(variance)
    total, share = similar(np.where(finite, variance, 0.0)), similar(finite.astype(np.float64))
    mean = np.divide(total, share, out=np.zeros_like(total), where=share > 0)
    return np.where(finite, variance + mean, np.inf)


def _mean_over_row(variance: Array) -> Array:
    return np.asarray(variance.mean(axis=-1, keepdims=True)) if variance.ndim else variance


def _mean_over_tensor(variance: Array) -> Array:
    return np.asarray(variance.mean())


def _mean_over_image(variance: Array) -> Array:
    return np.asarray(variance.mean(axis=(1, 2, 3), keepdims=True))


def _mean_by_unit_and_input(variance: Array, kernel: int = 1) -> Array:
    """
    Return the variance of each weight (units,inputs) if it were a factor of its unit times a factor of its input.

    The inputs of a convolution are its channels: algorithms by Fourier transform or by Winograd, which cuDNN may
    choose, spread errors over all positions of a `kernel`.
    """
    by_input = variance.reshape(len(variance), -1, kernel).mean(axis=-1)
    units, inputs, mean = by_input.mean(axis=1), by_input.mean(axis=0), by_input.mean()
    return np.repeat(np.outer(units, inputs) / mean if mean else by_input, kernel, axis=1)


def _similar(name: str) -> Callable[[Array], Array]:
    """Return what averages the variance over similar elements of the gradient with this name."""
    if name == "images":
        return _mean_over_image
    if name.endswith("bias"):
        return _mean_over_tensor
    return partial(_mean_by_unit_and_input, kernel=25 if name.startswith("conv") else 1)


def budgeted(value: Array, budget: Array, precision: Precision) -> Budgeted:
    """Return the value with its budget, or an infinite one where rounding may carry the value out of the range."""
    beyond = np.abs(value) + THRESHOLD * budget > precision.largest
    return Budgeted(value, np.where(beyond, np.inf, budget))


def _flip_variance(
    p: Parameters, run: _ForwardPass, deltas: dict[str, Array], rounding: _Rounding, with_input_gradient: bool
) -> dict[str, Array]:
    """
    Return the variance that undecided decisions add to the gradient of each parameter and of the images.

    The dictionary is empty if no decision is undecided. The variance is the sum of three parts: the mean square change
    of the gradient over backward passes with sampled flips, its squared change with the decisions of the rounded
    replica, and its mean square change if the windows that it sums over changed independently. The third part is needed
    because changes cancel by chance: with few passes and tens of thousands of elements, some would have no variance.

    It is infinite where a flip may carry a value, or one that it is computed from, out of the range of the precision:
    then the result may be infinite, or NaN as a product of infinity and zero.
    """
    likelihoods = [gate.flip_likelihood() for gate in run.gates]
    if not any(likelihood.any() for likelihood in likelihoods):
        return {}
    in_range = _RangeOnly(rounding.precision and replace(rounding.precision, operand_unit=0.0))
    rows = {layer: inputs[:1] for layer, inputs in run.rows.items()}
    shares = [
        np.concatenate([gate.selected[None], gate.sample_flips(likelihood, rounding.random)])
        for gate, likelihood in zip(run.gates, likelihoods, strict=True)
    ]
    flipped = _backward(p, shares, deltas["fc3"][:1], in_range)
    changes = {layer: d[1:] - d[0] if len(d) > 1 else np.zeros_like(d) for layer, d in flipped.items()}
    separate = _variance_of_independent_changes(changes, run.rows)
    together = _parameter_gradients(flipped, rows)
    if with_input_gradient:
        batch = len(likelihoods[0])
        squares = {"conv1": (changes["conv1"] ** 2).mean(axis=0, keepdims=True)}
        separate["images"] = _input_gradient({"conv1.weight": p["conv1.weight"][:1] ** 2}, squares, batch).z[0]
        together["images"] = _input_gradient(p, flipped, batch)
    variances = {}
    for name, variance in separate.items():
        z = in_range.perturb(together[name])
        total = variance
        if len(z) > 1:
            square = np.square(z[1:] - z[0])
            total = square[:-1].sum(axis=0) / REPLICAS + square[-1] + variance
        variances[name] = np.where(np.isnan(total), np.inf, total)
    return variances


def _variance_of_independent_changes(changes: dict[str, Array], rows: dict[str, Array]) -> dict[str, Array]:
    """
    Return the mean square change of each parameter's gradient if pooling windows and images changed independently.

    `changes` are those of the gradients of the layers' outputs, S,rows,outputs. What the candidates of a window gain
    and lose adds up in the gradient of a convolution's bias, which all of them share. Inputs have their rounding
    errors: one that is exactly 0 may be positive where the decision of its ReLU is undecided as well.
    """
    variances = {}
    for layer, change in changes.items():
        squares, inputs = (change**2).mean(axis=0), rows[layer]
        input_squares = inputs[0] ** 2 if len(inputs) == 1 else inputs[0] ** 2 + _spread(inputs) ** 2
        variances[f"{layer}.weight"] = squares.T @ np.nan_to_num(input_squares, nan=0.0, posinf=0.0)  # see `estimate`
        if layer.startswith("conv"):
            size = {"conv1": 28, "conv2": 10}[layer]
            squares = (_pooling_windows(change, change.shape[1] // size**2, size).sum(axis=-1) ** 2).mean(axis=0)
        variances[f"{layer}.bias"] = squares.reshape(-1, change.shape[-1]).sum(axis=0)
    return variances


def _single_replica(parameters: Parameters) -> dict[str, Array]:
    """Return the parameters in float64 with an axis of one replica."""
    return {name: np.asarray(value, np.float64)[None] for name, value in parameters.items()}


def solve(
    parameters: Parameters,
    images: Array,
    targets: Array,
    precision: Precision,
    seed: int = 0,
    repeats: int = 1,
    loss: Loss = mse,
    with_input_gradient: bool = False,
) -> Answer:
    """
    Return the logits, loss and gradients for images (N,1,32,32) and targets (N,10), with budgets at `precision`.

    The gradient with respect to the images, which training does not need, is computed only `with_input_gradient`.

    `repeats` budgets the loss and gradients as those of a batch in which each image occurs that often. The values are
    the same, but their sums have that many more terms. So a batch of thousands is judged at the cost of a few images.
    `seed` determines the random errors.
    """
    p = _single_replica(parameters)
    rounding = _Rounding(precision, seed)
    with np.errstate(invalid="ignore", over="ignore"):  # perturbed replicas may overflow
        run = _forward(p, images, rounding)
        value, delta = loss(run.logits, targets, rounding, repeats)
        deltas = _backward(p, [gate.selected[None] for gate in run.gates], delta, rounding, repeats)
        sums = _parameter_gradients(deltas, run.rows, repeats)
        if with_input_gradient:
            sums["images"] = _input_gradient(p, deltas, len(images))
        flips = _flip_variance(p, run, deltas, rounding, with_input_gradient)
        estimates = {}
        for name, total in sums.items():
            estimate = rounding.estimate(total, _similar(name))
            budget = np.sqrt(estimate.budget**2 + flips.get(name, 0.0))
            shape = SHAPES.get(name, images.shape)
            estimates[name] = budgeted(estimate.value.reshape(shape), budget.reshape(shape), precision)
        return Answer(
            logits=_estimate(run.logits, precision),
            loss=_estimate(value, precision),
            gradients={name: estimates[name] for name in SHAPES},
            input_gradient=estimates.get("images"),
            has_undecided=bool(flips),
            largest_sum_of_squares=rounding.largest_sum_of_squares,
        )


def loss(
    logits: Array, targets: Array, precision: Precision, kind: Loss = mse, repeats: int = 1, seed: int = 0
) -> Budgeted:
    """Return the loss of logits (N,10) and targets (N,10), each row repeated `repeats` times, with its budget."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _estimate(kind(logits[None], targets, _Rounding(precision, seed), repeats)[0], precision)


def decisions(parameters: Parameters, images: Array) -> list[NDArray[np.bool_]]:
    """Return which candidate each ReLU and pooling window selects, N,...,m after conv1, conv2, fc1 and fc2."""
    return [gate.selected for gate in _forward(_single_replica(parameters), images, _Rounding(None)).gates]


def accumulated_gradients(answers: Sequence[Answer], precision: Precision) -> dict[str, Budgeted]:
    """
    Return the gradients that several backward passes in a row accumulate in `.grad`.

    Each gradient may be off by THRESHOLD of its own budgets, so budgets add up, and each addition rounds once.
    """
    total = {name: Budgeted(np.zeros(shape), np.zeros(shape)) for name, shape in SHAPES.items()}
    for answer in answers:
        for name, more in answer.gradients.items():
            value = total[name].value + more.value
            rounding = (precision.unit * np.abs(value) + precision.underflow) / THRESHOLD
            total[name] = budgeted(value, total[name].budget + more.budget + rounding, precision)
    return total


def updated_parameters(parameters: Parameters, answer: Answer, lr: float, precision: Precision) -> dict[str, Budgeted]:
    """
    Return the parameters after a step of SGD, weight - lr * gradient.

    The budget consists of the gradient's and of two roundings, of the product and of the difference.
    """
    after = {}
    for name, gradient in answer.gradients.items():
        value = parameters[name] - lr * gradient.value
        roundings = precision.unit * np.hypot(value, lr * gradient.value) + precision.underflow
        after[name] = budgeted(value, np.hypot(lr * gradient.budget, roundings), precision)
    return after


def train(
    parameters: Parameters, batches: Iterable[tuple[Array, Array]], lr: float, precision: Precision, seed: int = 0
) -> tuple[dict[str, Array], list[float]]:
    """
    Train by SGD on batches of (images, targets) in three replicas: exact, perturbed, and rounded once an operation.

    Returns the trained parameters, (3,...) each, for `predict`, and the exact replica's loss at every step. Each
    replica takes its own decisions, so the distance between the replicas shows how far rounding carries a run of this
    length.
    """
    p, losses = _single_replica(parameters), []
    rounding = _Rounding(precision, seed, replicas=1)
    for images, targets in batches:
        run = _forward(p, images, rounding)
        loss, delta = mse(run.logits, targets, rounding)
        deltas = _backward(p, [_winner(gate.z) for gate in run.gates], delta, rounding)
        for name, total in _parameter_gradients(deltas, run.rows).items():
            step = lr * rounding.perturb(total).reshape(-1, *SHAPES[name])
            p[name] = rounding.perturb(_Sum(p[name] - step, step[0] ** 2, 1))
        losses.append(float(loss[0]))
    return {name: p[name] for name in SHAPES}, losses


def predict(trained: dict[str, Array], images: Array) -> Budgeted:
    """
    Return the logits (N,10) of the exactly trained network, for parameters that `train` returned.

    The budget is the same for all logits: the root mean square distance of the other replicas' logits.
    """
    logits = _forward(trained, images, _Rounding(None)).logits
    return Budgeted(logits[0], np.full(logits.shape[1:], np.sqrt(np.mean((logits[1:] - logits[0]) ** 2))))
