"""
Run Python files as scripts, each in a process of its own that has imported PyTorch and NumPy and nothing else.

`python fresh.py SECONDS` reads the command lines as JSON from its input, and writes their exit codes to its output. It
forks for each, because importing PyTorch anew takes longer than most of the files that `--repro` writes.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time

POLL = 0.02
"""Seconds between two looks at a process: little beside the time of any file."""


def exit_code(words: list[str], seconds: float) -> int:
    """Run a script with its arguments; return its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        _become(words)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _become(words: list[str]) -> None:
    """Run the script in this process, without output, and end the process."""
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    code: object = 70  # an error outside of the file
    try:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code
    finally:
        os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    """Run all scripts, one after another."""
    import numpy  # noqa: F401
    import torch  # noqa: F401

    codes = [exit_code(words, float(sys.argv[1])) for words in json.load(sys.stdin)]
    json.dump(codes, sys.stdout)


if __name__ == "__main__":
    main()
