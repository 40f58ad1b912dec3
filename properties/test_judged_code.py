"""Whatever judged code raises violates a law: it neither skips one, nor ends the run, nor hangs beyond a time limit."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from unittest import SkipTest

import pytest
import torch
from hypothesis.errors import UnsatisfiedAssumption

import lenet
from lenet import subject
from lenet.processes import descendants
from lenet.testing import holds_soon, is_running
from properties import preconditions, record
from properties.judged_code import EscapeError, LawTimeout, escapes_are_errors, time_limit
from properties.preconditions import ONE_IMAGE
from properties.stack import Stack
from properties.testing import ROOT, run, run_module

IMAGE = ("properties/laws/test_network.py", "-k", "one_image", "--dtype", "float32")
FORWARD = ("properties/laws/test_forward.py", "-k", "logits_agree", "--dtype", "float32")

ESCAPES = {
    "SkipTest": "raise unittest.SkipTest('no')",
    "Skip": "pytest.skip('no')",
    "XFail": "pytest.xfail('no')",
    "Exit": "pytest.exit('bye', returncode=0)",
    "SystemExit": "sys.exit(0)",
    "OsExit": "os._exit(0)",
    "Reject": "hypothesis.reject()",
    "Assume": "hypothesis.assume(False)",
    "Other": "raise type('Mine', (BaseException,), {})(chr(0xD800))",
}


def escaping(statement: str, condition: str = "True", name: str = "Net") -> str:
    """Return the source of a network that executes the statement in some forward passes."""
    lines = [f"class {name}(lenet.Net):", "    def forward(self, images):", f"        if {condition}:"]
    return "\n".join([*lines, f"            {statement}", "        return super().forward(images)", "", ""])


IMPORTS = "import os, sys, time, unittest\nimport hypothesis, pytest\nimport lenet\n\n"


@pytest.mark.parametrize("condition", ["True", "len(images) > 1"])
def test_exceptions_that_skip_or_end_a_run_violate_the_law_if_judged_code_raises_them(
    tmp_path: Path, condition: str
) -> None:
    path = tmp_path / "escaping.py"
    path.write_text(IMPORTS + "".join(escaping(text, condition, name) for name, text in ESCAPES.items()))
    options = [f"--subject={path}:{name}" for name in ESCAPES]

    result = run(*FORWARD, *options, "--tb=no", "--record", str(tmp_path))

    assert result.returncode == 1
    content = json.loads((tmp_path / "laws.json").read_text())
    assert content["finished"]
    for name in ESCAPES:
        own = [entry for entry in content["laws"] if entry["subject"].endswith(f":{name}")]
        messages = [entry["message"] for entry in own if entry["outcome"] == "failed"]
        assert any("only a law may skip, discard an example or end the run" in message for message in messages), name
        assert all(entry["outcome"] != "skipped" for entry in own), name


def test_subject_that_ends_the_process_on_import_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("import os\nos._exit(0)")

    result = run(*IMAGE, f"--subject={tmp_path}/leaves.py")

    assert result.returncode == 4
    assert result.stderr.strip().endswith("import raised SystemExit: os._exit(0)")


@pytest.mark.parametrize(
    "raised", [pytest.skip.Exception("no"), SkipTest("no"), UnsatisfiedAssumption("no"), KeyboardInterrupt()]
)
def test_laws_may_skip_and_discard_examples_and_the_user_may_interrupt(raised: BaseException) -> None:
    with pytest.raises(type(raised)), escapes_are_errors():
        raise raised


def test_skip_that_judged_code_raises_below_a_law_is_an_error() -> None:
    names: dict[str, object] = {}
    exec(compile("import pytest\ndef forward():\n    pytest.skip('no')", "/elsewhere/mine.py", "exec"), names)

    with pytest.raises(EscapeError, match=r"this code raised Skipped: no$"), escapes_are_errors():
        names["forward"]()  # type: ignore[operator]


def test_run_that_ends_before_its_last_law_fails(tmp_path: Path) -> None:
    (tmp_path / "leaving_plugin.py").write_text(
        "import pytest\n\ndef pytest_runtest_logfinish():\n    pytest.exit('bye', returncode=0)\n"
    )
    laws = ("properties/laws/test_network.py", "-k", "one_image or repr", "--dtype", "float32", "--device", "cpu")

    result = run(*laws, "-p", "leaving_plugin", "--record", str(tmp_path), path=tmp_path)

    assert result.returncode == 1
    assert "ERROR: 1 law not run: the run ended early" in result.stdout
    assert not json.loads((tmp_path / "laws.json").read_text())["finished"]


def test_time_limit_interrupts_judged_code_also_if_that_catches_every_exception_once() -> None:
    caught = []

    def forward() -> None:
        try:
            time.sleep(30)
        except BaseException as error:
            caught.append(error)
        time.sleep(30)

    with pytest.raises(LawTimeout, match=r"^Timeout: not finished within 0\.05 s$"), time_limit(0.05):
        forward()
    assert len(caught) == 1


@pytest.mark.slow
def test_forward_that_hangs_is_ended_by_the_time_limit_and_its_example_is_reported(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(IMPORTS + escaping("time.sleep(600)", "len(images) == 17"))

    result = run(*FORWARD, "--timeout=3", f"--subject={tmp_path}/hangs.py", "--record", str(tmp_path))

    assert result.returncode == 1
    assert "Failed: Timeout: not finished within 3 s" in result.stdout
    assert "/hangs.py:8: in forward" in result.stdout
    entry = json.loads((tmp_path / "laws.json").read_text())["laws"][0]
    assert entry["failure_kind"] == "timeout"
    assert "batch=17" in entry["counterexample"]
    assert "--timeout 3 " in entry["command"]


def test_network_that_hangs_for_every_image_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Hangs(lenet.Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tried.append(len(images))
            raise LawTimeout("Timeout: not finished within 1 s")

    stack = Stack(
        subject.Subject("hangs", Hangs, lenet.sgd_update, lenet.train_step), torch.device("cpu"), torch.float32
    )

    unmet = [preconditions.unmet_preconditions(stack) for _ in range(2)]

    assert tried == [1]
    assert str(unmet[1][ONE_IMAGE]) == "Timeout: not finished within 1 s"


def test_text_that_cannot_be_encoded_is_escaped_in_the_reports_of_parallel_workers() -> None:
    report = {"longrepr": [("\ud800", 1)], "user_properties": [["law", {"message": "a\udcffb"}]]}

    assert record._encodable(report) == {
        "longrepr": [("\\ud800", 1)],
        "user_properties": [["law", {"message": "a\\udcffb"}]],
    }


def test_processes_that_judged_code_starts_end_with_the_run(tmp_path: Path) -> None:
    start = "subprocess.Popen(['sh', '-c', f'setsid sleep 600 & echo $! > {path}'], start_new_session=True).wait()"
    source = f"import subprocess\nimport lenet\npath = {str(tmp_path / 'pid')!r}\n{start}\nNet = lenet.Net\n"
    (tmp_path / "starts.py").write_text(source)

    result = run(*IMAGE, f"--subject={tmp_path}/starts.py")

    assert result.returncode == 0, result.stdout
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_verdict_is_printed_whatever_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    remove = f"shutil.rmtree({str(folder)!r}), open({str(folder)!r}, 'w').close()"
    condition = f"os.path.isdir({str(folder)!r})"
    (tmp_path / "removes.py").write_text(f"import shutil\n{IMPORTS}{escaping(remove, condition)}")

    result = run(*IMAGE, f"--subject={tmp_path}/removes.py", "--record", str(folder), "--junitxml=/dev/full")

    assert result.returncode == 1
    assert f"ERROR: not written: --record {folder}/laws.json: File exists" in result.stdout
    assert "ERROR: not written: OSError: [Errno 28] No space left on device" in result.stdout
    assert "1 law checked, 0 violated" in result.stdout


def test_checkout_that_cannot_be_written_to_can_be_judged(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    result = run_module("pytest", *IMAGE, "-o", f"cache_dir={tmp_path}/file/cache")

    assert result.returncode == 0, result.stdout
    assert "PytestCacheWarning" in result.stdout
    assert "1 law checked, 0 violated" in result.stdout


@pytest.mark.parametrize("order", ["subject last", "subject first"])
def test_subject_given_as_a_word_of_its_own_is_not_taken_for_a_test(tmp_path: Path, order: str) -> None:
    (tmp_path / "conftest.py").write_text("raise RuntimeError('this file must not run')")
    (tmp_path / "mine.py").write_text("from lenet import Net")
    words = [*IMAGE, "--subject", f"{tmp_path}/mine.py"]

    result = run(*(words if order == "subject last" else words[-2:] + words[:-2]))

    assert result.returncode == 0, result.stdout + result.stderr
    assert f"rootdir: {ROOT}\n" in result.stdout
    assert "1 law checked, 0 violated" in result.stdout


def test_configuration_found_beside_a_subject_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "mine.py").write_text("from lenet import Net")

    result = run("--subject", f"{tmp_path}/mine.py", *IMAGE)

    assert result.returncode == 4
    error = f"ERROR: --subject: pytest has read {tmp_path}/pytest.ini; write --subject=PATH, with =, and it does not"
    assert result.stderr.strip() == error
    assert run(f"--subject={tmp_path}/mine.py", *IMAGE).returncode == 0


@pytest.mark.slow
def test_command_that_reproduces_a_violation_holds_where_the_run_was_started(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(IMPORTS + escaping("raise ValueError"))
    laws = (f"{ROOT}/{IMAGE[0]}", *IMAGE[1:])

    first = run(*laws, "--subject", "mine.py", "--record", "results", folder=tmp_path)

    assert first.returncode == 1
    entry = json.loads((tmp_path / "results/laws.json").read_text())["laws"][0]
    again = run_module("lenet_properties", *shlex.split(entry["command"])[1:], folder=tmp_path, path=ROOT)
    assert again.returncode == 1
    assert "1 law checked, 1 violated" in again.stdout


def test_two_runs_do_not_record_into_one_folder(tmp_path: Path) -> None:
    record._locked(tmp_path)

    with pytest.raises(pytest.UsageError, match="another run is recording into this folder"):
        record._locked(tmp_path)


@pytest.mark.slow
def test_python_without_assertions_is_refused() -> None:
    command = [sys.executable, "-O", "-m", "pytest", "-p", "no:cacheprovider", *IMAGE]

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.returncode == 4
    assert "ERROR: python -O and PYTHONOPTIMIZE remove assertions, by which laws judge" in result.stderr


@pytest.mark.slow
def test_signal_ends_a_run_with_its_processes_and_a_hanging_forward(tmp_path: Path) -> None:
    statement = "subprocess.Popen(['sleep', '600'], start_new_session=True).wait()"
    (tmp_path / "hangs.py").write_text("import subprocess\n" + IMPORTS + escaping(statement))
    command = [sys.executable, "-m", "pytest", *IMAGE, f"--subject={tmp_path}/hangs.py"]
    before = descendants()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as judge:
        assert holds_soon(lambda: any(map(sleeps, descendants() - before)))
        started = descendants() - before

        judge.terminate()

    assert judge.returncode == pytest.ExitCode.INTERRUPTED
    assert holds_soon(lambda: not any(map(is_running, started)))


def sleeps(process: int) -> bool:
    """Whether the process is the one that the subject starts."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"sleep\0")
    except FileNotFoundError:
        return False
