"""
Symptoms: how a known issue shows in an example of a law. They explain what is forgiven; all else is judged.

A symptom is either some wrong elements of certain tensors, and the law goes on, or an error that ends the example.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from lenet.oracle import PRECISIONS
from properties.case import Case
from properties.comparison import Mask, MismatchError

Arguments: TypeAlias = Mapping[str, Any]
Elements: TypeAlias = Callable[[MismatchError, Arguments], Mask]
"""Which elements of a tensor an issue may make wrong, of a shape that broadcasts to the tensor's."""


def every(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """All elements, whatever their values."""
    return np.ones_like(mismatch.wrong)


def as_mask(elements: Any) -> Mask:
    """Return the array of booleans."""
    return np.asarray(elements, dtype=np.bool_)


@dataclass(frozen=True)
class Wrong:
    """Wrong elements of the tensors whose names match a regular expression as a whole."""

    tensors: str
    elements: Elements = every
    at_most: float | None = None  # the largest error, in budgets, of an element that is compared within budget

    def explains(self, mismatch: MismatchError, arguments: Arguments) -> Mask:
        """Return which elements of the tensor it explains."""
        if not re.fullmatch(self.tensors, mismatch.tensor):
            return np.zeros_like(mismatch.wrong)
        elements = np.broadcast_to(self.elements(mismatch, arguments), mismatch.wrong.shape)
        if self.at_most is None:
            return elements
        return elements & as_mask(False if mismatch.ratio is None else mismatch.ratio <= self.at_most)


def always(found: re.Match[str], arguments: Arguments) -> bool:
    """Whatever the message says besides."""
    return True


@dataclass(frozen=True)
class Raised:
    """An error of a type, whose message contains a match of a regular expression that fulfils a condition."""

    error: type[BaseException]
    message: str
    condition: Callable[[re.Match[str], Arguments], bool] = always

    def explains(self, error: BaseException, arguments: Arguments) -> bool:
        """Whether it explains the error. A MismatchError is explained by `Wrong` alone."""
        if not isinstance(error, self.error) or isinstance(error, MismatchError):
            return False
        found = re.search(self.message, str(error))
        return found is not None and self.condition(found, arguments)


@dataclass(frozen=True)
class Named:
    """An error of a type known by its name, whose message contains a match of a regular expression."""

    error: str
    message: str

    def explains(self, error: BaseException, arguments: Arguments) -> bool:
        """Whether it explains the error. A MismatchError is explained by `Wrong` alone."""
        names = {name for cls in type(error).__mro__ for name in (cls.__name__, f"{cls.__module__}.{cls.__name__}")}
        return (
            self.error in names and not isinstance(error, MismatchError) and bool(re.search(self.message, str(error)))
        )


Symptom: TypeAlias = Wrong | Raised | Named


def first_too_small(found: re.Match[str], arguments: Arguments) -> bool:
    """Of two numbers in the message, the first, which was found, is smaller than the second, which was expected."""
    return float(found[1]) < float(found[2])


def is_new_lr(found: re.Match[str], arguments: Arguments) -> bool:
    """The number in the message is the other group's new learning rate."""
    return float(found[1]) == float(arguments["new_lr"])


def are_first_settings(found: re.Match[str], arguments: Arguments) -> bool:
    """The settings in the message are those of the first optimizer."""
    return found[1] == str(asdict(arguments["sgd"]))


def finite(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements that are finite."""
    return as_mask(np.isfinite(mismatch.actual))


def not_infinite(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements that are finite or NaN."""
    return as_mask(~np.isinf(mismatch.actual))


def nan(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements that are NaN."""
    return as_mask(np.isnan(mismatch.actual))


def zero(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements that are zero."""
    return as_mask(mismatch.actual == 0)


def infinite(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements that are infinite."""
    return as_mask(np.isinf(mismatch.actual))


def infinite_with_momentum(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements that are infinite, if SGD has momentum: a corrupted momentum buffer can have any value."""
    return as_mask(infinite(mismatch, arguments) & (arguments["sgd"].momentum > 0))


def too_small(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements of the right sign, or zero, whose magnitude is smaller than the expected one: a sum that saturated."""
    same_sign = mismatch.actual * mismatch.expected >= 0
    return as_mask(same_sign & (np.abs(mismatch.actual) < np.abs(mismatch.expected)))


def one_unit_too_small(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements rounded toward zero to bfloat16, where the nearest number is the next larger one."""
    unit_in_last_place = 2 * PRECISIONS["bfloat16"].unit * np.abs(mismatch.expected)
    distance = np.abs(mismatch.expected - mismatch.actual)
    return too_small(mismatch, arguments) & as_mask(distance <= unit_in_last_place)


def subnormal_before(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements that are zero instead of a number below the smallest normal one of float32."""
    return zero(mismatch, arguments) & as_mask(np.abs(mismatch.expected) < 2.0**-126)


def subnormal(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements below the smallest normal number of float32."""
    return as_mask(np.abs(mismatch.actual) < 2.0**-126)


def unchanged(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements that have kept the value from before the first step, rounded to 16 bits."""
    initial = [values for values in _initial(mismatch, arguments) if values.shape == mismatch.actual.shape]
    kept = np.zeros_like(mismatch.wrong)
    for values in initial:
        rounding = PRECISIONS["bfloat16"].unit * np.abs(values) + PRECISIONS["float16"].underflow
        kept |= np.abs(mismatch.actual - values) <= rounding
    return kept


def _initial(mismatch: MismatchError, arguments: Arguments) -> list[Any]:
    """Return the values that the parameter may have had before the first step, by the arguments of the law."""
    if "placed" in arguments:
        return [arguments["placed"].values(0)]
    return list(arguments["vectors"].parameters())


def in_full_blocks(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements in full groups of eight, in memory order: the narrowest registers hold eight 16-bit numbers."""
    positions = np.arange(mismatch.actual.size).reshape(mismatch.actual.shape)
    return as_mask(positions < mismatch.actual.size // 8 * 8)


def unchanged_blocks(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements in full blocks that have kept the value from before the first step."""
    return in_full_blocks(mismatch, arguments) & unchanged(mismatch, arguments)


def beside_the_field(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """
    Elements of a NaN mask that are true, in the rows of the expected field, next to it.

    One column for each convolution that the NaN has passed: its own kernel has one column too many.
    """
    reach = 2 if "conv2" in mismatch.tensor else 1
    padded = np.pad(mismatch.expected > 0, [(0, 0)] * (mismatch.expected.ndim - 1) + [(reach, reach)])
    width = mismatch.expected.shape[-1]
    near = np.any([padded[..., shift : shift + width] for shift in range(2 * reach + 1)], axis=0)
    return as_mask(near & (mismatch.actual > 0))


def in_its_image(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements of a NaN mask that are true, in the maps of the image that contains the NaN."""
    case: Case = arguments["case"]
    rows = np.arange(len(mismatch.actual)) == arguments["image"] % case.batch
    return as_mask(rows.reshape(-1, *[1] * (mismatch.actual.ndim - 1)) & (mismatch.actual > 0))


def with_momentum_added(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements to which the momentum has been added, as in a step with Nesterov momentum, up to 16-bit roundings."""
    sgd, step = arguments["sgd"], int(mismatch.tensor.rpartition(" ")[2])
    index = int(mismatch.tensor.split(" ")[1])
    gradients = [arguments["vectors"].gradients(earlier)[index] for earlier in range(step)]
    velocity = np.zeros_like(gradients[0])
    for gradient in gradients:
        velocity = sgd.momentum * velocity + gradient
    added = gradients[-1] + sgd.momentum * velocity
    size = np.abs(gradients[-1]) + step * sgd.momentum * np.max(np.abs(gradients), axis=0)
    return as_mask(np.abs(mismatch.actual - added) <= 4 * PRECISIONS["bfloat16"].unit * size)


def row_before(mismatch: MismatchError, arguments: Arguments) -> Mask:
    """Elements that are not finite, in the row before the image's; the tensor has the other images' rows."""
    case: Case = arguments["case"]
    rows = np.arange(len(mismatch.actual)) == arguments["image"] % case.batch - 1
    return as_mask(rows.reshape(-1, *[1] * (mismatch.actual.ndim - 1)) & ~np.isfinite(mismatch.actual))
