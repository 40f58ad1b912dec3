"""Everything that is timed has been verified: a wrong answer is never timed, with any batch size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.workload import Workload
from lenet import subject
from properties.stack import Stack
from properties.testing import FAULTY, run


@pytest.fixture
def reference() -> Stack:
    return Stack(subject.load("lenet"), torch.device("cpu"), torch.float32)


def test_large_batch_repeats_its_digits(reference: Stack) -> None:
    workload = Workload(reference, 64)

    assert workload.images.shape == (64, 1, 32, 32)
    assert workload.repeats == 4
    assert torch.equal(workload.images[3], workload.images[3 + 16])
    assert not torch.equal(workload.images[3], workload.images[4])


@pytest.mark.parametrize("row", [0, 37, 63])
def test_one_wrong_row_of_a_large_batch_is_detected(reference: Stack, row: int) -> None:
    workload = Workload(reference, 64)
    logits = workload.net(workload.images).detach()

    workload.verify_logits(logits)
    logits[row, 9] += 1e-4
    with pytest.raises(AssertionError, match=rf"logits\[{row}, 9\]"):
        workload.verify_logits(logits)


def test_budgets_of_repeated_digits_account_for_longer_sums(reference: Stack) -> None:
    few, many = Workload(reference, 16), Workload(reference, 4096)

    for name, exact in few.exact.gradients.items():
        assert (exact.value == many.exact.gradients[name].value).all()
    many.loss().backward()
    many.verify_gradients()
    many.verify_loss(many.loss())


@pytest.mark.slow
def test_wrong_answer_is_recorded_as_an_error_and_not_timed(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    options = ["--subject", f"{tmp_path}/faulty.py:ReluMissing", "--dtype", "float32", "--record", str(tmp_path)]

    result = run("benchmarks", "-k", "(forward or update) and 1-threads", "--benchmark-max-time=0.01", *options)

    assert result.returncode == 1
    record = json.loads((tmp_path / "benchmarks.json").read_text())
    timed = {entry["extra_info"]["operation"] for entry in record["benchmarks"]}
    assert "forward" not in timed
    assert "update, manual" in timed
    assert any("bench_forward" in name for name in record["errors"])


@pytest.mark.slow
def test_training_step_without_an_update_is_not_timed(tmp_path: Path) -> None:
    source = "from lenet import train_step as reference\n\ndef train_step(net, images, targets, lr):\n"
    (tmp_path / "lazy.py").write_text(source + "    return reference(net, images, targets, 0.0)\n")

    result = run("benchmarks", "-k", "step and 1-threads and cpu-float32-4]", "--subject", f"{tmp_path}/lazy.py")

    assert result.returncode == 1
    assert "1 failed" in result.stdout
    assert "budgets of" in result.stdout
