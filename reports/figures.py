"""The figures of the report, as inline SVG with selectable text."""

from __future__ import annotations

import io
import math
import re
from functools import cache
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from benchmarks.engine_times import AGAIN
from benchmarks.step_parts import PARTS
from lenet.oracle import PRECISIONS
from properties.law_index import short
from reports.laws import CHAPTERS, Law
from reports.run import Run, Timing

# Okabe and Ito's colors, which people with color blindness can tell apart; line styles differ as well.
LINES = {
    "forward": ("#0072B2", "-"),
    "loss": ("#009E73", "--"),
    "backward": ("#E69F00", "-."),
    "training step": ("#D55E00", "-"),
}
ENGINES = {
    "eager": ("#000000", "-"),
    "channels-last": ("#0072B2", "-"),
    "no-onednn": ("#0072B2", ":"),
    "compiled": ("#D55E00", "-"),
    "compiled-deterministic": ("#D55E00", "--"),
    "max-autotune": ("#D55E00", ":"),
    "aot-inductor": ("#CC79A7", "-"),
    "exported": ("#CC79A7", "--"),
    "onnxruntime": ("#009E73", "-"),
    "openvino": ("#E69F00", "-"),
    "openvino-f32": ("#E69F00", "--"),
    "jax": ("#56B4E9", "-"),
    "cuda-graphs": ("#009E73", "--"),
}
"""The color and line style of each engine; engines of one family share a color."""

NETWORK = ("forward", "training step")
"""The timed operations that run or train the entire network."""

PART_STYLES = (("#56B4E9", ""), ("#0072B2", "//"), ("#009E73", ""), ("#E69F00", ".."), ("#D55E00", ""))
"""The color and hatch of each part of a training step, in their order."""

BOUNDS = ("lower", "upper")

TEXT_LINES = 30
"""The number of text lines that fit next to a figure with labeled lines."""

CURVES = (("#56B4E9", "-", 5.0), ("#D55E00", "-", 2.0), ("#000000", ":", 1.5))
"""Color, style and width of training curves: each is narrower than the one that it may cover."""

OTHER = ("#666666", "-.")
"""The color and line style of engines that ENGINES does not list."""

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "lenet",
    "text.parse_math": False,  # a name may contain dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
}


def overview(status: str, laws: list[Law], threshold: float, timings: list[Timing]) -> str:
    """The status, the worst error of each law and, if timed, images/s of forward passes and training steps."""
    rates = {
        operation: sorted((t.batch, t.throughput) for t in timings if t.operation == operation and t.batch)
        for operation in NETWORK
    }
    nonzero = sorted((law for law in laws if law.worst_ratio), key=lambda law: -law.worst_ratio)
    top = 1.25 * threshold
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.7), layout="constrained")
        color = "#116329" if status == "PASSED" else "#B3261E"
        figure.suptitle(status, x=0.01, ha="left", fontsize=12, fontweight="bold", color=color)
        errors, *beside = figure.subplots(1, 2, width_ratios=(3, 2)) if any(rates.values()) else [figure.subplots()]
        for violated, color in ((False, "#0072B2"), (True, "#D55E00")):
            chosen = [position for position, law in enumerate(nonzero) if bool(law.violations) == violated]
            errors.bar(chosen, [min(nonzero[position].worst_ratio, top) for position in chosen], width=0.8, color=color)
        errors.axhline(threshold, color="#D55E00", linestyle="--")
        errors.text(len(nonzero), threshold, "allowed", color="#D55E00", ha="right", va="bottom")
        errors.set(
            ylim=(0, top),
            xticks=[],
            ylabel="worst error, rounding budgets",
            xlabel=f"the {len(nonzero)} of {len(laws)} laws with a nonzero error",
        )
        errors.set_title("Worst error of each law", loc="left", fontsize=10)
        for speed in beside:
            for operation, points in rates.items():
                color, style = LINES[operation]
                if points:
                    speed.plot(*zip(*points, strict=True), style, color=color, marker=".", label=operation)
            _batch_axis(speed, {batch for points in rates.values() for batch, _ in points})
            speed.set_ylabel("images/s")
            speed.set_title(f"Throughput ({timings[0].setting})", loc="left", fontsize=10)
            speed.legend(frameon=False, loc="lower right")
        return _svg(figure)


def roofline(timings: list[Timing], compute: float, bandwidth: float) -> str:
    """GFLOP/s of forward passes and training steps against arithmetic intensity, below the measured roofline."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        axes = figure.subplots()
        points = {t: (t.flops / t.bytes_moved, t.flops_per_second / 1e9) for t in timings}
        shown = [compute / bandwidth, *(intensity for intensity, _ in points.values())]  # includes the ridge point
        ends = min(shown) / 4, max(shown) * 4
        intensity = np.geomspace(*ends, 200)
        axes.plot(intensity, np.minimum(compute, intensity * bandwidth) / 1e9, color="#333333")
        axes.text(ends[1], compute / 1e9, f"matrix product, {compute / 1e9:,.0f} GFLOP/s", ha="right", va="bottom")
        left_end = ends[0], ends[0] * bandwidth / 1e9
        axes.annotate(f"copy, {bandwidth / 1e9:,.1f} GB/s", left_end, (0, 22), textcoords="offset points")
        for operation in NETWORK:
            color, style = LINES[operation]
            own = sorted((t for t in timings if t.operation == operation), key=lambda t: t.batch or 0)
            if not own:
                continue
            axes.plot(*zip(*(points[t] for t in own), strict=True), style, color=color, marker="o", label=operation)
            offset, side = ((-6, -3), "right") if operation == "forward" else ((5, -11), "left")
            for t in (own[0], own[-1]):
                axes.annotate(
                    f"{t.batch:,}", points[t], offset, textcoords="offset points", ha=side, fontsize=8, color=color
                )
        axes.margins(y=0.12)  # room for the batch sizes below the lowest points
        axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity, FLOP/byte", ylabel="GFLOP/s")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:,g}")  # the default one writes formulas
        axes.minorticks_off()
        axes.legend(frameon=False, loc="lower right")
        return _svg(figure)


def latency(latencies: list[dict[str, Any]]) -> str:
    """The cumulative distribution of latency, a line per configuration, up to the slowest 99th percentile."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.8), layout="constrained")
        axes = figure.subplots()
        for each, (color, style) in zip(latencies, cycle(ENGINES.values()), strict=False):
            axes.plot(1e3 * np.array(each["quantiles"]), range(101), style, color=color, label=each["label"])
        right = 1.1e3 * max(each["quantiles"][99] for each in latencies)
        axes.set(xlabel="latency, ms", ylabel="cumulative % of queries", xlim=(0, right), ylim=(0, 101))
        axes.legend(frameon=False, loc="lower right")
        return _svg(figure)


def throughput(timings: list[Timing]) -> str:
    """Images/s against batch size, log-log: a panel per number of threads, a line per operation."""
    configurations = list(dict.fromkeys(timing.configuration for timing in timings if timing.operation in LINES))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        panels = figure.subplots(1, len(configurations), sharey=True, squeeze=False)[0]
        for axes, configuration in zip(panels, configurations, strict=True):
            own = [timing for timing in timings if timing.configuration == configuration]
            axes.set_title(own[0].setting, loc="left")
            for operation, (color, style) in LINES.items():
                line = sorted((t for t in own if t.operation == operation and t.batch), key=lambda t: t.batch or 0)
                if line:
                    batches = [t.batch or 0 for t in line]
                    rates = [t.throughput for t in line]
                    axes.plot(batches, rates, style, color=color, marker=".", label=operation)
            _batch_axis(axes, {t.batch for t in own if t.batch})
        panels[0].set_ylabel("images/s")
        panels[0].legend(frameon=False, loc="lower right")
        return _svg(figure)


def engines(timings: list[dict[str, Any]]) -> str:
    """Images/s of a forward pass against batch size, log-log: a line per engine, with its name at the right end."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.6), layout="constrained")
        axes = figure.subplots()
        ends = []
        for name in dict.fromkeys(timing["engine"] for timing in timings):
            points = sorted((t["batch"], t["images_per_second"]) for t in timings if t["engine"] == name)
            color, style = ENGINES.get(name.removesuffix(AGAIN), OTHER)
            style = ":" if name.endswith(AGAIN) else style
            axes.plot(*zip(*points, strict=True), style, color=color, marker=".")
            ends.append((math.log(points[-1][1]), points[-1], name, color))
        ends.sort()
        _batch_axis(axes, {timing["batch"] for timing in timings})
        axes.set_ylabel("images/s")
        line = math.log(np.divide(*axes.get_ylim()[::-1])) / TEXT_LINES
        heights = np.exp(_spread([end[0] for end in ends], line))
        for height, (_, (batch, rate), name, color) in zip(heights, ends, strict=True):
            axes.annotate(name, (batch, rate), (batch * 1.25, height), color=color, fontsize=9, va="center")
        axes.set_xlim(right=max(timing["batch"] for timing in timings) * 9)
        return _svg(figure)


def _batch_axis(axes: Axes, batches: set[int]) -> None:
    """Make the axes log-log with the given batch sizes as ticks; a tick close to a labeled one has no label."""
    axes.set(xscale="log", yscale="log", xlabel="batch size")
    labels: list[str] = []
    labeled = 0
    for batch in sorted(batches):
        close = batch < 3 * labeled
        labels.append("" if close else f"{batch:,}")
        labeled = labeled if close else batch
    axes.set_xticks(sorted(batches), labels, fontsize=8)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()


def _spread(positions: list[float], distance: float) -> list[float]:
    """Ascending positions of labels, moved up where needed so that neighbors are at least `distance` apart."""
    moved: list[float] = []
    for position in positions:
        moved.append(max(position, moved[-1] + distance) if moved else position)
    return moved


def history(runs: list[tuple[str, Run]]) -> str:
    """The highest throughput of a forward pass and of a training step in each run of one machine, by date."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.6), layout="constrained")
        axes = figure.subplots()
        for operation in NETWORK:
            color, style = LINES[operation]
            best = [run.fastest(operation) for _, run in runs]
            rates = [timing.throughput if timing else np.nan for timing in best]
            axes.plot(range(len(runs)), rates, style, marker="o", color=color, label=operation)
        axes.set_xticks(range(len(runs)), [f"{run.date[:10]}\ntorch {run.stack['torch']}" for _, run in runs])
        axes.set(ylabel="images/s", ylim=(0, None))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.legend(frameon=False, loc="lower right")
        return _svg(figure)


def mutants(table: dict[str, Any]) -> str:
    """A row per law, a column per mutant: which laws reject the mutant, and which one has to."""
    order = list(CHAPTERS)
    laws = sorted(table["laws"], key=lambda law: (order.index(table["laws"][law]), law))
    kinds = list(table["kinds"])
    columns = sorted(table["mutants"], key=lambda name: (kinds.index(table["mutants"][name]["kind"]), name))
    cells = np.zeros((len(laws), len(columns)))
    for column, name in enumerate(columns):
        mutant = table["mutants"][name]
        for law in mutant["broken"]:
            if law in table["laws"]:
                cells[laws.index(law), column] = 1
        cells[laws.index(mutant["law"]), column] = 2
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(9.0, 5.6), layout="constrained")
        axes = figure.subplots()
        colors = ListedColormap(["#ffffff", "#9ecae1", "#08306b"])
        axes.imshow(cells, cmap=colors, vmin=0, vmax=2, aspect="auto", interpolation="nearest")
        _label_groups(axes.yaxis, axes.axhline, [CHAPTERS[table["laws"][law]] for law in laws])
        _label_groups(axes.xaxis, axes.axvline, [table["mutants"][name]["kind"] for name in columns])
        axes.tick_params(length=0, labelsize=8)
        axes.tick_params(axis="x", rotation=60)
        axes.set(xlabel=f"{len(columns)} mutants, by kind of fault", ylabel=f"{len(laws)} laws, by chapter")
        return _svg(figure)


DTYPES = {
    "float64": ("#000000", "o"),
    "float32": ("#0072B2", "s"),
    "float16": ("#E69F00", "D"),
    "bfloat16": ("#D55E00", "^"),
}
"""The color and marker of each dtype."""


def sensitivity(laws: dict[str, Any]) -> str:
    """
    A row per law, a marker per dtype: the smallest relative error of a tensor that the law sees, log scale.

    The line from the marker ends at the tensor in which only a larger error is seen, or at 1 if none is seen in some.
    Dashed: the unit roundoff of each dtype.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 1.2 + 0.19 * len(laws)), layout="constrained")
        axes = figure.subplots()
        for position, (dtype, (color, marker)) in enumerate(DTYPES.items()):
            seen = {law: _scaled(dtypes[dtype]) for law, dtypes in laws.items() if dtype in dtypes}
            rows = np.array([row for row, law in enumerate(laws) if min(seen.get(law, [1.0])) < 1])
            rows = rows + 0.15 * (position - 1.5)
            ranges = [(min(errors), max(errors)) for errors in seen.values() if min(errors) < 1]
            if ranges:
                smallest, largest = zip(*ranges, strict=True)
                axes.hlines(rows, smallest, largest, color=color, linewidth=0.8, alpha=0.6)
                axes.plot(smallest, rows, marker, color=color, markersize=4, label=dtype)
            axes.axvline(PRECISIONS[dtype].unit, color=color, linestyle="--", linewidth=0.8)
        axes.set_yticks(range(len(laws)), [short(law).replace("_", " ") for law in laws], fontsize=7)
        axes.set(xscale="log", ylim=(len(laws) - 0.5, -0.5), xlim=(1e-17, 1.5))
        axes.set_xticks([10.0**-k for k in range(16, -1, -4)], [f"1e-{k}" if k else "1" for k in range(16, -1, -4)])
        axes.minorticks_off()
        axes.set_xlabel("relative error of a scaled tensor (dashed: unit roundoff)")
        figure.legend(frameon=False, loc="outside upper center", ncols=len(DTYPES), fontsize=8)
        return _svg(figure)


def _scaled(entry: dict[str, Any]) -> list[float]:
    """The smallest relative error that is seen in each tensor of a law if all elements are scaled, at most 1."""
    errors = (tensor["scaled"] for tensor in entry["tensors"].values())
    return [1.0 if error is None else min(error, 1.0) for error in errors]


def _label_groups(axis: Any, draw_line: Any, names: list[str]) -> None:
    """Label the middle of each group of equal names, and draw a line between two groups."""
    starts = [position for position, name in enumerate(names) if position == 0 or names[position - 1] != name]
    ends = [*starts[1:], len(names)]
    for start in starts[1:]:
        draw_line(start - 0.5, color="#999999", linewidth=0.5)
    middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
    middles = _spread(middles, len(names) / TEXT_LINES)
    axis.set_ticks(middles, [names[start] for start in starts])


def slowdowns(benchmarks: list[dict[str, Any]], delta: float) -> str:
    """Left: the gate's estimates with their bounds. Right: the slowdown of each pair, in measured order."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 1.2 + 0.7 * len(benchmarks)), layout="constrained")
        intervals, pairs = figure.subplots(1, 2, sharey=False)
        for row, benchmark in enumerate(benchmarks):
            slowdown = benchmark["slowdown"]
            if slowdown:
                bounds = (slowdown[end] if slowdown[end] is not None else slowdown["estimate"] for end in BOUNDS)
                intervals.plot([100 * bound for bound in bounds], [row, row], color="#0072B2")
                intervals.plot(100 * slowdown["estimate"], row, "o", color="#0072B2")
            with np.errstate(over="ignore"):  # an infinite slowdown has no point
                ratios = 100 * np.expm1([pair["ratio"] for pair in benchmark["pairs"]])
            color, style = list(LINES.values())[row % len(LINES)]
            pairs.plot(range(1, len(ratios) + 1), ratios, style, marker=".", color=color, label=benchmark["name"])
        intervals.axvline(100 * delta, color="#D55E00", linestyle="--")
        intervals.axvline(0, color="#666666", linewidth=0.8)
        intervals.set_yticks(range(len(benchmarks)), [benchmark["name"] for benchmark in benchmarks])
        intervals.set_ylim(len(benchmarks) - 0.5, -0.5)
        intervals.set(xlabel="slowdown of head, % (dashed line: delta)")
        pairs.axhline(0, color="#666666", linewidth=0.8)
        pairs.set(xlabel="pair of processes", ylabel="slowdown of head, %")
        pairs.legend(frameon=False, fontsize=8)
        return _svg(figure)


def step_breakdown(steps: list[Timing]) -> str:
    """Each part in % of the time of a training step, stacked, by batch size; above each bar the time of the step."""
    with mpl.rc_context(STYLE | {"axes.grid.axis": "y"}):
        figure = Figure(figsize=(9.0, 3.2), layout="constrained")
        axes = figure.subplots()
        steps = sorted(steps, key=lambda step: step.batch or 0)
        bottom = np.zeros(len(steps))
        for name, (color, hatch) in zip(PARTS, PART_STYLES, strict=True):
            heights = np.array([100 * step.parts[name] / step.median for step in steps])
            axes.bar(range(len(steps)), heights, bottom=bottom, color=color, label=name, hatch=hatch, edgecolor="white")
            bottom += heights
        for position, (step, top) in enumerate(zip(steps, bottom, strict=True)):
            axes.text(position, top + 1, f"{1e3 * step.median:.3g} ms", ha="center", va="bottom", fontsize=8)
        axes.set_xticks(range(len(steps)), [f"{step.batch:,}" for step in steps])
        axes.set(xlabel="batch size", ylabel="% of the time of a step", ylim=(0, 110))
        figure.legend(frameon=False, loc="outside upper center", ncols=len(PARTS))
        return _svg(figure)


@cache
def network() -> str:
    """The layers of the network from left to right, with the shapes of their outputs."""
    boxes = (
        ("image", "1 x 32 x 32"),
        ("conv1\n6 filters 5 x 5", "6 x 28 x 28"),
        ("ReLU, pool", "6 x 14 x 14"),
        ("conv2\n16 filters 5 x 5", "16 x 10 x 10"),
        ("ReLU, pool", "16 x 5 x 5"),
        ("flatten", "400"),
        ("fc1, ReLU", "120"),
        ("fc2, ReLU", "84"),
        ("fc3", "10 logits"),
    )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 1.9), layout="constrained")
        axes = figure.subplots()
        axes.axis("off")
        for x, (layer, shape) in enumerate(boxes):
            color = "#E8F1FA" if "ReLU, pool" in layer or layer in ("image", "flatten") else "#BCD7EE"
            axes.add_patch(
                FancyBboxPatch((x, 0), 0.78, 1, boxstyle="round,pad=0.02", facecolor=color, edgecolor="#333333")
            )
            axes.text(x + 0.39, 0.5, layer, ha="center", va="center", fontsize=7.5)
            axes.text(x + 0.39, -0.12, shape, ha="center", va="top", fontsize=7.5)
            if x:
                axes.annotate("", (x - 0.02, 0.5), (x - 0.2, 0.5), arrowprops={"arrowstyle": "->"})
        axes.set(xlim=(-0.1, len(boxes)), ylim=(-0.5, 1.1))
        return _svg(figure)


OPERATIONS = (
    ("conv1, 6 filters of 5 x 5", "6 x 28 x 28"),
    ("ReLU", "6 x 28 x 28"),
    ("max pooling", "6 x 14 x 14"),
    ("conv2, 16 filters of 5 x 5", "16 x 10 x 10"),
    ("ReLU", "16 x 10 x 10"),
    ("max pooling", "16 x 5 x 5"),
    ("flatten", "400"),
    ("fc1", "120"),
    ("ReLU", "120"),
    ("fc2", "84"),
    ("ReLU", "84"),
    ("fc3", "10 logits"),
    ("mean squared error", "1 loss"),
)
"""The operations of the network and its loss, with the shapes of their results for one image."""


def graph(nodes: list[tuple[str, list[str]]]) -> str:
    """The operations from the image down to the loss, and beside them the nodes of `.grad_fn` with their parameters."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 6.4), layout="constrained")
        axes = figure.subplots()
        axes.axis("off")
        axes.text(1.0, 0.75, "forward: results", ha="center", fontweight="bold")
        axes.text(4.3, 0.75, "backward: .grad_fn", ha="center", fontweight="bold")
        for row, ((operation, shape), (node, parameters)) in enumerate(zip(OPERATIONS, nodes[::-1], strict=True)):
            for x, width, text, color in ((0.0, 2.0, operation, "#E8F1FA"), (3.2, 2.2, node, "#FBEBD9")):
                axes.add_patch(
                    FancyBboxPatch(
                        (x, -row), width, 0.5, boxstyle="round,pad=0.02", facecolor=color, edgecolor="#333333"
                    )
                )
                axes.text(x + width / 2, 0.25 - row, text, ha="center", va="center", fontsize=8)
            axes.text(2.15, 0.25 - row, shape, va="center", fontsize=8)
            if parameters:
                grads = ", ".join(f"{name}.grad" for name in sorted(parameters))
                axes.annotate(grads, (5.42, 0.25 - row), (5.8, 0.25 - row), va="center", fontsize=8, arrowprops=TO_LEAF)
            if row:
                axes.annotate("", (1.0, 0.54 - row), (1.0, 0.96 - row), arrowprops={"arrowstyle": "->"})
                axes.annotate("", (4.3, 0.96 - row), (4.3, 0.54 - row), arrowprops={"arrowstyle": "->"})
        axes.set(xlim=(-0.1, 8.4), ylim=(-len(OPERATIONS) + 0.8, 1.1))
        return _svg(figure)


TO_LEAF = {"arrowstyle": "<-"}
"""The arrow from a node to the gradient that it adds to."""


def training_curves(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Loss and test accuracy against the epoch, a line for each training run; a loss of None has no point."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.0), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for (name, history), (color, style, width) in zip(runs.items(), CURVES, strict=False):
            epochs = range(1, len(history) + 1)
            look = {"color": color, "linestyle": style, "linewidth": width, "marker": ".", "label": name}
            loss.plot(epochs, np.array([epoch["loss"] for epoch in history], dtype=float), **look)
            accuracy.plot(epochs, [100 * epoch["accuracy"] for epoch in history], **look)
        loss.set(xlabel="epoch", ylabel="mean squared error", title="Training loss")
        accuracy.set(xlabel="epoch", ylabel="%", title="Test accuracy", ylim=(0, 102))
        loss.set_ylim(bottom=0)
        accuracy.legend(frameon=False, loc="lower right")
        for axes in (loss, accuracy):
            axes.xaxis.get_major_locator().set_params(integer=True)
        return _svg(figure)


def digit(pixels: list[list[float | None]]) -> str:
    """The image whose feature maps are shown."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.4, 1.4), layout="constrained")
        _image(figure.subplots(), pixels)
        return _svg(figure)


def feature_maps(maps: list[Any], columns: int = 8) -> str:
    """The feature maps of a layer, numbered by filter; the color scale of each map starts at 0; None is left blank."""
    rows = -(-len(maps) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 1.25 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.axis("off")
        for number, (axes, map_) in enumerate(zip(grid, maps, strict=False), start=1):
            _image(axes, map_)
            axes.set_title(str(number), fontsize=8, pad=2)
        return _svg(figure)


def _image(axes: Axes, pixels: Any) -> None:
    axes.imshow(np.array(pixels, dtype=float), cmap="magma", vmin=0, interpolation="nearest")
    axes.axis("off")


def _svg(figure: Figure) -> str:
    """The figure as an svg element without width and height, so that the page sets its size."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'^<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
