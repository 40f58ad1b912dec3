"""The report's pictures, as inline SVG with their text as text."""

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

from reports.run import ORDER, Law, Run, Timing

# Okabe & Ito's colours, which differ without colour vision too; each has a line style of its own besides.
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
}
"""An engine has the same colour and line wherever it is drawn; those of one family share the colour."""

WHOLE = ("forward", "training step")
"""What runs and what trains the network, of the operations that are timed."""

PARTS = {"forward and loss": "#0072B2", "backward": "#E69F00", "the rest, update included": "#999999"}
"""Of a training step, as `Run.split` has them."""

ENDS = ("lower", "upper")

LINES_OF_TEXT = 30
"""That fit beside a picture of the height of those with labelled lines."""

CURVES = (("#56B4E9", "-", 5.0), ("#D55E00", "-", 2.0), ("#000000", ":", 1.5))
"""Of the lines of ways to train, which lie on top of each other."""

OTHER = ("#666666", "-.")

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "lenet",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
}


def answer(laws: list[Law], threshold: float, timings: list[Timing]) -> str:
    """How far each law's worst error is from what is allowed, and how fast the network runs and trains."""
    worst = sorted((law for law in laws if law.worst), key=lambda law: -law.worst)
    top = 1.25 * threshold
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        errors, speed = figure.subplots(1, 2, width_ratios=(3, 2))
        for violated, colour in ((False, "#0072B2"), (True, "#D55E00")):
            chosen = [place for place, law in enumerate(worst) if bool(law.violations) == violated]
            errors.bar(chosen, [min(worst[place].worst, top) for place in chosen], width=0.8, color=colour)
        errors.axhline(threshold, color="#D55E00", linestyle="--")
        errors.text(len(worst), threshold, "allowed", color="#D55E00", ha="right", va="bottom")
        errors.set(
            ylim=(0, top),
            xticks=[],
            ylabel="rounding budgets",
            xlabel=f"{len(worst)} of {len(laws)} laws: those that met any error",
        )
        errors.set_title("The worst error that each law met", loc="left", fontsize=10)
        rates = {
            operation: sorted((t.batch, t.throughput) for t in timings if t.operation == operation and t.batch)
            for operation in WHOLE
        }
        for operation, own in rates.items():
            colour, style = LINES[operation]
            if own:
                speed.plot(*zip(*own, strict=True), style, color=colour, marker=".", label=operation)
        if any(rates.values()):
            _by_batch(speed, {batch for own in rates.values() for batch, _ in own})
            speed.set_title(f"Images a second ({timings[0].where})", loc="left", fontsize=10)
            speed.legend(frameon=False, loc="lower right")
        else:
            speed.axis("off")
        return _svg(figure)


def roofline(timings: list[Timing], compute: float, memory: float) -> str:
    """GFLOP/s of forward passes and training steps against operations a byte, under the roof that was measured."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        axes = figure.subplots()
        places = {t: (t.flops / t.moved, t.rate / 1e9) for t in timings}
        shown = [compute / memory, *(x for x, _ in places.values())]  # the roof's edge as well
        ends = min(shown) / 4, max(shown) * 4
        intensity = np.geomspace(*ends, 200)
        axes.plot(intensity, np.minimum(compute, intensity * memory) / 1e9, color="#333333")
        axes.text(ends[1], compute / 1e9, f"matrix product, {compute / 1e9:,.0f} GFLOP/s", ha="right", va="bottom")
        edge = ends[0], ends[0] * memory / 1e9
        axes.annotate(f"copy, {memory / 1e9:,.1f} GB/s", edge, (0, 10), textcoords="offset points")
        for operation in WHOLE:
            colour, style = LINES[operation]
            own = sorted((t for t in timings if t.operation == operation), key=lambda t: t.batch or 0)
            if not own:
                continue
            axes.plot(*zip(*(places[t] for t in own), strict=True), style, color=colour, marker="o", label=operation)
            for t in (own[0], own[-1]):
                axes.annotate(f"{t.batch:,}", places[t], (4, -12), textcoords="offset points", fontsize=8, color=colour)
        axes.set(xscale="log", yscale="log", xlabel="floating-point operations a byte", ylabel="GFLOP/s")
        axes.legend(frameon=False, loc="lower right")
        return _svg(figure)


def latency(latencies: list[dict[str, Any]]) -> str:
    """Which share of queries is answered within a time, a line a place; up to the slowest 99th percentile."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.8), layout="constrained")
        axes = figure.subplots()
        for place, (colour, style) in zip(latencies, cycle(ENGINES.values()), strict=False):
            axes.plot(1e3 * np.array(place["quantiles"]), range(101), style, color=colour, label=place["where"])
        right = 1.1e3 * max(place["quantiles"][99] for place in latencies)
        axes.set(xlabel="milliseconds", ylabel="% of queries answered", xlim=(0, right), ylim=(0, 101))
        axes.legend(frameon=False, loc="lower right")
        return _svg(figure)


def throughput(timings: list[Timing]) -> str:
    """Images a second against the batch size, log-log: a panel a number of threads, a line an operation."""
    places = list(dict.fromkeys(timing.place for timing in timings if timing.operation in LINES))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        panels = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
        for axes, place in zip(panels, places, strict=True):
            own = [timing for timing in timings if timing.place == place]
            axes.set_title(next(timing.where for timing in own), loc="left")
            for operation, (colour, style) in LINES.items():
                line = sorted((t for t in own if t.operation == operation and t.batch), key=lambda t: t.batch or 0)
                if line:
                    batches = [t.batch or 0 for t in line]
                    rates = [t.throughput for t in line]
                    axes.plot(batches, rates, style, color=colour, marker=".", label=operation)
            _by_batch(axes, {t.batch for t in own if t.batch})
        panels[0].set_ylabel("images a second")
        panels[0].legend(frameon=False, loc="lower right")
        return _svg(figure)


def engines(timings: list[dict[str, Any]]) -> str:
    """Images a second of a forward pass against the batch size, log-log: a line an engine, its name at its end."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.6), layout="constrained")
        axes = figure.subplots()
        ends = []
        for name in dict.fromkeys(timing["engine"] for timing in timings):
            own = sorted((t["batch"], t["images_per_second"]) for t in timings if t["engine"] == name)
            colour, style = ENGINES.get(name, OTHER)
            axes.plot(*zip(*own, strict=True), style, color=colour, marker=".")
            ends.append((math.log(own[-1][1]), own[-1], name, colour))
        ends.sort()
        _by_batch(axes, {timing["batch"] for timing in timings})
        axes.set_ylabel("images a second")
        line = math.log(np.divide(*axes.get_ylim()[::-1])) / LINES_OF_TEXT
        heights = np.exp(_apart([end[0] for end in ends], line))
        for height, (_, (batch, rate), name, colour) in zip(heights, ends, strict=True):
            axes.annotate(name, (batch, rate), (batch * 1.25, height), color=colour, fontsize=9, va="center")
        axes.set_xlim(right=max(timing["batch"] for timing in timings) * 9)
        return _svg(figure)


def _by_batch(axes: Axes, batches: set[int]) -> None:
    """Log-log, against the batch sizes that there are; of two that lie close to each other the first has its label."""
    axes.set(xscale="log", yscale="log", xlabel="images a batch")
    labels: list[str] = []
    last = 0  # that has a label
    for batch in sorted(batches):
        close = batch < 3 * last
        labels.append("" if close else f"{batch:,}")
        last = last if close else batch
    axes.set_xticks(sorted(batches), labels, fontsize=8)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()


def _apart(places: list[float], least: float) -> list[float]:
    """Places for labels, in order: each where it belongs, or `least` beyond the last, so that none covers another."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + least) if moved else place)
    return moved


def history(runs: list[tuple[str, Run]]) -> str:
    """The best throughput of a forward pass and of a training step in each run of one machine, in order."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.6), layout="constrained")
        axes = figure.subplots()
        for operation in WHOLE:
            colour, style = LINES[operation]
            best = [run.best(operation) for _, run in runs]
            rates = [timing.throughput if timing else np.nan for timing in best]
            axes.plot(range(len(runs)), rates, style, marker="o", color=colour, label=operation)
        axes.set_xticks(range(len(runs)), [f"{run.date[:10]}\ntorch {run.stack['torch']}" for _, run in runs])
        axes.set(ylabel="images a second", ylim=(0, None))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.legend(frameon=False, loc="lower right")
        return _svg(figure)


def mutants(table: dict[str, Any]) -> str:
    """Laws (a row each) and mutants (a column each): which law rejects which mutant, and which is to."""
    laws = sorted(table["laws"], key=lambda law: (ORDER.index(table["laws"][law]), law))
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
        colours = ListedColormap(["#ffffff", "#9ecae1", "#08306b"])
        axes.imshow(cells, cmap=colours, vmin=0, vmax=2, aspect="auto", interpolation="nearest")
        _groups(axes.yaxis, axes.axhline, [table["laws"][law].replace("_", " ") for law in laws])
        _groups(axes.xaxis, axes.axvline, [table["mutants"][name]["kind"] for name in columns])
        axes.tick_params(length=0, labelsize=8)
        axes.tick_params(axis="x", rotation=60)
        axes.set(xlabel=f"{len(columns)} mutants, by what is wrong with them", ylabel=f"{len(laws)} laws")
        return _svg(figure)


def _groups(axis: Any, line: Any, names: list[str]) -> None:
    """A name in the middle of each run of equal ones, and a line between two runs."""
    starts = [place for place, name in enumerate(names) if place == 0 or names[place - 1] != name]
    ends = [*starts[1:], len(names)]
    for start in starts[1:]:
        line(start - 0.5, color="#999999", linewidth=0.5)
    middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
    middles = _apart(middles, len(names) / LINES_OF_TEXT)
    axis.set_ticks(middles, [names[start] for start in starts])


def slowdowns(benchmarks: list[dict[str, Any]], delta: float) -> str:
    """The gate's estimates with their bounds, and the ratios of all pairs in the order in which they were measured."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 1.2 + 0.7 * len(benchmarks)), layout="constrained")
        bounds, order = figure.subplots(1, 2, sharey=False)
        for row, benchmark in enumerate(benchmarks):
            found = benchmark["found"]
            if found:
                low, high = (100 * (found[end] if found[end] is not None else found["estimate"]) for end in ENDS)
                bounds.plot([low, high], [row, row], color="#0072B2")
                bounds.plot(100 * found["estimate"], row, "o", color="#0072B2")
            ratios = [100 * np.expm1(pair["ratio"]) for pair in benchmark["pairs"]]
            colour, style = list(LINES.values())[row % len(LINES)]
            order.plot(range(1, len(ratios) + 1), ratios, style, marker=".", color=colour, label=benchmark["name"])
        bounds.axvline(100 * delta, color="#D55E00", linestyle="--")
        bounds.axvline(0, color="#666666", linewidth=0.8)
        bounds.set_yticks(range(len(benchmarks)), [benchmark["name"] for benchmark in benchmarks])
        bounds.set_ylim(len(benchmarks) - 0.5, -0.5)
        bounds.set(xlabel="head slower than base, %; the dashed line is delta")
        order.axhline(0, color="#666666", linewidth=0.8)
        order.set(xlabel="pair of processes, in order", ylabel="head slower, %")
        order.legend(frameon=False, fontsize=8)
        return _svg(figure)


def split(parts: dict[int, dict[str, float]]) -> str:
    """What a training step's time is made of, an image, by batch size."""
    with mpl.rc_context(STYLE | {"axes.grid.axis": "y"}):
        figure = Figure(figsize=(9.0, 3.0), layout="constrained")
        axes = figure.subplots()
        batches = sorted(parts)
        bottom = np.zeros(len(batches))
        for (name, colour), hatch in zip(PARTS.items(), ("", "//", ".."), strict=True):
            heights = np.array([1e6 * parts[batch][name] / batch for batch in batches])
            axes.bar(
                range(len(batches)), heights, bottom=bottom, color=colour, label=name, hatch=hatch, edgecolor="white"
            )
            bottom += heights
        axes.set_xticks(range(len(batches)), [f"{batch:,}" for batch in batches])
        axes.set(xlabel="images a batch", ylabel="microseconds an image", ylim=(0, None))
        axes.legend(frameon=False)
        return _svg(figure)


@cache
def network() -> str:
    """The network from left to right: what each layer makes, with its shape."""
    boxes = (
        ("image", "1 x 32 x 32"),
        ("conv1\n6 filters 5 x 5", "6 x 28 x 28"),
        ("ReLU, pool", "6 x 14 x 14"),
        ("conv2\n16 filters 5 x 5", "16 x 10 x 10"),
        ("ReLU, pool", "16 x 5 x 5"),
        ("flatten", "400"),
        ("fc1, ReLU", "120"),
        ("fc2, ReLU", "84"),
        ("fc3", "10 scores"),
    )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 1.9), layout="constrained")
        axes = figure.subplots()
        axes.axis("off")
        for place, (layer, shape) in enumerate(boxes):
            colour = "#E8F1FA" if "ReLU, pool" in layer or layer in ("image", "flatten") else "#BCD7EE"
            axes.add_patch(
                FancyBboxPatch((place, 0), 0.78, 1, boxstyle="round,pad=0.02", facecolor=colour, edgecolor="#333333")
            )
            axes.text(place + 0.39, 0.5, layer, ha="center", va="center", fontsize=7.5)
            axes.text(place + 0.39, -0.12, shape, ha="center", va="top", fontsize=7.5)
            if place:
                axes.annotate("", (place - 0.02, 0.5), (place - 0.2, 0.5), arrowprops={"arrowstyle": "->"})
        axes.set(xlim=(-0.1, len(boxes)), ylim=(-0.5, 1.1))
        return _svg(figure)


def training_curves(ways: dict[str, list[dict[str, float]]]) -> str:
    """Loss and test accuracy against the epoch, a line a way to train: each narrower than that which it may cover."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.0), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for (way, history), (colour, style, width) in zip(ways.items(), CURVES, strict=False):
            epochs = range(1, len(history) + 1)
            look = {"color": colour, "linestyle": style, "linewidth": width, "marker": ".", "label": way}
            loss.plot(epochs, [epoch["loss"] for epoch in history], **look)
            accuracy.plot(epochs, [100 * epoch["accuracy"] for epoch in history], **look)
        loss.set(xlabel="epoch", ylabel="mean squared error", title="Loss on the training digits")
        accuracy.set(xlabel="epoch", ylabel="%", title="Test digits told right", ylim=(0, 102))
        loss.set_ylim(bottom=0)
        accuracy.legend(frameon=False, loc="lower right")
        for axes in (loss, accuracy):
            axes.xaxis.get_major_locator().set_params(integer=True)
        return _svg(figure)


def digit(pixels: list[list[float]]) -> str:
    """The image that the feature maps are of."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.4, 1.4), layout="constrained")
        _image(figure.subplots(), pixels)
        return _svg(figure)


def feature_maps(maps: list[Any], columns: int = 8) -> str:
    """What each filter of a layer found, numbered, each map on its own scale from 0."""
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
    axes.imshow(np.asarray(pixels), cmap="magma", vmin=0, interpolation="nearest")
    axes.axis("off")


def _svg(figure: Figure) -> str:
    """The figure's svg element alone, its size left to the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'^<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
