"""Benchmarks of the steps of training and of engines, and the performance gate; only verified answers are timed."""

import sys

from benchmarks.command import end_in_one_line

if sys.argv[:1] == ["-m"]:  # `python -m benchmarks.NAME` starts; an error in what it imports ends in one line, too
    sys.excepthook = end_in_one_line
