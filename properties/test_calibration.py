"""The calibration: what it draws, computes, compares and writes."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("dtype", CLAIMS)
def test_trials_reach_every_claim_loss_and_batch_and_are_the_same_in_every_run(dtype: str) -> None:
    trials = [draw(dtype, seed) for seed in range(1_000)]

    assert trials == [draw(dtype, seed) for seed in range(1_000)]
    assert {trial.claim for trial in trials} == set(CLAIMS[dtype])
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
        measured.add(Measured("float32", trial, {"logits": ratio / 2, "loss": ratio}, seed == 0, 0.5 * (seed == 1)))
    return measured


def test_summary_has_the_quantiles_the_counts_and_the_worst_trial_of_each_tensor() -> None:
    summary = distribution(1.0, 3.0, 2.0).summary(10)

    assert (summary["cases"], summary["seeds"]) == (3, [10, 12])
    assert (summary["cases with undecided decisions"], summary["cases judged in part"]) == (1, 1)
    assert summary["share of elements not judged"] == np.round(0.5 / 3, 6)
    assert summary["error / budget"]["worst tensor"][0] == 2.0
    assert [summary["error / budget"][name][-1] for name in ("logits", "loss", "worst tensor")] == [1.5, 3.0, 3.0]
    trial = repr(Trial(Case(seed=1), "float32", "dot"))
    worst = {"logits": {"ratio": 1.5, "trial": trial}, "loss": {"ratio": 3.0, "trial": trial}}
    assert summary["by claim and loss"] == {"float32": {"dot": {"cases": 3, "worst": worst}}}
    assert summary["worst cases"][0] == {"ratio": 3.0, "tensor": "loss", "trial": trial}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "--seed -1: with 2 cases, not from 0 to 4294967294"),
        (["--seed", "4294967295"], "--seed 4294967295: with 2 cases, not from 0 to 4294967294"),
        (["--processes", "0"], "--processes 0: at least 1 is needed"),
        (["--output", "{folder}"], "--output {folder}: not a file that can be written"),
        (["--output", "{folder}/file/result"], "--output {folder}/file/result: not a file that can be written"),
        (["--merge", "{folder}/file"], "--merge: not files that this program has written (JSONDecodeError: "),
        (["--merge", "{folder}/list"], "--merge: not files that this program has written (TypeError: "),
        (["--merge", "{folder}/deep"], "--merge: not files that this program has written (RecursionError: "),
        (["--merge", "{folder}/absent"], "--merge: not files that this program has written (FileNotFoundError: "),
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
    (tmp_path / "list").write_text("[[]]")
    (tmp_path / "deep").write_text("[" * 100_000)
    options = [option.format(folder=tmp_path) for option in options]
    output = [] if "--output" in options else ["--output", str(tmp_path / "result")]
    monkeypatch.setattr("sys.argv", ["calibration", "--cases", "2", *options, *output])

    with pytest.raises(SystemExit, match="2"):
        calibration.main()

    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("python -m properties.calibration: error: " + message.format(folder=tmp_path))
    assert not (tmp_path / "result").exists()


def test_command_line_measures_saves_and_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two dtypes in two files, then both in one, in the order of the precisions."""
    for dtype in ("float16", "float64"):
        arguments = ["calibration", "--cases", "2", "--seed", "5", "--dtype", dtype, "--processes", "1"]
        monkeypatch.setattr("sys.argv", [*arguments, "--output", str(tmp_path / dtype)])
        calibration.main()
    monkeypatch.setattr(
        "sys.argv",
        ["calibration", "--merge", str(tmp_path / "float16"), str(tmp_path / "float64"), "--output", f"{tmp_path}/all"],
    )
    calibration.main()

    merged: dict[str, Any] = json.loads((tmp_path / "all").read_text())["dtypes"]
    assert list(merged) == ["float64", "float16"]
    assert merged["float64"] == json.loads((tmp_path / "float64").read_text())["dtypes"]["float64"]
    assert (merged["float16"]["cases"], merged["float16"]["seeds"]) == (2, [5, 6])
    worst = [measure("float64", draw("float64", seed)).worst for seed in (5, 6)]
    assert merged["float64"]["error / budget"]["worst tensor"][-1] == round(max(worst), 3)
