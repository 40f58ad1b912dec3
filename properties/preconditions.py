"""
What a subject's Net must be able to do before laws can judge it.

It must load a case's parameters and run one image and an empty batch. A network that raises for one of these would
violate dozens of laws for one reason. Therefore each is tried once for each stack. If the network raises, the law of
this precondition (in `laws/test_network.py`) fails, and the other laws do not draw such cases.

Images in every memory layout are tried, too. There is no law that demands them: `view` of feature maps, as in older
versions of PyTorch's tutorial, raises if they are not contiguous. If the network raises, no law draws them, and the run
says so. Only an exception counts: all laws judge a wrong result.

An attempt can also end the process. Later processes of the run then do not make it again. It counts as an exception,
but not for a memory layout: laws draw it, and fail.

What an engine does not support, it declares (`lenet.engines.Engine`). The network is tried without the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import currently_in_test_context, reject
from torch import Tensor, nn

from lenet.subject import one_line
from properties import journal
from properties.case import IMAGE_LAYOUTS, Case
from properties.entries import NOT_JUDGED
from properties.global_settings import restored_settings
from properties.journal import DeadProcessError
from properties.judged_code import LawTimeout, begin_example, escapes_are_errors

if TYPE_CHECKING:
    from properties.stack import Stack

ONE_IMAGE = "one image"
EMPTY_BATCH = "an empty batch"
TWO_IMAGES = "two images"

Unmet = Mapping[str, Exception]
"""The preconditions that a network does not meet, each with the exception that it raised."""


@dataclass
class Restrictions:
    """The preconditions that the network of the law being run does not meet, and which of them the law needed."""

    unmet: Unmet = field(default_factory=dict)
    needed: set[str] = field(default_factory=set)

    def on(self, case: Case) -> list[str]:
        """Return the unmet preconditions of the case, and note them as needed."""
        required = [*([] if case.batch else [EMPTY_BATCH]), _layout(case)]
        unmet = [name for name in required if name in self.unmet]
        self.needed.update(unmet)
        return unmet


_current: ContextVar[Restrictions | None] = ContextVar("current_restrictions", default=None)


def _restrictions() -> Restrictions:
    return _current.get() or Restrictions()


@contextmanager
def restricted(unmet: Unmet) -> Iterator[Restrictions]:
    """Within this block, draw and build no case with an unmet precondition."""
    token = _current.set(Restrictions(unmet))
    try:
        yield _restrictions()
    finally:
        _current.reset(token)


def possible(case: Case, batch: int) -> Case:
    """Return the case, changed where the network requires it: with this batch size instead of 0, or contiguous."""
    unmet = _restrictions().on(case)
    if EMPTY_BATCH in unmet:
        case = replace(case, batch=batch)
    return replace(case, layout="contiguous") if _layout(case) in unmet else case


def require(case: Case) -> None:
    """Discard the current example if the network cannot run the case; raise an error if it cannot run any image."""
    __tracebackhide__ = True
    restrictions = _restrictions()
    _require_one_image(restrictions.unmet)
    for name in restrictions.on(case):
        if currently_in_test_context():
            reject()
        pytest.skip(describe(name, restrictions.unmet[name]))  # a law whose only example this is


def assert_met(stack: Stack, name: str) -> None:
    """Assert that the subject's network did not raise when this precondition was tried."""
    __tracebackhide__ = True
    unmet = unmet_preconditions(stack)
    if name != ONE_IMAGE:
        _require_one_image(unmet)
    if name in unmet:
        raise AssertionError(describe(name, unmet[name])) from unmet[name]


def _require_one_image(unmet: Unmet) -> None:
    __tracebackhide__ = True
    if ONE_IMAGE in unmet:
        raise RuntimeError(f"{NOT_JUDGED}{describe(ONE_IMAGE, unmet[ONE_IMAGE])}")


def describe(name: str, error: Exception) -> str:
    """Return one line about an unmet precondition."""
    if isinstance(error, DeadProcessError):
        return f"the network ends the process for {name}: {str(error).splitlines()[0]}"
    return f"the network raises for {name}: {one_line(error)}"


def unmet_preconditions(stack: Stack) -> Unmet:
    """Return the preconditions that the subject's network does not meet on the stack's device and in its dtype."""
    return _tried(replace(stack, engine=None, claim=None))


@cache
def _tried(stack: Stack) -> Unmet:
    devices = [stack.device] if stack.device.type == "cuda" else []
    with restricted({}), torch.random.fork_rng(devices), restored_settings(), torch.enable_grad():
        unmet = _unmet(stack)
    torch.ones(1, device=stack.device).cpu()  # raises if the GPU has stopped working: then nothing is known
    return unmet


def _unmet(stack: Stack) -> Unmet:
    died = journal.deaths(repr(stack))  # of a process that had tried this, which is not tried again
    if ONE_IMAGE in died:
        return {ONE_IMAGE: died[ONE_IMAGE]}
    try:
        with _trying(stack, ONE_IMAGE), escapes_are_errors():
            net = stack.net(Case())
            net(stack.images(Case()))
    except Exception as error:
        return {ONE_IMAGE: error}
    except LawTimeout as error:
        return {ONE_IMAGE: TimeoutError(*error.args)}
    if TWO_IMAGES in died or _error_of(stack, net, TWO_IMAGES, Case(batch=2)):
        return {}  # it runs only one image at a time, or has no backward pass: all laws judge that
    unmet: dict[str, Exception] = {EMPTY_BATCH: died[EMPTY_BATCH]} if EMPTY_BATCH in died else {}
    tried = {_layout(case): case for case in (Case(batch=2, layout=layout) for layout in IMAGE_LAYOUTS)}
    for name, case in ({EMPTY_BATCH: Case(batch=0)} | tried).items():
        if name in died:
            continue  # laws draw the layout, and judge it: only an exception is as good as a correct result
        raised = _error_of(stack, net, name, case)
        if isinstance(raised, LawTimeout):
            break  # the laws judge that; to try the others would take as long each
        if raised:
            unmet[name] = raised
    return unmet


@contextmanager
def _trying(stack: Stack, name: str) -> Iterator[None]:
    """Within this block, this is tried: as an example of its own, and noted in case that it ends the process."""
    begin_example()
    journal.write("try", repr(stack), name)
    try:
        yield
    finally:
        journal.write("tried")


def _error_of(stack: Stack, net: nn.Module, name: str, case: Case) -> Exception | LawTimeout | None:
    """Return the exception of a forward pass, or of the backward pass if the logits have a graph."""
    try:
        with _trying(stack, name), escapes_are_errors():
            logits = net(stack.images(case))
            if isinstance(logits, Tensor) and logits.requires_grad:
                logits.sum().backward()
    except (Exception, LawTimeout) as error:
        return error
    return None


def _layout(case: Case) -> str:
    """Return the precondition of the case's memory layout."""
    return f"{case.layout} images"
