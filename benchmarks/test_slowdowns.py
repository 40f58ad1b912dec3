"""The slower variants are correct, and slower by the stated share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

import lenet
from benchmarks import slowdowns
from benchmarks.counters import count
from benchmarks.slowdowns import Slowed
from lenet import subject

BUSY = ("Slower0", "Slower2", "Slower3", "Slower5", "Slower10")
FAULTY = {
    "ExtraCopy": {"operators", "allocations", "peak memory"},
    "ExtraAllocation": {"operators", "allocations"},
    "ExtraDispatch": {"operators"},
    "LayoutConversion": {"operators", "allocations"},
    "CacheHostile": {"operators", "allocations"},
    "Synchronization": {"operators", "allocations"},
    "PythonLoop": {"operators"},
    "OneThread": set(),
}
"""The realistic faults, each with counters of a forward pass that it raises."""
NAMES = (*BUSY, *FAULTY, "ForeachSGD", "ForLoopSGD")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The number of threads that a test begins with is that of the next test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", FAULTY)
def test_fault_raises_its_counters(name: str) -> None:
    images = torch.rand(2, 1, 32, 32)
    counted = []
    for one in (lenet, subject.load(f"benchmarks.slowdowns:{name}")):
        call = torch.no_grad()(partial(one.Net(), images))
        counted.append(count(call, torch.device("cpu"), 0))

    reference, faulty = counted
    assert {counter for counter in reference if faulty[counter] > reference[counter]} >= FAULTY[name]
    if not FAULTY[name]:
        assert faulty == reference


def test_one_thread_is_set() -> None:
    torch.set_num_threads(2)
    slowdowns.OneThread.Net()

    assert torch.get_num_threads() == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_slower_variant_computes_the_same_bits(name: str) -> None:
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
        assert torch.equal(mine, right)  # lr = 0.5 is a power of two, so every form of the update rounds alike
        assert torch.equal(mine.grad, right.grad)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A fake processor clock: calls advance it, and reading it advances it by 2^-30 s."""
    time = [0.0]

    def read_clock() -> float:
        time[0] += 2**-30
        return time[0]

    monkeypatch.setattr(slowdowns, "thread_time", read_clock)
    return time


def seconds_of(now: list[float], call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes by the fake clock."""
    before = now[0]
    call()
    return now[0] - before


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1])
def test_added_computation_takes_its_share_of_every_call(now: list[float], share: float) -> None:
    slowed = Slowed(share)

    def wait(seconds: float) -> None:
        now[0] += seconds

    for seconds in (2**-9, 2**-10, 2**-10):
        added = seconds_of(now, partial(slowed, partial(wait, seconds))) - seconds
        assert share * seconds <= added <= share * seconds + 4 * 2**-30  # reads of the clock


def test_time_before_the_call_counts(now: list[float]) -> None:
    slowed = Slowed(0.5)
    now[0] += 2**-10

    added = seconds_of(now, partial(slowed, lambda: None))

    assert 2**-11 <= added <= 2**-11 + 4 * 2**-30


def test_nested_call_adds_nothing(now: list[float]) -> None:
    slowed = Slowed(0.5)

    def inner() -> None:
        now[0] += 2**-10

    seconds = seconds_of(now, partial(slowed, partial(slowed, inner)))

    assert 1.5 * 2**-10 <= seconds <= 1.5 * 2**-10 + 4 * 2**-30


def test_error_in_a_call_does_not_disable_later_slowdowns() -> None:
    net, slowed = lenet.Net(), Slowed(0.5)

    with pytest.raises(ValueError, match="32"):
        slowed(lambda: net(torch.zeros(1, 1, 31, 31)))

    assert not Slowed.active
