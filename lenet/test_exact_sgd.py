"""SGD in twice the precision agrees with exact fractions, and torch's results stay within its error bound."""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import optim

from lenet.exact_sgd import SGD, ExactWithBound, _exact, _exact_product, _Roundings
from lenet.oracle import PRECISIONS, Array, Precision

FLOAT32, FLOAT64 = PRECISIONS["float32"], PRECISIONS["float64"]
SETTINGS = [
    SGD(lr=0.1),
    SGD(lr=0.1, weight_decay=0.01),
    SGD(lr=0.1, momentum=0.9, maximize=True),
    SGD(lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    SGD(lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
]


def numbers(seed: int, spread: int = 0) -> Array:
    random = np.random.default_rng(seed)
    return random.standard_normal(300) * 2.0 ** random.integers(-spread, spread + 1, 300)


def step_in_fractions(s: SGD, p: float, g: float, b: float | None) -> tuple[Fraction, Fraction]:
    weight, direction = Fraction(p), Fraction(-g if s.maximize else g)
    direction += Fraction(s.weight_decay) * weight
    undampened = 1 - Fraction(s.dampening)
    velocity = direction if b is None else Fraction(s.momentum) * Fraction(b) + undampened * direction
    direction = direction + Fraction(s.momentum) * velocity if s.nesterov else velocity if s.momentum else direction
    return weight - Fraction(s.lr) * direction, velocity


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("first", [True, False])
def test_step_agrees_with_exact_fractions(settings: SGD, first: bool) -> None:
    p, g, b = numbers(0), numbers(1, spread=20), None if first else numbers(2)

    after, velocity = settings.step(p, g, b, FLOAT64)

    for i in range(300):
        exact = step_in_fractions(settings, p[i], g[i], None if b is None else b[i])
        for got, want in zip((after, velocity), exact, strict=True):
            if got is not None:
                error = abs(Fraction(float(got.high[i])) + Fraction(float(got.low[i])) - want)
                assert error <= Fraction(float(got.error_bound[i])) / 2**40


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("precision", [FLOAT32, FLOAT64])
def test_step_of_torch_is_within_the_error_bound(settings: SGD, precision: Precision) -> None:
    dtype = torch.float32 if precision is FLOAT32 else torch.float64
    p, g, b = (torch.tensor(numbers(seed)).to(dtype) for seed in range(3))
    after, velocity = settings.step(p.double().numpy(), g.double().numpy(), b.double().numpy(), precision)

    direction = -g if settings.maximize else g
    direction = direction + settings.weight_decay * p
    if settings.momentum:
        b = settings.momentum * b + (1 - settings.dampening) * direction
        direction = direction + settings.momentum * b if settings.nesterov else b
        assert velocity is not None
        assert (velocity.error_of(b.double().numpy()) <= velocity.error_bound).all()
    got = p - settings.lr * direction

    assert (after.error_of(got.double().numpy()) <= after.error_bound).all()


def test_error_bound_is_a_few_units_in_the_last_place() -> None:
    p, g, b = numbers(0), numbers(1), numbers(2)

    after, _ = SETTINGS[-1].step(p, g, b, FLOAT32)

    largest = np.abs(p) + np.abs(g) + np.abs(b)
    assert (after.error_bound < 2 * FLOAT32.unit * largest).all()
    assert (after.error_bound > 0).all()


@pytest.mark.parametrize(("number", "error"), [(0.5, 0.0), (1.0, 0.0), (0.0, 0.0), (0.1, FLOAT32.unit * 0.1)])
def test_representable_setting_has_no_rounding_error(number: float, error: float) -> None:
    assert _Roundings(FLOAT32).constant(number).error_bound == error


def test_error_of_a_float64_result_is_accurate() -> None:
    p, g = numbers(0), numbers(1, spread=30)
    exact: ExactWithBound = SGD(lr=0.1).step(p, g, None, FLOAT64)[0]
    got = p - 0.1 * g

    errors = exact.error_of(got)

    for i in range(300):
        right = Fraction(float(p[i])) - Fraction(0.1) * Fraction(float(g[i]))
        assert abs(Fraction(float(errors[i])) - abs(Fraction(float(got[i])) - right)) <= abs(right) / 2**95


def test_exact_number_has_no_error() -> None:
    assert not _exact(numbers(0)).error_bound.any()


def test_default_settings_are_those_of_torch() -> None:
    theirs = optim.SGD([torch.zeros(1)]).defaults

    assert asdict(SGD()) == {name: theirs[name] for name in asdict(SGD())}


def test_exact_product_has_the_complete_remainder() -> None:
    a, b = numbers(0, spread=20), numbers(1, spread=20)

    high, low = _exact_product(a, b)

    for i in range(300):
        assert Fraction(float(high[i])) + Fraction(float(low[i])) == Fraction(float(a[i])) * Fraction(float(b[i]))
    assert np.array_equal(high, a * b)


def test_error_bound_propagates_and_adds_one_rounding() -> None:
    at = _Roundings(Precision("coarse", 2.0**-3, 2.0**-4, 2.0**100))
    a, b = (ExactWithBound(*(np.array(part) for part in parts)) for parts in ((-3.0, 0.0, 0.5), (2.0, 0.0, 0.25)))

    total, product = at.plus(a, b), at.times(a, b)

    assert [total.high, total.low, total.error_bound] == [-1.0, 0.0, 0.75 + (1 + 0.75) / 8]
    carried = 3 * 0.25 + 2 * 0.5 + 0.5 * 0.25
    assert [product.high, product.low, product.error_bound] == [-6.0, 0.0, carried + (6 + carried) / 8 + 1 / 16]


def test_infinite_gradient_has_no_error_bound() -> None:
    """And NumPy does not warn."""
    after, _ = SGD(lr=0.1).step(np.ones(2), np.array([np.inf, 1.0]), None, FLOAT64)

    assert np.isnan(after.error_bound[0])
    assert np.isfinite(after.high[1])
