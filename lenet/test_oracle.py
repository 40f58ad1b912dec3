"""The oracle against finite differences of itself, against exact fractions, and against torch in float64."""

import copy
import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from lenet import Net, digits, oracle, training
from lenet.oracle import CLAIMS, PRECISIONS, SHAPES, THRESHOLD, Array, Bounded, Precision

STEP = 2.0**-12
COARSE = Precision("coarse", 2.0**-9, 0.0, 2.0**100, Precision("its sums", 2.0**-10, 0.0, 2.0**100))
SMALL = Precision("with a small range", 2.0**-50, 0.0, 100.0, Precision("its sums", 2.0**-50, 0.0, 1000.0))
REPLICAS = 64


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


class Disturbed(NamedTuple):
    """What a sum was disturbed as, and what has become of it."""

    energy: Array
    terms: int
    stored: bool
    images: int
    products: bool
    result: Array


@pytest.fixture
def disturbed(monkeypatch: pytest.MonkeyPatch) -> list[Disturbed]:
    """The sums that are disturbed from here on, in their order."""
    sums: list[Disturbed] = []
    disturb = oracle._Rounding.disturb

    def note(
        rounding: oracle._Rounding,
        z: Array,
        energy: Array,
        terms: int,
        stored: bool = True,
        images: int = 1,
        products: bool = False,
    ) -> Array:
        result = disturb(rounding, z, energy, terms, stored, images, products)
        if rounding.precision:
            sums.append(Disturbed(energy, terms, stored, images, products, result))
        return result

    monkeypatch.setattr(oracle._Rounding, "disturb", note)
    return sums


def bits(numbers: Array, count: int = 40) -> list[float]:
    """The numbers rounded to so many bits: of one computation in another order they are the same."""
    return oracle._nearest(np.asarray(numbers, np.float64), 2.0**-count).ravel().tolist()


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
    for bounded in (answer.logits, answer.loss, answer.by_images, *answer.gradients.values()):
        assert np.isfinite(bounded.budget).all()
    assert answer.loss.ratio(by_torch.detach().numpy()).max() <= THRESHOLD
    assert answer.by_images.ratio(by_images.numpy()).max() <= THRESHOLD
    for name, gradient in zip(SHAPES, gradients, strict=True):
        assert answer.gradients[name].ratio(gradient.numpy()).max() <= THRESHOLD


@pytest.mark.parametrize("loss", [oracle.mse, oracle.cross_entropy])
def test_a_budget_is_of_the_size_of_the_rounding(net: Net, batch: tuple[Array, Array], loss: oracle.Loss) -> None:
    """
    Of torch in float32: the root mean square of each tensor's errors is a hundredth of its budget or so, not less.

    Where no decision is open: on digits, whose background ties, conv1's gradients may turn, and have a wide budget.
    """
    single, random = copy.deepcopy(net).float(), torch.Generator().manual_seed(0)
    images, targets = torch.randn(1, 1, 32, 32, generator=random), torch.from_numpy(batch[1][:1]).float()
    stored = {name: p.detach().double().numpy() for name, p in single.named_parameters()}
    answer = oracle.solve(
        stored, images.double().numpy(), batch[1][:1], PRECISIONS["float32"], loss=loss, by_images=True
    )
    assert not answer.undecided

    logits = single(images.requires_grad_())
    by_torch = mse_loss(logits, targets) if loss is oracle.mse else cross_entropy(logits, targets)
    *gradients, by_images = torch.autograd.grad(by_torch, [*single.parameters(), images])

    assert answer.by_images is not None
    pairs = [(answer.logits, logits), (answer.by_images, by_images)]
    pairs += [(answer.gradients[name], g) for name, g in zip(SHAPES, gradients, strict=True)]
    for bounded, got in pairs:
        ratio = bounded.ratio(got.detach().double().numpy())
        assert 1 / 128 < np.sqrt(np.mean(ratio**2)) < 1
        assert ratio.max() <= THRESHOLD


def test_cross_entropy_of_large_logits_is_a_number() -> None:
    """Of scores 1000 and nine times 0: the right one and a wrong one."""
    logits, targets = np.array([[1000.0] + [0.0] * 9]), np.eye(10)

    right, wrong = (
        oracle.loss(logits, targets[i : i + 1], PRECISIONS["float32"], oracle.cross_entropy) for i in (0, 1)
    )

    assert [right.value, wrong.value] == [0.0, 1000.0]
    assert right.budget < 2.0**-10
    assert 0 < wrong.budget < 1000 * 2.0**-20


def test_ties_may_fall_either_way(parameters: dict[str, Array], batch: tuple[Array, Array]) -> None:
    """Of images all of one grey every pooling window is tied: the gradient of the last winners is within budget too."""
    images = np.full((3, 1, 32, 32), 0.5)
    answer = oracle.solve(parameters, images, batch[1], PRECISIONS["float32"], by_images=True)
    exactly, p = oracle._Rounding(None), oracle._copies(parameters)
    run = oracle._forward(p, images, exactly)
    delta = oracle.mse(run.logits, batch[1], exactly)[1]
    for last in (False, True):
        shares = [oracle._winner(gate.z[..., ::-1])[..., ::-1] if last else gate.taken[None] for gate in run.gates]
        deltas = oracle._backward(p, shares, delta, exactly)
        gradients = oracle._gradients(deltas, run.rows, exactly)
        by_images = oracle._by_images(p, deltas, 3, exactly)[0]

        assert answer.undecided
        assert answer.by_images is not None
        assert answer.by_images.ratio(by_images).max() <= THRESHOLD
        assert (answer.by_images.ratio(by_images).max() > 0.1) == last
        for name, bounded in answer.gradients.items():
            assert bounded.ratio(gradients[name][0]).max() <= THRESHOLD


@pytest.mark.parametrize("lost", [slice(-1), slice(-1, None)])
def test_what_turned_decisions_do_is_within_budget(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Array], batch: tuple[Array, Array], lost: slice
) -> None:
    """Were all that is handed through lost, in every turn or in the rounded replica: all of each gradient, and more."""

    class Losing(oracle._Gate):
        def turns(self, doubt: Array, random: np.random.Generator) -> Array:
            shares = np.stack([self.taken.astype(float)] * (oracle.REPLICAS + 1))
            shares[lost] = 0
            return shares

    images = np.full((3, 1, 32, 32), 0.5)
    before = oracle.solve(parameters, images, batch[1], PRECISIONS["float64"], by_images=True)
    monkeypatch.setattr(oracle, "_Gate", Losing)
    answer = oracle.solve(parameters, images, batch[1], PRECISIONS["float64"], by_images=True)

    assert before.by_images is not None
    assert answer.by_images is not None
    for name, gradient in (*answer.gradients.items(), ("images", answer.by_images)):
        if name.startswith("fc3"):
            assert np.array_equal(gradient.budget, before.gradients[name].budget)
        else:
            assert ((gradient.budget > np.abs(gradient.value)) | (gradient.value == 0)).all()


def test_what_did_not_turn_adds_nothing(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Array], batch: tuple[Array, Array]
) -> None:
    def keep(gate: oracle._Gate, doubt: Array, random: np.random.Generator) -> Array:
        return np.stack([gate.taken.astype(float)] * (oracle.REPLICAS + 1))

    images = np.full((3, 1, 32, 32), 0.5)
    monkeypatch.setattr(oracle._Gate, "turns", keep)
    kept = oracle.solve(parameters, images, batch[1], PRECISIONS["float32"])
    monkeypatch.setattr(oracle, "_turning", lambda *_: {})
    without = oracle.solve(parameters, images, batch[1], PRECISIONS["float32"])

    assert kept.undecided
    for name in SHAPES:
        ratio = kept.gradients[name].budget / without.gradients[name].budget
        assert (np.round(ratio * 2**20) == 2**20).all()  # of the same numbers, multiplied in other batches


def test_what_turned_decisions_add_is_the_mean_of_the_turns_the_rounded_replica_and_of_every_row(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Array], batch: tuple[Array, Array]
) -> None:
    """Where of fc2's units each is shut in one turn or in none: (turn)**2 / REPLICAS, and its rows' squares in part."""
    images, exactly, p = np.full((3, 1, 32, 32), 0.5), oracle._Rounding(None), oracle._copies(parameters)
    shut = np.arange(84) % (oracle.REPLICAS + 3)  # in that turn; that after the last of them is the rounded replica

    def turns(gate: oracle._Gate, doubt: Array, random: np.random.Generator) -> Array:
        shares = np.stack([gate.taken.astype(float)] * (oracle.REPLICAS + 1))
        if doubt.shape[1:] == (84, 1):
            for turn, share in enumerate(shares):
                share[:, shut == turn] = 0
        return shares

    monkeypatch.setattr(oracle._Gate, "turns", turns)
    run = oracle._forward(p, images, oracle._Rounding(PRECISIONS["float32"]))
    delta = oracle.mse(run.logits[:1], batch[1], exactly)[1]
    deltas = oracle._backward(p, [gate.taken[None] for gate in run.gates], delta, exactly)
    gradients = oracle._gradients(deltas, {layer: rows[:1] for layer, rows in run.rows.items()}, exactly)

    variances = oracle._turning(p, run, deltas, gradients, np.random.default_rng(0))

    lost, inputs = deltas["fc2"][0], run.rows["fc2"][0]
    in_turns = np.where(shut < oracle.REPLICAS, 1 / oracle.REPLICAS, np.where(shut == oracle.REPLICAS, 1.0, 0.0))
    in_rows = np.where(shut <= oracle.REPLICAS, 1 / (oracle.REPLICAS + 1), 0.0)
    by_bias = in_turns * lost.sum(axis=0) ** 2 + in_rows * (lost**2).sum(axis=0)
    by_weight = in_turns[:, None] * (lost.T @ inputs) ** 2 + in_rows[:, None] * ((lost**2).T @ inputs**2)
    assert lost.any(axis=0).sum() > 20
    assert bits(variances["fc2.bias"]) == bits(by_bias)
    assert bits(variances["fc2.weight"]) == bits(by_weight)
    assert not variances["fc3.weight"].any()


def test_a_loss_of_zero_is_exact() -> None:
    ones, zeros = np.ones((2, 10)), np.zeros((2, 10))

    for logits, targets, kind in ((ones, ones, oracle.mse), (zeros, ones, oracle.dot), (ones, zeros, oracle.dot)):
        loss = oracle.loss(logits, targets, PRECISIONS["float16"], kind)
        assert [loss.value, loss.budget] == [0.0, 0.0]
    losses: list[oracle.Loss] = [oracle.mse, oracle.scaled(oracle.mse, 0.25)]
    for of_zero in losses:
        assert not of_zero(ones[None], ones, oracle._Rounding(PRECISIONS["float16"]), 1)[1].any()


def test_cross_entropy_is_rounded_where_it_is_stored() -> None:
    """
    Of equal logits, with L the logarithm of ten: as logarithm (L - 0), as term and as mean (one term), each twice.

    Twice, because disturbances are shared in part. The gradient 1/10 - 1 is rounded itself, and has its logarithm's.
    """
    precision = Precision("stored", 2.0**-11, 0.0, 2.0**100, Precision("its sums", 2.0**-30, 0.0, 2.0**100))
    logits, targets, unit = np.zeros((1, 500, 10)), np.eye(10)[:1], precision.unit
    square = np.log(10) ** 2

    rounding = oracle._Rounding(precision, replicas=REPLICAS)
    delta = 500 * oracle.cross_entropy(logits, np.repeat(targets, 500, axis=0), rounding)[1][..., 0]
    losses = [oracle.loss(logits[0, :1], targets, precision, oracle.cross_entropy, seed=seed) for seed in range(400)]

    assert all(loss.value == np.log(10) for loss in losses)
    variance = 2 * unit**2 * ((square + square) + square + (square + square))
    assert 0.95 < np.sqrt(np.mean([loss.budget**2 for loss in losses]) / (2 * variance)) < 1.05
    variance = 2 * unit**2 * ((0.1**2 + 1) + 0.9**2 + 0.1**2 * 2 * square)
    assert 0.98 < np.sqrt(np.mean((delta[1:-1] - delta[0]) ** 2) / variance) < 1.02


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        (oracle.mse, [1, 1, 30 * 7, 1]),
        (oracle.cross_entropy, [10, 2, 1, 30 * 7, 10]),
        (oracle.dot, [30 * 7]),
        (oracle.scaled(oracle.dot, 0.25), [30 * 7, 1, 1]),
    ],
)
def test_every_sum_is_taken_to_have_as_many_terms_as_it_has(
    disturbed: list[Disturbed],
    parameters: dict[str, Array],
    batch: tuple[Array, Array],
    loss: oracle.Loss,
    terms: list[int],
) -> None:
    """Of three images that stand for seven each; a gradient by a parameter adds up over images and places."""
    oracle.solve(parameters, *batch, PRECISIONS["float32"], repeats=7, loss=loss, by_images=True)

    forward, backward = [5 * 5, 6 * 5 * 5, 400, 120, 84], [10, 84, 120, 16 * 5 * 5]
    places = {"conv1": 28 * 28, "conv2": 10 * 10, "fc1": 1, "fc2": 1, "fc3": 1}
    alone = [*forward, *terms, *backward]
    counted = [(each.terms, each.images) for each in disturbed]
    assert counted[: len(alone)] == [(n, 1) for n in alone]
    gradients = [(3 * n * 7, 3 * 7) for n in places.values() for _ in ("weight", "bias")]
    assert counted[len(alone) : -1] == gradients
    assert counted[-1] == (6 * 5 * 5, 1)
    products = [True] * len(forward) + [False] * len(terms) + [True] * len(backward) + [True, False] * 5 + [True]
    assert [each.products for each in disturbed] == products


def test_the_size_of_what_a_loss_rounds_is_that_of_the_exact_logits(disturbed: list[Disturbed]) -> None:
    """Logits 1, 2, 3 and 5 for 0, 0, 1 and 1, whose other copies are far off: of mean squares the differences etc."""
    logits = np.full((oracle.REPLICAS + 2, 1, 4), 99.0)
    logits[0], targets = [[1.0, 2.0, 3.0, 5.0]], np.array([[0.0, 0.0, 1.0, 1.0]])
    squares, nothing = [1.0, 4.0, 4.0, 16.0], [0.0] * 4
    mean, product = (1 + 16 + 16 + 256) / 4**2 / 8, 3.0**2 + 5.0**2

    for loss in (oracle.scaled(oracle.mse, 0.25), oracle.dot):
        loss(logits, targets, oracle._Rounding(COARSE), 8)

    energies = [np.asarray(each.energy).ravel().tolist() for each in disturbed]
    by_logits = [square / 2**2 for square in squares]
    assert energies == [
        *(squares, nothing, [mean], by_logits, [0.0], [square / 4**2 for square in by_logits]),
        [product],
    ]
    assert [each.terms for each in disturbed] == [1, 1, 4 * 8, 1, 1, 1, 4 * 8]
    assert all(each.stored and each.images == 1 and not each.products for each in disturbed)


def test_the_gradient_of_one_squared_error_is_twice_the_error(disturbed: list[Disturbed]) -> None:
    delta = oracle.mse(np.full((1, 1, 1), 3.0), np.ones((1, 1)), oracle._Rounding(COARSE))[1]

    assert delta[0] == 4.0
    assert disturbed[-1].energy == 4.0**2


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_size_of_what_cross_entropy_rounds_is_that_of_the_exact_logits(
    disturbed: list[Disturbed], batch_size: int
) -> None:
    """The logits' differences from the largest, the logarithm of their exponentials' sum, the softmax, the targets."""
    logits = np.random.default_rng(0).standard_normal((oracle.REPLICAS + 2, batch_size, 10))
    targets = np.random.default_rng(1).dirichlet(np.ones(10), batch_size)

    oracle.cross_entropy(logits, targets, oracle._Rounding(PRECISIONS["float32"]), 8)

    below = logits[0] - logits[0].max(axis=1)[:, None]
    normalizer = np.log(np.exp(below).sum(axis=1))[:, None]
    terms, softmax = targets * (below - normalizer), np.exp(below - normalizer)
    sizes = [
        np.ones(batch_size),
        below**2 + normalizer**2,
        np.zeros(terms.shape),
        np.sum(terms**2) / batch_size**2 / 8,
        (softmax**2 + targets**2) / batch_size**2,
    ]
    assert [bits(each.energy) for each in disturbed] == [bits(size) for size in sizes]
    assert [each.stored for each in disturbed] == [False, True, True, True, True]


DEFAULTS: dict[str, object] = {
    "seed": 0,
    "replicas": oracle.REPLICAS,
    "repeats": 1,
    "images": 1,
    "c": None,
    "stored": True,
    "products": False,
    "loss": oracle.mse,
    "kind": oracle.mse,
    "by_images": False,
    "turning": 0.0,
}


@pytest.mark.parametrize(
    "function",
    [
        *(oracle._Rounding, oracle._Rounding.dot, oracle._Rounding.disturb, oracle._gradients, oracle._bounded),
        *(oracle.solve, oracle.loss, oracle.train),
        *(oracle.mse, oracle.cross_entropy, oracle.dot, oracle.scaled(oracle.mse, 0.25)),
    ],
)
def test_what_is_not_said_is_the_plain_case(function: Callable[..., object]) -> None:
    """Each image once, the gradients by the parameters alone, of a mean squared error."""
    said = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    defaults = {name: default for name, default in said.items() if default is not inspect.Parameter.empty}

    assert defaults
    assert defaults == {name: DEFAULTS[name] for name in defaults}


def test_a_budget_cannot_be_changed(parameters: dict[str, Array], batch: tuple[Array, Array]) -> None:
    answer = oracle.solve(parameters, *batch, PRECISIONS["float32"])
    run = oracle._forward(oracle._copies(parameters), batch[0], oracle._Rounding(None))

    for holder, name in ((answer, "logits"), (answer.logits, "budget"), (PRECISIONS["float32"], "unit"), (run, "rows")):
        with pytest.raises(FrozenInstanceError):
            setattr(holder, name, getattr(holder, name))


def test_parameters_without_gradient_stay_as_they_are() -> None:
    parameters = {name: np.zeros(shape) for name, shape in SHAPES.items()}

    trained, losses = oracle.train(
        parameters, [(np.ones((2, 1, 32, 32)), np.zeros((2, 10)))], 0.5, PRECISIONS["float16"]
    )

    assert losses == [0.0]
    assert not any(copies.any() for copies in trained.values())


@pytest.mark.parametrize("lr", [0.25, 0.5])
def test_the_oracle_trains_as_torch_does(
    net: Net, parameters: dict[str, Array], batch: tuple[Array, Array], lr: float
) -> None:
    images, targets = (torch.from_numpy(part) for part in batch)
    steps = [(images[:2], targets[:2]), (images[2:], targets[2:]), (images, targets)]
    theirs, losses = copy.deepcopy(net), []
    for inputs, goals in steps:
        losses.append(training.train_step(theirs, inputs, goals, lr).item())

    arrays = [(inputs.numpy(), goals.numpy()) for inputs, goals in steps]
    trained, exact_losses = oracle.train(parameters, arrays, lr, PRECISIONS["float64"])
    logits = oracle.predict(trained, batch[0])

    assert np.array_equal(np.round(losses, 12), np.round(exact_losses, 12))
    assert logits.ratio(theirs(images).detach().numpy()).max() <= THRESHOLD
    assert 2.0**-60 < logits.budget[0, 0] < 2.0**-46
    spread = np.stack([oracle.predict({n: c[[0, i]] for n, c in trained.items()}, batch[0]).budget for i in (1, 2)])
    assert np.array_equal(np.round(logits.budget * 2**60), np.round(np.sqrt(np.mean(spread**2, axis=0)) * 2**60))


def test_what_is_exact_in_training_does_not_depend_on_the_precision(
    parameters: dict[str, Array], batch: tuple[Array, Array]
) -> None:
    (fine, losses), (coarse, same_losses) = (
        oracle.train(parameters, [batch] * 3, 0.5, PRECISIONS[name]) for name in ("float64", "bfloat16")
    )

    assert losses == same_losses
    assert np.array_equal(oracle.predict(fine, batch[0]).value, oracle.predict(coarse, batch[0]).value)
    assert not np.array_equal(fine["fc3.bias"][1:], coarse["fc3.bias"][1:])


def test_an_update_in_training_is_rounded_once_by_the_size_of_the_step(
    disturbed: list[Disturbed], parameters: dict[str, Array], batch: tuple[Array, Array]
) -> None:
    oracle.train(parameters, [batch], 0.25, PRECISIONS["bfloat16"])

    gradients, updates = disturbed[-2 * len(SHAPES) : -len(SHAPES)], disturbed[-len(SHAPES) :]
    for gradient, update in zip(gradients, updates, strict=True):
        assert np.array_equal(update.energy.ravel(), (0.25 * gradient.result[0].ravel()) ** 2)
        assert (update.terms, update.stored, update.images, update.products) == (1, True, 1, False)


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_precision_is_its_dtypes(name: str) -> None:
    claimed, info = PRECISIONS[name], torch.finfo(getattr(torch, name))
    smallest = info.smallest_normal * info.eps

    assert claimed.name == name
    assert claimed.unit == info.eps / 2
    assert claimed.largest == info.max
    assert claimed.underflow == (smallest / 2 or smallest)
    assert claimed.accumulator.name == (name if name == "float64" else "float32")


def test_tf32_is_float32_but_for_what_is_multiplied() -> None:
    tf32 = CLAIMS["tf32"]

    assert {name: claim for name, claim in CLAIMS.items() if claim is not tf32} == PRECISIONS
    assert tf32 == replace(PRECISIONS["float32"], name="tf32", operands=2.0**-11)
    assert not any(precision.operands for precision in PRECISIONS.values())


@pytest.mark.parametrize(
    ("name", "stored", "operands"),
    [
        ("float32", "float32", 0.0),
        ("tf32", "float32", 2.0**-11),
        ("tf32", "float64", 2.0**-11),
        ("bfloat16", "float32", 2.0**-8),
        ("float16", "float32", 2.0**-11),
        ("float32", "float64", 2.0**-24),
        ("float32", "bfloat16", 0.0),
        ("bfloat16", "float16", 2.0**-8),
        ("float16", "bfloat16", 0.0),
    ],
)
def test_what_is_stored_wider_than_claimed_is_rounded_before_it_is_multiplied(
    name: str, stored: str, operands: float
) -> None:
    assert oracle.claimed(name, stored) == replace(CLAIMS[name], operands=operands)


@pytest.mark.parametrize(("unit", "operands"), [(2.0**-3, 0.0), (2.0**-3, 2.0**-9), (2.0**-9, 2.0**-3)])
def test_integers_stay_exact_up_to_the_coarsest_unit(unit: float, operands: float) -> None:
    assert replace(COARSE, unit=unit, operands=operands).coarsest == 2.0**-3


def test_the_size_of_a_dot_product_is_that_of_its_exact_copy(disturbed: list[Disturbed]) -> None:
    """3 * 1 + 1 * -3 + 2, each product of four terms; the other copies of its operands are far off."""
    operands = (np.full((oracle.REPLICAS + 2, *shape), 99.0) for shape in ((1, 2), (2, 1), (1, 1)))
    a, b, c = operands
    a[0], b[0], c[0] = [[3.0, 1.0]], [[1.0], [-3.0]], [[2.0]]

    rounding = oracle._Rounding(COARSE)
    rounding.dot(a, b, c, repeats=4)
    rounding.dot(a[:1], b, repeats=4)
    rounding.dot(a, b[:1])

    assert [each.energy for each in disturbed] == [(9 + 9) / 4 + 4, (9 + 9) / 4, 9 + 9]


def test_the_size_of_a_sum_is_that_of_its_exact_copy() -> None:
    """Zero, whatever the other copies are: they stay as they are, but for the last, which is rounded."""
    z = np.array([[0.0], *([[300.0 + 2.0**-20]] * (oracle.REPLICAS + 1))])

    disturbed = oracle._Rounding(COARSE).disturb(z, np.zeros(1), 3)

    assert np.array_equal(disturbed[:-1], z[:-1])
    assert disturbed[-1] == 300.0


def test_the_last_copy_is_of_rounded_operands() -> None:
    """To three bits: (1 + 1/16) * 7 + 3 * (2 + 1/8) + 1/16 is 1 * 7 + 3 * 2 + 1/16, what is added being no operand."""
    precision = Precision("with short operands", 2.0**-30, 0.0, 2.0**100, operands=2.0**-3)
    a, b, c = (np.full((oracle.REPLICAS + 2, *shape), 9.0) for shape in ((1, 2), (2, 1), (1, 1)))
    a[-1], b[-1], c[-1] = [[17 / 16, 3.0]], [[7.0], [17 / 8]], [[1 / 16]]
    exact = 17 / 16 * 7 + 3 * 17 / 8 + 1 / 16

    z = oracle._Rounding(precision).dot(a, b, c)
    without = oracle._Rounding(precision).dot(a, b)
    alone = oracle._Rounding(precision).dot(a[-1:], b[-1:], c[-1:])

    for got, first, added in ((z, 9 * 9 + 9 * 9 + 9, 1 / 16), (without, 9 * 9 + 9 * 9, 0.0), (alone, exact, 1 / 16)):
        assert got.shape == (oracle.REPLICAS + 2, 1, 1)
        assert (got[0], got[-1]) == (first, 13.0 + added)


class InTF32(torch.autograd.Function):
    """A linear layer in float64: what is multiplied is rounded to 11 bits, and each sum to float32."""

    @staticmethod
    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = (torch.from_numpy(oracle._nearest(part.detach().numpy(), 2.0**-11)) for part in (a, b))
        return (a @ b).float().double()

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        return (InTF32.product(rows, weight.T) + bias).float().double()

    @staticmethod
    def backward(ctx: Any, *deltas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, weight = ctx.saved_tensors
        (delta,) = deltas
        return InTF32.product(delta, weight), InTF32.product(delta.T, rows), delta.sum(dim=0).float().double()


def logits_in_tf32(p: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    def layer(name: str, rows: torch.Tensor) -> torch.Tensor:
        weight = p[f"{name}.weight"]
        z = InTF32.apply(rows.reshape(-1, weight[0].numel()), weight.flatten(1), p[f"{name}.bias"])  # type: ignore[no-untyped-call]
        assert isinstance(z, torch.Tensor)
        return z

    maps = images
    for name in ("conv1", "conv2"):
        patches, size = torch.nn.functional.unfold(maps, 5).transpose(1, 2), maps.shape[-1] - 4
        rows = layer(name, patches).reshape(len(images), size * size, -1)
        maps = torch.nn.functional.max_pool2d(rows.transpose(1, 2).unflatten(2, (size, size)).relu(), 2)
    return layer("fc3", layer("fc2", layer("fc1", maps.flatten(1)).relu()).relu())


@pytest.mark.parametrize("seed", range(3))
def test_tf32_has_a_budget_of_the_size_of_its_rounding(seed: int) -> None:
    """
    Emulated: everything is within it; its root mean square is a hundredth of it or so, not less; none within float32's.

    But the gradients behind the pooling windows have a wide budget, as decisions are open there.
    """
    torch.manual_seed(seed)
    p = {name: parameter.detach().double() for name, parameter in Net().named_parameters()}
    images, targets = torch.randn(3, 1, 32, 32).double(), torch.eye(10).double()[seed : seed + 3]
    arrays = {name: parameter.numpy() for name, parameter in p.items()}, images.numpy(), targets.numpy()
    for parameter in p.values():
        parameter.requires_grad_()

    logits = logits_in_tf32(p, images.requires_grad_())
    *gradients, by_images = torch.autograd.grad(mse_loss(logits, targets), [*p.values(), images])

    got = dict(zip(SHAPES, gradients, strict=True)) | {"logits": logits, "images": by_images}
    for claim in ("tf32", "float32"):
        answer = oracle.solve(*arrays, CLAIMS[claim], by_images=True)
        assert answer.by_images is not None
        bounded = answer.gradients | {"logits": answer.logits, "images": answer.by_images}
        for name, numbers in got.items():
            ratio = bounded[name].ratio(numbers.detach().numpy())
            assert claim == "float32" or ratio.max() <= THRESHOLD
            if not name.startswith(("conv", "images")):
                assert (1 / 128 < np.sqrt(np.mean(ratio**2)) < 1) == (claim == "tf32")
                assert claim == "tf32" or ratio.max() > THRESHOLD


@pytest.mark.parametrize("repeats", [1, 4])
def test_a_dot_product_has_the_energy_of_its_terms(repeats: int) -> None:
    """Of 3 * 1 + 1 * -3 + 0 * 5 + 2; each of the three products may stand for `repeats` terms of its share."""
    a, b = np.broadcast_to([3.0, 1.0, 0.0], (1, 2_000, 3)), np.array([[[1.0], [-3.0], [5.0]]])
    rounding = oracle._Rounding(COARSE, replicas=REPLICAS)

    z = rounding.dot(a, b, np.full((1, 1, 1), 2.0), repeats=repeats, images=3)

    assert z.shape == (REPLICAS + 2, 2_000, 1)
    assert (z[0] == 2.0).all()
    energy, stores = (9 + 9) / repeats + 4, 3 * repeats
    size = np.sqrt(2 * ((3 * repeats + 1) * 2.0**-20 + stores * 2.0**-18) * (energy + 4))
    assert 0.98 < np.sqrt(np.mean((z[1:-1] - 2.0) ** 2)) / size < 1.02
    assert rounding.largest == energy


@pytest.mark.parametrize(
    ("energy", "terms", "within"), [(500.0**2, 3, True), (510.0**2, 3, False), (990.0**2, 0, True)]
)
def test_a_partial_sum_that_may_leave_the_accumulators_range_is_infinite(
    energy: float, terms: int, within: bool
) -> None:
    disturbed = oracle._Rounding(replace(SMALL, largest=2.0**100)).disturb(np.zeros((1, 1)), np.full(1, energy), terms)

    assert np.isfinite(disturbed[1:]).all() == within


def test_the_largest_sum_of_squares_is_zero_at_first() -> None:
    rounding = oracle._Rounding(COARSE)

    assert rounding.largest == 0.0
    for energy, largest in ((0.25, 0.25), (0.5, 0.5), (0.25, 0.5)):
        rounding.disturb(np.zeros((1, 2)), np.array([0.0, energy]), 3)
        assert rounding.largest == largest


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


def spread(precision: Precision, z: float, energy: float, **how: Any) -> float:
    """The root mean square of what disturbing sums `z` adds to them."""
    rounding = oracle._Rounding(precision, replicas=REPLICAS)
    disturbed = rounding.disturb(np.full((1, 2_000), z), np.full(2_000, energy), **how)
    return float(np.sqrt(np.mean((disturbed[1:-1] - disturbed[0]) ** 2)))


@pytest.mark.parametrize(
    ("z", "energy", "terms", "stored", "images", "products"),
    [
        (0.0, 1.0, 3, True, 1, False),
        (1.0, 0.0, 3, True, 1, False),
        (3.0, 4.0, 3, True, 1, False),
        (0.0, 1.0, 3, True, 5, False),
        (0.0, 1.0, 0, True, 1, False),
        (0.0, 1.0, 3, False, 5, False),
        (0.0, 1.0, 12, True, 1, False),
        (0.0, 1.0, 3, True, 1, True),
        (3.0, 4.0, 3, True, 5, True),
    ],
)
def test_a_sum_is_disturbed_by_as_much_as_is_documented(
    z: float, energy: float, terms: int, stored: bool, images: int, products: bool
) -> None:
    """Of 128,000 disturbances the root mean square is known to a hundredth."""
    precision = replace(COARSE, operands=2.0**-9)
    stores, factors = images if stored else 1, 2 if products else 0
    narrow, wide = COARSE.unit if stored else COARSE.accumulator.unit, COARSE.accumulator.unit
    size = np.sqrt(2 * ((terms + 1) * wide**2 + stores * narrow**2 + factors * 2.0**-18) * (energy + z**2))

    how: dict[str, Any] = {"terms": terms, "stored": stored, "images": images, "products": products}
    ratio = spread(precision, z, energy, **how) / size

    assert 0.98 < ratio < 1.02


def test_a_precision_that_adds_up_in_itself_stores_once() -> None:
    alone = replace(COARSE, sums=None)

    assert spread(alone, 0.0, 1.0, terms=3, images=5) == spread(alone, 0.0, 1.0, terms=3)


@pytest.mark.parametrize(
    ("energy", "terms", "images", "units"), [(1.0, 3, 5, 2 + 5 * 4), (1.0, 8, 1, 3 + 4), (0, 3, 5, 0)]
)
def test_what_has_terms_may_underflow(energy: float, terms: int, images: int, units: int) -> None:
    """In each sum at random, in each store at most: `units` times what the sums lose."""
    precision = Precision("large", 2.0**-50, 2.0**-8, 2.0**100, Precision("its sums", 2.0**-50, 2.0**-10, 2.0**100))
    rounding = oracle._Rounding(precision, replicas=REPLICAS)

    disturbed = rounding.disturb(np.zeros((1, 2_000)), np.full(2_000, energy), terms, images=images)

    size = np.sqrt(2) * units * 2.0**-10
    assert 0.98 * size <= np.sqrt(np.mean(disturbed[1:-1] ** 2)) <= 1.02 * size


@pytest.mark.parametrize(("name", "dtype"), [("float32", np.float32), ("float16", np.float16)])
def test_the_first_copy_is_exact_and_the_last_is_rounded_to_nearest(name: str, dtype: type) -> None:
    z = np.random.default_rng(0).standard_normal((1, 1_000))

    disturbed = oracle._Rounding(PRECISIONS[name]).disturb(z, z[0] ** 2, 1)

    assert disturbed.shape == (oracle.REPLICAS + 2, 1_000)
    assert np.array_equal(disturbed[0], z[0])
    assert np.array_equal(disturbed[-1], z[0].astype(dtype))
    assert len(np.unique(disturbed[1:-1, 0])) == oracle.REPLICAS


def test_disturbances_are_shared_by_all_elements_in_part() -> None:
    rounding = oracle._Rounding(COARSE, replicas=REPLICAS)

    disturbed = rounding.disturb(np.zeros((1, 2_000)), np.ones(2_000), 3)[1:-1]

    of_each, shared = disturbed.std(axis=1), disturbed.mean(axis=1)
    assert 0.9 < np.sqrt(np.mean(shared**2)) / np.sqrt(np.mean(of_each**2)) < 1.1


def test_what_replicas_share_is_standard_and_orthogonal() -> None:
    rounding = oracle._Rounding(COARSE)

    for _ in range(3):
        shared = np.stack([rounding._shared() for _ in range(oracle.REPLICAS)])
        products = shared @ shared.T / oracle.REPLICAS
        assert np.array_equal(np.round(products * 2**40), 2**40 * np.eye(oracle.REPLICAS))


@pytest.mark.parametrize(
    ("z", "energy", "terms", "images", "reaches"),
    [
        (99.0, 0.0, 0, 1, 99.0),
        (101.0, 0.0, 0, 1, np.inf),
        (-99.0, 0.0, 0, 1, -99.0),
        (-101.0, 0.0, 0, 1, -np.inf),
        (50.0, 48.0**2, 3, 1, 50.0),  # a single store has no partial sums
        (50.0, 24.0**2, 3, 5, 50.0),  # 4 partial stores: 50 + sqrt(4 * 24**2)
        (50.0, 26.0**2, 3, 5, np.inf),
        (0.0, 51.0**2, 3, 5, np.inf),
        (0.0, 11.0**2, 3, 100, np.inf),
        (0.0, 500.0**2, 3, 1, 0.0),  # in the accumulator: sqrt(4 * 500**2)
        (0.0, 510.0**2, 3, 1, np.inf),
    ],
)
def test_a_sum_that_may_leave_the_range_is_infinite(
    z: float, energy: float, terms: int, images: int, reaches: float
) -> None:
    """Beside one that may not: each on its own."""
    numbers, energies = np.array([[z, 1.0]]), np.array([energy, 0.0])

    disturbed = oracle._Rounding(SMALL).disturb(numbers, energies, terms, images=images)

    assert disturbed[0].tolist() == [z, 1.0]
    assert (np.round(disturbed[1:, 0], 6) == reaches).all()
    assert (np.round(disturbed[1:, 1], 6) == 1.0).all()


def test_what_disturbances_reach_may_leave_the_range() -> None:
    """The spread is 1 in 2**9 of 2**0.5 times 99; THRESHOLD times that and 99 is beyond 100."""
    precision = replace(SMALL, unit=2.0**-9)

    disturbed = oracle._Rounding(precision).disturb(np.array([[99.0, 40.0]]), np.zeros(2), 0)

    assert np.isinf(disturbed[1:, 0]).all()
    assert np.isfinite(disturbed[:, 1]).all()


class Given:
    """Random numbers that are given: the copies are disturbed by three and by one."""

    def standard_normal(self, shape: tuple[int, ...], dtype: type) -> Array:
        return np.broadcast_to(np.array([3.0, 1.0])[:, None], shape)


@pytest.mark.parametrize(("largest", "within"), [(66.3, False), (66.4, True)])
def test_what_all_disturbances_reach_together_decides(
    monkeypatch: pytest.MonkeyPatch, largest: float, within: bool
) -> None:
    """64.12 and THRESHOLD times sqrt((3**2 + 1**2) / 2) of 64.12 in 2**9: 66.36; rounded to the nearest it is 64."""
    precision = Precision("of nine bits", 2.0**-9, 0.0, largest, Precision("its sums", 2.0**-50, 0.0, 1000.0))
    rounding = oracle._Rounding(precision, replicas=2)
    monkeypatch.setattr(rounding, "random", Given())
    monkeypatch.setattr(rounding, "_shared", lambda: np.zeros(2))

    disturbed = rounding.disturb(np.full((1, 1), 64.12), np.zeros(1), 0)

    assert disturbed[0] == 64.12
    assert disturbed[-1] == (64.0 if within else np.inf)
    assert np.isfinite(disturbed[1:-1]).all() == within


def test_a_sum_that_reaches_a_quarter_of_the_range_is_looked_at() -> None:
    """Of 30, with units so coarse that THRESHOLD spreads reach beyond 100."""
    coarse = oracle._Rounding(replace(SMALL, unit=0.375))

    disturbed = coarse.disturb(np.zeros((1, 1)), np.full(1, 30.0**2 / 5), 3, images=5)

    assert np.isinf(disturbed[1:]).all()


def test_what_is_out_of_range_has_the_sign_of_the_exact_number() -> None:
    z = np.full((oracle.REPLICAS + 2, 2), [[-50.0, 50.0]])
    z[0] = [50.0, -50.0]

    disturbed = oracle._Rounding(SMALL).disturb(z, np.full(2, 60.0**2), 3, images=5)

    assert disturbed[0].tolist() == [50.0, -50.0]
    assert (disturbed[1:] == [np.inf, -np.inf]).all()


def copies(*rows: list[float]) -> Array:
    return np.array(rows, np.float64)


@pytest.mark.parametrize(
    ("margin", "deviation", "doubt"),
    [
        (1.0, 1.0, np.exp(-1 / 4)),
        (2.0, 1.0, np.exp(-4 / 4)),
        (1.0, 2.0, np.exp(-1 / 16)),
        (1.0, 0.25, 2 / THRESHOLD),
        (1.0, 1 / THRESHOLD, 0.0),
        (1.0, 0.0, 0.0),
    ],
)
def test_doubt_is_about_the_root_of_the_chance_of_a_turn(margin: float, deviation: float, doubt: float) -> None:
    """
    The winner is 15, a candidate is 5 margins less, others are far off; or the one candidate is so far from zero.

    The replicas deviate by 7 and by 1: the root of their mean square is 5 deviations.
    """
    margin *= 5
    up, down, last = margin - 7 * deviation, margin + deviation, 0.0
    window = np.stack([[15.0, 15.0 - m, -999.0, -999.0] for m in (margin, up, down, last)])[:, None]
    alone = copies([-margin], [-up], [-down], [-last])[:, None]

    assert oracle._Gate(window).doubt().tolist() == [[0.0, doubt, 0.0, 0.0]]
    assert oracle._Gate(alone).doubt().tolist() == [[doubt]]
    assert oracle._Gate(-alone).doubt().tolist() == [[doubt]]


def test_turned_decisions_pass_the_gradient_on() -> None:
    """What a candidate gains its winner loses; by turns for each window, alike in all images, alike everywhere."""
    z = np.full((4, 5, 40, 40, 4), [3.0, 1.0, 1.0, 1.0])
    z[-1] = [1.0, 1.0, 3.0, 1.0]
    doubt = np.broadcast_to([0.0, 0.5, 0.5, 0.5], (5, 40, 40, 4))

    shares = oracle._Gate(z).turns(doubt, np.random.default_rng(0))

    assert shares.shape == (oracle.REPLICAS + 1, *doubt.shape)
    assert (shares[-1] == [0.0, 0.0, 1.0, 0.0]).all()
    assert (np.round(shares.sum(axis=-1), 9) == 1).all()
    gained = shares[:-1, ..., 1:] / 0.5
    assert len(gained) % 3 == 0
    for turn, signs in enumerate(gained):
        alike = (signs == signs[:1]).all(), (signs == signs[:1, :1, :1]).all()
        assert alike == [(False, False), (True, False), (True, True)][turn % 3]
    assert 0.5 <= np.abs(gained).min() < 0.51
    assert 1.49 < np.abs(gained).max() <= 1.5
    assert 0.45 < np.mean(gained[0] > 0) < 0.55


def test_a_turn_to_zero_loses_the_gradient() -> None:
    random = np.random.default_rng(0)
    gate = oracle._Gate(np.full((3, 1, 1), 1.0))

    shares = gate.turns(np.full((1, 1), 0.5), random)

    assert ((np.abs(shares[:-1] - 1) >= 0.25) & (np.abs(shares[:-1] - 1) <= 0.75)).all()


def test_a_budget_is_the_replicas_deviation_and_their_tensors() -> None:
    """The last copy, which is rounded and not disturbed, does not count."""
    four = copies([1.0, 2.0], [4.0, 2.0], [1.0, 2.0], [99.0, 99.0])

    bounded = oracle._bounded(four, PRECISIONS["float64"], turning=np.array([2.0, 0.0]))

    variance = np.array([9 / 2, 0.0]) + 9 / 4 + np.array([2.0, 0.0])
    assert bounded.value.tolist() == [1.0, 2.0]
    assert np.array_equal(bounded.budget, np.sqrt(variance))


def test_the_only_element_of_the_only_replica_is_its_whole_tensor() -> None:
    three = copies([1.0], [3.0], [99.0])

    assert oracle._bounded(three, PRECISIONS["float64"]).budget == np.sqrt(4 + 4)


@pytest.mark.parametrize("lost", [np.inf, -np.inf, np.nan])
def test_a_replica_out_of_range_leaves_its_own_element_without_budget(lost: float) -> None:
    four = copies([1.0, 2.0], [lost, 2.0], [1.0, 4.0], [lost, 2.0])

    budget = oracle._bounded(four, PRECISIONS["float64"]).budget

    assert budget.tolist() == [np.inf, np.sqrt(4 / 2 + 4 / 3)]


@pytest.mark.parametrize(
    ("value", "budget", "wide"), [(92.0, 1.0, 1.0), (92.0, 1.01, np.inf), (-92.0, 1.01, np.inf), (0, 12.4, 12.4)]
)
def test_a_budget_that_reaches_beyond_the_range_is_infinite(value: float, budget: float, wide: float) -> None:
    assert oracle.in_range(np.array(value), np.array(budget), SMALL).budget == wide


def answer_of(value: float, budget: float) -> oracle.Answer:
    gradients = {name: Bounded(np.full(shape, value), np.full(shape, budget)) for name, shape in SHAPES.items()}
    nothing = Bounded(np.zeros(()), np.zeros(()))
    return oracle.Answer(nothing, nothing, gradients, None, False, 0.0)


def test_an_update_adds_two_roundings_to_the_gradients_budget() -> None:
    """5 - 0.5 * 4 is 3, from numbers that are 2 and 3 large: of budgets that are at right angles, as are 3 and 4."""
    precision = Precision("coarse", 2.0**-3, 2.0**-4, 2.0**100)
    before = {name: np.full(shape, 11.0) for name, shape in SHAPES.items()}

    after = oracle.updated(before, answer_of(16.0, 8.0), 0.5, precision)

    roundings = np.hypot(3.0, 8.0) / 8 + 1 / 16
    for name, shape in SHAPES.items():
        assert np.array_equal(after[name].value, np.full(shape, 3.0))
        assert np.array_equal(after[name].budget, np.full(shape, np.hypot(4.0, roundings)))


def test_accumulated_gradients_add_budgets_and_a_rounding_each() -> None:
    precision = Precision("coarse", 2.0**-2, 2.0**-1, 2.0**100)

    total = oracle.accumulated([answer_of(-3.0, 2.0), answer_of(-5.0, 1.0)], precision)

    for name, shape in SHAPES.items():
        assert np.array_equal(total[name].value, np.full(shape, -8.0))
        assert np.array_equal(total[name].budget, np.full(shape, 3.0 + ((3 + 8) / 4 + 2 / 2) / THRESHOLD))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [oracle.mse, oracle.cross_entropy])
def test_a_loss_of_repeated_images_has_the_budget_of_so_many(kind: oracle.Loss, precision: str) -> None:
    """Both are estimates of one size, which two hundred of each tell to a tenth."""
    logits, targets = np.random.default_rng(0).standard_normal((4, 10)), np.eye(10)[:4]
    many, at = (np.repeat(logits, 64, axis=0), np.repeat(targets, 64, axis=0)), PRECISIONS[precision]

    once = [oracle.loss(logits, targets, at, kind, repeats=64, seed=seed).budget for seed in range(200)]
    each = [oracle.loss(*many, at, kind, seed=seed).budget for seed in range(200)]

    assert 0.9 < np.sqrt(np.mean(np.square(once)) / np.mean(np.square(each))) < 1.1


def test_the_oracle_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import lenet.oracle"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
