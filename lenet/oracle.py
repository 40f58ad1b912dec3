"""
The tutorial's Net in float64 NumPy, and how far from it a correct result may lie.

This module imports no torch: whatever it agrees with, it agrees with independently. `solve` gives the exact
logits, loss and gradients of a case (exact: float64's own rounding is 2**29 times finer than float32's) and, with
each of them, its rounding budget: the unit in which an error is measured.

The budget is Monte Carlo arithmetic (Parker 1997, "Monte Carlo Arithmetic: exploiting randomness in floating-point
arithmetic", UCLA CSD-970002; Denis, de Oliveira Castro & Petit 2016, "Verificarlo", ARITH 23). The network is computed
`REPLICAS` more times, and in each replica every dot product z = sum_k a_k b_k + c of n terms is disturbed by

    sqrt((n + 1) * v**2 + u**2) * sqrt(sum_k (a_k b_k)**2 + c**2 + z**2) * (xi + xi_shared)

with u the unit roundoff of what is stored and v that of the accumulator. (Where operands w are rounded before they
are multiplied, as in TF32, 2 w**2 is added to the first factor.) The first factor counts roundings, n + 1 while
adding and one when storing; the second is the size of what is rounded: the partial sums of a random sum grow like the
root of the sum of squares, those of terms of one sign like z. xi is standard normal for each element and xi_shared for
each operation: identical units round identically, so errors may add coherently. An element's budget is the root of its
replicas' mean square deviation plus that of its whole tensor. In the 16-bit precisions, whose sums are wider than what
is stored, a sum over a batch may be stored after each image, as PyTorch's convolutions do on the CPU. Where rounding
may carry a number out of the precision's range, its budget and that of all that follows from it are infinite.

Decisions (which of a pooling window and zero is the largest) are not continuous, so they are budgeted apart. All
replicas take the exact computation's decisions. A decision that rounding could turn, because its margin is less than
`THRESHOLD` spreads of that margin, is open: the backward pass is repeated with the gradient of every open decision
given or taken away at random, and once with the decisions of a replica that rounds each dot product just once, as
hardware does, so that what is nearly tied is tied. What this does to an element of a gradient widens its budget. So
ties and kinks can be judged like all else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Parameters: TypeAlias = Mapping[str, Array]

THRESHOLD = 8.0
"""How many budgets an error may be: the power of two above the worst of `properties/calibration.json`, see there."""

REPLICAS = 6
"""Disturbed copies of a computation; a gradient tensor's own elements make up for their small number."""

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
"""The ten parameters, in the order of `net.parameters()`: 61,706 numbers."""


@dataclass(frozen=True)
class Precision:
    """What a computation claims: unit roundoff, half the smallest and the largest number that it stores."""

    name: str
    unit: float
    underflow: float
    largest: float
    sums: Precision | None = None  # what it adds up in, where that is another
    operands: float = 0.0  # the unit roundoff to which it first rounds what it multiplies, where that is stored wider

    @property
    def accumulator(self) -> Precision:
        """What it adds up in."""
        return self.sums or self

    @property
    def coarsest(self) -> float:
        """The largest of its unit roundoffs: integers up to its inverse stay exact wherever they pass."""
        return max(self.unit, self.operands)


_FLOAT64 = Precision("float64", 2.0**-53, 2.0**-1074, float(np.finfo(np.float64).max))  # 2**-1075 is no float64
_FLOAT32 = Precision("float32", 2.0**-24, 2.0**-150, 2.0**128 - 2.0**104)
_BFLOAT16 = Precision("bfloat16", 2.0**-8, 2.0**-134, 2.0**128 - 2.0**120, _FLOAT32)
_FLOAT16 = Precision("float16", 2.0**-11, 2.0**-25, 65504.0, _FLOAT32)
_TF32 = Precision("tf32", 2.0**-24, 2.0**-150, _FLOAT32.largest, operands=2.0**-11)
PRECISIONS = {precision.name: precision for precision in (_FLOAT64, _FLOAT32, _BFLOAT16, _FLOAT16)}
"""Those of which there are numbers."""

CLAIMS = PRECISIONS | {_TF32.name: _TF32}
"""Those that a computation may claim: TF32 is float32 but for what is multiplied, which is rounded to 11 bits."""


def claimed(name: str, stored: str) -> Precision:
    """The precision of this name as claimed by a computation whose parameters and images are stored in another."""
    precision = CLAIMS[name]
    return precision if PRECISIONS[stored].unit >= precision.unit else replace(precision, operands=precision.coarsest)


@dataclass(frozen=True)
class Bounded:
    """An exact tensor and its budget, element by element."""

    value: Array
    budget: Array

    def ratio(self, got: Array) -> Array:
        """
        |got - value| / budget: 0 where both are the same (infinite and NaN included), inf where the budget is 0.

        Also 0 where the budget is infinite: what is not in the precision's range can be anything.
        """
        same = (got == self.value) | (np.isnan(got) & np.isnan(self.value)) | np.isinf(self.budget)
        with np.errstate(all="ignore"):
            ratio = np.abs(got - self.value) / self.budget
        return np.where(same, 0.0, np.where(np.isnan(ratio), np.inf, ratio))


@dataclass(frozen=True)
class Answer:
    """What a correct network and loss give for one case, each with its budget."""

    logits: Bounded  # N,10
    loss: Bounded  # a number
    gradients: dict[str, Bounded]  # of the loss, by each parameter
    by_images: Bounded | None  # of the loss, N,1,32,32, where it was asked for
    undecided: bool  # whether rounding could turn a decision
    largest: float  # sum of the squares of a dot product's terms: of integers, no partial sum is larger


class _Rounding:
    """
    Copies of one computation along axis 0, R = replicas + 2 of them; R = 1 without a precision.

    The first copy is exact, the last rounds each result once to the nearest, the `replicas` between are disturbed.
    """

    def __init__(self, precision: Precision | None, seed: int = 0, replicas: int = REPLICAS) -> None:
        self.precision = precision
        self.replicas = replicas
        self.largest = 0.0  # sum of the squares of a dot product's terms
        self.directions: list[Array] = []
        self.random = np.random.default_rng(seed)

    def dot(self, a: Array, b: Array, c: Array | None = None, repeats: int = 1, images: int = 1) -> Array:
        """
        a @ b + c, (R,m,n) @ (R,n,k) -> (R,m,k), with R 1 where all copies share an operand.

        Each term may stand for `repeats` terms of its size divided by `repeats`; they may be of several `images`.
        """
        z = a @ b if c is None else a @ b + c
        if self.precision is None:
            return z
        energy = a[0] ** 2 @ b[0] ** 2 / repeats
        energy = energy if c is None else energy + c[0] ** 2
        if operands := self.precision.operands:
            z = np.broadcast_to(z, (self.replicas + 2, *z.shape[1:])).copy()
            z[-1] = _nearest(a[-1], operands) @ _nearest(b[-1], operands) + (0.0 if c is None else c[-1])
        return self.disturb(z, energy, a.shape[-1] * repeats, images=images * repeats, products=True)

    def disturb(
        self, z: Array, energy: Array, terms: int, stored: bool = True, images: int = 1, products: bool = False
    ) -> Array:
        """
        Sums z (R,...) of `terms` terms whose squares add up to `energy`, each copy with its own rounding error.

        What is not stored keeps the accumulator's precision; a narrower result may be stored after each image; terms
        that are `products` have both their factors rounded where the precision says so. What may leave the range is
        infinite.
        """
        if self.precision is None:
            return z
        sums = self.precision.accumulator
        result = self.precision if stored else sums
        stores = images if result is not sums else 1
        self.largest = max(self.largest, float(energy.max(initial=0.0)))
        factors = 2 * self.precision.operands**2 if products else 0.0
        scale = np.sqrt(((terms + 1) * sums.unit**2 + stores * result.unit**2 + factors) * (energy + z[0] ** 2))
        scale += np.where(energy > 0, np.sqrt(terms + 1) * sums.underflow + stores * result.underflow, 0.0)
        z = np.broadcast_to(z, (self.replicas + 2, *z.shape[1:])).copy()
        shared = self._shared().reshape(-1, *[1] * (z.ndim - 1))
        z[1:-1] += scale * (self.random.standard_normal((self.replicas, *z.shape[1:]), np.float32) + shared)
        z[-1] = _nearest(z[-1], result.unit)
        reach = max(z.max(initial=0.0), -z.min(initial=0.0), np.sqrt(stores * energy.max(initial=0.0)))
        if reach > result.largest / 4 or np.sqrt((terms + 1) * energy.max(initial=0.0)) > sums.largest:
            spread = np.sqrt(np.mean((z[1:-1] - z[0]) ** 2, axis=0))
            partial = np.sqrt((stores - 1) * energy)
            beyond = np.abs(z[0]) + THRESHOLD * spread + partial > result.largest
            beyond |= np.sqrt((terms + 1) * energy) > sums.largest  # by Cauchy-Schwarz, no partial sum is larger
            z[1:] = np.where(beyond, np.copysign(np.inf, z[0]), z[1:])
        return z

    def _shared(self) -> Array:
        """
        One standard normal a replica, (replicas,), whose mean square is 1 and which is orthogonal to the latest ones.

        So where a whole network's errors are shared, as with constant weights, few replicas give their size reliably.
        """
        if not self.directions:
            basis, _ = np.linalg.qr(self.random.standard_normal((self.replicas, self.replicas)))
            self.directions = list(basis.T * np.sqrt(self.replicas))
        return self.directions.pop()


def _nearest(values: Array, unit: float) -> Array:
    """The values rounded to the nearest of this unit roundoff."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa / unit) * unit, exponent)


class _Gate:
    """
    ReLU and max-pooling in one: the largest of the candidates on the last axis and zero, (R,N,...,m) -> (R,N,...).

    m is 4 for a pooling window in row-major order, 1 for a ReLU alone. Of equals the first wins, and zero before all:
    `torch.nn.functional.max_pool2d` and `relu` hand the gradient out so.
    """

    def __init__(self, z: Array) -> None:
        self.z = z
        self.output = np.maximum(z.max(axis=-1), 0.0)
        self.taken = _winner(z[0])

    def doubt(self) -> Array:
        """
        For each candidate, N,...,m: about the root of the chance that rounding turns it into the winner.

        In the winner's own place: the same for zero. It is 0 from THRESHOLD spreads on, and before that at least
        2 / THRESHOLD, so that a single turn, however unlikely, uses up no more than half of what an error may be.
        """
        winner = np.where(self.taken, self.z, 0.0).sum(axis=-1, keepdims=True)
        margin = winner - np.where(self.taken, 0.0, self.z)
        spread = np.sqrt(np.mean((margin[1:-1] - margin[0]) ** 2, axis=0))
        with np.errstate(invalid="ignore", divide="ignore"):
            chance = np.maximum(np.exp(-((margin[0] / spread) ** 2) / 4), 2 / THRESHOLD)
        return np.where(margin[0] < THRESHOLD * spread, chance, 0.0)

    def turns(self, doubt: Array, random: np.random.Generator) -> Array:
        """
        The share of the gradient that each candidate gets, REPLICAS+1,N,...,m, when open decisions fall at random.

        Identical units round identically, so by turns they fall each for itself, alike in all images, and alike in all
        windows. Signs come with a magnitude, lest two turns cancel in every replica. The last share is the rounded
        replica's.
        """
        batch, *places, m = doubt.shape
        shapes = ((batch, *places, m), (1, *places, m), (1, *[1] * len(places), m))
        signs = [
            random.choice([-1.0, 1.0], shapes[i % 3]) * random.uniform(0.5, 1.5, shapes[i % 3]) for i in range(REPLICAS)
        ]
        gained = np.stack([sign * doubt for sign in signs])
        lost = np.where(self.taken, 0.0, gained).sum(axis=-1, keepdims=True)
        return np.concatenate([self.taken * (1 - lost) + gained, _winner(self.z[-1])[None]])


def _winner(z: Array) -> NDArray[np.bool_]:
    """The first of the largest candidates on the last axis; none where zero is as large."""
    first = z.argmax(axis=-1)[..., None] == np.arange(z.shape[-1])
    return np.asarray(first & (z > 0))


@dataclass(frozen=True)
class _Pass:
    """What the forward pass leaves for the backward pass; every array has the copies on axis 0."""

    rows: dict[str, Array]  # what each layer's weight is multiplied by: R,rows,inputs
    gates: list[_Gate]  # after conv1, conv2, fc1, fc2
    logits: Array  # R,N,10


def _patches(maps: Array) -> Array:
    """Every 5x5 window of every channel as a row: (R,N,C,H,W) -> (R, N*(H-4)*(W-4), C*25)."""
    windows = sliding_window_view(maps, (5, 5), axis=(-2, -1)).transpose(0, 1, 3, 4, 2, 5, 6)
    copies, batch, height, width, channels, _, _ = windows.shape
    return windows.reshape(copies, batch * height * width, channels * 25)


def _unpatch(delta: Array, weight: Array, batch: int, channels: int, size: int) -> Array:
    """The transpose of `_patches`: delta @ weight added where the patches came from, -> (R,N,channels,size,size)."""
    places = size - 4
    copies = max(len(delta), len(weight))
    maps = np.zeros((copies, batch, size, size, channels))
    filters = weight.reshape(*weight.shape[:2], channels, 25)
    for offset in range(25):
        i, j = divmod(offset, 5)
        part = delta @ filters[..., offset]
        maps[:, :, i : i + places, j : j + places] += part.reshape(copies, batch, places, places, channels)
    return maps.transpose(0, 1, 4, 2, 3)


def _windows(rows: Array, batch: int, size: int) -> Array:
    """A convolution's rows as 2x2 pooling windows: (R, N*size*size, C) -> (R,N,size/2,size/2,C,4)."""
    half, channels = size // 2, rows.shape[-1]
    grid = rows.reshape(len(rows), batch, half, 2, half, 2, channels)
    return grid.transpose(0, 1, 2, 4, 6, 3, 5).reshape(len(rows), batch, half, half, channels, 4)


def _unwindows(windows: Array) -> Array:
    """The inverse of `_windows`: (R,N,h,h,C,4) -> (R, N*4*h*h, C)."""
    r, n, h, _, c, _ = windows.shape
    return windows.reshape(r, n, h, h, c, 2, 2).transpose(0, 1, 2, 5, 3, 6, 4).reshape(r, n * 4 * h * h, c)


def _matrix(weight: Array) -> Array:
    """A layer's weight (R,O,...) as the matrix (R,I,O) that its input rows are multiplied by."""
    return weight.reshape(len(weight), weight.shape[1], -1).swapaxes(-1, -2)


def _forward(p: Parameters, images: Array, rounding: _Rounding) -> _Pass:
    rows: dict[str, Array] = {}

    def layer(name: str, inputs: Array) -> Array:
        rows[name] = inputs
        return rounding.dot(inputs, _matrix(p[f"{name}.weight"]), p[f"{name}.bias"][:, None, :])

    batch = len(images)
    gate1 = _Gate(_windows(layer("conv1", _patches(images[None])), batch, 28))
    pooled1 = gate1.output.transpose(0, 1, 4, 2, 3)  # R,N,6,14,14
    gate2 = _Gate(_windows(layer("conv2", _patches(pooled1)), batch, 10))
    pooled2 = gate2.output.transpose(0, 1, 4, 2, 3)  # R,N,16,5,5
    gate3 = _Gate(layer("fc1", pooled2.reshape(len(pooled2), batch, 400))[..., None])
    gate4 = _Gate(layer("fc2", gate3.output)[..., None])
    return _Pass(rows, [gate1, gate2, gate3, gate4], layer("fc3", gate4.output))


def _backward(p: Parameters, shares: Sequence[NDArray[Any]], delta: Array, rounding: _Rounding) -> dict[str, Array]:
    """
    The gradient by each layer's outputs, R,rows,outputs.

    From delta, that by the logits, and from the share of the gradient that each gate's candidates get.
    """

    def weight(layer: str) -> Array:
        return _matrix(p[f"{layer}.weight"]).swapaxes(-1, -2)

    batch = delta.shape[1]
    share1, share2, share3, share4 = shares
    delta4 = rounding.dot(delta, weight("fc3")) * share4[..., 0]
    delta3 = rounding.dot(delta4, weight("fc2")) * share3[..., 0]
    flat = rounding.dot(delta3, weight("fc1"))
    pooled2 = flat.reshape(len(flat), batch, 16, 5, 5)
    delta2 = _unwindows(pooled2.transpose(0, 1, 3, 4, 2)[..., None] * share2)  # R,N*100,16
    pooled1 = _convolution_backward(delta2, weight("conv2"), (batch, 6, 14), rounding)
    delta1 = _unwindows(pooled1.transpose(0, 1, 3, 4, 2)[..., None] * share1)  # R,N*784,6
    return {"conv1": delta1, "conv2": delta2, "fc1": delta3, "fc2": delta4, "fc3": delta}


def _convolution_backward(delta: Array, weight: Array, maps: tuple[int, int, int], rounding: _Rounding) -> Array:
    """The gradient by a convolution's input, (R, *maps, size) with maps N, channels, size; from that by its rows."""
    energy = _unpatch(delta[:1] ** 2, weight[:1] ** 2, *maps)[0]
    return rounding.disturb(_unpatch(delta, weight, *maps), energy, weight.shape[1] * 25, products=True)


def _gradients(
    deltas: dict[str, Array], rows: dict[str, Array], rounding: _Rounding, repeats: int = 1
) -> dict[str, Array]:
    """The gradient by each parameter, R,..., from those by each layer's outputs and from the layer's inputs."""
    images, gradients = deltas["fc3"].shape[1], {}
    for layer, delta in deltas.items():
        gradient = rounding.dot(delta.swapaxes(-1, -2), rows[layer], repeats=repeats, images=images)
        gradients[f"{layer}.weight"] = gradient.reshape(-1, *SHAPES[f"{layer}.weight"])
        terms, energy = delta.shape[1] * repeats, (delta[0] ** 2).sum(axis=0) / repeats
        gradients[f"{layer}.bias"] = rounding.disturb(delta.sum(axis=1), energy, terms, images=images * repeats)
    return gradients


def _by_images(p: Parameters, deltas: dict[str, Array], batch: int, rounding: _Rounding) -> Array:
    """The gradient by the images, R,N,1,32,32."""
    return _convolution_backward(deltas["conv1"], p["conv1.weight"].reshape(-1, 6, 25), (batch, 1, 32), rounding)


Loss: TypeAlias = Callable[[Array, Array, _Rounding, int], tuple[Array, Array]]
"""(logits (R,N,10), targets (N,10), rounding, repeats) -> the loss (R,) and its gradient by the logits (R,N,10)."""


def mse(logits: Array, targets: Array, rounding: _Rounding, repeats: int = 1) -> tuple[Array, Array]:
    """The mean of the squared errors."""
    difference = rounding.disturb(logits - targets, (logits[0] - targets) ** 2, 1)
    square = rounding.disturb(difference**2, np.zeros(targets.shape), 1)
    loss = _mean(square, targets.size, rounding, repeats)
    delta = 2 * difference / max(1, targets.size)
    return loss, rounding.disturb(delta, delta[0] ** 2, 1)


def cross_entropy(logits: Array, targets: Array, rounding: _Rounding, repeats: int = 1) -> tuple[Array, Array]:
    """
    The mean over the images of -sum(targets * log(softmax(logits))); targets are probabilities, or a one of ten.

    The logarithm is stored, the softmax that the gradient needs is its exponential.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True, initial=-np.inf)
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    normalizer = rounding.disturb(np.log(total), np.ones(total.shape[1:]), 10, stored=False)
    logarithm = rounding.disturb(shifted - normalizer, shifted[0] ** 2 + normalizer[0] ** 2, 2)
    terms = rounding.disturb(-targets * logarithm, np.zeros(targets.shape), 1)
    loss = _mean(terms, len(targets), rounding, repeats)
    sums = targets.sum(axis=-1, keepdims=True)
    softmax = np.exp(logarithm) * sums
    delta = (softmax - targets) / max(1, len(targets))
    energy = (softmax[0] ** 2 + targets**2) / max(1, len(targets)) ** 2
    return loss, rounding.disturb(delta, energy, 10)


def dot(logits: Array, targets: Array, rounding: _Rounding, repeats: int = 1) -> tuple[Array, Array]:
    """The sum of targets * logits: its gradient by the logits is the targets, without any rounding."""
    terms = logits * targets
    loss = rounding.disturb(
        terms.sum(axis=(1, 2), keepdims=True), np.sum(terms[0] ** 2, keepdims=True), terms[0].size * repeats
    )
    return loss[:, 0, 0], targets[None]


def scaled(loss: Loss, factor: float) -> Loss:
    """The loss times a factor; the gradient is rounded once more."""

    def times(logits: Array, targets: Array, rounding: _Rounding, repeats: int = 1) -> tuple[Array, Array]:
        value, delta = loss(logits, targets, rounding, repeats)
        value = rounding.disturb(factor * value, np.zeros(()), 1)
        return value, rounding.disturb(factor * delta, (factor * delta[0]) ** 2, 1)

    return times


def _mean(terms: Array, count: int, rounding: _Rounding, repeats: int) -> Array:
    """The sum of the terms (R,N,10) divided by `count`, (R,); NaN where that is 0."""
    with np.errstate(invalid="ignore"):
        mean = np.sum(terms, axis=(1, 2), keepdims=True) / np.float64(count)
        energy = np.sum(terms[0] ** 2, keepdims=True) / np.float64(count) ** 2
    return rounding.disturb(mean, energy / repeats, terms[0].size * repeats)[:, 0, 0]


def _bounded(copies: Array, precision: Precision, turning: Array | float = 0.0) -> Bounded:
    """The first copy, with the deviation of the disturbed ones from it, and the variance that turned decisions add."""
    square = (copies[1:-1] - copies[0]) ** 2
    within = np.isfinite(square) | np.isnan(copies[0])
    variance = np.where(within, square, np.inf).mean(axis=0)
    variance += np.where(within, square, 0.0).sum() / max(1, within.sum())
    return in_range(copies[0], np.sqrt(variance + turning), precision)


def in_range(value: Array, budget: Array, precision: Precision) -> Bounded:
    """The budget is infinite where rounding may carry the value out of the precision's range."""
    beyond = np.abs(value) + THRESHOLD * budget > precision.largest
    return Bounded(value, np.where(beyond, np.inf, budget))


def _turning(
    p: Parameters,
    run: _Pass,
    deltas: dict[str, Array],
    gradients: dict[str, Array],
    random: np.random.Generator,
) -> dict[str, Array]:
    """
    The variance that open decisions add to the gradient by each parameter and by the images; empty where none is open.

    Of whole passes in which they turned, and of the layers' outputs taken apart: over tens of thousands of elements,
    effects that cancel by chance in every one of the few passes would leave some element without budget.
    """
    doubts = [gate.doubt() for gate in run.gates]
    if not any(doubt.any() for doubt in doubts):
        return {}
    exactly = _Rounding(None)
    rows = {layer: inputs[:1] for layer, inputs in run.rows.items()}
    shares = [gate.turns(doubt, random) for gate, doubt in zip(run.gates, doubts, strict=True)]
    turned = _backward(p, shares, deltas["fc3"][:1], exactly)
    apart = {layer: ((turned[layer] - deltas[layer][0]) ** 2).mean(axis=0, keepdims=True) for layer in rows}
    parts = _gradients(apart, {layer: inputs**2 for layer, inputs in rows.items()}, exactly)
    whole = _gradients(turned, rows, exactly)
    if "images" in gradients:
        batch, squares = len(doubts[0]), {"conv1.weight": p["conv1.weight"] ** 2}
        parts["images"] = _by_images(squares, apart, batch, exactly)
        whole["images"] = _by_images(p, turned, batch, exactly)
    variances = {}
    for name, part in parts.items():
        square = (whole[name] - gradients[name][0]) ** 2
        variances[name] = square[:-1].sum(axis=0) / REPLICAS + square[-1] + part[0]
    return variances


def _copies(parameters: Parameters) -> dict[str, Array]:
    return {name: np.asarray(value, np.float64)[None] for name, value in parameters.items()}


def solve(
    parameters: Parameters,
    images: Array,
    targets: Array,
    precision: Precision,
    seed: int = 0,
    repeats: int = 1,
    loss: Loss = mse,
    by_images: bool = False,
) -> Answer:
    """
    Logits, loss and its gradients for images (N,1,32,32) and targets (N,10), with budgets at `precision`.

    The gradient by the images, which training needs not, only with `by_images`.

    With `repeats` the loss and gradients are budgeted as those of a batch in which each image occurs that often: the
    same numbers, but sums of that many more terms. So a batch of thousands is judged at the cost of its few images.
    """
    p = _copies(parameters)
    rounding = _Rounding(precision, seed)
    with np.errstate(invalid="ignore", over="ignore"):  # copies that overflow
        run = _forward(p, images, rounding)
        value, delta = loss(run.logits, targets, rounding, repeats)
        deltas = _backward(p, [gate.taken[None] for gate in run.gates], delta, rounding)
        gradients = _gradients(deltas, run.rows, rounding, repeats)
        if by_images:
            gradients["images"] = _by_images(p, deltas, len(images), rounding)
        turning = _turning(p, run, deltas, gradients, rounding.random)
        bounded = {name: _bounded(g, precision, turning.get(name, 0.0)) for name, g in gradients.items()}
        return Answer(
            logits=_bounded(run.logits, precision),
            loss=_bounded(value, precision),
            gradients={name: bounded[name] for name in SHAPES},
            by_images=bounded.get("images"),
            undecided=bool(turning),
            largest=rounding.largest,
        )


def loss(
    logits: Array, targets: Array, precision: Precision, kind: Loss = mse, repeats: int = 1, seed: int = 0
) -> Bounded:
    """The loss of logits (N,10) and targets (N,10), each row `repeats` times over, with its budget."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _bounded(kind(logits[None], targets, _Rounding(precision, seed), repeats)[0], precision)


def decisions(parameters: Parameters, images: Array) -> list[NDArray[np.bool_]]:
    """Which candidate every ReLU and pooling window takes."""
    return [gate.taken for gate in _forward(_copies(parameters), images, _Rounding(None)).gates]


def accumulated(answers: Sequence[Answer], precision: Precision) -> dict[str, Bounded]:
    """
    The gradients of several backward passes added up in `.grad` one after the other.

    Each is within THRESHOLD of its budgets, and each addition rounds once.
    """
    total = {name: Bounded(np.zeros(shape), np.zeros(shape)) for name, shape in SHAPES.items()}
    for answer in answers:
        for name, more in answer.gradients.items():
            value = total[name].value + more.value
            rounding = (precision.unit * np.abs(value) + precision.underflow) / THRESHOLD
            total[name] = in_range(value, total[name].budget + more.budget + rounding, precision)
    return total


def updated(parameters: Parameters, answer: Answer, lr: float, precision: Precision) -> dict[str, Bounded]:
    """The parameters after a step of SGD, weight - lr * gradient: the gradient's budget and two roundings included."""
    after = {}
    for name, gradient in answer.gradients.items():
        value = parameters[name] - lr * gradient.value
        roundings = precision.unit * np.hypot(value, lr * gradient.value) + precision.underflow
        after[name] = in_range(value, np.hypot(lr * gradient.budget, roundings), precision)
    return after


def train(
    parameters: Parameters, batches: Iterable[tuple[Array, Array]], lr: float, precision: Precision, seed: int = 0
) -> tuple[dict[str, Array], list[float]]:
    """
    Train by SGD on batches of (images, targets), three times over: exactly, disturbed, and rounded once an operation.

    Returns the parameters of the three, (3,...) each, for `predict`; and the exact run's loss at every step. Each run
    takes its own decisions, so how far the three drift apart is how far rounding carries a run of this length.
    """
    p, losses = _copies(parameters), []
    rounding = _Rounding(precision, seed, replicas=1)
    for images, targets in batches:
        run = _forward(p, images, rounding)
        loss, delta = mse(run.logits, targets, rounding)
        deltas = _backward(p, [_winner(gate.z) for gate in run.gates], delta, rounding)
        gradients = _gradients(deltas, run.rows, rounding)
        p = {name: rounding.disturb(p[name] - lr * g, (lr * g[0]) ** 2, 1) for name, g in gradients.items()}
        losses.append(float(loss[0]))
    return {name: p[name] for name in SHAPES}, losses


def predict(copies: dict[str, Array], images: Array) -> Bounded:
    """The logits (N,10) of the exactly trained parameters, and how far the other runs' lie from them, over all."""
    logits = _forward(copies, images, _Rounding(None)).logits
    return Bounded(logits[0], np.full(logits.shape[1:], np.sqrt(np.mean((logits[1:] - logits[0]) ** 2))))
