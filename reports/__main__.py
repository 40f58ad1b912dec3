"""`python -m reports`: the page and the summary of a run, and its verdict as the exit code."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError, select_autoescape

from lenet.files import set_aside, write_atomically
from lenet.fingerprint import headline
from reports import figures
from reports.run import ReportError, Run, Timing, load

LATEST = Path("reports/latest")


def render(run: Run) -> dict[str, str]:
    """The texts of `index.html` and `summary.md`."""
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _cell, "clip": _clip}
    maps = run.training["feature_maps"]
    pictures = {
        "throughput": [(timings[0].subject, figures.throughput(timings)) for timings in by_device(run)],
        "training": figures.training_curve(run.training["history"]),
        "digit": figures.digit(run.training["digit"]["pixels"]),
        "maps": {
            (layer, when): figures.feature_maps(maps[when][layer])
            for layer in ("conv1", "conv2")
            for when in ("before", "after")
        },
    }
    values = {"run": run, "pictures": pictures, "headline": headline(run.stack)}
    names = {"index.html": "page.html", "summary.md": "summary.md"}
    return {name: environment.get_template(template).render(values) for name, template in names.items()}


def by_device(run: Run) -> list[list[Timing]]:
    """The timings of images, for each subject, device and dtype that has any."""
    drawn = [timing for timing in run.timings if timing.operation in figures.LINES]
    places = dict.fromkeys(timing.place[:3] for timing in drawn)
    return [[timing for timing in drawn if timing.place[:3] == place] for place in places]


def _clip(text: str, length: int = 4000) -> str:
    """The text, or its beginning and how much there is of it."""
    return text if len(text) <= length else f"{text[:length]} ... ({len(text):,} characters)"


def _cell(text: str) -> str:
    """Any text as a code cell of a Markdown table, on one line and with no markup of its own."""
    return "`" + " ".join(_clip(text).split()).replace("`", "'").replace("|", "\\|") + "`"


def main(arguments: list[str] | None = None) -> int:
    """0 where the run passed, 1 where a law is violated, 2 where no report can be made of it."""
    parser = argparse.ArgumentParser(prog="python -m reports", description="Make the page and the summary of a run.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=LATEST, help="where the run's JSON files are (%(default)s)"
    )
    folder = parser.parse_args(arguments).folder
    for name in ("index.html", "summary.md"):
        set_aside(folder / name)
    try:
        run = load(folder)
        for name, text in render(run).items():
            with write_atomically(folder / name) as file:
                file.write(text.encode())
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (LookupError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        print(f"error: {folder}: a file lacks what the report needs: {type(error).__name__} {error}", file=sys.stderr)
        return 2
    print(f"{'PASSED' if run.passed else 'FAILED'}: {run.verdict}")
    print(run.speed)
    print(f"judged: {'; '.join(run.stacks)}")
    print(f"the page: {(folder / 'index.html').resolve()}")
    return 0 if run.passed else 1


if __name__ == "__main__":
    sys.exit(main())
