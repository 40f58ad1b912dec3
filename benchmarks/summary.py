"""The tables that a run of the benchmarks prints at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.interleaved import WARMUP_SECONDS
from benchmarks.latency import CONFIDENCE, PERCENTILES
from benchmarks.roofline import Configuration, Entry, configuration, data_sheet
from benchmarks.step_parts import PARTS
from lenet.table import table

OPERATIONS = ("forward", "training step")
MIB = 2**20


def summary(entries: list[Entry], stack: Mapping[str, str]) -> list[str]:
    """Return the lines of the tables that were measured, and what was timed although it was not stationary."""
    chosen = [entry for entry in entries if entry["extra_info"]["operation"] in OPERATIONS]
    tables = [latency(entries), throughput(chosen), parts(entries), memory(chosen), roofline(entries, stack)]
    return [line for lines in [*tables, trends(entries)] for line in lines]


def latency(entries: Iterable[Entry]) -> list[str]:
    """Return the table of latency percentiles, a row per configuration."""
    rows = []
    for entry in entries:
        info = entry["extra_info"]
        if "latency" in info:
            found = [info["latency"][f"p{percent}"] for percent in PERCENTILES]
            rows.append([label(configuration(entry)), f"{info['queries']:,}", *map(_interval, found)])
    header = ["", "queries", *(f"p{percent}" for percent in PERCENTILES)]
    title = f"Latency at batch size 1 in ms, with {CONFIDENCE:.0%} intervals that assume independent queries"
    return _titled(title, header, rows)


def throughput(entries: list[Entry]) -> list[str]:
    """Return the tables of images/s, a row per batch size and a column per configuration; the last row is the best."""
    lines = []
    columns = list(dict.fromkeys(configuration(entry) for entry in entries))
    for operation in OPERATIONS:
        speed = {
            (configuration(entry), info["batch"]): info["images"] / entry["stats"]["median"]
            for entry in entries
            if (info := entry["extra_info"])["operation"] == operation
        }
        rows = [
            [f"{batch:,}", *(_number(speed.get((column, batch))) for column in columns)]
            for batch in sorted({batch for _, batch in speed})
        ]
        best = [max((rate for (c, _), rate in speed.items() if c == column), default=None) for column in columns]
        rows += [["best", *map(_number, best)]] if rows else []
        lines += _titled(f"Throughput, {operation}, in images/s", ["batch size", *map(label, columns)], rows)
    return lines


def parts(entries: Iterable[Entry]) -> list[str]:
    """Return the table of the parts of training steps, which add up to the time of the step."""
    rows = []
    for entry in entries:
        if divided := entry["extra_info"].get("parts"):
            seconds = [*(divided[name] for name in PARTS), entry["stats"]["median"]]
            one = [label(configuration(entry)), f"{entry['extra_info']['batch']:,}"]
            rows.append([*one, *(f"{1e3 * each:.4g}" for each in seconds)])
    return _titled("Parts of a training step in ms", ["", "batch size", *PARTS, "step"], rows)


def trends(entries: Iterable[Entry]) -> list[str]:
    """Return a line for each operation whose times still had a trend when its warm-up ended."""
    return [
        f"note: {info['operation']}, batch size {info['batch']:,}, {label(configuration(entry))}: "
        f"its times had a trend after {WARMUP_SECONDS:g} s of warm-up"
        for entry in entries
        if (info := entry["extra_info"]).get("stationary") is False
    ]


def memory(entries: list[Entry]) -> list[str]:
    """Return the table of each call's peak memory and the least that it needs, by configuration and batch size."""
    found: dict[tuple[Configuration, int], dict[str, list[str]]] = {}
    for entry in entries:
        info = entry["extra_info"]
        if info.get("memory") is not None:
            figures = [f"{info[key] / MIB:,.2f}" for key in ("memory", "memory_at_least")]
            found.setdefault((configuration(entry), info["batch"]), {})[info["operation"]] = figures
    rows = [
        [label(one), f"{batch:,}", *(figure for operation in OPERATIONS for figure in own.get(operation, ["", ""]))]
        for (one, batch), own in found.items()
    ]
    header = [name for operation in OPERATIONS for name in (operation, "at least")]
    return _titled("Peak memory in MiB, above that in use before the call", ["", "batch size", *header], rows)


def roofline(entries: list[Entry], stack: Mapping[str, str]) -> list[str]:
    """
    Return a table per configuration: its two measured rates, and the position of each operation and batch size.

    Each position is relative to the rates measured between its own blocks; the title has their medians.
    """
    lines = []
    positioned = [entry for entry in entries if "roofline" in entry["extra_info"]]
    for one in dict.fromkeys(map(configuration, positioned)):
        own = [entry for entry in positioned if configuration(entry) == one]
        rows = [_position(entry) for entry in own]
        limits = [entry["extra_info"]["limits"] for entry in own]
        compute, copy = (median(each[rate] for each in limits) for rate in ("flops_per_second", "bytes_per_second"))
        measured = f"matrix product {compute / 1e9:.4g} GFLOP/s, copy {copy / 1e9:.4g} GB/s"
        title = f"Roofline, {label(one)}: {measured}; {data_sheet(stack, one[1], one[2])}"
        header = ["", "batch size", "FLOP/B", "bound", "attainable GFLOP/s", "GFLOP/s", "% of attainable"]
        lines += _titled(title, header, rows)
    return lines


def _position(entry: Entry) -> list[str]:
    info, found = entry["extra_info"], entry["extra_info"]["roofline"]
    reached = f"{info['flops'] / entry['stats']['median'] / 1e9:.4g}"
    rates = [f"{found['attainable'] / 1e9:.4g}", reached, f"{100 * found['share']:.1f} %"]
    return [info["operation"], f"{info['batch']:,}", f"{found['intensity']:.2f}", found["bound"], *rates]


def label(one: Configuration) -> str:
    """Return the text for a configuration; it names the subject unless that is the reference."""
    subject, device, dtype, threads = one
    named = [] if subject == "lenet" else [subject]
    counted = [f"{threads} thread{'s' * (threads > 1)}"] if threads else []
    return " ".join([*named, device, dtype, *counted])


def _titled(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return an empty line, the title and the lines of the table; nothing if the table has no rows."""
    return ["", title, *table([header, *rows]).splitlines()] if rows else []


def _interval(found: Mapping[str, float]) -> str:
    value, low, high = (f"{1e3 * found[key]:.4g}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
