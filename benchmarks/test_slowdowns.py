"""The slower variants are right, and slower by what they say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import lenet
from benchmarks import slowdowns
from benchmarks.slowdowns import Slowed
from lenet import subject

NAMES = ("By0", "By2", "By3", "By5", "By10", "Copied", "Foreach", "ForLoop")


@pytest.mark.parametrize("name", NAMES)
def test_a_slower_variant_computes_the_same_bits(name: str) -> None:
    """Call after call."""
    slower, reference = subject.load(f"benchmarks.slowdowns:{name}"), subject.load("lenet")
    nets = [one.Net() for one in (slower, reference)]
    nets[0].load_state_dict(nets[1].state_dict())
    torch.manual_seed(0)
    images, targets = torch.rand(2, 1, 32, 32), torch.rand(2, 10)

    for _ in range(3):
        assert torch.equal(nets[0](images), nets[1](images))
        losses = [one.train_step(net, images, targets, 0.5) for one, net in zip((slower, reference), nets, strict=True)]
        assert torch.equal(*losses)
    for mine, right in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(mine, right)  # by half of the gradient, which is the same in all orders of rounding
        assert torch.equal(mine.grad, right.grad)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which calls move on, and every look at it by a little."""
    time = [0.0]

    def looked() -> float:
        time[0] += 2**-30
        return time[0]

    monkeypatch.setattr(slowdowns, "thread_time", looked)
    return time


def taken(now: list[float], call: Callable[[], Any]) -> float:
    """Seconds."""
    before = now[0]
    call()
    return now[0] - before


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1])
def test_the_added_computation_takes_its_share_of_every_call(now: list[float], share: float) -> None:
    slowed = Slowed(share)

    def wait(seconds: float) -> None:
        now[0] += seconds

    for seconds in (2**-9, 2**-10, 2**-10):
        added = taken(now, partial(slowed, partial(wait, seconds))) - seconds
        assert share * seconds <= added <= share * seconds + 4 * 2**-30  # looks before and after, and the last


def test_what_leads_to_a_call_is_time_of_the_arm_too(now: list[float]) -> None:
    slowed = Slowed(0.5)
    now[0] += 2**-10

    added = taken(now, partial(slowed, lambda: None))

    assert 2**-11 <= added <= 2**-11 + 4 * 2**-30


def test_nothing_is_added_within_another(now: list[float]) -> None:
    slowed = Slowed(0.5)

    def inner() -> None:
        now[0] += 2**-10

    took = taken(now, partial(slowed, partial(slowed, inner)))

    assert 1.5 * 2**-10 <= took <= 1.5 * 2**-10 + 4 * 2**-30


def test_an_error_is_no_reason_to_be_fast_from_then_on() -> None:
    net, slowed = lenet.Net(), Slowed(0.5)

    with pytest.raises(ValueError, match="32"):
        slowed(lambda: net(torch.zeros(1, 1, 31, 31)))

    assert not Slowed.inside
