"""The report's pictures, as inline SVG with their text as text."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.run import Timing

# Okabe & Ito's colours, which differ without colour vision too; each has a line style of its own besides.
LINES = {
    "forward": ("#0072B2", "-"),
    "loss": ("#009E73", "--"),
    "backward": ("#E69F00", "-."),
    "training step": ("#D55E00", "-"),
}
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "lenet",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
}


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
            axes.set(xscale="log", yscale="log", xlabel="images a batch")
        panels[0].set_ylabel("images a second")
        panels[0].legend(frameon=False, loc="lower right")
        return _svg(figure)


def training_curve(history: list[dict[str, float]]) -> str:
    """Loss and test accuracy against the epoch."""
    epochs = range(1, len(history) + 1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.0), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        loss.plot(epochs, [epoch["loss"] for epoch in history], color="#0072B2", marker=".")
        loss.set(xlabel="epoch", ylabel="mean squared error", title="Loss on the training digits")
        accuracy.plot(epochs, [100 * epoch["accuracy"] for epoch in history], color="#D55E00", marker=".")
        accuracy.set(xlabel="epoch", ylabel="%", title="Test digits told right", ylim=(0, 102))
        loss.set_ylim(bottom=0)
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
