"""The slower variants are right, and slower by what they say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

import lenet
from benchmarks import slowdowns
from benchmarks.slowdowns import SPIN, Slowed
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


def clock(monkeypatch: pytest.MonkeyPatch, step: float) -> tuple[Callable[[float], None], list[int]]:
    """A clock that only `wait` and spins move on, and the spins that were made."""
    now, spins = [0.0], []

    def spin(steps: int) -> None:
        spins.append(steps)
        now[0] += steps * step

    def wait(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(slowdowns, "thread_time", lambda: now[0])
    monkeypatch.setattr(slowdowns, "spin", spin)
    return wait, spins


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_the_added_computation_takes_its_share_of_a_call(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    wait, spins = clock(monkeypatch, step=2**-26)
    slowed = Slowed(share)

    for seconds in (2**-9, 2**-10, 2**-10, 2**-10):  # the first is slow
        slowed(partial(wait, seconds), 1)

    assert spins == [SPIN, round(share * 2**17), round(share * 2**17), round(share * 2**16)]


def test_what_leads_to_a_call_is_time_of_the_arm_too(monkeypatch: pytest.MonkeyPatch) -> None:
    wait, spins = clock(monkeypatch, step=2**-26)
    slowed = Slowed(0.5)

    for _ in range(2):
        wait(2**-11)
        slowed(partial(wait, 2**-11), 1)

    assert spins == [SPIN, 2**15]


def test_what_adds_nothing_measures_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    wait, spins = clock(monkeypatch, step=2**-26)
    slowed = Slowed(0.0)

    for _ in range(2):
        slowed(partial(wait, 1.0), 1)

    assert spins == [SPIN, 0]
    assert list(slowed.calls[1]) == [1.0, 1.0]


def test_each_size_has_its_own_share_and_nothing_is_added_within_another(monkeypatch: pytest.MonkeyPatch) -> None:
    wait, spins = clock(monkeypatch, step=2**-26)
    slowed = Slowed(0.5)
    inner = partial(wait, 2**-10)

    for _ in range(3):
        slowed(partial(slowed, inner, 2), 1)
    for _ in range(2):
        slowed(partial(wait, 2**-8), 2)

    assert spins == [SPIN, 2**15, 2**15, SPIN, 2**17]
    assert slowed.calls.keys() == {1, 2}


def test_an_error_is_no_reason_to_be_fast_from_then_on() -> None:
    net, slowed = lenet.Net(), Slowed(0.5)

    with pytest.raises(ValueError, match="32"):
        slowed(lambda: net(torch.zeros(1, 1, 31, 31)), 1)

    assert not Slowed.inside
