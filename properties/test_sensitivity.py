"""The sensitivity: what an error of the smallest rejected size is, how often it is seen, and the published result."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

import lenet
from lenet import subject
from lenet.oracle import PRECISIONS, THRESHOLD, Array, Budgeted
from properties import law_index, sensitivity
from properties.laws import test_exactness, test_forward, test_training, test_transforms, test_update
from properties.reduced_precision import KINDS, Fault, round_to_nearest, truncate, with_fault
from properties.sensitivity import ELEMENTS, SHAPES, SIGNIFICANT_BITS, Sample, smallest_seen, summary
from properties.sensitivity_plugin import compares_within_budget, largest_rejected, smallest_errors, tensor_name
from properties.testing import run_module

RANDOM = np.random.RandomState(5)
VALUE = RANDOM.standard_normal((4, 5))
EXACT = Budgeted(VALUE, RANDOM.uniform(1e-4, 1e-3, VALUE.shape))
ACTUAL = VALUE + EXACT.budget * RANDOM.uniform(-4, 4, VALUE.shape)


def is_rejected(got: Array) -> bool:
    return bool((EXACT.ratio(got) > THRESHOLD).any())


@pytest.mark.parametrize("shape", ["scaled", "constant"])
def test_smallest_error_is_where_a_comparison_begins_to_reject_both_signs(shape: str) -> None:
    found = smallest_errors(ACTUAL, EXACT, np.random.default_rng(0))
    assert found

    def with_error(error: float) -> Array:
        if shape == "scaled":
            return np.asarray(ACTUAL * (1 + error))
        return np.asarray(ACTUAL + error * np.sqrt(np.mean(VALUE**2)))

    smallest = getattr(found, shape)
    assert all(is_rejected(with_error(sign * 1.001 * smallest)) for sign in (1, -1))
    assert not all(is_rejected(with_error(sign * 0.999 * smallest)) for sign in (1, -1))


def test_smallest_errors_of_one_element_are_those_of_random_elements() -> None:
    found = smallest_errors(ACTUAL, EXACT, np.random.default_rng(0))
    assert found

    alone = []
    for at in np.ndindex(ACTUAL.shape):
        room = THRESHOLD * EXACT.budget[at] + abs(ACTUAL[at] - VALUE[at])  # the farther limit, in units of the number
        alone.append(room / abs(ACTUAL[at]))
    assert len(found.element) == ELEMENTS
    assert set(found.element) <= set(alone)


def test_elements_that_are_not_judged_or_wrong_already_reject_no_error() -> None:
    infinite, wrong = Budgeted(VALUE, np.full(VALUE.shape, np.inf)), ACTUAL + 1
    overflowed = np.full(VALUE.shape, np.inf)

    for got, exact in ((ACTUAL, infinite), (wrong, EXACT), (overflowed, infinite)):
        found = smallest_errors(got, exact, np.random.default_rng(0))
        assert found
        assert np.isinf([*found.element, found.scaled, found.constant]).all()


def test_budget_that_accepts_zero_or_the_opposite_sign_is_noticed() -> None:
    def passing(budget: float) -> tuple[bool, bool]:
        found = smallest_errors(np.ones(3), Budgeted(np.ones(3), np.full(3, budget)), np.random.default_rng(0))
        assert found
        return found.zeros_pass, found.opposite_sign_passes

    assert passing(0.9 / THRESHOLD) == (False, False)
    assert passing(1.0 / THRESHOLD) == (True, False)
    assert passing(2.0 / THRESHOLD) == (True, True)


@pytest.mark.parametrize("value", [np.zeros(3), np.full(3, np.nan), np.ones(0)])
def test_comparison_with_zeros_alone_says_nothing(value: Array) -> None:
    assert smallest_errors(value, Budgeted(value, np.ones(value.shape)), np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("logits", "logits"),
        ("loss 3", "loss"),
        ("conv1.weight", "conv1.weight"),
        ("conv1.weight.grad", "conv1.weight.grad"),
        ("fc1.bias.grad of image 2", "fc1.bias.grad"),
        ("the gradient of loss 1 with respect to fc3.bias", "fc3.bias.grad"),
        ("the sum of fc3.bias.grad", "fc3.bias.grad"),
        ("the Hessian-vector product for fc3.bias", "the Hessian-vector product for fc3.bias"),
        ("images.grad", "images.grad"),
    ],
)
def test_tensor_has_one_name_in_all_comparisons(what: str, name: str) -> None:
    assert tensor_name(what) == name


def test_error_is_seen_if_enough_random_examples_reject_it() -> None:
    """Of 100 examples 14 have to, since 1 - 0.86**20 = 95.1 %; 13 give 93.8 %."""
    sizes = [[float(size)] for size in range(1, 101)]

    assert smallest_seen([Sample([], sizes)]) == 14
    assert smallest_seen([Sample([], [[np.inf]] * 87 + [[1.0]] * 13)]) == np.inf


def test_explicit_example_is_always_run() -> None:
    assert smallest_seen([Sample([[0.25]], [[np.inf]] * 20)]) == 0.25
    assert smallest_seen([Sample([], [[0.5]] * 20), Sample([[0.25] * 18 + [np.inf] * 2], [])]) == 0.5
    assert smallest_seen([]) == np.inf


def test_largest_rejected_number_of_bits_is_found_from_any_start() -> None:
    for limit in range(12):
        for low in range(12):
            assert largest_rejected(lambda bits, limit=limit: bits <= limit, low, 11) == max(low, limit)


def test_laws_that_compare_within_budget_are_found_through_helpers_and_classes() -> None:
    def found(law: Any) -> bool:
        return compares_within_budget(inspect.unwrap(law.hypothesis.inner_test if hasattr(law, "hypothesis") else law))

    assert found(test_forward.test_logits_agree_with_the_oracle)
    assert found(test_training.test_training_in_any_order_gives_the_expected_state)
    assert found(test_transforms.test_forward_mode_agrees_with_the_oracle)
    assert found(test_update.test_training_step_agrees_with_the_oracle)
    assert not found(test_exactness.test_large_batch_counts_are_exact)


def test_rounding_to_the_bits_of_a_dtype_is_its_rounding() -> None:
    numbers = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf], dtype=torch.float64)

    for name, bits in SIGNIFICANT_BITS.items():
        rounded = numbers.to(getattr(torch, name)).double()
        assert name == "float16" or torch.equal(round_to_nearest(numbers, bits), rounded)  # float16 has subnormals
        truncated = truncate(numbers, bits)
        assert (truncated.abs() <= numbers.abs()).all()
        assert ((numbers - truncated).abs() <= 2.0 ** (1 - bits) * numbers.abs()).all()
    for function in (round_to_nearest, truncate):
        assert torch.equal(function(special, 11), special)
        assert function(torch.tensor([torch.nan], dtype=torch.float64), 11).isnan()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [0, 3])
def test_layers_with_all_bits_are_correct_in_every_derivative(kind: str, batch: int) -> None:
    """Of integers, so that sums in another order are equal."""
    net = lenet.Net().double()
    state = {name: torch.randint(-1, 2, p.shape).double() for name, p in net.named_parameters()}
    net.load_state_dict(state)
    images = torch.randint(-2, 3, (batch, 1, 32, 32)).double()

    def loss(images: Tensor) -> Tensor:
        return net(images).square().sum()

    def results() -> list[Tensor]:
        first = torch.autograd.grad(loss(images.requires_grad_()), [*net.parameters(), images], create_graph=True)
        second = torch.autograd.grad(sum(g.sum() for g in first), [*net.parameters()])
        given = images.detach()
        per_sample = vmap(grad(lambda image: loss(image[None])))(given) if batch else given
        return [net(images), *first, *second, *jvp(loss, (given,), (torch.ones_like(given),)), per_sample]

    expected = results()
    with with_fault(subject.load("lenet"), Fault(kind, 52 if kind == "stores" else 53)).installed():
        got = results()

    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_with_few_bits_are_wrong_in_both_passes(kind: str) -> None:
    torch.manual_seed(0)
    net, images = lenet.Net().double(), torch.randn(2, 1, 32, 32).double()
    exact, exact_gradient = net(images), torch.autograd.grad(net(images).sum(), net.conv1.weight)[0]
    with with_fault(subject.load("lenet"), Fault(kind, 8)).installed():
        got, got_gradient = net(images), torch.autograd.grad(net(images).sum(), net.conv1.weight)[0]

    for one, other in ((got, exact), (got_gradient, exact_gradient)):
        assert 0 < (one - other).abs().max() < other.abs().max()


def test_summary_has_the_smallest_errors_of_all_items_of_a_law() -> None:
    def item(scaled: float, bits: int) -> dict[str, Any]:
        errors = [[scaled] * ELEMENTS, scaled, 2 * scaled, True, False]
        bits_by_kind = dict.fromkeys(KINDS, bits)
        law = {"law": "test_x", "dtype": "float32", "explicit": 0, "drawn": 20, "bits": bits_by_kind}
        return law | {"examples": [{"logits": errors}, {"logits": errors}]}

    found = summary([item(0.5, 0), item(0.25, 9), item(np.inf, 0)])

    entry = found["laws"]["test_x"]["float32"]
    assert entry["examples"] == 6
    row = {"one element": 0.25, "scaled": 0.25, "constant": 0.5, "zeros pass": 1.0, "opposite sign passes": 0.0}
    assert entry["tensors"] == {"logits": row}
    assert entry["bits"] == dict.fromkeys(KINDS, 9)
    assert found["uninformative"] == [{"law": "test_x", "dtype": "float32", "tensor": "logits"}]
    assert sensitivity.bits_of(found["laws"], "sums", "float32") == 9
    assert sensitivity.bits_of(found["laws"], "sums", "float64") is None
    assert "| `x` |  | 2.5e-01 |  |  |" in sensitivity.table(found["laws"])


def test_published_result_is_of_this_code() -> None:
    published = sensitivity.published()
    laws = published["laws"]

    assert laws.keys() <= law_index.laws().keys()
    assert (published["shapes"], published["kinds"]) == (SHAPES, KINDS)
    for name in ("logits_agree_with_the_oracle", "gradients_agree_with_the_oracle"):
        assert laws[f"test_{name}"].keys() == PRECISIONS.keys()
        for dtype, entry in laws[f"test_{name}"].items():
            assert PRECISIONS[dtype].unit < sensitivity.best_of(entry, "scaled") < 0.1


@pytest.mark.parametrize(
    "arguments", [["--law", "no_such_law"], ["--output", "x.json", "--dtype", "float32"], ["--processes", "0"]]
)
def test_wrong_arguments_are_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sensitivity.main(arguments)
    assert "error: " in capsys.readouterr().err


@pytest.mark.slow
def test_command_measures_a_law() -> None:
    run = run_module("lenet_properties", "sensitivity", "--law=mean_loss*", "--dtype=float32", "--processes=1")

    assert run.returncode == 0, run.stdout + run.stderr
    (row,) = [line for line in run.stdout.splitlines() if line.startswith("| `mean_loss_of_repeated_rows")]
    assert 1e-6 < float(row.split("|")[3]) < 1e-3
