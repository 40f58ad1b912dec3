"""Tests of how a law is run on a GPU that an example stops."""

from __future__ import annotations

import pytest
import torch

from lenet import subject
from properties import expectations
from properties.ledger import Ledger, recording
from properties.stack import Stack

CUDA, CPU = (Stack(subject.load("lenet"), torch.device(name), torch.float32) for name in ("cuda", "cpu"))


@pytest.fixture
def stopping_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which `synchronize` raises, as after an error in a kernel, and which then does not work any more."""

    def synchronize(stack: Stack | None) -> None:
        if stack is CUDA:
            raise RuntimeError("CUDA error: misaligned address\nmore")

    monkeypatch.setattr(expectations, "synchronize", synchronize)
    monkeypatch.setattr(expectations, "works", lambda device: False)
    monkeypatch.setattr(expectations, "_stopped", [])


@pytest.mark.usefixtures("stopping_gpu")
def test_law_that_stops_the_gpu_fails_with_its_own_error_in_every_replay() -> None:
    calls = []
    law = expectations._counted(lambda **drawn: calls.append(drawn))

    with recording(Ledger()) as ledger:
        for _ in range(3):
            with pytest.raises(RuntimeError, match=r"^CUDA error: misaligned address"):
                law(stack=CUDA, batch=len(calls) + 1)

    assert ledger.drawn == {"batch": 1}
    assert calls == [{"stack": CUDA, "batch": 1}]


@pytest.mark.usefixtures("stopping_gpu")
def test_later_laws_say_that_they_were_not_judged() -> None:
    law = expectations._counted(lambda **drawn: None)
    with recording(Ledger()), pytest.raises(RuntimeError, match=r"^CUDA error"):
        law(stack=CUDA)

    with recording(Ledger()), pytest.raises(RuntimeError, match=r"^not judged: .* CUDA error: misaligned address$"):
        law(stack=CUDA)
    with recording(Ledger()):
        law(stack=CPU)


def test_error_after_which_the_device_works_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**drawn: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(expectations, "works", lambda device: True)
    with recording(Ledger()), pytest.raises(RuntimeError, match="out of memory"):
        expectations._counted(fail)(stack=CUDA)

    assert expectations._stopped == []
