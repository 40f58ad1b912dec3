"""`lenet-properties time`: run the benchmarks of each step of training by pytest-benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path

from lenet.files import RESULTS
from properties.judge import partition, run_pytest

PLUGINS = ("hypothesispytest", "benchmark")

EXAMPLES = """\
examples:
  lenet-properties time --dtype float32
  lenet-properties time mine.py:Net --steps forward

exit codes: 0 all is timed, 1 a wrong result was not timed, 2 an error, 130 stopped by Ctrl-C
"""


def main(arguments: list[str]) -> int:
    """Time the stacks that the options name; see `run_pytest` for the result."""
    own, rest = partition(arguments)
    options = _parser().parse_args(own)
    record = options.record or (None if options.steps else RESULTS / "latest")
    here = Path(__file__).parent
    words = [str(here), "-m", "benchmark", f"--confcutdir={here}", "-o", "python_files=bench_*.py"]
    words += ["-o", "python_functions=bench_*", f"--benchmark-storage=file://{RESULTS.absolute() / 'benchmarks'}"]
    words += ["--benchmark-disable"] if options.verify_only else [f"--record={record}"] if record else []
    words += ["-k", options.steps] if options.steps else []
    words += [f"--subject={spec}" for spec in options.subjects]
    words += [f"--{name}={value}" for name in ("device", "dtype") if (value := getattr(options, name)) is not None]
    return run_pytest([*words, *rest], ["time", *arguments], PLUGINS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lenet-properties time",
        usage="%(prog)s [SUBJECT ...] [OPTIONS] [-- PYTEST OPTIONS]",
        description="Time each step of training. Only what has just been verified is timed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("subjects", nargs="*", help=argparse.SUPPRESS)
    add("--device", metavar="DEVICES", help="comma-separated, such as cpu,cuda; default: those available")
    add("--dtype", metavar="DTYPES", help="comma-separated; default: float32,float64,bfloat16,float16")
    add("--steps", metavar="EXPRESSION", help="only benchmarks whose names match, as by -k of pytest")
    add("--verify-only", action="store_true", help="verify the result of each benchmark once, and time nothing")
    help_text = f"write the times to DIR/benchmarks.json; default: {RESULTS / 'latest'}, if all are timed"
    add("--record", type=Path, metavar="DIR", help=help_text)
    return parser
