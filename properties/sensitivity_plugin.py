"""
The pytest plugin that measures the sensitivity of laws: it plants errors in results and in the computation.

`properties.sensitivity` loads it, and says what is measured.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import ceil
from types import CodeType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.errors import UnsatisfiedAssumption

from lenet.oracle import SHAPES as PARAMETERS
from lenet.oracle import THRESHOLD, Array, Budgeted
from properties.caching import cache_oracle
from properties.comparison import MismatchError
from properties.expectations import counted_law
from properties.ledger import Ledger, current_ledger, recording
from properties.plugin import UNSHRUNK
from properties.reduced_precision import FLOAT64_BITS, KINDS, Fault, with_fault
from properties.sensitivity import DRAWN, ELEMENTS, EXAMPLES, PROBABILITY, PROPERTY, SEED, SIGNIFICANT_BITS
from properties.stack import Stack, dtype_name

settings.register_profile("sensitivity", UNSHRUNK, max_examples=EXAMPLES, derandomize=False)


class Smallest(NamedTuple):
    """The smallest errors of a tensor that an example rejects, infinity for none, and what would pass in it."""

    element: Array  # one for each of ELEMENTS random elements
    scaled: float
    constant: float
    zeros_pass: bool
    opposite_sign_passes: bool

    def as_list(self) -> list[Any]:
        """Return the fields as Python's own types, which a worker can send."""
        return [self.element.tolist(), float(self.scaled), float(self.constant), *self[3:]]

    def with_other(self, other: Smallest) -> Smallest:
        """Return the smallest errors of two comparisons in one example."""
        return Smallest(
            np.minimum(self.element, other.element),
            min(self.scaled, other.scaled),
            min(self.constant, other.constant),
            self.zeros_pass and other.zeros_pass,
            self.opposite_sign_passes and other.opposite_sign_passes,
        )


def smallest_errors(actual: Array, exact: Budgeted, random: np.random.Generator) -> Smallest | None:
    """
    Return the smallest errors that a comparison within budget rejects; None if no finite exact value differs from zero.

    Elements that are wrong already, as known issues are, or not judged, reject nothing.
    """
    finite = exact.value[np.isfinite(exact.value)]
    if not finite.any():
        return None
    with np.errstate(all="ignore"):
        deviation = actual - exact.value
        allowed = THRESHOLD * exact.budget
        judged = np.isfinite(allowed) & np.isfinite(actual) & (np.abs(deviation) <= allowed)
        up, down = (np.where(judged, allowed - sign * deviation, np.inf).ravel() for sign in (1, -1))
        size = np.abs(np.where(np.isfinite(actual), actual, 0.0)).ravel()
        outward, inward = (np.where(actual.ravel() > 0, *pair) for pair in ((up, down), (down, up)))
        outward, inward = (np.where(size > 0, room / size, np.inf) for room in (outward, inward))
        constant = max(up.min(), down.min()) / np.sqrt(np.mean(finite**2))
    nonzero = np.flatnonzero(size)
    either = np.maximum(outward, inward)
    return Smallest(
        random.choice(either[nonzero], ELEMENTS) if len(nonzero) else np.full(ELEMENTS, np.inf),
        max(outward.min(), inward.min()),
        constant,
        bool(np.all(exact.ratio(np.zeros_like(actual)) <= THRESHOLD)),
        bool(np.all(exact.ratio(-exact.value) <= THRESHOLD)),
    )


PARAMETER = re.compile("|".join(map(re.escape, PARAMETERS)))


def tensor_name(what: str) -> str:
    """Return the name of a tensor without the number of an image, step or loss: `fc1.bias.grad`, `loss`."""
    found = PARAMETER.search(what)
    if not found:
        return re.sub(r" \d+\b", "", what)
    if "Hessian" in what:
        return f"the Hessian-vector product for {found.group()}"
    return found.group() + (".grad" if "grad" in what else "")


class Observer:
    """Collects the smallest rejected errors at each comparison of an item."""

    def __init__(self, seed: int) -> None:
        self.arguments: dict[int, dict[str, Any]] = {}  # by the number of the example, from 1
        self.tensors: dict[int, dict[str, Smallest]] = {}
        self._random = np.random.default_rng([SEED, seed])

    def __call__(self, what: str, actual: Array, exact: Budgeted) -> None:
        """Measure a comparison of the latest example of the current ledger."""
        ledger, name = current_ledger(), tensor_name(what)
        self.arguments[ledger.examples] = ledger.drawn
        own = self.tensors.setdefault(ledger.examples, {})
        if smallest := smallest_errors(actual, exact, self._random):
            own[name] = own[name].with_other(smallest) if name in own else smallest


def compares_within_budget(law: Callable[..., Any]) -> bool:
    """Whether a law, or a function or class of `properties.laws` that it uses, compares within budget."""
    found: set[Any] = set()

    def search(part: Any) -> bool:
        if part in found:
            return False
        found.add(part)
        if isinstance(part, type):
            return any(search(getattr(value, "__wrapped__", value)) for value in vars(part).values() if callable(value))
        names = _names(part.__code__)
        if names & {"assert_within_budget", "assert_gradients"}:
            return True
        used = (part.__globals__.get(name) for name in names)
        own = (each for each in used if str(getattr(each, "__module__", "")).startswith("properties.laws"))
        return any(search(each) for each in own if isinstance(each, type) or hasattr(each, "__code__"))

    return search(law)


def _names(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return {*code.co_names}.union(*map(_names, inner))


def pytest_configure(config: pytest.Config) -> None:
    """Cache the oracle's answers in a worker; collect its results elsewhere."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
        cache_oracle()
        config.pluginmanager.register(Start())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Keep the laws that compare within budget; one worker runs all of a dtype, so that they share oracle answers."""
    items[:] = [item for item in items if compares_within_budget(_function(item))]
    for item in items:
        stack: Any = item.callspec.params["stack"]
        item.add_marker(pytest.mark.xdist_group(dtype_name(stack.dtype)))


def _function(item: pytest.Function) -> Callable[..., Any]:
    """Return the law as it is written, without Hypothesis's wrapper and the one that counts its examples."""
    law = counted_law(item)
    return getattr(law, "__wrapped__", law)


OBSERVER = pytest.StashKey[Observer]()


class Start:
    """Observes a law from when its known issues have been checked."""

    @pytest.hookimpl
    def pytest_runtest_call(self, item: pytest.Function) -> None:
        """Observe the comparisons of the current ledger."""
        item.stash[OBSERVER] = Observer(zlib.crc32(item.nodeid.encode()))
        current_ledger().observe = item.stash[OBSERVER]


@pytest.hookimpl(trylast=True)
def pytest_runtest_call(item: pytest.Function) -> None:
    """Once the law has judged the reference, let it judge faulty networks, and attach what was measured."""
    ledger, observer = current_ledger(), item.stash[OBSERVER]
    ledger.observe = None
    law: Any = item.obj
    is_machine, explicit, drawn = False, 0, DRAWN
    if hasattr(law, "hypothesis"):
        explicit = len(getattr(law, "hypothesis_explicit_examples", ()))
        drawn = min(law._hypothesis_internal_use_settings.max_examples, DRAWN)
    elif ledger.examples == 1:
        explicit, drawn = 1, 0
    else:
        is_machine = True  # its steps are not drawn as arguments, so that no example can be repeated
    parameters: dict[str, Any] = {name: item.funcargs[name] for name in item.callspec.params}
    examples = [observer.tensors.get(number, {}) for number in range(1, ledger.examples + 1)]
    measured = {
        "law": item.originalname,
        "dtype": dtype_name(parameters["stack"].dtype),
        "explicit": explicit,
        "drawn": drawn,
        "examples": [{name: each.as_list() for name, each in tensors.items()} for tensors in examples],
        "bits": {},
    }
    if not is_machine:
        with recording(Ledger(known_issues=ledger.known_issues)):
            measured["bits"] = bits_seen(counted_law(item), parameters, observer.arguments, explicit, drawn)
    item.user_properties.append((PROPERTY, measured))


def bits_seen(
    law: Callable[..., None],
    parameters: dict[str, Any],
    arguments: dict[int, dict[str, Any]],
    explicit: int,
    drawn: int,
) -> dict[str, int]:
    """
    Return the largest number of bits of each of `KINDS` that the law rejects with PROBABILITY; 0 for none.

    `arguments` are those of its examples by number, from 1: first the `explicit` ones, then those of which a run draws
    `drawn`. The law rejects a fault in an explicit example, or in so many of `drawn` random ones that a run has such an
    example with PROBABILITY.
    """
    stack: Stack = parameters["stack"]
    significant = SIGNIFICANT_BITS[dtype_name(stack.dtype)]
    accumulated = round(-np.log2(stack.precision.accumulator.unit))
    most = {"operands": significant - 1, "sums": accumulated - 1, "stores": min(significant, FLOAT64_BITS - 1)}
    needed = ceil(drawn * (1 - (1 - PROBABILITY) ** (1 / drawn))) if drawn else 0
    found = {}
    for kind in KINDS:

        def rejects(number: int, bits: int, kind: str = kind) -> bool:
            faulty = replace(stack, subject=with_fault(stack.subject, Fault(kind, bits)))
            with faulty.installed():
                try:
                    law(**parameters | {"stack": faulty} | arguments[number])
                except MismatchError as mismatch:
                    return mismatch.ratio is not None
                except (AssertionError, UnsatisfiedAssumption, pytest.fail.Exception, pytest.skip.Exception):
                    return False  # not for the number of bits, as where faulty layers ignore autocast
            return False

        best = 0
        for number in range(1, explicit + 1):
            if number in arguments:
                best = largest_rejected(partial(rejects, number), best, most[kind])
        top = [best] * max(1, needed)  # of the random examples, or what an explicit one rejects
        for number in range(explicit + 1, explicit + drawn + 1):
            if number in arguments:
                top = sorted([*top, largest_rejected(partial(rejects, number), top[0], most[kind])])[1:]
        found[kind] = top[0]
    return found


def largest_rejected(rejects: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest number of bits up to `high` that is rejected, or `low` if low + 1 is not."""
    if low >= high or not rejects(low + 1):
        return low
    low += 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if rejects(middle) else (low, middle - 1)
    return low
