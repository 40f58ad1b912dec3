"""
What the laws are judged on: `Case`, a recipe of a few words and numbers, and the strategies that draw it.

Hypothesis draws the recipe, never tensors: drawing 1,024 pixels one by one gives either nothing or some nine distinct
values. A case prints as one line that rebuilds it, and shrinks to the plainest recipe, batch and seed.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, fields, replace
from unittest import SkipTest

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lenet import digits
from lenet.oracle import PRECISIONS, SHAPES, Array, Precision
from lenet.update import SGD

# Each shrinks toward its first entry.
WEIGHTS = ("default", "integers", "pairs", "one-hot", "constant", "zero", "sparse", "tiny", "huge")
IMAGES = (
    "digits",
    "normal",
    "uniform",
    "integers",
    "constant",
    "zero",
    "one-hot",
    "checkerboard",
    "ties",
    "tiny",
    "huge",
)
TARGETS = ("one-hot", "normal", "integers", "zero")
LAYOUTS = ("contiguous", "channels_last", "strided", "offset", "transposed")
IMAGE_LAYOUTS = (*LAYOUTS, "expanded")
BATCHES = (1, 2, 0, 3, 5, 8, 17)


def large(precision: Precision, root: int) -> float:
    """
    A factor that most of what follows from it survives: a root of the precision's largest number, at most float32's.

    The fourth for huge images, since the loss is a square and a gradient is a product with the images; the sixteenth
    for huge weights, of which a gradient multiplies nine. Its inverse makes the tiny ones.
    """
    return float(min(precision.largest, PRECISIONS["float32"].largest) ** (1 / root))


@dataclass(frozen=True)
class Case:
    """A network, a batch of images and targets, as a recipe; equal cases build equal arrays on every machine."""

    weights: str = "default"
    images: str = "digits"
    targets: str = "one-hot"
    batch: int = 1
    layout: str = "contiguous"
    seed: int = 0

    def parameters(self, precision: Precision) -> dict[str, Array]:
        """The ten parameters, in float64, not yet rounded to the precision."""
        random, factor = self._random(0), large(precision, 16)
        return {name: _weight(self.weights, name, shape, factor, random) for name, shape in SHAPES.items()}

    def pixels(self, precision: Precision) -> Array:
        """The images (N,1,32,32), in float64; the expanded layout repeats one image N times."""
        images = _images(self.images, self.batch, large(precision, 4), self._random(1))
        if self.layout == "expanded":
            images = np.broadcast_to(images[:1], images.shape)
        return images

    def goals(self) -> Array:
        """The targets (N,10), in float64."""
        random = self._random(2)
        if self.targets == "normal":
            return random.standard_normal((self.batch, 10))
        if self.targets == "integers":
            return random.randint(-1, 2, (self.batch, 10)).astype(np.float64)
        if self.targets == "zero":
            return np.zeros((self.batch, 10))
        return np.eye(10)[random.randint(0, 10, self.batch)]

    def _random(self, stream: int) -> np.random.RandomState:
        # RandomState's streams are frozen by NumPy's policy: a printed case means the same tensors in every version.
        return np.random.RandomState([self.seed, stream])


def parse(text: str) -> Case:
    """The case that `text`, a case's repr, rebuilds; raises ValueError with a line that says what is wrong with it."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Name)
        assert call.func.id == "Case"
        assert not call.args
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise ValueError(f"{text!r} is not of the form Case(weights='default', batch=1, ...)") from None
    choices = {
        "weights": WEIGHTS,
        "images": IMAGES,
        "targets": TARGETS,
        "layout": IMAGE_LAYOUTS,
    }
    for name, value in values.items():
        if name not in (known := [field.name for field in fields(Case)]):
            raise ValueError(f"a Case has no {name}; it has {', '.join(known)}")
        if name in choices and value not in choices[name]:
            raise ValueError(f"{name}={value!r} of a Case is none of {', '.join(choices[name])}")
        if name not in choices and not (type(value) is int and 0 <= value < 2**32):
            raise ValueError(f"{name}={value!r} of a Case is no integer from 0 to 2**32 - 1")
    return Case(**values)


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


def _weight(recipe: str, name: str, shape: tuple[int, ...], factor: float, random: np.random.RandomState) -> Array:
    layer = name.split(".")[0]
    inputs = int(np.prod(SHAPES[f"{layer}.weight"][1:]))
    default = random.uniform(-1, 1, shape) / np.sqrt(inputs)  # the distribution of nn.Conv2d and nn.Linear
    match recipe:
        case "default":
            return default
        case "integers":
            return _signs(shape, 8, random)
        case "pairs":
            return _signs(shape, 2, random)
        case "one-hot":
            return np.abs(_signs(shape, 1, random)) if len(shape) > 1 else np.zeros(shape)
        case "constant":
            return np.full(shape, 1 / inputs)
        case "zero":
            return np.zeros(shape)
        case "sparse":
            return default * (random.random_sample(shape) < 0.1)
        case "tiny":
            return default / factor
        case "huge":
            return default * factor
    raise ValueError(f"no recipe {recipe!r} for weights")


def _signs(shape: tuple[int, ...], count: int, random: np.random.RandomState) -> Array:
    """Each unit takes at most `count` of its inputs, with a factor of 1 or -1, and nothing else."""
    if len(shape) == 1:
        return random.randint(-1, 2, shape).astype(np.float64)
    rows = np.zeros((shape[0], int(np.prod(shape[1:]))))
    for row in rows:
        row[random.randint(0, len(row), count)] = random.choice([-1.0, 1.0], count)
    return rows.reshape(shape)


def _images(recipe: str, batch: int, factor: float, random: np.random.RandomState) -> Array:
    shape = (batch, 1, 32, 32)
    match recipe:
        case "digits":
            known = digits.load().train_images
            return np.asarray(known[random.randint(0, len(known), batch)], np.float64)
        case "normal":
            return random.standard_normal(shape)
        case "uniform":
            return random.uniform(0, 1, shape)
        case "integers":
            return random.randint(-2, 3, shape).astype(np.float64)
        case "constant":
            return np.broadcast_to(random.standard_normal((batch, 1, 1, 1)), shape).copy()
        case "zero":
            return np.zeros(shape)
        case "one-hot":
            return np.abs(_signs(shape, 1, random))
        case "checkerboard":
            return np.broadcast_to(np.indices((32, 32)).sum(axis=0) % 2 * 2.0 - 1.0, shape).copy()
        case "ties":
            return np.kron(random.randint(0, 3, (batch, 1, 8, 8)), np.ones((1, 1, 4, 4))) / 2
        case "tiny":
            return random.standard_normal(shape) / factor
        case "huge":
            return random.standard_normal(shape) * factor
    raise ValueError(f"no recipe {recipe!r} for images")
