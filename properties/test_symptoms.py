"""The symptoms of known issues explain what they must, and nothing besides; every issue has a mutant behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lenet.exact_sgd import SGD
from lenet.oracle import Budgeted
from properties.case import Case
from properties.comparison import MismatchError, assert_exact, assert_within_budget
from properties.known_issues import KNOWN_ISSUES, KnownIssue, expected_failure
from properties.ledger import Ledger, recording
from properties.mutants import all_mutants
from properties.strategies import Vectors
from properties.symptoms import (
    Raised,
    Wrong,
    beside_the_field,
    finite,
    first_too_small,
    in_full_blocks,
    in_its_image,
    nan,
    row_before,
    too_small,
    unchanged_blocks,
    with_momentum_added,
)

INDUCTOR = "max pooling's gradient before it is written"


def mismatch(tensor: str, actual: Any, expected: Any) -> MismatchError:
    """A mismatch of all elements that differ."""
    got, want = np.asarray(actual, float), np.asarray(expected, float)
    return MismatchError(tensor, got, want, got != want)


def issue(part_of_title: str) -> KnownIssue:
    (found,) = [issue for issue in KNOWN_ISSUES if part_of_title in issue.title]
    return found


def explained(part_of_title: str, law: str, wrong: MismatchError) -> list[bool]:
    """Which elements an issue explains in its counterexample of a law."""
    failure = next(f for f in issue(part_of_title).expected_failures if f.law == f"test_{law}")
    return failure.explained(wrong, failure.counterexample).tolist()  # type: ignore[no-any-return]


def test_wrong_elements_that_a_symptom_explains_are_forgiven_and_the_others_reported() -> None:
    failure = expected_failure("some_law", lambda **arguments: True, Wrong("x", nan))
    got, want = torch.tensor([float("nan"), 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0])

    with recording(Ledger(expected=[failure])) as ledger:
        assert_exact(got, want, "x")
        assert ledger.seen == [failure]
        with pytest.raises(MismatchError, match=r"^x\[2\] is 4\.0, expected exactly 3\.0; 1 of 3 elements is wrong$"):
            assert_exact(torch.tensor([float("nan"), 2.0, 4.0]), want, "x")
        with pytest.raises(MismatchError, match=r"^y\[0\]"):
            assert_exact(got, want, "y")


def test_forgiven_elements_do_not_count_as_errors() -> None:
    failure = expected_failure("some_law", lambda **arguments: True, Wrong("x", finite))
    exact = Budgeted(np.array([1.0, 1.0]), np.array([0.125, 0.125]))

    with recording(Ledger(expected=[failure])) as ledger:
        assert_within_budget(torch.tensor([9.0, 1.25]), exact, "x")

    assert ledger.worst_ratio == 2


def test_error_is_explained_by_its_type_its_message_and_its_condition() -> None:
    symptom = Raised(AssertionError, r"scale is (\S+), not (\S+)", first_too_small)

    assert symptom.explains(AssertionError("the scale is 1.0, not 2.0"), {})
    assert not symptom.explains(AssertionError("the scale is 4.0, not 2.0"), {})
    assert not symptom.explains(ValueError("the scale is 1.0, not 2.0"), {})
    assert not symptom.explains(AssertionError("the rate is 1.0, not 2.0"), {})
    assert not Raised(AssertionError, "").explains(mismatch("x", [1], [2]), {})


def test_elements() -> None:
    vectors = Vectors(sizes=(9,))
    (initial,) = vectors.parameters()
    new = initial + 1
    drawn = {"vectors": vectors, "case": Case(batch=3), "image": 1}
    stale = mismatch("parameter 0", initial, new)
    halved = mismatch("parameter 0", initial / 2, new)

    assert unchanged_blocks(stale, drawn).tolist() == [True] * 8 + [False]
    assert not unchanged_blocks(halved, drawn).any()
    assert in_full_blocks(halved, drawn).tolist() == [True] * 8 + [False]
    assert too_small(mismatch("x", [1, -1, 3, 0], [2, 2, 2, 2]), drawn).tolist() == [True, False, False, True]
    inf = float("inf")
    assert row_before(mismatch("rows", [[inf], [inf]], [[1], [1]]), drawn).tolist() == [[True], [False]]
    assert row_before(mismatch("rows", [[5], [1]], [[1], [1]]), drawn).tolist() == [[False], [False]]


def test_momentum_that_is_added_to_a_gradient() -> None:
    vectors, sgd = Vectors(sizes=(3,)), SGD(lr=0.5, momentum=0.5, nesterov=True)
    (first,), (second,) = vectors.gradients(0), vectors.gradients(1)
    added = second + 0.5 * (0.5 * first + second)
    drawn = {"vectors": vectors, "sgd": sgd}

    assert with_momentum_added(mismatch("gradient 0 after step 2", added, second), drawn).all()
    assert not with_momentum_added(mismatch("gradient 0 after step 2", 0 * added, second), drawn).any()


def test_nan_beside_its_field() -> None:
    field = np.zeros((3, 1, 4, 6))
    field[1, 0, 1:3, 2:4] = 1
    drawn = {"case": Case(batch=3), "image": 1}
    column, row, other = field.copy(), field.copy(), field.copy()
    column[1, 0, 1:3, 1] = row[1, 0, 3, 2] = other[2, 0, 1, 2] = 1

    for spread, explains, beside, in_image in ((column, True, True, True), (row, False, False, True)):
        wrong = mismatch("the NaN mask of conv1's output", spread, field)
        assert (beside_the_field(wrong, drawn) >= wrong.wrong).all() == beside == explains
        assert (in_its_image(wrong, drawn) >= wrong.wrong).all() == in_image
    wrong = mismatch("the NaN mask of conv1's output", other, field)
    assert not (in_its_image(wrong, drawn) & wrong.wrong).any()


@pytest.mark.parametrize(
    ("title", "law", "tensor", "other"),
    [
        (INDUCTOR, "gradients_agree_with_the_oracle", "conv2.bias.grad", "fc3.weight.grad"),
        (INDUCTOR, "training_step_agrees_with_the_oracle", "conv1.weight", "loss"),
        ("use a Fourier transform", "gradients_agree_with_the_oracle", "fc2.weight.grad", "fc3.weight.grad"),
        ("Winograd", "repeated_images_repeat_logits", "conv1.weight.grad", "logits"),
        ("ONNX Runtime's MaxPool", "nan_pixel_makes_all_logits_of_its_image_nan", "the image's logits", "logits"),
        ("OpenVINO's ReLU", "nan_pixel_makes_all_logits_of_its_image_nan", "the image's logits", "logits"),
        ("XLA's maxima", "nan_pixel_makes_all_logits_of_its_image_nan", "the image's logits", "logits"),
    ],
)
def test_issues_of_engines_and_gpus_explain_only_their_tensors(title: str, law: str, tensor: str, other: str) -> None:
    assert explained(title, law, mismatch(tensor, [1.0], [2.0])) == [True]
    assert explained(title, law, mismatch(other, [1.0], [2.0])) == [False]


@pytest.mark.parametrize("title", ["XLA treats subnormal", "in bfloat16 flush subnormals"])
def test_flushed_subnormal_is_zero(title: str) -> None:
    wrong = mismatch("logits", [0.0, 1e-39], [2e-39, 2e-39])

    assert explained(title, "subnormal_numbers_are_preserved", wrong) == [True, False]


def test_flushed_gradient_is_zero_where_it_should_be_subnormal() -> None:
    wrong = mismatch("fc3.weight.grad", [0.0, 0.0, 1e-39], [2e-39, 2e-3, 2e-39])

    explains = explained("XLA's gradients", "cross_entropy_gradients_agree_with_the_oracle", wrong)

    assert explains == [True, False, False]


def test_number_rounded_toward_zero_is_one_unit_too_small() -> None:
    wrong = mismatch("logits", [87040.0, 86528.0, 88064.0, -1.0], [87552.0, 87552.0, 87552.0, -1.0078125])

    assert explained("rounds to bfloat16 toward zero", "long_sums_are_exact", wrong) == [True, False, False, True]


@pytest.mark.parametrize(
    "title",
    ["in float16 and saturates at 2,048 equal", "in bfloat16 and saturates", "float16 and saturates at 2,048 |"],
)
def test_saturated_sum_is_too_small(title: str) -> None:
    title = title.removesuffix(" |")
    matching = [known for known in KNOWN_ISSUES if title in known.title]
    for known in matching:
        failure = known.expected_failures[-1]
        wrong = mismatch("conv2.weight.grad (its representable counts)", [2048.0, 8192.0], [4096.0, 4096.0])
        assert failure.explained(wrong, failure.counterexample).tolist() == [True, False]
    assert matching


ERRORS_ALONE = {
    "writes to memory outside": "the law asserts nothing else",
    "accepts a closure passed by position": "the law asserts nothing else",
    "ZeroTensors": "the error ends the example",
}
"""Issues that are the only outcome of their examples besides a correct one: any other error is a crash of the law."""


@pytest.mark.parametrize("known", KNOWN_ISSUES, ids=lambda known: known.title)
def test_every_issue_of_pytorch_on_the_cpu_has_a_mutant_behind_it(known: KnownIssue) -> None:
    """The mutant is judged by a law that the issue makes fail; engines and GPUs are tested above, by examples."""
    if known.engines or "CUDA" in known.affects.description or any(part in known.title for part in ERRORS_ALONE):
        return
    laws = {failure.law for failure in known.expected_failures}

    assert [mutant for mutant in all_mutants() if mutant.kind == "masked" and mutant.law in laws]
