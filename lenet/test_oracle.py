"""The oracle against finite differences of itself, against exact fractions, and against torch in float64."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from lenet import Net, digits, oracle
from lenet.oracle import PRECISIONS, SHAPES, THRESHOLD, Array, Bounded

STEP = 2.0**-12


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture(scope="module")
def parameters(net: Net) -> dict[str, Array]:
    return {name: p.detach().numpy().copy() for name, p in net.named_parameters()}


@pytest.fixture(scope="module")
def batch() -> tuple[Array, Array]:
    data = digits.load()
    return data.train_images[:3].double().numpy(), digits.one_hot(data.train_labels[:3]).double().numpy()


def test_the_oracle_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import lenet.oracle"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_finite_differences_of_the_loss(
    parameters: dict[str, Array], batch: tuple[Array, Array], name: str
) -> None:
    """
    The loss is piecewise quadratic in any one parameter, so where no decision turns its central difference is exact.

    What is left is the rounding of two losses, divided by the step.
    """
    answer = oracle.solve(parameters, *batch, PRECISIONS["float64"])
    random, checked = np.random.default_rng(0), 0
    for flat in random.choice(parameters[name].size, min(8, parameters[name].size), replace=False):
        at = np.unravel_index(flat, parameters[name].shape)
        losses, decisions = [], []
        for step in (STEP, -STEP):
            moved = parameters | {name: parameters[name].copy()}
            moved[name][at] += step
            run = oracle._forward(oracle._copies(moved), batch[0], oracle._Rounding(None))
            losses.append(float(np.mean((run.logits[0] - batch[1]) ** 2)))
            decisions.append([gate.taken for gate in run.gates])
        if all(np.array_equal(plus, minus) for plus, minus in zip(*decisions, strict=True)):
            checked += 1
            difference = (losses[0] - losses[1]) / (2 * STEP)
            rounding = THRESHOLD * float(answer.loss.budget) / STEP
            assert abs(difference - answer.gradients[name].value[at]) <= rounding

    assert checked >= min(4, parameters[name].size)


def test_torch_in_float64_is_within_budget(net: Net, parameters: dict[str, Array], batch: tuple[Array, Array]) -> None:
    answer = oracle.solve(parameters, *batch, PRECISIONS["float64"])

    logits = net(torch.from_numpy(batch[0]))
    loss = mse_loss(logits, torch.from_numpy(batch[1]))
    gradients = torch.autograd.grad(loss, list(net.parameters()))

    assert answer.logits.ratio(logits.detach().numpy()).max() <= THRESHOLD
    assert answer.loss.ratio(loss.detach().numpy()).max() <= THRESHOLD
    for name, gradient in zip(SHAPES, gradients, strict=True):
        assert answer.gradients[name].ratio(gradient.numpy()).max() <= THRESHOLD


def test_the_same_seed_gives_the_same_budget(parameters: dict[str, Array], batch: tuple[Array, Array]) -> None:
    first, second = (oracle.solve(parameters, *batch, PRECISIONS["bfloat16"], seed=7) for _ in range(2))

    assert np.array_equal(first.gradients["conv1.weight"].budget, second.gradients["conv1.weight"].budget)


def test_an_empty_batch_has_no_loss_and_zero_gradients(parameters: dict[str, Array]) -> None:
    answer = oracle.solve(parameters, np.zeros((0, 1, 32, 32)), np.zeros((0, 10)), PRECISIONS["float32"])

    assert np.isnan(answer.loss.value)
    assert answer.logits.value.shape == (0, 10)
    assert not any(gradient.value.any() or gradient.budget.any() for gradient in answer.gradients.values())


def test_ties_go_to_the_first_and_kinks_to_zero() -> None:
    z = np.array([[[0.0, 0.0, 0.0, 0.0], [2.0, 1.0, 2.0, 2.0], [-1.0, 0.0, 3.0, 3.0], [-1.0, -1.0, -1.0, -1.0]]])

    gate = oracle._Gate(z)

    assert gate.taken.astype(int).tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert gate.output.tolist() == [[0.0, 2.0, 3.0, 0.0]]


@pytest.mark.parametrize(("got", "ratio"), [(1.5, 1.0), (1.0, 0.0), (np.nan, np.inf), (np.inf, np.inf), (0.0, 2.0)])
def test_a_ratio_is_the_error_in_budgets(got: float, ratio: float) -> None:
    assert Bounded(np.array(1.0), np.array(0.5)).ratio(np.array(got)) == ratio


def test_without_budget_only_the_exact_number_will_do() -> None:
    exact = Bounded(np.array([0.0, np.nan, np.inf, 1.0]), np.zeros(4))

    assert exact.ratio(np.array([0.0, np.nan, np.inf, 1.0])).tolist() == [0, 0, 0, 0]
    assert exact.ratio(np.array([1e-300, 0.0, -np.inf, np.nan])).tolist() == [np.inf] * 4


@pytest.mark.parametrize("loss", [oracle.mse, oracle.cross_entropy, oracle.dot, oracle.scaled(oracle.mse, 0.25)])
def test_every_loss_has_torchs_gradients(
    net: Net, parameters: dict[str, Array], batch: tuple[Array, Array], loss: oracle.Loss
) -> None:
    answer = oracle.solve(parameters, *batch, PRECISIONS["float64"], loss=loss, by_images=True)
    images, targets = (torch.from_numpy(part) for part in batch)
    logits = net(images.requires_grad_())
    losses: dict[oracle.Loss, torch.Tensor] = {
        oracle.mse: mse_loss(logits, targets),
        oracle.cross_entropy: cross_entropy(logits, targets),
        oracle.dot: (logits * targets).sum(),
    }
    by_torch = losses.get(loss, mse_loss(logits, targets) / 4)
    *gradients, by_images = torch.autograd.grad(by_torch, [*net.parameters(), images])

    assert answer.by_images is not None
    assert answer.loss.ratio(by_torch.detach().numpy()).max() <= THRESHOLD
    assert answer.by_images.ratio(by_images.numpy()).max() <= THRESHOLD
    for name, gradient in zip(SHAPES, gradients, strict=True):
        assert answer.gradients[name].ratio(gradient.numpy()).max() <= THRESHOLD


def test_an_exact_loss_of_integers_knows_its_largest_sum(batch: tuple[Array, Array]) -> None:
    parameters = {name: np.zeros(shape) for name, shape in SHAPES.items()} | {"fc3.bias": np.full(10, 3.0)}

    answer = oracle.solve(parameters, *batch, PRECISIONS["float32"], loss=oracle.dot)

    assert answer.largest == 3 * 3.0**2  # three images, each with one target of one


@pytest.mark.parametrize(("scale", "open"), [(1.0, 0.0), (2.0**13, 1.0)])
def test_what_may_leave_the_range_has_an_infinite_budget(
    parameters: dict[str, Array], batch: tuple[Array, Array], scale: float, open: float
) -> None:
    """Of float16: logits of some 1,000 are in range, their squares are not."""
    large = parameters | {"fc3.bias": parameters["fc3.bias"] + scale}

    answer = oracle.solve(large, *batch, PRECISIONS["float16"])

    assert np.isinf(answer.loss.budget).mean() == open
    assert np.isfinite(answer.logits.budget).all()
    assert answer.loss.ratio(np.array(np.inf)) == (np.inf if not open else 0)


def test_accumulated_gradients_are_sums_with_a_rounding_each(
    parameters: dict[str, Array], batch: tuple[Array, Array]
) -> None:
    answer = oracle.solve(parameters, *batch, PRECISIONS["bfloat16"])

    twice = oracle.accumulated([answer, answer], PRECISIONS["bfloat16"])

    for name, gradient in answer.gradients.items():
        assert np.array_equal(twice[name].value, 2 * gradient.value)
        assert (twice[name].budget >= 2 * gradient.budget).all()
        assert (twice[name].budget <= 2 * gradient.budget + 2.0**-8 * np.abs(gradient.value) + 1e-30).all()


def test_the_oracle_learns(parameters: dict[str, Array], batch: tuple[Array, Array]) -> None:
    trained, losses = oracle.train(parameters, [batch] * 30, 0.5, PRECISIONS["float32"])
    drift = oracle.predict(trained, batch[0]).budget

    assert losses[-1] < losses[0] / 2
    assert trained["conv1.weight"].shape == (3, *SHAPES["conv1.weight"])
    assert 0 < drift[0, 0] < 1
