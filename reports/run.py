"""The data of a run: what its files contain, and arithmetic on its times."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from reports.laws import Law, LawResults, group_laws


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
    parts: dict[str, float] = field(default_factory=dict, compare=False)
    """Seconds, of a training step; empty if not observed."""
    limits: dict[str, float] = field(default_factory=dict, compare=False)
    """Rates of the machine from between its blocks; empty in older files."""

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
    laws: LawResults
    timings: list[Timing]
    failed_benchmarks: list[str]  # that raised an error or gave a wrong answer
    training: dict[str, Any] | None  # the content of training.json
    gate: dict[str, Any] | None  # the content of gate.json
    gate_trial: list[list[str]]  # a table with its head; empty without gate_trial.json
    engines: LawResults | None
    engine_times: dict[str, Any] | None  # the content of engine_times.json
    latencies: list[dict[str, Any]]
    project: dict[str, Any]  # version, commit and state of this project; empty in older files
    files: list[str]
    unused: list[str]  # files of another run, each with the reason

    @property
    def law_results(self) -> list[LawResults]:
        """The results of the laws on the subject and, if they were judged, on engines."""
        return [self.laws, self.engines] if self.engines else [self.laws]

    @property
    def all_laws(self) -> list[Law]:
        """The laws with their entries on the subject and on engines."""
        return group_laws(entry for results in self.law_results for law in results.laws for entry in law.entries)

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

    def step_breakdown(self) -> list[tuple[str, list[Timing]]]:
        """For each configuration: its name, and the training steps whose parts were observed, by batch size."""
        divided = [timing for timing in self.timings if timing.parts]
        labels = dict.fromkeys(timing.label for timing in divided)
        return [(label, [timing for timing in divided if timing.label == label]) for label in labels]

    def matrix_product_rate(self, timing: Timing) -> float | None:
        """FLOP/s of a matrix product between the blocks of a timing, else in its configuration; None if not timed."""
        if timing.limits:
            return timing.limits["flops_per_second"]
        product = self._in_same_configuration(timing, "matrix product")
        return product.flops_per_second if product else None

    def copy_bandwidth(self, timing: Timing) -> float | None:
        """Bytes/s of a copy between the blocks of a timing, else in its configuration; None if not timed."""
        if timing.limits:
            return timing.limits["bytes_per_second"]
        copy = self._in_same_configuration(timing, "copy")
        return copy.bytes_moved / copy.median if copy else None

    def _in_same_configuration(self, timing: Timing, operation: str) -> Timing | None:
        same = (t for t in self.timings if t.operation == operation and t.configuration == timing.configuration)
        return next(same, None)
