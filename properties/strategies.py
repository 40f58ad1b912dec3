"""
Hypothesis strategies that draw the arguments of laws: cases, parameters for an optimizer, and its settings.

They draw recipes, never tensors. If Hypothesis drew the 1,024 pixels of an image one by one, they would exhaust its
buffer or have only about nine distinct values. Hypothesis shrinks a recipe to the first value of each field, one image
and seed 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from unittest import SkipTest

import numpy as np
from hypothesis import seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.strategies import SearchStrategy
from numpy.typing import NDArray

from lenet.exact_sgd import SGD
from lenet.oracle import SHAPES, Array
from properties.case import IMAGE_LAYOUTS, IMAGES, LAYOUTS, TARGETS, WEIGHTS, Case
from properties.preconditions import possible

BATCHES = (1, 2, 0, 3, 5, 8, 17)

_only: ContextVar[Case | None] = ContextVar("only_case", default=None)


@contextmanager
def only_case(case: Case | None) -> Iterator[None]:
    """Let strategies of cases draw this case only, if they are first used within the block; None changes nothing."""
    token = _only.set(case)
    try:
        yield
    finally:
        _only.reset(token)


_seed: ContextVar[int | None] = ContextVar("seed_of_examples", default=None)


@contextmanager
def seed_of_examples(number: int | None) -> Iterator[None]:
    """Within this block, `seeded` seeds state machines; None changes nothing."""
    token = _seed.set(number)
    try:
        yield
    finally:
        _seed.reset(token)


def seeded(machine: Callable[[], RuleBasedStateMachine]) -> Callable[[], RuleBasedStateMachine]:
    """Return the maker of a state machine, with the seed of the law's examples if the profile is not random."""
    number = _seed.get()
    return machine if number is None else seed(number)(machine)


def cases(
    weights: tuple[str, ...] = WEIGHTS, images: tuple[str, ...] = IMAGES, batches: tuple[int, ...] = BATCHES
) -> SearchStrategy[Case]:
    """
    Draw cases of the given recipes that the judged network can run, or the case of `only_case`.

    A law that does not draw such a case is skipped.
    """
    built = st.builds(
        Case,
        weights=st.sampled_from(weights),
        images=st.sampled_from(images),
        targets=st.sampled_from(TARGETS),
        batch=st.sampled_from(batches),
        layout=st.sampled_from(IMAGE_LAYOUTS),
        seed=st.integers(0, 2**32 - 1),
    )
    drawn = built.map(partial(possible, batch=next(filter(None, batches))))

    def choose() -> SearchStrategy[Case]:
        case = _only.get()
        if case is None:
            return drawn
        chosen = case.weights in weights and case.images in images and (batches is BATCHES or case.batch in batches)
        if chosen and possible(case, batch=1) == case:
            return st.just(case)
        raise SkipTest("this law does not judge the case given by --case")

    return st.deferred(choose)


def batch_sizes() -> SearchStrategy[int]:
    """
    Draw batch sizes from 1 to 300: any, and more often multiples of 8 to 128, at which blocks end, and their neighbors.

    A block's first multiple occurs most often, since an example's duration grows with its batch.
    """

    def near_multiples(block: int) -> SearchStrategy[int]:
        multiple = st.one_of(st.just(1), st.just(1), st.integers(1, 300 // block))
        return st.builds(lambda count, offset: block * count + offset, multiple, st.sampled_from((-1, 0, 1)))

    near = st.sampled_from((8, 16, 32, 64, 128)).flatmap(near_multiples)
    return st.one_of(*[near] * 7, st.integers(1, 300))


SIZES = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 150, 2400, 48_000)
"""Numbers of elements below, at and above the SIMD widths of every dtype, and of the network's larger parameters."""


@dataclass(frozen=True)
class Vectors:
    """A recipe for parameters of the given sizes and for their gradients, with no element equal to zero."""

    sizes: tuple[int, ...] = (1,)
    exponent: int = 0
    seed: int = 0

    def parameters(self) -> list[Array]:
        """Return each parameter, a float64 vector."""
        return [np.random.RandomState([self.seed, 4, i]).standard_normal(n) for i, n in enumerate(self.sizes)]

    def gradients(self, step: int = 0) -> list[Array]:
        """Return each parameter's gradient at a step, a float64 vector; standard normal numbers times 2**exponent."""
        streams = [np.random.RandomState([self.seed, 5, i, step]) for i in range(len(self.sizes))]
        return [s.standard_normal(n) * 2.0**self.exponent for s, n in zip(streams, self.sizes, strict=True)]


def vectors(at_least: int = 1) -> SearchStrategy[Vectors]:
    """Draw up to five parameters, of sizes that SIMD code treats differently."""
    sizes = st.lists(st.sampled_from(SIZES), min_size=at_least, max_size=5).map(tuple)
    return st.builds(Vectors, sizes=sizes, exponent=st.integers(-20, 10), seed=st.integers(0, 2**32 - 1))


def short_vectors(at_least: int = 1) -> SearchStrategy[Vectors]:
    """Draw up to six parameters too short for a SIMD block, for laws about which parameters are updated, and when."""
    sizes = st.lists(st.sampled_from((1, 2, 7)), min_size=at_least, max_size=6).map(tuple)
    return st.builds(Vectors, sizes=sizes, exponent=st.integers(-5, 5), seed=st.integers(0, 2**32 - 1))


def many_vectors() -> SearchStrategy[Vectors]:
    """
    Draw more than 110 parameters, some of them empty, among which one has more than 65,536 elements.

    CUDA's multi-tensor kernels take at most 110 tensors at once, and 65,536 elements of a tensor.
    """
    built = st.builds(
        _many,
        small=st.lists(st.sampled_from((0, 1, 7)), min_size=5, max_size=5),
        count=st.sampled_from((111, 128)),
        large=st.sampled_from((66_000, 66_001)),
        at=st.integers(0, 110),
    )
    return st.builds(Vectors, sizes=built, exponent=st.integers(-5, 5), seed=st.integers(0, 2**32 - 1))


def _many(small: list[int], count: int, large: int, at: int) -> tuple[int, ...]:
    """Return `count` sizes that repeat the small ones, the large one at a position."""
    sizes = (small * count)[:count]
    sizes[at] = large
    return tuple(sizes)


@dataclass(frozen=True)
class Placed:
    """
    A recipe for one of the network's parameters, of any memory layout.

    It has the parameter's name and, for each step, the layouts of the parameter, its gradient and its momentum buffer.
    """

    name: str = "conv2.weight"
    layouts: tuple[tuple[str, str, str], ...] = (("contiguous", "contiguous", "contiguous"),)
    seed: int = 0

    def values(self, stream: int) -> Array:
        """Return the values of the parameter (stream 0) or of its gradient at step 1, 2, ..., in float64."""
        return np.random.RandomState([self.seed, 6, stream]).standard_normal(SHAPES[self.name])


def placed() -> SearchStrategy[Placed]:
    """Draw one to three steps of a parameter that can have several memory layouts."""
    layout = st.sampled_from(LAYOUTS)
    steps = st.lists(st.tuples(layout, layout, layout), min_size=1, max_size=3).map(tuple)
    names = st.sampled_from(["conv2.weight", "conv1.weight", "conv1.bias", "fc3.weight"])
    return st.builds(Placed, name=names, layouts=steps, seed=st.integers(0, 2**32 - 1))


@dataclass(frozen=True)
class LossOptions:
    """
    A recipe for the options of `F.cross_entropy`.

    Targets are class "indices", of which about a third are ignored, or "weights" of the classes. If `weighted`, each
    class has a weight of its own, from 1/4 to 4. An `ignore_index` that is the class of the first image is increased by
    one, so that this image counts.
    """

    targets: str = "indices"
    reduction: str = "mean"
    weighted: bool = False
    label_smoothing: float = 0.0
    ignore_index: int = -100

    def class_weights(self, seed: int) -> Array:
        """Return the weight of each class, (10,)."""
        return np.random.RandomState([seed, 8]).uniform(0.25, 4, 10) if self.weighted else np.ones(10)

    def kept(self, seed: int, batch: int) -> NDArray[np.bool_]:
        """Return which of the images are not ignored, (N,); the first one never is."""
        kept: NDArray[np.bool_] = np.random.RandomState([seed, 9]).random_sample(batch) > 1 / 3
        kept[:1] = True
        return kept


def loss_options() -> SearchStrategy[LossOptions]:
    """Draw options of the cross-entropy; `ignore_index` is the default, an index beyond the classes, or one of them."""
    return st.builds(
        LossOptions,
        targets=st.sampled_from(["indices", "weights"]),
        reduction=st.sampled_from(["mean", "sum", "none"]),
        weighted=st.booleans(),
        label_smoothing=st.sampled_from([0.0, 0.1, 0.5]),
        ignore_index=st.sampled_from([-100, 255, 3]),
    )


def settings() -> SearchStrategy[SGD]:
    """Draw settings of SGD that a user would choose, in every combination that the documentation allows."""
    momentum = st.sampled_from([0.0, 0.9, 0.5]) | st.floats(0.01, 0.99)
    decay = st.sampled_from([0.0, 0.01, 5e-4]) | st.floats(0.001, 0.1)

    def with_momentum(momentum: float) -> SearchStrategy[SGD]:
        plain = st.builds(
            SGD,
            lr=learning_rates(),
            momentum=st.just(momentum),
            dampening=st.sampled_from([0.0, 0.5]) | st.floats(0.0, 1.0) if momentum else st.just(0.0),
            weight_decay=decay,
            maximize=st.booleans(),
        )
        nesterov = plain.map(lambda drawn: replace(drawn, dampening=0.0, nesterov=True))
        return plain | nesterov if momentum else plain

    return momentum.flatmap(with_momentum)


def learning_rates() -> SearchStrategy[float]:
    """Draw learning rates that a user would set: 0.001 to 1, round decimals first, and powers of two."""
    return st.sampled_from([0.01, 0.1, 0.001, 1.0, 0.5]) | st.floats(0.001, 1.0) | powers_of_two()


def powers_of_two() -> SearchStrategy[float]:
    """Draw learning rates that make lr * gradient exact: 2**0 down to 2**-10."""
    return st.integers(0, 10).map(lambda k: 2.0**-k)
