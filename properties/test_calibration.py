"""The calibration: what it draws, computes, compares and writes."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lenet import Net, subject
from lenet.oracle import SHAPES, THRESHOLD
from properties import calibration
from properties.calibration import CLAIMS, LOSSES, Distribution, EmulatedTF32, Measured, Trial, draw, measure
from properties.case import Case
from properties.stack import Stack

ORDINARY = Case(images="normal", batch=2, seed=3)

STORED_SUM = Case("integers", "ties", "one-hot", layout="transposed", seed=2914)
"""The probability of the label is near 1. PyTorch stores the sum of exponentials, so that the loss is 0 in 16 bits."""

FLIP_BEYOND_RANGE = Case("integers", "constant", "normal", layout="offset", seed=34136)
"""Another ReLU is active in float16. So a gradient of 57,000 overflows, and its products with zero weights are NaN."""


@pytest.mark.parametrize("dtype", CLAIMS)
def test_trials_reach_every_claim_loss_and_batch_and_are_the_same_in_every_run(dtype: str) -> None:
    trials = [draw(dtype, seed) for seed in range(1_000)]

    assert trials == [draw(dtype, seed) for seed in range(1_000)]
    assert {trial.claim for trial in trials} == set(CLAIMS[dtype])
    assert {trial.threads for trial in trials} == {1, 4}
    assert {trial.loss for trial in trials} == set(LOSSES)
    assert {trial.repeats for trial in trials} == {1, 4, 32}
    assert {trial.factor for trial in trials if trial.loss.startswith("scaled")} == set(calibration.FACTORS)
    assert {trial.factor for trial in trials if not trial.loss.startswith("scaled")} == {1.0}
    assert {trial.case.batch for trial in trials} == set(calibration.BATCHES)
    assert sum(trial.case.batch == 0 for trial in trials) < 100
    assert all(trial.case.targets == "one-hot" for trial in trials if trial.loss == "cross-entropy of indices")


@pytest.mark.parametrize(
    ("dtype", "trial"),
    [
        *((dtype, Trial(ORDINARY, claim)) for dtype, claims in CLAIMS.items() for claim in claims),
        *(("float32", Trial(ORDINARY, "float32", loss)) for loss in LOSSES),
        ("float32", Trial(ORDINARY, "float32", "scaled mse", factor=2.0**10)),
        ("float16", Trial(replace(ORDINARY, weights="huge"), "float16", repeats=4)),
        ("float16", Trial(STORED_SUM, "float16", "cross-entropy of indices", repeats=32)),
    ],
)
def test_errors_of_the_reference_are_rounding_errors(dtype: str, trial: Trial) -> None:
    measured = measure(dtype, trial)

    compared = {"logits", "loss", *(f"{name}.grad" for name in SHAPES)}
    compared |= {"images.grad"} if trial.repeats == 1 else set()
    if trial == Trial(ORDINARY, dtype):
        compared |= {f"{name} after a step" for name in SHAPES}
    assert measured.ratios.keys() == compared
    assert 0.01 < measured.worst <= THRESHOLD
    assert measured.unjudged == 0


def test_value_that_a_flipped_decision_carries_out_of_range_is_not_judged() -> None:
    measured = measure("float32", Trial(FLIP_BEYOND_RANGE, "autocast to float16", "scaled mse", factor=2.0**10))

    assert measured.worst <= THRESHOLD
    assert 0 < measured.unjudged < 0.2


def test_underflows_of_the_offsets_of_a_convolution_add_up() -> None:
    """The images' gradient, of subnormal size, is stored 25 times; with one underflow as budget its ratio is 6.6."""
    case = Case(weights="tiny", images="normal", targets="zero", batch=1, layout="transposed", seed=1230)

    measured = measure("float16", Trial(case, "float16", "scaled mse", factor=1 / 3))

    assert 1 < measured.ratios["images.grad"] < 2


@pytest.mark.parametrize(("repeats", "left_out"), [(1, False), (32, True)])
def test_loss_is_left_out_where_the_sum_of_float16_losses_overflows(repeats: int, left_out: bool) -> None:
    """The loss of the image is 2,350, that of 32 copies adds up to 75,200."""
    case = Case("integers", "huge", "one-hot", layout="strided", seed=7199)

    measured = measure("float16", Trial(case, "float16", "cross-entropy of weights", repeats=repeats))

    assert ("loss" not in measured.ratios) == measured.without_loss == left_out
    assert measured.worst <= THRESHOLD


@pytest.mark.parametrize(
    ("dtype", "computed", "judged"),
    [("float32", "tf32", "float32"), ("float32", "bfloat16", "tf32"), ("float64", "float32", "float64")],
)
def test_computation_at_a_lower_precision_than_judged_is_beyond_the_threshold(
    monkeypatch: pytest.MonkeyPatch, dtype: str, computed: str, judged: str
) -> None:
    """So each computation has the precision that it is judged at, and no higher one."""
    logits_at = calibration.logits_at
    monkeypatch.setattr(calibration, "logits_at", lambda claim, *others: logits_at(computed, *others))

    assert measure(dtype, Trial(ORDINARY, judged)).worst > THRESHOLD


def test_emulated_tf32_rounds_operands_of_both_passes() -> None:
    """1 + 2**-11 + 2**-12 is no TF32 number; it is rounded to 1 + 2**-10, in a convolution and in a linear layer."""
    fine, coarse = 1 + 2.0**-11 + 2.0**-12, 1 + 2.0**-10
    for layer, shape in ((F.linear, (1, 1)), (F.conv2d, (1, 1, 1, 1))):
        inputs, weight, bias = (torch.full(size, fine, requires_grad=True) for size in (shape, shape, (1,)))

        with EmulatedTF32():
            output = layer(inputs, weight, bias)
        output.backward(torch.full_like(output, fine))

        assert output.item() == np.float32(coarse * coarse + fine)
        assert inputs.grad is not None
        assert weight.grad is not None
        assert bias.grad is not None
        assert (inputs.grad.item(), weight.grad.item(), bias.grad.item()) == (coarse**2, coarse**2, fine)


def test_tf32_and_autocast_compute_what_they_are_named_for() -> None:
    """The logits have the images' dtype, and differ from those of a higher precision."""
    net, images = Net(), torch.randn(1, 1, 32, 32)

    single, tf32, bfloat16 = (
        calibration.logits_at(claim, net, images) for claim in ("float32", "tf32", "autocast to bfloat16")
    )

    assert {logits.dtype for logits in (single, tf32, bfloat16)} == {torch.float32}
    assert torch.equal(single, net(images))
    assert torch.equal(bfloat16, bfloat16.bfloat16().float())
    assert 0 < (tf32 - single).abs().max() < (bfloat16 - single).abs().max()


def test_autocast_gets_the_values_of_the_narrower_range() -> None:
    """Huge images of float32 would overflow in float16."""
    stack = Stack(subject.load("lenet"), torch.device("cpu"), torch.float32)
    case = Case(images="huge", layout="expanded", batch=2)

    largest = {
        claim: calibration.inputs(stack, Trial(case, claim)).images.abs().max().item()
        for claim in ("float32", "autocast to bfloat16", "float16", "autocast to float16")
    }

    assert largest["float32"] > 1e9
    assert largest["autocast to bfloat16"] > 1e9
    assert largest["float16"] == largest["autocast to float16"] < 100


def distribution(*worst: float) -> Distribution:
    measured = Distribution()
    for seed, ratio in enumerate(worst):
        trial = Trial(Case(seed=seed), "float32", "dot")
        ratios = {"logits": ratio / 2, "loss": ratio}
        measured.add(Measured("float32", trial, ratios, seed == 0, without_loss=False, unjudged=0.5 * (seed == 1)))
    return measured


def test_summary_has_the_quantiles_the_counts_and_the_worst_trial_of_each_tensor() -> None:
    """The median is that of a bin, which is 4 % wide."""
    summary = distribution(1.0, 3.0, 2.1).summary()

    assert summary["cases"] == 3
    assert (summary["cases with undecided decisions"], summary["cases judged in part"]) == (1, 1)
    assert summary["elements not judged, summed over the cases"] == 0.5
    assert 2.1 <= summary["error / budget"][0] <= 2.1 * 2 ** (1 / 16)
    assert summary["error / budget"][-1] == 3.0
    trial = repr(Trial(Case(seed=1), "float32", "dot"))
    worst = {"logits": {"ratio": 1.5, "trial": trial}, "loss": {"ratio": 3.0, "trial": trial}}
    assert summary["by claim and loss"] == {"float32": {"dot": {"cases": 3, "worst": worst}}}
    assert summary["worst cases"][0] == {"ratio": 3.0, "tensor": "loss", "trial": trial}


@pytest.mark.parametrize("ratios", [(0.0,), (0.0, 1e-12, 1.0, 3.0, 2.1, np.inf)])
def test_distribution_equals_that_of_its_summary(ratios: tuple[float, ...]) -> None:
    summary = json.loads(json.dumps(distribution(*ratios).summary()))

    assert Distribution.from_summary(summary) == distribution(*ratios)


def run(output: Path, *arguments: str) -> dict[str, Any]:
    """Return the distributions by dtype that the command line writes."""
    calibration.main([*arguments, "--processes", "1", "--output", str(output)])
    distributions: dict[str, Any] = json.loads(output.read_text())["dtypes"]
    return distributions


def test_file_has_the_dtypes_that_were_measured_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[list[str]] = []
    monkeypatch.setattr(calibration, "SAVE_INTERVAL", 0.0)

    calibration.calibrate({}, ("float32", "float16"), 1, 1, lambda summaries: saved.append(list(summaries)))

    assert saved == [["float32"], ["float32", "float16"], ["float32", "float16"]]


@pytest.mark.slow
def test_run_continues_the_file_of_an_earlier_one(tmp_path: Path) -> None:
    """Other dtypes and more cases are added; the result is that of one run."""
    run(tmp_path / "found.json", "--cases", "2", "--dtype", "float16")
    continued = run(tmp_path / "found.json", "--cases", "3", "--dtype", "float64", "float16")

    assert list(continued) == ["float64", "float16"]
    assert continued == run(tmp_path / "at once.json", "--cases", "3", "--dtype", "float64", "float16")


def test_only_code_counts_and_no_comment_or_docstring() -> None:
    def words(source: str) -> list[str]:
        return list(calibration._words(ast.parse(source)))

    code = "unit = 2.0\ndef double(x):\n    return unit * x\n"
    documented = '"""A module."""\n' + code.replace("2.0\n", '2.0  # two\n"""A unit."""\n').replace(
        ":\n", ':\n    """Twice."""\n'
    )

    assert words(documented) == words(code)
    assert words(code.replace("2.0", "2.5")) != words(code)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content | {"code": "other"}, "is of other code or another PyTorch: remove it"),
        (lambda content: content | {"stack": {"torch": "1.0"}}, "is of other code or another PyTorch: remove it"),
        (lambda content: [], "is damaged (TypeError): remove it"),
        (lambda content: content | {"dtypes": {"float16": {}}}, "is damaged (KeyError): remove it"),
        (lambda content: content["dtypes"]["float16"].update(cases=2) or content, "is damaged (ValueError): remove it"),
    ],
)
def test_file_of_other_code_or_damaged_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Any], Any], message: str
) -> None:
    output = tmp_path / "found.json"
    run(output, "--cases", "1", "--dtype", "float16")
    output.write_text(json.dumps(damage(json.loads(output.read_text()))))

    with pytest.raises(SystemExit, match="2"):
        run(output, "--cases", "2", "--dtype", "float16")

    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cases", "0"], "--cases 0: at least 1 is needed"),
        (["--processes", "0"], "--processes 0: at least 1 is needed"),
        (["--output", "{folder}"], "--output {folder}: not a file that can be written"),
        (["--output", "{folder}/file/result"], "--output {folder}/file/result: not a file that can be written"),
    ],
)
def test_wrong_option_is_a_one_line_error_before_anything_is_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SystemExit, match="2"):
        calibration.main(["--output", str(tmp_path / "result"), *(o.format(folder=tmp_path) for o in options)])

    assert message.format(folder=tmp_path) in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "result").exists()
