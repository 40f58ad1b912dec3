"""The data of a run: its laws, its times, and arithmetic on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any

CHAPTERS = {
    "network": "network structure",
    "forward": "forward pass",
    "exactness": "exactness",
    "symmetries": "symmetries",
    "side_effects": "side effects",
    "layouts": "memory layouts",
    "gradients": "gradients",
    "transforms": "transforms",
    "accumulation": "gradient accumulation",
    "update": "parameter update",
    "optimizer": "optimizer",
    "module": "modules and parameters",
    "training": "training in any order",
    "learning": "learning",
    "nonfinite": "non-finite values",
    "errors": "errors",
    "mixed_precision": "mixed precision",
}
"""The heading of each file `properties/laws/test_<chapter>.py`, in the order of the report."""


@dataclass(frozen=True)
class Issue:
    """A known issue that a stack showed."""

    title: str
    reference: str  # such as pytorch/pytorch#191763
    fixed_in: str = ""  # the first version without the issue; empty if no version fixes it

    def __str__(self) -> str:
        return f"{self.title} ({self.reference})"


@dataclass(frozen=True)
class Law:
    """A law with its results on all stacks and in all forms in which it was checked."""

    name: str  # of its test function
    chapter: str
    statement: str  # the docstring of its test function
    entries: list[dict[str, Any]]  # as `laws.json` and `engines.json` contain them

    @property
    def title(self) -> str:
        """The first paragraph of the statement, on one line and without its final period."""
        return " ".join(self.statement.split("\n\n")[0].split()).removesuffix(".") or self.name

    @property
    def details(self) -> str:
        """The statement without its first paragraph."""
        return self.statement.partition("\n\n")[2]

    @property
    def violations(self) -> list[dict[str, Any]]:
        """The entries in which the law failed."""
        return [entry for entry in self.entries if entry["outcome"] == "failed"]

    @property
    def outcome(self) -> str:
        """`violated`, `holds`, or `not checked` if every entry was skipped."""
        if self.violations:
            return "violated"
        return "holds" if any(entry["outcome"] == "passed" for entry in self.entries) else "not checked"

    @property
    def skip_reasons(self) -> list[str]:
        """Why entries were skipped, each reason once."""
        return sorted({entry["reason"].removeprefix("Skipped: ") for entry in self.entries if entry["reason"]})

    @property
    def known_issues(self) -> list[Issue]:
        """The known issues that the law showed, each once."""
        issues = {
            Issue(issue["title"], issue["reference"], issue.get("fixed_in", ""))
            for entry in self.entries
            for issue in entry["known_issues"]
        }
        return sorted(issues, key=str)

    @property
    def partly_judged_share(self) -> float:
        """The share of examples, from 0 to 1, in which some numbers could not be judged."""
        return float(sum(entry["partly_judged"] for entry in self.entries)) / max(1, self.examples)

    @property
    def examples(self) -> int:
        """The number of judged examples."""
        return sum(entry["examples"] for entry in self.entries)

    @property
    def seconds(self) -> float:
        """The time that all entries took together."""
        return sum(float(entry["seconds"]) for entry in self.entries)

    @property
    def worst_ratio(self) -> float:
        """The largest error in rounding budgets; infinity where JSON has null."""
        ratios = [entry["worst_ratio"] for entry in self.entries]
        return max(math.inf if ratio is None else float(ratio) for ratio in ratios)


@dataclass(frozen=True)
class Timing:
    """The result of one benchmark."""

    operation: str
    subject: str
    device: str
    dtype: str
    threads: int  # 0 if the number of threads makes no difference
    batch: int | None
    median: float  # seconds per call
    q1: float  # seconds per call, first quartile
    q3: float  # seconds per call, third quartile
    calls: int
    flops: int  # per call
    bytes_moved: int  # per call, by a network that runs layer by layer; 0 if not counted
    images: int  # per call
    roofline_share: float | None  # from 0 to 1

    @property
    def flops_per_second(self) -> float:
        """Floating-point operations per second."""
        return self.flops / self.median

    @property
    def throughput(self) -> float:
        """Images per second."""
        return self.images / self.median

    @property
    def configuration(self) -> tuple[str, str, str, int]:
        """Subject, device, dtype and threads: times of one configuration can be drawn as one line."""
        return self.subject, self.device, self.dtype, self.threads

    @property
    def label(self) -> str:
        """The configuration in words."""
        return f"{self.subject}, {self.setting}"

    @property
    def setting(self) -> str:
        """Device, dtype and threads in words."""
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return f"{self.device}, {self.dtype}{threads}"


@dataclass(frozen=True)
class Run:
    """The content of all files of one run."""

    stack: dict[str, str]
    date: str
    threshold: float  # the number of budgets that an error may have
    profile: str
    commands: list[str]
    laws: list[Law]  # in the order of CHAPTERS
    timings: list[Timing]
    finished: bool
    errors: list[str]  # benchmarks that failed, and laws that failed without a verdict
    training: dict[str, Any]  # the content of training.json
    gate: dict[str, Any] | None  # the content of gate.json
    gate_trial: list[list[str]]  # a table with its head; empty without gate_trial.json
    engine_laws: list[Law]
    engine_outcomes: dict[str, dict[str, str]]  # by stack and by name of a law
    engine_times: dict[str, Any] | None  # the content of engine_times.json
    latencies: list[dict[str, Any]]
    files: list[str]

    @property
    def engine_titles(self) -> dict[str, str]:
        """The title of each law in `engine_outcomes`, by the law's name."""
        titles = {law.name: law.title for law in self.engine_laws}
        names = dict.fromkeys(name for outcomes in self.engine_outcomes.values() for name in outcomes)
        return {name: titles.get(name, name) for name in names}

    @property
    def violated(self) -> list[Law]:
        """The laws that are violated on at least one stack."""
        return [law for law in self.laws if law.outcome == "violated"]

    @property
    def holding(self) -> list[Law]:
        """The laws that hold on every stack on which they were checked."""
        return [law for law in self.laws if law.outcome == "holds"]

    @property
    def passed(self) -> bool:
        """Whether the run finished, at least one law holds, none is violated, and there were no errors."""
        return self.finished and bool(self.holding) and not self.violated and not self.errors

    @property
    def stacks(self) -> list[str]:
        """The stacks that were judged, in words."""
        names = {entry["stack"] for law in self.laws for entry in law.entries if entry["outcome"] != "skipped"}
        return sorted(names - {""})

    @property
    def known_issues(self) -> list[Issue]:
        """The known issues that any law showed, each once."""
        return sorted({issue for law in self.laws for issue in law.known_issues}, key=str)

    @property
    def common_skip_reasons(self) -> list[str]:
        """The reasons for which every law was skipped on some stacks."""
        return sorted(set.intersection(*(set(law.skip_reasons) for law in self.laws)))

    def laws_with(self, issue: Issue) -> list[Law]:
        """The laws that showed a known issue."""
        return [law for law in self.laws if issue in law.known_issues]

    @property
    def notes(self) -> list[str]:
        """The figures that laws recorded, each with its stack."""
        return [f"{entry['stack']}: {note}" for law in self.laws for entry in law.entries for note in entry["notes"]]

    @property
    def torch_version(self) -> str:
        """The version of PyTorch without its build: `2.13.0` for `2.13.0+cpu`."""
        return self.stack["torch"].partition("+")[0]

    @property
    def gate_benchmarks(self) -> list[dict[str, Any]]:
        """The gate's benchmarks that were timed."""
        return [benchmark for benchmark in (self.gate or {}).get("benchmarks", []) if benchmark["slowdown"]]

    def fastest(self, operation: str) -> Timing | None:
        """The timing of an operation with the highest throughput, over all batch sizes and configurations."""
        timings = [timing for timing in self.timings if timing.operation == operation]
        return max(timings, key=lambda timing: timing.throughput, default=None)

    def chapters(self) -> list[tuple[str, list[Law]]]:
        """The laws of each chapter, with the chapter's heading."""
        by_chapter = groupby(self.laws, key=lambda law: law.chapter)
        return [(CHAPTERS.get(chapter, chapter), list(laws)) for chapter, laws in by_chapter]

    def step_breakdown(self) -> list[tuple[str, dict[int, dict[str, float]]]]:
        """For each configuration: the seconds of each part of a training step, by batch size."""
        breakdown = []
        for configuration in dict.fromkeys(timing.configuration for timing in self.timings):
            timings = [timing for timing in self.timings if timing.configuration == configuration]
            medians = {(timing.operation, timing.batch): timing.median for timing in timings if timing.batch}
            parts = {
                batch: {
                    "forward and loss": medians["loss", batch],
                    "backward": medians["backward", batch],
                    "rest, including the update": max(0.0, step - medians["loss", batch] - medians["backward", batch]),
                }
                for (operation, batch), step in medians.items()
                if operation == "training step" and {("loss", batch), ("backward", batch)} <= medians.keys()
            }
            if parts:
                breakdown.append((timings[0].label, parts))
        return breakdown

    def matrix_product_rate(self, timing: Timing) -> float | None:
        """Floating-point operations per second of a matrix product in the same configuration; None if not timed."""
        product = self._in_same_configuration(timing, "matrix product")
        return product.flops_per_second if product else None

    def copy_bandwidth(self, timing: Timing) -> float | None:
        """Bytes per second of a copy in the same configuration; None if not timed."""
        copy = self._in_same_configuration(timing, "copy")
        return copy.bytes_moved / copy.median if copy else None

    def _in_same_configuration(self, timing: Timing, operation: str) -> Timing | None:
        same = (t for t in self.timings if t.operation == operation and t.configuration == timing.configuration)
        return next(same, None)
