"""What a run of the benchmarks found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.latency import CONFIDENCE, PERCENTILES
from benchmarks.roofline import Entry, Place, data_sheet, place, rates

OPERATIONS = ("forward", "training step")
MIB = 2**20


def summary(entries: list[Entry], stack: Mapping[str, str]) -> list[str]:
    """Latency, throughput, memory and position under the roof; of each, what was measured."""
    chosen = [entry for entry in entries if entry["extra_info"]["operation"] in OPERATIONS]
    return [*latencies(entries), *throughput(chosen), *memory(chosen), *roofline(entries, stack)]


def latencies(entries: Iterable[Entry]) -> list[str]:
    """Percentiles of one query after the other."""
    measured = [entry for entry in entries if "latency" in entry["extra_info"]]
    rows = []
    for entry in measured:
        info = entry["extra_info"]
        found = [info["latency"][f"p{percent}"] for percent in PERCENTILES]
        rows.append([where(place(entry)), f"{info['queries']:,}", *(_interval(one) for one in found)])
    head = ["", "queries", *(f"p{percent}" for percent in PERCENTILES)]
    title = f"Latency at batch 1 in ms, and its {CONFIDENCE:.0%} interval if the queries were independent"
    return table(title, head, rows)


def throughput(entries: list[Entry]) -> list[str]:
    """Images a second by batch, a column a place; the best batch's is the offline throughput."""
    lines = []
    places = list(dict.fromkeys(place(entry) for entry in entries))
    for operation in OPERATIONS:
        own = {(place(e), e["extra_info"]["batch"]): e for e in entries if e["extra_info"]["operation"] == operation}
        speed = {key: entry["extra_info"]["images"] / entry["stats"]["median"] for key, entry in own.items()}
        batches = sorted({batch for _, batch in own})
        rows = [[f"{batch:,}", *(_number(speed.get((p, batch))) for p in places)] for batch in batches]
        best = [max((rate for (p, _), rate in speed.items() if p == one), default=None) for one in places]
        rows += [["best", *map(_number, best)]] if rows else []
        lines += table(f"Throughput, {operation}, in images a second", ["batch", *map(where, places)], rows)
    return lines


def memory(entries: list[Entry]) -> list[str]:
    """The peak of each call beside what it cannot do without, by place and batch."""
    found: dict[tuple[Place, int], dict[str, list[str]]] = {}
    for entry in entries:
        info = entry["extra_info"]
        if info.get("memory") is not None:
            figures = [f"{info[key] / MIB:,.2f}" for key in ("memory", "memory_at_least")]
            found.setdefault((place(entry), info["batch"]), {})[info["operation"]] = figures
    rows = [
        [where(one), f"{batch:,}", *(figure for operation in OPERATIONS for figure in own.get(operation, ["", ""]))]
        for (one, batch), own in found.items()
    ]
    head = [name for operation in OPERATIONS for name in (operation, "at least")]
    return table("Memory at the peak in MiB, above that in use before", ["", "batch", *head], rows)


def roofline(entries: list[Entry], stack: Mapping[str, str]) -> list[str]:
    """Each place's rates, and the share of the attainable that each batch reached."""
    lines = []
    located = [entry for entry in entries if "roofline" in entry["extra_info"]]
    compute, copy = rates(entries, "matrix product", "flops"), rates(entries, "copy", "bytes")
    for one in dict.fromkeys(map(place, located)):
        rows = [_position(entry) for entry in located if place(entry) == one]
        measured = f"{compute[one] / 1e9:.4g} GFLOP/s in the matrix product, {copy[one] / 1e9:.4g} GB/s copying"
        title = f"Roofline, {where(one)}: {measured}; {data_sheet(stack, one[1], one[2])}"
        lines += table(title, ["", "batch", "FLOP/B", "bound", "attainable GFLOP/s", "GFLOP/s", "share"], rows)
    return lines


def _position(entry: Entry) -> list[str]:
    info, found = entry["extra_info"], entry["extra_info"]["roofline"]
    reached = f"{info['flops'] / entry['stats']['median'] / 1e9:.4g}"
    rest = [f"{found['attainable'] / 1e9:.4g}", reached, f"{100 * found['share']:.1f} %"]
    return [info["operation"], f"{info['batch']:,}", f"{found['intensity']:.2f}", found["bound"], *rest]


def where(one: Place) -> str:
    """A place in words; the subject only where it is not the reference."""
    subject, device, dtype, threads = one
    named = [] if subject == "lenet" else [subject]
    counted = [f"{threads} thread{'s' * (threads > 1)}"] if threads else []
    return " ".join([*named, device, dtype, *counted])


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose columns are as wide as need be, led by an empty one; none without rows."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return ["", title, *("  ".join(map(str.rjust, row, widths)) for row in (head, *rows))]


def _interval(found: Mapping[str, float]) -> str:
    value, low, high = (f"{1e3 * found[key]:.4g}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
