"""
Measure how small a fault each law sees that compares within budget, in each dtype and tensor.

`tox run -e sensitivity` runs these laws on the reference network, plants errors of a known size, and writes
`properties/sensitivity.json`. A size is seen if a law rejects it with a probability of at least 95 % in the examples of
the profile `ci`: the law's explicit examples, which are always the same, and 20 random ones.

**Errors planted in results** (`SHAPES`). At each comparison, the smallest error that the comparison rejects is computed
from the result, its exact value and its budget; the larger one of both signs counts. Of several comparisons of one
tensor in an example, the most sensitive counts. If an error is rejected in a share p of the random examples and in
none of the explicit ones, 20 random examples miss it with a probability of (1 - p)**20, so p has to be 14 %.

**Errors planted in the computation** (`KINDS`). The law judges networks that compute with b bits, on its explicit
examples and on 20 random ones; recorded is the largest b that is seen, which is an error of 2**-b in each operation.

A comparison is uninformative if zeros in place of the result, or the result with the opposite sign, would pass.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.errors import UnsatisfiedAssumption
from tqdm import tqdm

from lenet import oracle
from lenet.files import writable, write_atomically
from lenet.fingerprint import stamp
from lenet.oracle import PRECISIONS, SHAPES as PARAMETERS, THRESHOLD, Array, Budgeted
from properties import judge, law_index
from properties.expectations import counted_law
from properties.ledger import Ledger, current_ledger, recording
from properties.mutants.plugin import cached
from properties.plugin import UNSHRUNK
from properties.reduced_precision import KINDS, Fault, with_fault
from properties.stack import Stack, dtype_name

RESULT = Path(__file__).with_suffix(".json")
PROPERTY = "sensitivity"
"""The name under which a report's user_properties hold what was measured of an item."""

SEED = 18
EXAMPLES = 8
"""Random examples that are measured: 14 % of them are eight, enough for a quantile."""

settings.register_profile("sensitivity", UNSHRUNK, max_examples=EXAMPLES, derandomize=False)

PROBABILITY = 0.95
DRAWN = settings.get_profile("ci").max_examples
ELEMENTS = 16
"""Elements drawn of each tensor, each of which stands for one element off."""

SHAPES = {
    "one element": "one random element is off, relative to itself",
    "scaled": "all elements are multiplied by 1 + error",
    "constant": "a constant is added to all elements, relative to their root mean square",
}
"""The shapes of errors that are planted in results."""

SIGNIFICANT_BITS = {name: round(-np.log2(precision.unit)) for name, precision in PRECISIONS.items()}
"""The significant bits of each dtype, whose unit roundoff is 2**-bits."""


class Smallest(NamedTuple):
    """The smallest errors of a tensor that an example rejects, infinity for none, and what would pass in it."""

    element: Array  # one for each of ELEMENTS random elements
    scaled: float
    constant: float
    zeros_pass: bool
    opposite_sign_passes: bool

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
    Return the smallest errors that a comparison within budget rejects; None if all exact values are zero.

    Elements that are wrong already, as known issues are, or not judged, reject nothing.
    """
    if not np.any(exact.value):
        return None
    with np.errstate(all="ignore"):
        deviation = actual - exact.value
        allowed = THRESHOLD * exact.budget
        judged = np.isfinite(allowed) & np.isfinite(actual) & (np.abs(deviation) <= allowed)
        up, down = (np.where(judged, allowed - sign * deviation, np.inf).ravel() for sign in (1, -1))
        size = np.abs(np.where(np.isfinite(actual), actual, 0.0)).ravel()
        outward, inward = (np.where(actual.ravel() > 0, *pair) for pair in ((up, down), (down, up)))
        outward, inward = (np.where(size > 0, room / size, np.inf) for room in (outward, inward))
        mean_square = np.mean(exact.value[np.isfinite(exact.value)] ** 2)
        constant = max(up.min(), down.min()) / np.sqrt(mean_square)
    nonzero = np.flatnonzero(size)
    either = np.maximum(outward, inward)
    return Smallest(
        random.choice(either[nonzero], ELEMENTS) if len(nonzero) else np.full(ELEMENTS, np.inf),
        max(outward.min(), inward.min()),
        constant if mean_square else np.inf,
        bool(np.all(exact.ratio(np.zeros_like(actual)) <= THRESHOLD)),
        bool(np.all(exact.ratio(-exact.value) <= THRESHOLD)),
    )


PARAMETER = re.compile("|".join(map(re.escape, PARAMETERS)))


def tensor_name(what: str) -> str:
    """Return the name of a tensor without the number of an image, step or loss: `fc1.bias.grad of image 3` is a .grad."""
    found = PARAMETER.search(what)
    if not found:
        return re.sub(r" \d+\b", "", what)
    if "Hessian" in what:
        return f"the Hessian-vector product for {found.group()}"
    return found.group() + (".grad" if "grad" in what else "")


class Observer:
    """Collects the smallest rejected errors at each comparison of an item, by example and tensor."""

    def __init__(self, seed: int) -> None:
        self.examples: list[tuple[dict[str, Any], dict[str, Smallest]]] = []  # each with its arguments
        self._latest: int = 0
        self._random = np.random.default_rng([SEED, seed])

    def __call__(self, what: str, actual: Array, exact: Budgeted) -> None:
        """Measure a comparison of the latest example of the current ledger."""
        ledger = current_ledger()
        if ledger.examples != self._latest:
            self._latest = ledger.examples
            self.examples.append((ledger.drawn, {}))
        smallest, own, name = smallest_errors(actual, exact, self._random), self.examples[-1][1], tensor_name(what)
        if smallest:
            own[name] = own[name].with_other(smallest) if name in own else smallest


@dataclass
class Sample:
    """The smallest rejected errors of one shape in the examples of one item; infinity stands for none."""

    explicit: list[list[float]] = field(default_factory=list)  # for each example, equally likely ones
    random: list[list[float]] = field(default_factory=list)
    drawn: int = DRAWN  # the number of random examples that a run draws


def smallest_seen(samples: Sequence[Sample]) -> float:
    """Return the smallest error that some example of a run rejects with PROBABILITY; infinity if there is none."""

    def missed(error: float) -> float:
        missed = 1.0
        for sample in samples:
            for each in sample.explicit:
                missed *= np.mean(np.array(each) > error)
            if sample.random:
                missed *= np.mean(np.array(sample.random) > error) ** sample.drawn
        return missed

    sizes = np.unique(np.array([e for s in samples for each in s.explicit + s.random for e in each]))
    sizes = sizes[np.isfinite(sizes)]
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if missed(sizes[middle]) <= 1 - PROBABILITY else (middle + 1, high)
    return float(sizes[low]) if low < len(sizes) else np.inf


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
        return any(
            search(each) for each in used if str(getattr(each, "__module__", "")).startswith("properties.laws")
            and (isinstance(each, type) or hasattr(each, "__code__"))
        )

    return search(law)


def _names(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return {*code.co_names}.union(*map(_names, inner))


def pytest_configure(config: pytest.Config) -> None:
    """Cache the oracle's answers in a worker; collect its results elsewhere."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
        for name in ("solve", "accumulated_gradients"):
            setattr(oracle, name, cached(getattr(oracle, name)))
        config.pluginmanager.register(Start())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Keep the laws that compare within budget, slowest dtype first so that the workers end together."""
    items[:] = [item for item in items if compares_within_budget(_function(item))]


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
    current_ledger().observe, observer = None, item.stash[OBSERVER]
    law: Any = item.obj
    explicit = len(getattr(law, "hypothesis_explicit_examples", ())) if hasattr(law, "hypothesis") else 1
    own = law._hypothesis_internal_use_settings.max_examples if hasattr(law, "hypothesis") else DRAWN
    drawn = DRAWN if own == EXAMPLES else min(own, DRAWN)
    parameters: dict[str, Any] = {name: item.funcargs[name] for name in item.callspec.params}
    stack: Stack = parameters["stack"]
    is_machine = not hasattr(law, "hypothesis") and current_ledger().examples > 1
    explicit = 0 if is_machine else explicit
    arguments = [given for given, _ in observer.examples]
    measured = {
        "law": item.originalname,
        "dtype": dtype_name(stack.dtype),
        "explicit": explicit,
        "drawn": drawn,
        "examples": [
            {name: (each.element.tolist(), *map(float, each[1:3]), *each[3:]) for name, each in tensors.items()}
            for _, tensors in observer.examples
        ],
        "bits": {},
    }
    if not is_machine:
        with recording(Ledger(known_issues=current_ledger().known_issues)):
            measured["bits"] = bits_seen(counted_law(item), parameters, arguments, explicit, drawn)
    item.user_properties.append((PROPERTY, measured))


def bits_seen(
    law: Callable[..., None],
    parameters: dict[str, Any],
    examples: list[dict[str, Any]],
    explicit: int,
    drawn: int,
) -> dict[str, int]:
    """
    Return the largest number of bits of each kind of `KINDS` that the law rejects with PROBABILITY; 0 for none.

    The law rejects it in an explicit example, or in so many of `drawn` random ones that a run has one with PROBABILITY.
    """
    stack, found = parameters["stack"], {}
    significant = SIGNIFICANT_BITS[dtype_name(stack.dtype)]
    accumulated = round(-np.log2(stack.precision.accumulator.unit))
    largest = {"operands": significant - 1, "sums": accumulated - 1, "stores": min(significant, 52)}
    needed = int(np.ceil(drawn * (1 - (1 - PROBABILITY) ** (1 / drawn))))
    for kind in KINDS:

        @cache
        def rejects(number: int, bits: int, kind: str = kind) -> bool:
            faulty = replace(stack, subject=with_fault(stack.subject, Fault(kind, bits)))
            with faulty.installed():
                try:
                    law(**parameters | {"stack": faulty} | examples[number])
                except (AssertionError, pytest.fail.Exception):
                    return True
                except (UnsatisfiedAssumption, pytest.skip.Exception):
                    return False
            return False

        best = 0
        for number in range(min(explicit, len(examples))):
            best = _largest(lambda bits, number=number: rejects(number, bits), best, largest[kind])
        top = [best] * needed
        for number in range(explicit, min(explicit + drawn, len(examples))):
            top = sorted([*top, _largest(lambda bits, number=number: rejects(number, bits), top[0], largest[kind])])[1:]
        found[kind] = top[0]
    return found


def _largest(rejects: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest number from `low` to `high` that is rejected, or `low` if the next one is not."""
    if low >= high or not rejects(low + 1):
        return low
    low += 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if rejects(middle) else (low, middle - 1)
    return low


class Collector:
    """Collects what the workers have measured, and shows their progress."""

    def __init__(self) -> None:
        self.measured: list[dict[str, Any]] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the measurements of an item."""
        if report.when == "call":
            self.measured += [value for name, value in report.user_properties if name == PROPERTY]
        if report.failed:
            self.failed.append(report.nodeid)


def summary(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    Return what was measured by law and dtype.

    `tensors` has, for each tensor, the smallest error of each of `SHAPES` that is seen (null if none is), and the share
    of the examples in which zeros, or the opposite sign, would pass. `bits` has the largest number of bits that is seen
    of each of `KINDS` (null if none is). `uninformative` lists the tensors in which one of the shares is above a half.
    """
    items: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for item in measured:
        if any(item["examples"]):
            items[item["law"], item["dtype"]].append(item)
    laws: dict[str, dict[str, Any]] = {}
    uninformative = []
    for (law, dtype), own in sorted(items.items(), key=lambda entry: (entry[0][0], list(PRECISIONS).index(entry[0][1]))):
        names = dict.fromkeys(name for item in own for example in item["examples"] for name in example)
        tensors = {name: _tensor(own, name) for name in names}
        bits = {kind: max(item["bits"].get(kind, 0) for item in own) or None for kind in KINDS}
        examples = sum(len(item["examples"]) for item in own)
        laws.setdefault(law, {})[dtype] = {"examples": examples, "tensors": tensors, "bits": bits}
        for name, row in tensors.items():
            if max(row["zeros pass"], row["opposite sign passes"]) > 1 / 2:
                uninformative.append({"law": law, "dtype": dtype, "tensor": name})
    return {"laws": laws, "uninformative": uninformative}


def _tensor(items: Sequence[dict[str, Any]], name: str) -> dict[str, float | None]:
    """Return the summary of a tensor over the items of one law and dtype."""
    row: dict[str, float | None] = {}
    for position, shape in enumerate(SHAPES):
        samples = []
        for item in items:
            errors = [_of_shape(example.get(name), position) for example in item["examples"]]
            explicit = item["explicit"]
            samples.append(Sample(errors[:explicit], errors[explicit:], item["drawn"]))
        seen = smallest_seen(samples)
        row[shape] = float(f"{seen:.3g}") if np.isfinite(seen) else None
    passing = [example[name][3:] for item in items for example in item["examples"] if name in example]
    row |= dict(zip(("zeros pass", "opposite sign passes"), np.mean(passing, axis=0).round(3).tolist(), strict=True))
    return row


def _of_shape(errors: Sequence[Any] | None, position: int) -> list[float]:
    """Return the smallest errors of the shape at this position of SHAPES, equally likely ones, ELEMENTS of them."""
    if errors is None:
        return [np.inf] * ELEMENTS
    return list(errors[position]) if position == 0 else [errors[position]] * ELEMENTS


def table(laws: dict[str, Any], shape: str = "scaled") -> Iterator[str]:
    """Return the lines of a table: for each law and dtype, the smallest error of this shape in any tensor."""
    yield f"| smallest error that is seen, {shape} | " + " | ".join(PRECISIONS) + " |"
    yield "| --- |" + " ---: |" * len(PRECISIONS)
    yield "| unit roundoff | " + " | ".join(f"{precision.unit:.1e}" for precision in PRECISIONS.values()) + " |"
    for law, dtypes in laws.items():
        smallest = [best_of(dtypes[dtype], shape) if dtype in dtypes else None for dtype in PRECISIONS]
        yield f"| `{law_index.short(law)}` | " + " | ".join(f"{e:.1e}" if e else "" for e in smallest) + " |"


def best_of(entry: dict[str, Any], shape: str) -> float | None:
    """Return the smallest error of a shape that is seen in any tensor of a law and dtype; None if none is."""
    return min((row[shape] for row in entry["tensors"].values() if row[shape] is not None), default=None)


def main(arguments: list[str]) -> int:
    """Measure and write the sensitivity; return 0, 1 if a law did not run to its end, or 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties sensitivity",
        description=__doc__.split("\n\n")[0].strip(),
        epilog="example: lenet-properties sensitivity --law 'logits*' --dtype float32",
    )
    parser.add_argument("--law", action="append", default=[], metavar="NAME", help="only these laws: a name or pattern")
    parser.add_argument("--dtype", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="default: all")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: all cores, %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON; requires all laws")
    options = parser.parse_args(arguments)
    if options.processes < 1:
        parser.error(f"--processes {options.processes}: at least 1 is needed")
    if options.output and (options.law or options.dtype != list(PRECISIONS)):
        parser.error("--output requires all laws and dtypes: remove --law and --dtype")
    if options.output and (options.output.is_dir() or not writable(options.output.parent)):
        parser.error(f"--output {options.output}: not a file that can be written")
    try:
        words = judge.selected(options.law) if options.law else [str(judge.LAWS)]
    except ValueError as error:
        parser.error(f"--law {error}")
    command = ["sensitivity", *arguments]
    words += ["--hypothesis-profile=sensitivity", f"--hypothesis-seed={SEED}", "-n", str(options.processes)]
    words += ["--device=cpu", f"--dtype={','.join(options.dtype)}", "--subject=lenet", "-q"]
    collector = Collector()
    code = judge.run_pytest(words, command, (*judge.PLUGINS, "properties.sensitivity"), [collector])
    result = summary(collector.measured)
    print("\n".join(table(result["laws"])))
    for each in result["uninformative"]:
        print("uninformative: {law}, {dtype}, {tensor}".format(**each))
    if code or collector.failed:
        print("\n".join(f"PROBLEM: {name}" for name in collector.failed))
        return code or 1
    if options.output:
        about = {"seed": SEED, "random examples": DRAWN, "probability": PROBABILITY, "measured examples": EXAMPLES}
        about |= {"shapes": SHAPES, "kinds": KINDS}
        content = stamp(shlex.join(["lenet-properties", *command])) | about | result
        with write_atomically(options.output) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
    return 0
