"""A run as texts: the page, the summary, and the pages of all published runs, from Jinja's templates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from lenet.fingerprint import FORMAT, headline
from lenet.training import WAYS
from properties.diagnosis import known
from reports import figures
from reports.history import by_machine, differences
from reports.run import Run, Timing, title_of


@cache
def environment() -> Environment:
    """Where the templates are rendered: whatever a user named stays text, and what is missing is an error."""
    own = Environment(
        loader=PackageLoader("reports"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own.filters |= {
        "cell": _cell,
        "clip": _clip,
        "address": _address,
        "engine": _engine,
        "title_of": title_of,
        "headline": headline,
    }
    return own


def render(run: Run) -> dict[str, str]:
    """The texts of `index.html`, `summary.md` and `picture.svg`."""
    maps, table = run.training["feature_maps"], known()
    forward = [timing for timing in (run.engine_times or {}).get("timings", []) if timing["operation"] == "forward"]
    gate = run.gate if run.gate and any(benchmark["pairs"] for benchmark in run.gate["benchmarks"]) else None
    shown = [latency for latency in run.latencies if latency["quantiles"]]
    pictures: dict[str, Any] = {
        "answer": answer(run),
        "rooflines": rooflines(run),
        "latency": figures.latency(shown) if shown else "",
        "throughput": [(timings[0].subject, figures.throughput(timings)) for timings in by_device(run)],
        "split": [(where, figures.split(parts)) for where, parts in run.split()],
        "engines": figures.engines(forward) if forward else "",
        "gate": figures.slowdowns(gate["benchmarks"], gate["delta"]) if gate else "",
        "mutants": _mutants(),
        "network": figures.network(),
        "training": figures.training_curves(ways(run.training)),
        "digit": figures.digit(run.training["digit"]["pixels"]),
        "maps": {
            (layer, when): figures.feature_maps(maps[when][layer])
            for layer in ("conv1", "conv2")
            for when in ("before", "after")
        },
    }
    values = {"run": run, "pictures": pictures, "headline": headline(run.stack), "table": table, "format": FORMAT}
    names = {"index.html": "page.html", "summary.md": "summary.md"}
    texts = {name: environment().get_template(template).render(values) for name, template in names.items()}
    return texts | {"picture.svg": pictures["answer"]}


def answer(run: Run) -> str:
    """The main picture, with the times of where a training step, or else any operation, is fastest."""
    best = run.best("training step") or run.best("forward")
    own = [timing for timing in run.timings if best and timing.place == best.place]
    return figures.answer(run.laws, run.threshold, own)


def rooflines(run: Run) -> list[tuple[str, str]]:
    """For each device and dtype the picture on the most threads, where both rates were measured beside the times."""
    located = [timing for timing in run.timings if timing.attained is not None]
    places = {timing.place[:3]: timing.place for timing in sorted(located, key=lambda timing: timing.threads)}
    found = []
    for place in places.values():
        own = [timing for timing in located if timing.place == place]
        compute, memory = run.matrix_rate(own[0]), run.copy_rate(own[0])
        if compute and memory:
            found.append((own[0].what, figures.roofline(own, compute, memory)))
    return found


def ways(training: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """The curves of a training, that of the network shown first."""
    optimizer = training["settings"].get("optimizer", "manual")
    return {WAYS[optimizer]: training["history"], **training["others"]}


def index(found: Sequence[tuple[str, Run]]) -> str:
    """The page of all published runs: a table a machine, what has become of its throughput, and what changed."""
    machines = [(own, figures.history(own), changes(own)) for own in by_machine(list(found))]
    return environment().get_template("runs.html").render(machines=machines)


def changes(runs: list[tuple[str, Run]]) -> list[tuple[str, list[str]]]:
    """For each run of a machine but the first, what changed since the one before; the latest first."""
    return [(name, differences(before, run)) for (_, before), (name, run) in pairwise(runs)][::-1]


def by_device(run: Run) -> list[list[Timing]]:
    """The timings of images, for each subject, device and dtype that has any."""
    drawn = [timing for timing in run.timings if timing.operation in figures.LINES]
    places = dict.fromkeys(timing.place[:3] for timing in drawn)
    return [[timing for timing in drawn if timing.place[:3] == place] for place in places]


@cache
def _mutants() -> str:
    """The same in every report of one version of this project."""
    return figures.mutants(known())


def _address(reference: str) -> str:
    """Where an issue is to be read: `owner/name#number` on GitHub; empty for what has no report."""
    repository, _, number = reference.partition("#")
    return f"https://github.com/{repository}/issues/{number}" if number.isdigit() else ""


def _engine(stack: str) -> str:
    """What a stack of the matrix is run by: `lenet by compiled on cpu in float32` is `compiled, float32`."""
    who, _, dtype = stack.rpartition(" in ")
    return f"{who.partition(' by ')[2].partition(' on ')[0] or who}, {dtype}"


def _clip(text: str, length: int = 4000) -> str:
    """The text, or its beginning and how much there is of it."""
    return text if len(text) <= length else f"{text[:length]} ... ({len(text):,} characters)"


def _cell(text: str) -> str:
    """Any text as a code cell of a Markdown table, on one line and with no markup of its own."""
    return "`" + " ".join(_clip(text).split()).replace("`", "'").replace("|", "\\|") + "`"
