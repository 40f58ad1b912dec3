"""The three comparisons: what they accept, what they reject, their messages, and what they record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lenet import subject
from lenet.exact_sgd import SGD
from lenet.oracle import PRECISIONS, THRESHOLD, Budgeted
from properties import calibration
from properties.case import Case
from properties.comparison import (
    assert_exact,
    assert_mean_errors_are_zero,
    assert_rounded,
    assert_typical_errors,
    assert_within_budget,
)
from properties.ledger import Ledger, current_ledger, recording
from properties.stack import Stack, gradients

FLOAT32 = PRECISIONS["float32"]
P, G = np.random.default_rng(0).standard_normal((2, 50)).astype(np.float32)


@pytest.fixture(scope="module")
def reference() -> Stack:
    return Stack(subject.load("lenet"), torch.device("cpu"), torch.float32)


def test_exact_accepts_equal_values_nan_for_nan_and_either_zero() -> None:
    numbers = torch.tensor([1.0, float("nan"), float("inf"), 0.0])

    assert_exact(numbers, torch.tensor([1.0, float("nan"), float("inf"), -0.0]), "numbers")


def test_exact_rejects_a_difference_of_one_ulp_and_reports_its_index() -> None:
    right = torch.ones(2, 3)
    wrong = right.clone()
    wrong[1, 2] = torch.nextafter(wrong[1, 2], torch.tensor(2.0))

    with pytest.raises(AssertionError, match=r"numbers\[1, 2\] is 1.00000011920.* exactly 1.0; 1 of 6 elements"):
        assert_exact(wrong, right, "numbers")


@pytest.mark.parametrize(
    ("what", "element"),
    [
        ("logits", "logits[1]"),
        ("conv1.weight.grad", "conv1.weight.grad[1]"),
        ("conv1.weight after step 1", "conv1.weight[1] after step 1"),
        ("the other images' logits", "the other images' logits[1]"),
    ],
)
def test_message_has_the_index_after_the_tensor_name(what: str, element: str) -> None:
    with pytest.raises(
        AssertionError, match=rf"^{re.escape(element)} is 1\.0, expected exactly 0\.0; 1 of 2 elements is"
    ):
        assert_exact(torch.tensor([0.0, 1.0]), torch.zeros(2), what)


def test_message_counts_a_single_element() -> None:
    with pytest.raises(AssertionError, match=r"^loss is 1\.0, .*; 1 of 1 element is wrong$"):
        assert_exact(torch.tensor(1.0), torch.tensor(0.0), "loss")


@pytest.mark.parametrize("wrong", [torch.ones(3, 2), torch.ones(2, 3, dtype=torch.float64), torch.ones(6)])
def test_exact_rejects_a_different_shape_or_dtype(wrong: Tensor) -> None:
    with pytest.raises(AssertionError, match=r"numbers has (shape|dtype torch.float64)"):
        assert_exact(wrong, torch.ones(2, 3), "numbers")


def assert_update(got: np.ndarray[tuple[int, ...], np.dtype[np.float32]], lr: float) -> None:
    exact, _ = SGD(lr).step(P.astype(np.float64), G.astype(np.float64), None, FLOAT32)
    assert_rounded(torch.from_numpy(got), exact, "parameter")


@pytest.mark.parametrize("lr", [0.1, 0.5, 1.0])
def test_rounded_accepts_one_or_two_roundings(lr: float) -> None:
    in_two_roundings = P - np.float32(lr) * G
    in_one = (P.astype(np.float64) - lr * G.astype(np.float64)).astype(np.float32)

    assert_update(in_two_roundings, lr)
    assert_update(in_one, lr)


@pytest.mark.parametrize("units", [4, -4, 1e6, np.nan])
def test_rounded_rejects_a_larger_error(units: float) -> None:
    got = P - np.float32(0.1) * G
    got[7] += np.float32(units) * np.spacing(got[7])

    with pytest.raises(AssertionError, match=r"parameter\[7\] is .* rounding explains at most .* 1 of 50 elements"):
        assert_update(got, 0.1)


def test_within_budget_rejects_errors_above_the_threshold_and_records_the_worst() -> None:
    exact = Budgeted(np.zeros(3), np.ones(3))

    with recording(Ledger()) as ledger:
        assert_within_budget(torch.tensor([0.0, -THRESHOLD, 1.0]), exact, "numbers")

    assert ledger.worst_ratio == THRESHOLD
    with pytest.raises(AssertionError, match=r"numbers\[0\] is 9.0, .* 0.0: the error is 9.0 budgets of 1, at most 8 "):
        assert_within_budget(torch.tensor([9.0, 0.0, 0.0]), exact, "numbers")


def test_comparison_outside_a_law_is_recorded_nowhere() -> None:
    with recording(Ledger()) as ledger:
        pass

    assert_within_budget(torch.tensor([THRESHOLD]), Budgeted(np.zeros(1), np.ones(1)), "numbers")

    assert ledger == Ledger()
    assert current_ledger() == Ledger()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e-30])
def test_within_budget_rejects_any_error_if_the_budget_is_zero(wrong: float) -> None:
    with pytest.raises(AssertionError, match="inf budgets"):
        assert_within_budget(torch.tensor([wrong]), Budgeted(np.zeros(1), np.zeros(1)), "numbers")


def rounded(cast: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    """Return a fault that rounds every parameter to a lower precision."""

    @torch.no_grad()
    def fault(net: nn.Module) -> None:
        for parameter in net.parameters():
            parameter.copy_(cast(parameter))

    return fault


@torch.no_grad()
def scale_first_layer(net: nn.Module) -> None:
    net.get_parameter("conv1.weight").mul_(1 + 1e-5)


def tf32(numbers: Tensor) -> Tensor:
    """Round float32 numbers to TF32, which has 10 explicit bits of mantissa."""
    return ((numbers.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


FAULTS = {
    "float16 parameters": rounded(lambda p: p.half().float()),
    "bfloat16 parameters": rounded(lambda p: p.bfloat16().float()),
    "TF32 parameters": rounded(tf32),
    "conv1's weights scaled by 1 + 1e-5": scale_first_layer,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("images", ["digits", "normal"])
def test_float32_budget_separates_small_faults_from_rounding(reference: Stack, images: str, fault: str) -> None:
    """In each of five ordinary cases the worst gradient exceeds the threshold with the fault, and not without it."""
    for seed in range(5):
        case = Case(images=images, batch=3, seed=seed)
        for apply_fault, faulty in ((FAULTS[fault], True), (lambda net: None, False)):
            net = reference.net(case)
            apply_fault(net)
            reference.loss(net, case).backward()
            exact = reference.exact(case).gradients
            got = gradients(net)
            worst = max(exact[name].ratio(got[name].double().numpy()).max() for name in exact)
            assert (worst > THRESHOLD) == faulty


@pytest.mark.parametrize(("size", "accepted"), [(0.25, True), (0.26, False), (np.nan, False)])
def test_typical_error_is_a_root_mean_square(size: float, accepted: bool) -> None:
    """Some errors may be larger, and the note has the worst tensor."""
    errors = {"logits": np.array([[size * 2, 0.0], [0.0, 0.0]]), "fc3.bias.grad": np.full((2, 2), 0.01)}

    with recording(Ledger()) as ledger, nullcontext() if accepted else pytest.raises(AssertionError, match="logits is"):
        assert_typical_errors(errors)

    assert ledger.notes == [f"largest typical error: {size:.3f} budgets (logits)"]


@pytest.mark.parametrize(("mean", "message"), [(7.9, ""), (8.1, "away from zero"), (-8.1, "toward zero")])
def test_mean_error_counts_each_case_once(mean: float, message: str) -> None:
    """Four cases, whose means have a standard deviation of 1 and so a standard error of 1/2."""
    means = mean / 2 + np.array([1.0, -1.0, 1.0, -1.0]) * np.sqrt(3) / 2
    errors = {"logits": np.stack([means - 5, means + 5], axis=1), "fc3.bias.grad": np.zeros((4, 1))}

    with recording(Ledger()) as ledger, pytest.raises(AssertionError, match=message) if message else nullcontext():
        assert_mean_errors_are_zero(errors)

    assert ledger.notes == [f"largest mean error: {abs(mean):.1f} standard errors (logits)"]


def test_infinite_error_is_no_mean_error() -> None:
    errors = {"logits": np.zeros((2, 1)), "fc3.bias.grad": np.array([[np.inf], [0.0]])}

    with pytest.raises(AssertionError, match=r"fc3\.bias\.grad"):
        assert_mean_errors_are_zero(errors)


def test_threshold_is_the_power_of_two_above_twice_the_worst_error() -> None:
    measured = json.loads(calibration.RESULT.read_text())["dtypes"]
    worst = max(result["error / budget"][-1] for result in measured.values())

    assert measured.keys() == PRECISIONS.keys()
    assert sum(result["cases"] for result in measured.values()) >= 17_000
    assert 2 ** np.ceil(np.log2(2 * worst)) == THRESHOLD


def test_project_has_no_other_way_to_compare_numbers() -> None:
    other_ways = re.compile(r"\b(allclose|assert_close|isclose|approx|[ar]tol)\b")
    root = Path(calibration.__file__).parents[1]
    sources = [
        path for package in ("lenet", "properties", "benchmarks", "reports") for path in (root / package).rglob("*.py")
    ]

    assert len(sources) > 30
    assert [path.name for path in sources if path != Path(__file__) and other_ways.search(path.read_text())] == []
