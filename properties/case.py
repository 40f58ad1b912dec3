"""
`Case`: a recipe for the network, images and targets on which a law judges a stack.

A case prints as one line. The same line builds the same arrays on every machine.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, fields

import numpy as np

from lenet import digits
from lenet.oracle import PRECISIONS, SHAPES, Array, Precision

# What the names mean: see Case. Hypothesis shrinks each toward its first entry.
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


def large(precision: Precision, root: int) -> float:
    """
    Return a factor for huge values whose results mostly do not overflow: a root of the precision's largest number.

    At most float32's largest number is used. Images take the fourth root, because the loss is a square and a gradient
    is a product with the images; weights take the sixteenth, because a gradient multiplies nine of them. Tiny values
    are divided by the factor.
    """
    return float(min(precision.largest, PRECISIONS["float32"].largest) ** (1 / root))


@dataclass(frozen=True)
class Case:
    """
    A recipe for parameters and a batch of images and targets; equal cases build equal arrays on every machine.

    weights: the ten parameters.
        default: uniform, as `nn.Conv2d` and `nn.Linear` initialize them
        integers: 1 or -1 for at most eight inputs of each unit, else 0; biases -1, 0 or 1
        pairs: the same for at most two inputs
        one-hot: 1 for one input of each unit, else 0; biases 0
        constant: 1 / the number of the unit's inputs, biases included
        zero: all 0
        sparse: default, but about nine of ten are 0
        tiny, huge: default, divided or multiplied by `large(precision, 16)`
    images: (N,1,32,32).
        digits: handwritten digits, drawn from the training set
        normal, uniform: standard normal, or uniform from 0 to 1
        integers: from -2 to 2
        constant: all pixels of an image are equal
        zero: all 0
        one-hot: one random pixel of each image is 1, the others are 0
        checkerboard: 1 and -1 alternate
        ties: blocks of 4x4 pixels, each 0, 0.5 or 1: the maxima of most pooling windows are tied
        tiny, huge: normal, divided or multiplied by `large(precision, 4)`
    targets: (N,10).
        one-hot: 1 for a random class, else 0
        normal: standard normal
        integers: -1, 0 or 1
        zero: all 0
    batch: the number of images N, from 0.
    layout: the images' layout in memory.
        contiguous, channels_last: PyTorch's memory formats
        strided: every second column of a wider tensor
        offset: part of a longer tensor, which begins one image before it
        transposed: the dimensions are stored in reverse order
        expanded: one image repeated N times without a copy (stride 0)
    seed: of the random numbers, from 0 to 2**32 - 1.
    """

    weights: str = "default"
    images: str = "digits"
    targets: str = "one-hot"
    batch: int = 1
    layout: str = "contiguous"
    seed: int = 0

    def parameters(self, precision: Precision) -> dict[str, Array]:
        """Return the network's ten parameters in float64, not yet rounded to the precision."""
        random, factor = self._random(0), large(precision, 16)
        return {name: _weight(self.weights, name, shape, factor, random) for name, shape in SHAPES.items()}

    def pixels(self, precision: Precision) -> Array:
        """Return the images (N,1,32,32) in float64; the layout `expanded` repeats one image N times."""
        images = _images(self.images, self.batch, large(precision, 4), self._random(1))
        if self.layout == "expanded":
            images = np.broadcast_to(images[:1], images.shape)
        return images

    def target_values(self) -> Array:
        """Return the targets (N,10) in float64."""
        random = self._random(2)
        if self.targets == "normal":
            return random.standard_normal((self.batch, 10))
        if self.targets == "integers":
            return random.randint(-1, 2, (self.batch, 10)).astype(np.float64)
        if self.targets == "zero":
            return np.zeros((self.batch, 10))
        return np.eye(10)[random.randint(0, 10, self.batch)]

    def _random(self, stream: int) -> np.random.RandomState:
        # NumPy guarantees RandomState's streams: a printed case builds the same arrays with every version.
        return np.random.RandomState([self.seed, stream])


LONGEST_SHOWN = 160
"""The number of characters of a wrong case that an error shows: more than any case has."""


def parse(text: str) -> Case:
    """Return the case with this repr. Raises ValueError, with a one-line message, if `text` is not the repr of one."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Case"):
            raise ValueError(text)
        if call.args:
            raise ValueError(text)
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
        raise ValueError(f"{shown!r} is not of the form Case(weights='default', batch=1, ...)") from None
    choices = {
        "weights": WEIGHTS,
        "images": IMAGES,
        "targets": TARGETS,
        "layout": IMAGE_LAYOUTS,
    }
    for name, value in values.items():
        if name not in (known := [field.name for field in fields(Case)]):
            raise ValueError(f"Case has no field {name!r}; its fields are {', '.join(known)}")
        if name in choices and value not in choices[name]:
            raise ValueError(f"{name}={value!r}: not one of {', '.join(choices[name])}")
        if name not in choices and not (type(value) is int and 0 <= value < 2**32):
            raise ValueError(f"{name}={value!r}: not an integer from 0 to 2**32 - 1")
    return Case(**values)


def _weight(recipe: str, name: str, shape: tuple[int, ...], factor: float, random: np.random.RandomState) -> Array:
    layer = name.split(".")[0]
    inputs = int(np.prod(SHAPES[f"{layer}.weight"][1:]))
    default: Array = random.uniform(-1, 1, shape) / np.sqrt(inputs)  # the distribution of nn.Conv2d and nn.Linear
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
            sparse: Array = default * (random.random_sample(shape) < 0.1)
            return sparse
        case "tiny":
            return default / factor
        case "huge":
            return default * factor
    raise ValueError(f"unknown recipe for weights: {recipe!r}")


def _signs(shape: tuple[int, ...], count: int, random: np.random.RandomState) -> Array:
    """Return weights of 1 and -1 for at most `count` inputs of each unit, else 0; a bias of -1, 0 or 1."""
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
    raise ValueError(f"unknown recipe for images: {recipe!r}")
