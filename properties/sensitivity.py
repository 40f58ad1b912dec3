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

A tensor is uninformative if zeros in place of the result, or the result with the opposite sign, would pass in more than
half of the examples.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lenet.files import writable, write_atomically
from lenet.fingerprint import stamp
from lenet.oracle import PRECISIONS
from properties import judge, law_index
from properties.judged_code import LAWS
from properties.reduced_precision import KINDS

RESULT = Path(__file__).with_suffix(".json")
PROPERTY = "sensitivity"
"""The name under which a report's user_properties hold what was measured of an item."""

SEED = 18
EXAMPLES = 24
"""Random examples that are measured: 14 % of them are three or four."""

PROBABILITY = 0.95
DRAWN = 20
"""The random examples of the profile `ci`."""

SIGNIFICANT_BITS = {name: round(-np.log2(precision.unit)) for name, precision in PRECISIONS.items()}
"""The significant bits of each dtype, whose unit roundoff is 2**-bits."""

ELEMENTS = 16
"""Elements drawn of each tensor, each of which stands for one element off."""

SHAPES = {
    "one element": "one random element is off, relative to itself",
    "scaled": "all elements are multiplied by 1 + error",
    "constant": "a constant is added to all elements, relative to their root mean square",
}
"""The shapes of errors that are planted in results."""


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
                missed *= float(np.mean(np.array(each) > error))
            if sample.random:
                missed *= float(np.mean(np.array(sample.random) > error)) ** sample.drawn
        return missed

    sizes = np.unique(np.array([e for s in samples for each in s.explicit + s.random for e in each]))
    sizes = sizes[np.isfinite(sizes)]
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if missed(sizes[middle]) <= 1 - PROBABILITY else (middle + 1, high)
    return float(sizes[low]) if low < len(sizes) else np.inf


class Collector:
    """Collects what the workers have measured, and shows their progress."""

    def __init__(self) -> None:
        self.measured: list[dict[str, Any]] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the measurements of an item."""
        if report.when == "call":
            found: list[tuple[str, Any]] = report.user_properties
            self.measured += [value for name, value in found if name == PROPERTY]
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
    for (law, dtype), own in sorted(
        items.items(), key=lambda entry: (entry[0][0], list(PRECISIONS).index(entry[0][1]))
    ):
        names = dict.fromkeys(name for item in own for example in item["examples"] for name in example)
        tensors = {name: _tensor(own, name) for name in names}
        bits = {kind: max(item["bits"].get(kind, 0) for item in own) or None for kind in KINDS}
        examples = sum(len(item["examples"]) for item in own)
        laws.setdefault(law, {})[dtype] = {"examples": examples, "tensors": tensors, "bits": bits}
        for name, row in tensors.items():
            if max(row["zeros pass"], row["opposite sign passes"]) > 1 / 2:
                uninformative.append({"law": law, "dtype": dtype, "tensor": name})
    return {"laws": laws, "uninformative": uninformative}


def _tensor(items: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the summary of a tensor over the items of one law and dtype."""
    row: dict[str, Any] = {}
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


@cache
def published() -> dict[str, Any]:
    """Return the published measurement, the content of `sensitivity.json`."""
    content: dict[str, Any] = json.loads(RESULT.read_text())
    return content


def best_of(entry: dict[str, Any], shape: str) -> float | None:
    """Return the smallest error of a shape that is seen in any tensor of a law and dtype; None if none is."""
    return min((row[shape] for row in entry["tensors"].values() if row[shape] is not None), default=None)


def bits_of(laws: dict[str, Any], kind: str, dtype: str) -> int | None:
    """Return the largest number of bits of a kind that any law sees in a dtype; None if none sees any."""
    bits = (dtypes[dtype]["bits"][kind] for dtypes in laws.values() if dtype in dtypes)
    return max((each for each in bits if each), default=None)


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
        words = judge.selected(options.law) if options.law else [str(LAWS)]
    except ValueError as error:
        parser.error(f"--law {error}")
    command = ["sensitivity", *arguments]
    words += [
        "--hypothesis-profile=sensitivity",
        f"--hypothesis-seed={SEED}",
        "-n",
        str(options.processes),
        "--dist=loadgroup",
    ]
    words += ["--device=cpu", f"--dtype={','.join(options.dtype)}", "--subject=lenet", "-q"]
    collector = Collector()
    code = judge.run_pytest(words, command, (*judge.PLUGINS, "properties.sensitivity_plugin"), [collector])
    result = summary(collector.measured)
    print("\n".join(table(result["laws"])))
    for each in result["uninformative"]:
        print("uninformative: {law}, {dtype}, {tensor}".format(**each))
    if code or collector.failed:
        print("\n".join(f"PROBLEM: {name}" for name in collector.failed))
        return code or 1
    if options.output:
        about = {
            "seed": SEED,
            "probability": PROBABILITY,
            "random examples": DRAWN,
            "measured examples": EXAMPLES,
            "shapes": SHAPES,
            "kinds": KINDS,
        }
        content = stamp(shlex.join(["lenet-properties", *command])) | about | result
        with write_atomically(options.output) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
    return 0
