"""What a network cannot run is tried once, fails one law, and is not drawn; what it computes wrongly is judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis.errors import UnsatisfiedAssumption
from torch import Tensor

import lenet
from lenet.subject import Subject
from properties.case import Case
from properties.preconditions import (
    EMPTY_BATCH,
    ONE_IMAGE,
    assert_met,
    possible,
    require,
    restricted,
    unmet_preconditions,
)
from properties.stack import Stack
from properties.strategies import cases

calls: list[str] = []
"""What the networks of these tests were used for, in order."""


class Counted(lenet.Net):
    def __init__(self) -> None:
        super().__init__()
        calls.append("Net()")

    def forward(self, images: Tensor) -> Tensor:
        calls.append(f"{tuple(images.shape)} {images.is_contiguous()}")
        return super().forward(images)


class EmptyRaises(lenet.Net):
    def forward(self, images: Tensor) -> Tensor:
        if not len(images):
            raise ValueError("nothing\nto see")
        return super().forward(images)


class EmptyGraphRaises(lenet.Net):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if not len(images):
            logits.register_hook(self.raise_error)
        return logits

    def raise_error(self, gradient: Tensor) -> None:
        raise ValueError("no gradient")


class EmptyIsWrong(lenet.Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if len(images) else images.new_full((1, 3), float("nan"))


class OnlyContiguous(lenet.Net):
    def forward(self, images: Tensor) -> Tensor:
        images.view(-1)
        return super().forward(images)


class OnlyFloat32(lenet.Net):
    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.float32:
            raise TypeError("float32 only")
        return super().forward(images)


class OneAtATime(lenet.Net):
    def forward(self, images: Tensor) -> Tensor:
        (image,) = images
        return super().forward(image[None])


def stack_of(net: type[lenet.Net], dtype: torch.dtype = torch.float32) -> Stack:
    return Stack(Subject(net.__name__, net, lenet.sgd_update, lenet.train_step), torch.device("cpu"), dtype)


@pytest.fixture(autouse=True)
def no_calls() -> Iterator[None]:
    calls.clear()
    yield
    calls.clear()


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (lenet.Net, set()),
        (EmptyRaises, {EMPTY_BATCH}),
        (EmptyGraphRaises, {EMPTY_BATCH}),
        (EmptyIsWrong, set()),
        (OnlyContiguous, {"strided images", "transposed images", "expanded images"}),
        (OneAtATime, set()),
    ],
)
def test_only_exceptions_are_unmet_preconditions(net: type[lenet.Net], names: set[str]) -> None:
    assert set(unmet_preconditions(stack_of(net))) == names


def test_dtype_that_raises_leaves_nothing_else_to_try() -> None:
    assert set(unmet_preconditions(stack_of(OnlyFloat32))) == set()
    assert set(unmet_preconditions(stack_of(OnlyFloat32, torch.float16))) == {ONE_IMAGE}


def test_network_is_tried_once_and_random_state_stays() -> None:
    before = torch.random.get_rng_state()

    unmet_preconditions(stack_of(Counted))
    first = list(calls)
    unmet_preconditions(stack_of(Counted))

    assert calls == first
    assert calls.count("Net()") == 1
    assert torch.equal(torch.random.get_rng_state(), before)


def test_gradients_that_an_earlier_subject_switched_off_do_not_matter() -> None:
    with torch.no_grad():
        assert set(unmet_preconditions(stack_of(EmptyGraphRaises, torch.float64))) == {EMPTY_BATCH}


def test_law_of_a_precondition_fails_with_the_network_error() -> None:
    with pytest.raises(
        AssertionError, match=r"^the network raises for an empty batch: ValueError: nothing to see$"
    ) as e:
        assert_met(stack_of(EmptyRaises), EMPTY_BATCH)
    assert isinstance(e.value.__cause__, ValueError)
    assert_met(stack_of(EmptyRaises), ONE_IMAGE)

    with pytest.raises(AssertionError, match="TypeError: float32 only"):
        assert_met(stack_of(OnlyFloat32, torch.float64), ONE_IMAGE)
    with pytest.raises(RuntimeError, match=r"^not judged: the network raises for one image: TypeError: float32 only"):
        assert_met(stack_of(OnlyFloat32, torch.float64), EMPTY_BATCH)


def test_impossible_cases_are_replaced_where_they_are_drawn() -> None:
    unmet = dict.fromkeys((EMPTY_BATCH, "channels_last images"), ValueError())

    with restricted(unmet) as restrictions:
        assert possible(Case(seed=1), batch=2) == Case(seed=1)
        assert not restrictions.needed
        assert possible(Case(batch=0, layout="channels_last", seed=1), batch=2) == Case(batch=2, seed=1)
        assert restrictions.needed == unmet.keys()
    assert possible(Case(batch=0), batch=2) == Case(batch=0)


def test_laws_draw_the_same_other_cases_whatever_the_network_cannot_do() -> None:
    def drawn(unmet: dict[str, Exception]) -> list[Case]:
        found = []

        @settings(derandomize=True, database=None, max_examples=30)
        @given(case=cases(batches=(2, 0, 3)))
        def law(case: Case) -> None:
            found.append(case)

        with restricted(unmet):
            law()
        return found

    every, possible_ones = drawn({}), drawn({EMPTY_BATCH: ValueError()})

    assert {0} < {case.batch for case in every}
    assert {case.batch for case in possible_ones} == {2, 3}
    assert len(every) == len(possible_ones)
    assert all(a == b for a, b in zip(every, possible_ones, strict=True) if a.batch)


@pytest.mark.parametrize("build", ["net", "images", "logits"])
def test_impossible_example_is_discarded_where_it_is_built(build: str) -> None:
    stack, rejected = stack_of(EmptyRaises), []

    @settings(derandomize=True, database=None, max_examples=10)
    @given(case=cases(batches=(2,)))
    def law(case: Case) -> None:
        getattr(stack, build)(case)
        try:
            getattr(stack, build)(Case(batch=0))
        except UnsatisfiedAssumption:
            rejected.append(case)

    with restricted(unmet_preconditions(stack)):
        law()
        with pytest.raises(pytest.skip.Exception, match="the network raises for an empty batch"):
            getattr(stack, build)(Case(batch=0))
    assert len(rejected) == 10


def test_network_that_runs_no_image_is_not_judged() -> None:
    stack: Any = stack_of(OnlyFloat32, torch.float64)

    with restricted(unmet_preconditions(stack)), pytest.raises(RuntimeError, match=r"^not judged: the network raises"):
        require(Case())
    require(Case())
