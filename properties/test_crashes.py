"""A law that crashes its process, or hangs in it, fails with its example, and all other laws are judged."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from properties import crashes, journal
from properties.judged_code import LAWS, LawTimeout, begin_example, suspend_time_limits, time_limit
from properties.testing import run

NETWORK = "properties/laws/test_network.py"
ROWS = "test_batch_of_n_images_gives_n_rows_of_logits"
LAWS_OF_NETWORKS = (NETWORK, "-k", "n_images or does_not_raise or shape_dtype", "--dtype", "float32", "--device", "cpu")
OTHERS = {
    "test_logits_have_shape_dtype_and_device",
    "test_one_image_does_not_raise",
    "test_empty_batch_does_not_raise",
}
CRASHES = {
    "Segfaults": "ctypes.string_at(0)",
    "Aborts": "os.abort()",
    "Exits": "ctypes.CDLL(None)._exit(3)",
    "Killed": "os.kill(os.getpid(), signal.SIGKILL)",
}
HANGS = {
    "Loops": "while True: pass",
    "HangsInC": "mutex = ctypes.create_string_buffer(64); [ctypes.PyDLL(None).pthread_mutex_lock(mutex) for _ in 'ab']",
}
"""The second holds Python's lock (GIL) while it waits: no other thread runs, and no signal is handled."""

LIMIT = 10
"""Seconds: many times what an example of these laws takes, also on a machine that does other things."""


def source(statements: dict[str, str], condition: str) -> str:
    """Return the source of networks that execute a statement in some forward passes."""
    lines = ["import ctypes, os, signal", "import lenet"]
    for name, statement in statements.items():
        lines += ["", f"class {name}(lenet.Net):", "    def forward(self, images):", f"        if {condition}:"]
        lines += [f"            {statement}", "        return super().forward(images)"]
    return "\n".join(lines)


def judged(folder: Path, names: dict[str, str], condition: str, *options: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Judge the networks; return the output, and the entries of the record by subject and law."""
    (folder / "mine.py").write_text(source(names, condition))
    subjects = [f"--subject={folder}/mine.py:{name}" for name in names]

    result = run(*LAWS_OF_NETWORKS, "--hypothesis-profile=kills", *subjects, "--record", str(folder), *options)

    assert result.returncode == 1, result.stdout + result.stderr
    content = json.loads((folder / "laws.json").read_text())
    assert content["finished"], result.stdout
    assert content["errors"] == []
    entries: dict[str, dict[str, Any]] = {name: {} for name in names}
    for entry in content["laws"]:
        own = entries[entry["subject"].rpartition(":")[2]]
        assert entry["law"] not in own
        own[entry["law"]] = entry
    assert all(own.keys() == {ROWS, *OTHERS} for own in entries.values())
    return result.stdout, entries


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["load", "loadgroup"])
def test_law_that_crashes_fails_with_its_example_and_all_others_are_judged(tmp_path: Path, distribution: str) -> None:
    names = CRASHES if distribution == "load" else dict.fromkeys(["Segfaults"], CRASHES["Segfaults"])

    output, entries = judged(tmp_path, names, "len(images) > 2", "-n", "1", "--dist", distribution)

    ends = {"Segfaults": "died by SIGSEGV", "Aborts": "died by SIGABRT", "Exits": "exited with code 3"}
    ends["Killed"] = "died by SIGKILL, perhaps for lack of memory,"
    for name, own in entries.items():
        assert all(own[law]["outcome"] == "passed" for law in OTHERS)
        failed = own[ROWS]
        assert failed["outcome"] == "failed"
        assert failed["failure_kind"] == "crash"
        assert failed["message"].startswith(f"the process {ends[name]} in this example")
        batch = re.fullmatch(r"batch=(\d+), seed=\d+", failed["counterexample"])
        assert batch
        assert int(batch[1]) > 2
        assert failed["first_failure"] == failed["examples"] >= 1
        assert f"mine.py:{name} on cpu in float32: 4 laws checked, 1 violated (1 crashed); " in output
        assert f"counterexample: {failed['counterexample']}\n" in output
    frames = entries["Segfaults"][ROWS]["message"].splitlines()
    assert any(re.fullmatch(rf"  {tmp_path}/mine\.py:\d+: in forward", line) for line in frames), frames
    assert frames[-1].endswith(f": in {ROWS}")
    assert "maximum crashed workers" not in output


@pytest.mark.slow
def test_example_that_hangs_fails_its_law_and_all_others_are_judged(tmp_path: Path) -> None:
    output, entries = judged(tmp_path, HANGS, "len(images) > 2", "-n", "1", f"--example-timeout={LIMIT}")

    for own in entries.values():
        assert all(own[law]["outcome"] == "passed" for law in OTHERS)
        assert own[ROWS]["failure_kind"] == "timeout"
        assert re.fullmatch(r"batch=\d+, seed=\d+", own[ROWS]["counterexample"])
        assert f"--example-timeout {LIMIT}" in own[ROWS]["command"]
    assert entries["Loops"][ROWS]["message"] == f"Failed: Timeout: not finished within {LIMIT} s"
    first, *frames = entries["HangsInC"][ROWS]["message"].splitlines()
    assert first == (
        f"Timeout: not finished within {LIMIT} s; the process did not return to Python and was ended in this example"
    )
    assert any(re.fullmatch(rf"  {tmp_path}/mine\.py:\d+: in .*", line) for line in frames), frames
    assert "2 failed, 6 passed" in output


@pytest.mark.slow
def test_network_that_crashes_for_one_image_violates_that_law_and_others_are_not_judged(tmp_path: Path) -> None:
    _, entries = judged(tmp_path, {"Segfaults": CRASHES["Segfaults"]}, "True", "-n", "1")

    own = entries["Segfaults"]
    reason = "the network ends the process for one image: the process died by SIGSEGV"
    assert own["test_one_image_does_not_raise"]["message"].startswith(f"AssertionError: {reason}")
    assert own[ROWS]["message"] == f"RuntimeError: not judged: {reason}"


@pytest.mark.slow
def test_network_that_crashes_for_an_empty_batch_violates_that_law_and_others_do_not_draw_it(tmp_path: Path) -> None:
    _, entries = judged(tmp_path, {"Aborts": CRASHES["Aborts"]}, "len(images) == 0", "-n", "1")

    failed = [law for law, entry in entries["Aborts"].items() if entry["outcome"] == "failed"]
    assert failed == ["test_empty_batch_does_not_raise"]
    assert entries["Aborts"][ROWS]["not_drawn"] == [
        "the network ends the process for an empty batch: the process died by SIGABRT"
    ]


@pytest.mark.slow
def test_layout_that_crashes_is_drawn_and_violates_a_law(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(source({"Aborts": CRASHES["Aborts"]}, "images.stride(-1) > 1"))
    law = "properties/laws/test_layouts.py::test_results_are_correct_in_any_memory_layout"

    result = run(
        law, "-n", "1", "--dtype=float32", "--hypothesis-profile=kills", f"--subject={tmp_path}/mine.py:Aborts"
    )

    assert result.returncode == 1
    assert "1 law checked, 1 violated (1 crashed)" in result.stdout
    assert "the process died by SIGABRT in this example" in result.stdout


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_run(tmp_path: Path) -> None:
    crash = "'PYTEST_XDIST_WORKER' in os.environ and os.abort()"
    (tmp_path / "mine.py").write_text(f"import os\nfrom lenet import Net\n{crash}\n")

    result = run(NETWORK, "-n", "1", f"--subject={tmp_path}/mine.py")

    assert result.returncode == pytest.ExitCode.INTERNAL_ERROR
    assert "3 workers ended before their first law" in result.stdout


@pytest.mark.slow
def test_hang_in_c_ends_a_run_without_workers_with_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(source(HANGS, "len(images) > 2"))
    options = ("--hypothesis-profile=kills", f"--subject={tmp_path}/mine.py:HangsInC", f"--example-timeout={LIMIT}")

    result = run(*LAWS_OF_NETWORKS, *options)

    assert result.returncode == 1
    assert "Timeout (" in result.stderr
    assert f'"{tmp_path}/mine.py", line' in result.stderr


@pytest.mark.parametrize("value", ["-1", "soon", "nan", "inf"])
def test_wrong_limit_is_a_one_line_error(value: str) -> None:
    result = run(NETWORK, f"--example-timeout={value}")

    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.strip() == f"ERROR: --example-timeout {value}: not a number of seconds from 0 to 1,000,000"


def examples(count: int, seconds: float) -> None:
    for _ in range(count):
        begin_example()
        time.sleep(seconds)


def test_limit_of_an_example_begins_anew_with_each_and_that_of_the_law_does_not() -> None:
    with time_limit(None, 2):
        examples(30, 0.1)  # longer than the limit of one
    with pytest.raises(LawTimeout, match=r"^Timeout: not finished within 0\.5 s$"), time_limit(0.5, 30):
        examples(300, 0.1)
    with pytest.raises(LawTimeout, match=r"^Timeout: not finished within 0\.05 s$"), time_limit(30, 0.05):
        examples(1, 30)


def test_limits_are_suspended_for_the_law_that_is_debugged_and_the_alarm_is_restored() -> None:
    before = signal.getsignal(signal.SIGALRM)

    with time_limit(0.05, 0.05):
        suspend_time_limits()
        begin_example()
        time.sleep(0.2)

    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_process_that_ended_is_described_and_not_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"]) as process:
        assert crashes._end(process.pid) == "exited with code 7"
        assert process.wait() == 7
    assert crashes._end(os.getpid()) == "ended"


def test_frames_are_those_of_the_main_thread_down_to_the_law() -> None:
    text = (
        'Thread 0x0000000000000002 (most recent call first):\n  File "other.py", line 1 in wait\n\n'
        f'Current thread 0x0000000000000001 (most recent call first):\n  File "mine.py", line 2 in forward\n'
        f'  File "{LAWS}/test_forward.py", line 3 in test_it\n  File "pytest.py", line 4 in call\n'
    )

    assert crashes._frames(text, 1) == ["  mine.py:2: in forward", f"  {LAWS}/test_forward.py:3: in test_it"]
    assert crashes._frames("", 1) == []


def test_half_a_line_of_a_journal_is_not_read(tmp_path: Path) -> None:
    path = journal.law_path(tmp_path, "law")
    path.write_text('["law", {}]\n["exam')

    assert journal.read(path) == [["law", {}]]
    assert journal.read(tmp_path / "none") == []
