"""Renders a run as a page and a summary, and published runs as one page, from the Jinja templates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise, zip_longest
from statistics import median
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from benchmarks.roofline import data_sheet
from benchmarks.step_parts import PARTS
from lenet.fingerprint import FORMAT, headline
from lenet.oracle import PRECISIONS
from lenet.training_comparison import OPTIMIZER_LABELS
from properties import sensitivity
from properties.bug_reports import SEVERITIES, findings
from properties.diagnosis import mutant_table, violations
from properties.law_index import short
from reports import figures, learning, sentences, verdict
from reports.glossary import GLOSSARY
from reports.history import PAGES, by_machine, differences
from reports.laws import Issue, total_forgiven
from reports.run import Run, Timing


@cache
def environment() -> Environment:
    """The Jinja environment: HTML is escaped, and a missing value is an error."""
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": markdown_cell,
        "clip": _clip,
        "code": _code,
        "issue_url": _issue_url,
        "markdown": _markdown,
        "engine_label": _engine_label,
        "headline": headline,
        "forgiven": total_forgiven,
        "by_severity": _by_severity,
        "short": short,
        "significant": _significant,
    }
    environment.globals |= {"sentences": sentences, "verdict": verdict}
    environment.globals |= {"bits_of": sensitivity.bits_of, "best_of": sensitivity.best_of, "precisions": PRECISIONS}
    environment.globals |= {"parts_of_a_step": PARTS, "significant_bits": sensitivity.SIGNIFICANT_BITS}
    return environment


def render(run: Run) -> dict[str, str]:
    """The content of the files for readers, `reports.history.PAGES`, by name."""
    table = mutant_table()
    forward = [timing for timing in (run.engine_times or {}).get("timings", []) if timing["operation"] == "forward"]
    gate = run.gate if run.gate and any(benchmark["pairs"] for benchmark in run.gate["benchmarks"]) else None
    latencies = [latency for latency in run.latencies if latency["quantiles"]]
    pictures: dict[str, Any] = {
        "overview": overview(run),
        "rooflines": rooflines(run),
        "latency": figures.latency(latencies) if latencies else "",
        "throughput": [(timings[0].subject, figures.throughput(timings)) for timings in throughput_groups(run)],
        "step_breakdown": [(label, figures.step_breakdown(steps), steps) for label, steps in run.step_breakdown()],
        "engines": figures.engines(forward) if forward else "",
        "gate": figures.slowdowns(gate["benchmarks"], gate["delta"]) if gate else "",
        "mutants": _mutants(),
        "sensitivity": _sensitivity(),
        "network": figures.network(),
        "graph": _graph(),
    }
    pictures |= _training_pictures(run.training) if run.training else {}
    values = {"run": run, "pictures": pictures, "glossary": GLOSSARY, "table": table, "format": FORMAT}
    values["mutants_by_dtype"] = mutants_by_dtype(table)
    values["sensitivity"] = sensitivity.published()
    values["steps"] = learning.STEPS
    values["laws"] = {short(law.name): law for law in run.laws.laws}
    texts = {name: environment().get_template(name).render(values) for name in PAGES if name != "picture.svg"}
    return texts | {"picture.svg": pictures["overview"]}


def _training_pictures(training: dict[str, Any]) -> dict[str, Any]:
    maps = training["feature_maps"]
    return {
        "training": figures.training_curves(training_curves(training)),
        "digit": figures.digit(training["digit"]["pixels"]),
        "feature_maps": {
            (layer, when): figures.feature_maps(maps[when][layer])
            for layer in ("conv1", "conv2")
            for when in ("before", "after")
        },
    }


def overview(run: Run) -> str:
    """The main figure, with the times of the fastest configuration of a training step, or else of a forward pass."""
    fastest = run.fastest("training step") or run.fastest("forward")
    timings = [timing for timing in run.timings if fastest and timing.configuration == fastest.configuration]
    return figures.overview(verdict.status(run), run.all_laws, run.threshold, timings)


def rooflines(run: Run) -> list[tuple[str, str, str]]:
    """
    A label, the data sheet's rates and a figure for each subject, device and dtype whose roofline was measured.

    At the largest number of threads. The roof is that of the median rates; each share is of the rates of its own block.
    """
    located = [timing for timing in run.timings if timing.roofline_share is not None]
    by_threads = sorted(located, key=lambda timing: timing.threads)
    configurations = {timing.configuration[:3]: timing.configuration for timing in by_threads}
    found = []
    for configuration in configurations.values():
        timings = [timing for timing in located if timing.configuration == configuration]
        rates = [(run.matrix_product_rate(timing), run.copy_bandwidth(timing)) for timing in timings]
        known = [(compute, bandwidth) for compute, bandwidth in rates if compute and bandwidth]
        if known:
            sheet = data_sheet(run.stack, timings[0].device, timings[0].dtype)
            compute, bandwidth = map(median, zip(*known, strict=True))
            found.append((timings[0].label, sheet, figures.roofline(timings, compute, bandwidth)))
    return found


def training_curves(training: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The epochs of each training run by its name, the recorded network's first."""
    optimizer = training["settings"].get("optimizer", "manual")
    return {OPTIMIZER_LABELS[optimizer]: training["history"], **training["comparisons"]}


def render_index(named: Sequence[tuple[str, Run]]) -> str:
    """The page of all published runs: for each machine a table, its throughput over time, and what changed."""
    machines = [(runs, figures.history(runs), changes(runs)) for runs in by_machine(list(named))]
    return environment().get_template("runs.html").render(machines=machines)


def changes(named: list[tuple[str, Run]]) -> list[tuple[str, list[str]]]:
    """The differences between each run and the one before it, the latest first."""
    return [(name, differences(before, run)) for (_, before), (name, run) in pairwise(named)][::-1]


def throughput_groups(run: Run) -> list[list[Timing]]:
    """The timings that the throughput figures show, one list for each subject, device and dtype."""
    timings = [timing for timing in run.timings if timing.operation in figures.LINES]
    groups = dict.fromkeys(timing.configuration[:3] for timing in timings)
    return [[timing for timing in timings if timing.configuration[:3] == group] for group in groups]


def mutants_by_dtype(table: dict[str, Any]) -> list[tuple[str, int, int, int]]:
    """For each dtype: how many laws judge in it, how many mutants they reject there, and how many they cannot."""
    mutants = table["mutants"].values()
    return [
        (dtype, len(laws), len(violations(table, dtype)), sum(dtype in mutant["unseen"] for mutant in mutants))
        for dtype, laws in table.get("judged", {}).items()
    ]


@cache
def _graph() -> str:
    return figures.graph(learning.graph())


@cache
def _mutants() -> str:
    return figures.mutants(mutant_table())


@cache
def _sensitivity() -> str:
    return figures.sensitivity(sensitivity.published()["laws"])


def _issue_url(reference: str) -> str:
    """The address of the issue `owner/name#number` on GitHub; empty for any other reference."""
    repository, _, number = reference.partition("#")
    return f"https://github.com/{repository}/issues/{number}" if number.isdigit() else ""


def _by_severity(issues: Iterable[Issue]) -> list[tuple[str, Issue]]:
    """Each issue with its severity, the worst first; an issue of an earlier version that has no script is the last."""
    known = {title: finding.severity for title, finding in findings().items()}
    order = (*SEVERITIES, "unknown")
    return sorted(((known.get(i.title, "unknown"), i) for i in issues), key=lambda pair: order.index(pair[0]))


def _engine_label(stack: str) -> str:
    """Engine and dtype of a stack: `compiled, float32` for `lenet by compiled on cpu in float32`."""
    label, _, dtype = stack.rpartition(" in ")
    return f"{label.partition(' by ')[2].partition(' on ')[0] or label}, {dtype}"


def _clip(text: str, length: int = 4000) -> str:
    """The text, or its beginning followed by its full length."""
    return text if len(text) <= length else f"{text[:length]} ... ({len(text):,} characters)"


def _code(text: str) -> Markup:
    """The text as HTML, with what stands between backticks as code."""
    return Markup(re.sub(r"(`+)([^`]+)\1", r"<code>\2</code>", str(escape(text))))


def _markdown(text: str) -> str:
    """The text on one line of Markdown, with what stands between backticks as code and nothing else as markup."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    escaped = [re.sub(r"([\\`*_\[\]<>|&~#!])", r"\\\1", part) for part in parts[::2]]
    code = [part.replace("|", "\\|") for part in parts[1::2]]
    return "".join(map("".join, zip_longest(escaped, code, fillvalue="")))


def _significant(number: float) -> str:
    """The number with three significant digits, without an exponent."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{float(f'{number:.3g}'):.10f}".rstrip("0").rstrip(".")


def markdown_cell(text: str) -> str:
    """The text as code in one cell of a Markdown table, on one line and without markup."""
    return "`" + " ".join(_clip(text).split()).replace("`", "'").replace("|", "\\|") + "`"
