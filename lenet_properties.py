"""
The command `lenet-properties`: judge a stack, time it, gate a change, and read the results, from any folder.

Each subcommand is the `main(arguments) -> exit code` of a module, imported when the subcommand runs. Exit codes: 0 done
or passed, 1 failed, 2 an error, 130 after Ctrl-C; a subcommand may have more, which its --help lists.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = ("lenet", "properties", "benchmarks", "reports")

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "judge and time": {
        "judge": ("properties.judge", "run the laws on a network, an update, a training step or an engine"),
        "time": ("benchmarks.step_times", "time each step of training, once its result is verified"),
        "engine-times": ("benchmarks.engine_times", "time the engines, interleaved"),
        "fastest": ("benchmarks.fastest", "choose the fastest engine among those that are correct"),
        "gate": ("benchmarks.gate", "is the working tree slower than the commit that it branched from?"),
        "train": ("lenet.train", "train the network on real digits with the manual update"),
    },
    "read": {
        "report": ("reports.commands:report", "write the page and the summary of a run; exits with its verdict"),
        "annotate": ("reports.github", "annotate violated laws on GitHub, and write the job's summary"),
        "diff": ("reports.commands:diff", "print what changed between two runs"),
        "trends": ("benchmarks.trends", "print the medians of several runs over time"),
        "explain": ("properties.explain", "print a law: what it demands, what it rejects, what is known of it"),
        "doctor": ("lenet.doctor", "print what is installed and usable here, and what is missing"),
    },
    "maintain this project, in a clone": {
        "publish": ("reports.commands:publish", "keep a run in reports/runs"),
        "index": ("reports.commands:make_index", "write the pages of all published runs again"),
        "known-issues": ("properties.known_issues_page", "write the page of known issues"),
        "versions": ("properties.versions", "judge other releases of PyTorch, and keep what was found"),
        "mutants": ("properties.mutants.__main__", "judge the mutants and twins"),
        "repro-check": ("properties.mutants.reproduced", "check the stand-alone counterexamples, on mutants"),
        "source-mutants": ("properties.mutants.source", "mutate the source of lenet"),
        "calibrate": ("properties.calibration", "measure the errors of correct results in budgets"),
        "sensitivity": ("properties.sensitivity", "measure how small a fault each law sees"),
        "gate-trial": ("benchmarks.gate_trial", "measure the false alarms and the power of the gate"),
    },
}
"""For each group, the subcommands, each with its module (and function, if that is not `main`) and a summary."""

EXAMPLE = "example: lenet-properties judge path/to/mine.py:Net --device cpu --dtype float32"


def usage() -> str:
    """Return the list of subcommands."""
    lines = ["usage: lenet-properties COMMAND [OPTIONS]", ""]
    lines += ["Does this PyTorch stack still train LeNet correctly, and how fast?", ""]
    for group, commands in COMMANDS.items():
        lines += [f"{group}:", *(f"  {name:<15}{summary}" for name, (_, summary) in commands.items()), ""]
    return "\n".join([*lines, "lenet-properties COMMAND --help lists the options of a command", EXAMPLE])


def hidden_package() -> str:
    """Return a line about the first of this project's packages that another one hides; empty if none is hidden."""
    for name in PACKAGES:
        found = find_spec(name)
        place = Path(found.origin).parent if found and found.origin else None
        if place is None or place.resolve() != HERE / name:
            other = place or "a folder without __init__.py" if found else "nothing"
            return (
                f"the package {name} of lenet-properties, {HERE / name}, is hidden: `import {name}` finds {other}; "
                "remove its folder from PYTHONPATH, or rename it"
            )
    return ""


def _main_of(module: str) -> Callable[[list[str]], int]:
    name, _, function = module.partition(":")
    found: Callable[[list[str]], int] = getattr(importlib.import_module(name), function or "main")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    known = {name: module for commands in COMMANDS.values() for name, (module, _) in commands.items()}
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0 if given else 2
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    if problem := hidden_package():
        print(f"error: {problem}", file=sys.stderr)
        return 2
    if given[0] not in known:
        print(f"error: no command {given[0]!r:.100}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    sys.path.append(str(Path.cwd()))  # for modules named by --subject and --engine
    command = importlib.import_module("benchmarks.command")
    sys.excepthook = command.end_in_one_line
    command.run(partial(_main_of(known[given[0]]), given[1:]))
    raise AssertionError("run exits")


if __name__ == "__main__":
    sys.exit(main())
