"""
The strategies that draw what the laws are judged on, above all `Case`.

Hypothesis draws the recipe, never tensors: drawing 1,024 pixels one by one gives either nothing or some nine distinct
values. A case shrinks to the plainest recipe, batch and seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from unittest import SkipTest

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lenet.oracle import SHAPES, Array
from lenet.update import SGD
from properties.case import IMAGE_LAYOUTS, IMAGES, LAYOUTS, TARGETS, WEIGHTS, Case

BATCHES = (1, 2, 0, 3, 5, 8, 17)

only: Case | None = None
"""The one case to judge, from the option --case."""


def cases(
    weights: tuple[str, ...] = WEIGHTS, images: tuple[str, ...] = IMAGES, batches: tuple[int, ...] = BATCHES
) -> SearchStrategy[Case]:
    """Cases of the given recipes; just the one that --case names, where it is given."""
    drawn = st.builds(
        Case,
        weights=st.sampled_from(weights),
        images=st.sampled_from(images),
        targets=st.sampled_from(TARGETS),
        batch=st.sampled_from(batches),
        layout=st.sampled_from(IMAGE_LAYOUTS),
        seed=st.integers(0, 2**32 - 1),
    )

    def the_one() -> SearchStrategy[Case]:
        assert only is not None
        if only.weights in weights and only.images in images and (batches is BATCHES or only.batch in batches):
            return st.just(only)
        raise SkipTest("this law judges other cases than the one that --case gives")

    return st.deferred(lambda: drawn if only is None else the_one())


SIZES = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 150, 2400, 48_000)
"""Numbers of elements below, at and above the SIMD widths of every dtype, and those of the Net's larger parameters."""


@dataclass(frozen=True)
class Vectors:
    """Parameters of the given sizes with their gradients, none of which is zero, as a recipe."""

    sizes: tuple[int, ...] = (1,)
    exponent: int = 0
    seed: int = 0

    def parameters(self) -> list[Array]:
        """Each parameter (n,), in float64."""
        return [np.random.RandomState([self.seed, 4, i]).standard_normal(n) for i, n in enumerate(self.sizes)]

    def gradients(self, step: int = 0) -> list[Array]:
        """Each parameter's gradient (n,) at a step, in float64; 2**exponent times as large as the parameter."""
        streams = [np.random.RandomState([self.seed, 5, i, step]) for i in range(len(self.sizes))]
        return [s.standard_normal(n) * 2.0**self.exponent for s, n in zip(streams, self.sizes, strict=True)]


def vectors(at_least: int = 1) -> SearchStrategy[Vectors]:
    """Up to five parameters of sizes that SIMD code treats differently."""
    sizes = st.lists(st.sampled_from(SIZES), min_size=at_least, max_size=5).map(tuple)
    return st.builds(Vectors, sizes=sizes, exponent=st.integers(-20, 10), seed=st.integers(0, 2**32 - 1))


@dataclass(frozen=True)
class Placed:
    """A parameter of the Net, and for each step the memory layouts of parameter, gradient and buffer, as a recipe."""

    name: str = "conv2.weight"
    layouts: tuple[tuple[str, str, str], ...] = (("contiguous", "contiguous", "contiguous"),)
    seed: int = 0

    def values(self, stream: int) -> Array:
        """The parameter's values (stream 0) and its gradient's at each step (1, 2, ...), in float64."""
        return np.random.RandomState([self.seed, 6, stream]).standard_normal(SHAPES[self.name])


def placed() -> SearchStrategy[Placed]:
    """One to three steps of the parameters whose memory can be laid out in more than one way."""
    layout = st.sampled_from(LAYOUTS)
    steps = st.lists(st.tuples(layout, layout, layout), min_size=1, max_size=3).map(tuple)
    names = st.sampled_from(["conv2.weight", "conv1.weight", "conv1.bias", "fc3.weight"])
    return st.builds(Placed, name=names, layouts=steps, seed=st.integers(0, 2**32 - 1))


def settings() -> SearchStrategy[SGD]:
    """Settings of SGD that a user would choose, each with every other that the documentation allows beside it."""
    momentum = st.sampled_from([0.0, 0.9, 0.5]) | st.floats(0.01, 0.99)
    decay = st.sampled_from([0.0, 0.01, 5e-4]) | st.floats(0.001, 0.1)

    def beside(momentum: float) -> SearchStrategy[SGD]:
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

    return momentum.flatmap(beside)


def learning_rates() -> SearchStrategy[float]:
    """Learning rates a user would set: 0.001 to 1, round decimals first, and powers of two."""
    return st.sampled_from([0.01, 0.1, 0.001, 1.0, 0.5]) | st.floats(0.001, 1.0) | powers_of_two()


def powers_of_two() -> SearchStrategy[float]:
    """Learning rates that make lr * gradient exact: 2**0 down to 2**-10."""
    return st.integers(0, 10).map(lambda k: 2.0**-k)
