"""The files that a run wrote, read with suspicion: whatever is missing, torn, empty or foreign is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from benchmarks.gate_trial import rows
from lenet.fingerprint import FORMAT

ORDER = (
    "network",
    "forward",
    "exactness",
    "symmetries",
    "purity",
    "layouts",
    "gradients",
    "transforms",
    "accumulation",
    "update",
    "optimizer",
    "module",
    "training",
    "learning",
    "nan",
    "refusals",
    "lower_precision",
)
WRITERS = {
    "laws.json": "pytest properties --record DIR",
    "benchmarks.json": "pytest benchmarks --record DIR",
    "training.json": "python -m lenet.training --record DIR",
    "engines.json": "pytest properties -m 'law and engine' --engine NAMES --record DIR",
    "engine_times.json": "python -m benchmarks.engine_times --record DIR",
    "gate.json": "python -m benchmarks.gate --json DIR/gate.json",
    "gate_trial.json": "python -m benchmarks.gate_trial --record DIR",
}
OPTIONAL = ("engines.json", "engine_times.json", "gate.json", "gate_trial.json")
"""What a run may lack."""


class ReportError(ValueError):
    """A run that no report can be made of; the message is one line that names the file and what was found."""


def title_of(law: str) -> str:
    """A law's name as a sentence."""
    return law.removeprefix("test_").replace("_", " ")


@dataclass(frozen=True)
class Law:
    """A law over all the stacks and forms that it was judged in."""

    name: str
    group: str
    wording: str
    entries: list[dict[str, Any]]  # as properties/conftest.py writes them

    @property
    def title(self) -> str:
        """The law's name as a sentence."""
        return title_of(self.name)

    @property
    def summary(self) -> str:
        """The first paragraph of its wording."""
        return self.wording.split("\n\n")[0]

    @property
    def details(self) -> str:
        """The rest of its wording."""
        return self.wording.partition("\n\n")[2]

    @property
    def violations(self) -> list[dict[str, Any]]:
        """Where it does not hold."""
        return [entry for entry in self.entries if entry["outcome"] == "failed"]

    @property
    def outcome(self) -> str:
        """violated, holds, or not judged, where every entry was skipped."""
        if self.violations:
            return "violated"
        return "holds" if any(entry["outcome"] == "passed" for entry in self.entries) else "not judged"

    @property
    def reasons(self) -> list[str]:
        """Why it was not judged somewhere."""
        return sorted({entry["reason"].removeprefix("Skipped: ") for entry in self.entries if entry["reason"]})

    @property
    def known(self) -> list[str]:
        """The known issues that were shown: on the examples that they cover, the law may fail."""
        return sorted({f"{issue['title']} ({issue['reference']})" for e in self.entries for issue in e["known"]})

    @property
    def open(self) -> float:
        """The share of examples that could not be judged in full."""
        return float(sum(entry["open"] for entry in self.entries)) / max(1, self.examples)

    @property
    def examples(self) -> int:
        """Examples judged."""
        return sum(entry["examples"] for entry in self.entries)

    @property
    def seconds(self) -> float:
        """Time that it took."""
        return sum(float(entry["seconds"]) for entry in self.entries)

    @property
    def worst(self) -> float:
        """The largest error / budget met."""
        return max(math.inf if entry["worst"] is None else float(entry["worst"]) for entry in self.entries)


@dataclass(frozen=True)
class Timing:
    """One benchmark's result."""

    operation: str
    subject: str
    device: str
    dtype: str
    threads: int
    batch: int | None
    median: float  # seconds a call
    low: float  # first quartile
    high: float  # third quartile
    rounds: int
    flops: int
    moved: int  # bytes, of a network that runs layer by layer; 0 where they were not counted
    images: int
    attained: float | None  # share of what the roofline allows

    @property
    def rate(self) -> float:
        """Floating-point operations a second."""
        return self.flops / self.median

    @property
    def throughput(self) -> float:
        """Images a second."""
        return self.images / self.median

    @property
    def place(self) -> tuple[str, str, str, int]:
        """What it may be compared within."""
        return self.subject, self.device, self.dtype, self.threads

    @property
    def what(self) -> str:
        """The same in words."""
        return f"{self.subject}, {self.where}"

    @property
    def where(self) -> str:
        """The same in words, without the subject."""
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return f"{self.device}, {self.dtype}{threads}"


@dataclass(frozen=True)
class Run:
    """What one run found, ready to be shown."""

    stack: dict[str, str]
    date: str
    threshold: float
    profile: str
    commands: list[str]
    laws: list[Law]
    timings: list[Timing]
    finished: bool
    failures: list[str]  # benchmarks, and laws that failed without a verdict
    training: dict[str, Any]
    gate: dict[str, Any] | None
    trial: list[list[str]]  # a table, its head first; empty where there was none
    engines: dict[str, dict[str, str]]  # by stack: the outcome of each law
    engine_times: dict[str, Any] | None
    latencies: list[dict[str, Any]]
    files: list[str]

    @property
    def engine_laws(self) -> list[str]:
        """The laws that any engine was judged by."""
        return list(dict.fromkeys(law for outcomes in self.engines.values() for law in outcomes))

    @property
    def violated(self) -> list[Law]:
        """The laws that do not hold."""
        return [law for law in self.laws if law.outcome == "violated"]

    @property
    def held(self) -> list[Law]:
        """The laws that hold."""
        return [law for law in self.laws if law.outcome == "holds"]

    @property
    def passed(self) -> bool:
        """The run went to its end, every law that was judged holds, at least one was, and nothing else failed."""
        return self.finished and bool(self.held) and not self.violated and not self.failures

    @property
    def stacks(self) -> list[str]:
        """What was judged."""
        names = {entry["stack"] for law in self.laws for entry in law.entries if entry["outcome"] != "skipped"}
        return sorted(names - {""})

    @property
    def known(self) -> list[str]:
        """The known issues that were shown, in words."""
        return sorted({issue for law in self.laws for issue in law.known})

    @property
    def issues(self) -> list[dict[str, str]]:
        """The same, each once, with its reference and the version that mends it, where there is one."""
        entries = (issue for law in self.laws for entry in law.entries for issue in entry["known"])
        return [dict(issue) for issue in sorted({tuple(sorted(issue.items())) for issue in entries}, key=str)]

    def seen_by(self, issue: dict[str, str]) -> list[str]:
        """The titles of the laws that saw a known issue."""
        return [law.title for law in self.laws if any(issue in entry["known"] for entry in law.entries)]

    @property
    def notes(self) -> list[str]:
        """Figures that laws wanted stated."""
        return [f"{entry['stack']}: {note}" for law in self.laws for entry in law.entries for note in entry["notes"]]

    @property
    def verdict(self) -> str:
        """What was judged and what came of it, in one sentence without names that a user gave."""
        counts = [_plural(len(self.held), "law") + (" holds" if len(self.held) == 1 else " hold")]
        counts += [_plural(len(self.known), "known issue"), _plural(len(self.violated), "violation")]
        counts += [_plural(len(self.failures), "other failure")] if self.failures else []
        counts += [] if self.finished else ["stopped before its end"]
        step = next((b for b in self.gated if b["name"].startswith("training-step")), None)
        speed = f"; training step {_slowdown(step)}" if step else ""
        devices = " and ".join(name for name in ("CPU", "CUDA") if any(f" on {name.lower()}" in s for s in self.stacks))
        machine = f"{self.stack['processor']}, {self.stack['cores']} cores" + (
            f", {self.stack['GPU']}" if "CUDA" in devices and "GPU" in self.stack else ""
        )
        return f"PyTorch {self.version} ({devices}) on {machine}: {', '.join(counts)}{speed}."

    @property
    def version(self) -> str:
        """Of PyTorch, without how it was built."""
        return self.stack["torch"].partition("+")[0]

    @property
    def evidence(self) -> str:
        """How much the verdict rests on, in one sentence."""
        examples, worst = sum(law.examples for law in self.laws), max(law.worst for law in self.laws)
        return f"{examples:,} examples were judged; the worst error is {worst:.2g} of {self.threshold:g} budgets."

    @property
    def speed(self) -> str:
        """The training step's highest throughput, in one sentence."""
        best = self.best("training step")
        if not best:
            return "No training step was timed."
        where = f"{best.where}, {best.batch} images a batch"
        return f"A training step handles up to {best.throughput:,.0f} images a second ({where})."

    @property
    def compared(self) -> str:
        """How much longer each benchmark of the gate takes than base's, in one sentence; empty where there is none."""
        found = [f"{benchmark['name']} {_slowdown(benchmark)}" for benchmark in self.gated]
        return f"{'; '.join(found)}." if found else ""

    @property
    def gated(self) -> list[dict[str, Any]]:
        """The gate's benchmarks that were timed."""
        return [benchmark for benchmark in (self.gate or {}).get("benchmarks", []) if benchmark["found"]]

    def best(self, operation: str) -> Timing | None:
        """Where an operation handled the most images a second, at any batch, on any number of threads."""
        timed = [timing for timing in self.timings if timing.operation == operation]
        return max(timed, key=lambda timing: timing.throughput, default=None)

    def groups(self) -> list[tuple[str, list[Law]]]:
        """The laws by what they are about."""
        return [(name, list(laws)) for name, laws in groupby(self.laws, key=lambda law: law.group)]

    def split(self) -> list[tuple[str, dict[int, dict[str, float]]]]:
        """For each place: by batch, the seconds of forward, backward and the rest of a step."""
        found = []
        for place in dict.fromkeys(timing.place for timing in self.timings):
            own = {(t.operation, t.batch): t.median for t in self.timings if t.place == place and t.batch}
            where = next(timing.what for timing in self.timings if timing.place == place)
            batches = [batch for operation, batch in own if operation == "training step"]
            parts = {
                batch: {
                    "forward and loss": own["loss", batch],
                    "backward": own["backward", batch],
                    "the rest, update included": max(
                        0.0, own["training step", batch] - own["loss", batch] - own["backward", batch]
                    ),
                }
                for batch in batches
                if {("loss", batch), ("backward", batch)} <= own.keys()
            }
            if parts:
                found.append((where, parts))
        return found

    def matrix_rate(self, timing: Timing) -> float | None:
        """Floating-point operations a second of the matrix product measured in the same place, where it was."""
        product = self._beside(timing, "matrix product")
        return product.rate if product else None

    def copy_rate(self, timing: Timing) -> float | None:
        """Bytes a second of the copy measured in the same place, where it was."""
        copy = self._beside(timing, "copy")
        return copy.moved / copy.median if copy else None

    def _beside(self, timing: Timing, operation: str) -> Timing | None:
        return next((t for t in self.timings if t.operation == operation and t.place == timing.place), None)


def load(folder: Path) -> Run:
    """Read a run's files; raises ReportError where one is not whole, or they are of different stacks."""
    there = [name for name in WRITERS if name not in OPTIONAL or (folder / name).exists()]
    files = {name: read(folder / name) for name in there}
    first, *others = files
    for name in others:
        more = () if name in OPTIONAL else files[name]["stack"]  # engines may have needed further packages
        for part in dict.fromkeys([*files[first]["stack"], *more]):
            if files[first]["stack"].get(part) != files[name]["stack"].get(part):
                raise ReportError(f"{folder / name}: another {part} than that of {first}; run them on one stack")
    laws, benchmarks = files["laws.json"], files["benchmarks.json"]
    run = Run(
        stack=laws["stack"],
        date=laws["date"],
        threshold=laws["threshold"],
        profile=laws["profile"],
        commands=[content["command"] for content in files.values()],
        laws=_laws(laws["laws"]),
        timings=[_timing(entry) for entry in benchmarks["benchmarks"]],
        finished=laws["finished"],
        failures=laws["broken"] + benchmarks["failed"],
        training={"others": {}} | files["training.json"],
        gate=files.get("gate.json"),
        trial=rows(files["gate_trial.json"]["verdicts"]) if "gate_trial.json" in files else [],
        engines=files["engines.json"]["matrix"] if "engines.json" in files else {},
        engine_times=files.get("engine_times.json"),
        latencies=[_latency(entry) for entry in benchmarks["benchmarks"] if "latency" in entry["extra_info"]],
        files=there,
    )
    if not run.stacks:
        raise ReportError(f"{folder / 'laws.json'}: no law was judged")
    judged = {entry["subject"] for entry in laws["laws"]}
    timed = {timing.subject for timing in run.timings}
    if timed - judged:
        raise ReportError(f"{folder}: benchmarks.json is of {', '.join(timed)}, laws.json of {', '.join(judged)}")
    if not run.timings:
        raise ReportError(f"{folder / 'benchmarks.json'}: nothing was timed")
    if not run.training.get("history"):
        raise ReportError(f"{folder / 'training.json'}: no epoch was trained")
    return run


def _factor(share: float | None) -> str:
    """Of a bound that is infinite, JSON has null."""
    return "any" if share is None else f"{1 + share:.3f}"


def _slowdown(benchmark: dict[str, Any]) -> str:
    estimate, low, high = (_factor(benchmark["found"][name]) for name in ("estimate", "lower", "upper"))
    return f"{estimate}x of base ({low} to {high})"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def read(path: Path) -> dict[str, Any]:
    """A run's file, as `reports/schema.json` defines it; raises ReportError where it is missing, torn or another's."""
    if not path.is_file():
        raise ReportError(f"{path} is missing: it is written by `{WRITERS[path.name]}`")
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        state = "empty" if path.stat().st_size == 0 else "torn"
        raise ReportError(f"{path} is {state}: {error}; write it anew with `{WRITERS[path.name]}`") from error
    if not isinstance(content, dict) or "format" not in content or not isinstance(content.get("stack"), dict):
        raise ReportError(f"{path}: not a file of this project; it is written by `{WRITERS[path.name]}`")
    if content["format"] != FORMAT:
        raise ReportError(f"{path}: format {content['format']!r}, this version reads format {FORMAT}")
    if fault := best_match(_validator(path.name).iter_errors(content)):
        said = " ".join(fault.message.split())
        said = said if len(said) <= 200 else f"... {said[-200:]}"
        raise ReportError(f"{path}: {fault.json_path}: {said}; write it anew with `{WRITERS[path.name]}`")
    return content


@cache
def _validator(name: str) -> Draft202012Validator:
    """Of a run's file, by its definition in `reports/schema.json`."""
    schema = json.loads(resources.files("reports").joinpath("schema.json").read_text())
    return Draft202012Validator(schema | {"$ref": f"#/$defs/{name}"})


def _laws(entries: Iterable[dict[str, Any]]) -> list[Law]:
    """The entries by law; groups in the order of training, what is unknown last."""
    laws: dict[str, Law] = {}
    for entry in entries:
        law = laws.setdefault(entry["law"], Law(entry["law"], entry["group"], entry["wording"], []))
        law.entries.append(entry)
    return sorted(laws.values(), key=lambda law: ORDER.index(law.group) if law.group in ORDER else len(ORDER))


def _timing(entry: dict[str, Any]) -> Timing:
    info, stats = entry["extra_info"], entry["stats"]
    return Timing(
        operation=info["operation"],
        subject=info["subject"],
        device=info["device"],
        dtype=info["dtype"],
        threads=info["threads"],
        batch=info.get("batch"),
        median=stats["median"],
        low=stats["q1"],
        high=stats["q3"],
        rounds=stats["rounds"] * stats["iterations"],
        flops=info["flops"],
        moved=info.get("bytes", 0),
        images=info.get("images", 0),
        attained=info.get("roofline", {}).get("share"),
    )


def _latency(entry: dict[str, Any]) -> dict[str, Any]:
    info = entry["extra_info"]
    about = {"where": _timing(entry).what, "queries": info["queries"], "percentiles": info["latency"]}
    return about | {"quantiles": info.get("quantiles", [])}
