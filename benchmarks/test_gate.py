"""The gate's output, files and exit codes, with fake workers and with real ones that fail in every way."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from benchmarks import comparison, gate
from benchmarks.comparison import BENCHMARKS, ComparisonError
from benchmarks.fakes import (
    MACHINE,
    ROOT,
    FakeWorkers,
    interrupt,
    remaining_processes,
    start_command,
    wait_for_processes,
)
from benchmarks.gate import checkout, default_base, describe, main, resolve
from benchmarks.gate_report import FORMATS
from benchmarks.worker_client import PROTOCOL
from properties.testing import FAULTY

RunGate = Callable[..., tuple[int, dict, str, str]]


@pytest.fixture
def run_gate(tmp_path: Path) -> RunGate:
    """A function that runs the gate and returns its exit code and what it wrote as JSON, JUnit and Markdown."""

    def run(*options: str) -> tuple[int, dict, str, str]:
        files = {kind: tmp_path / f"gate.{kind}" for kind in FORMATS}
        code = main([*options, *(text for kind, file in files.items() for text in (f"--{kind}", str(file)))])
        written = {kind: file.read_text() for kind, file in files.items()}
        return code, json.loads(written["json"]), written["junit"], written["markdown"]

    return run


DIFFERENT = ("--base-subject", "base's", "--head-subject", "head's")


def test_passed_gate_exits_with_zero(
    fake_workers: FakeWorkers, run_gate: RunGate, capsys: pytest.CaptureFixture[str]
) -> None:
    code, record, junit, markdown = run_gate(*DIFFERENT)

    assert (code, record["verdict"]) == (0, "passed")
    assert "PASSED: no benchmark is slower by 1.2% or more" in capsys.readouterr().out
    assert [test.get("name") for test in Xml.fromstring(junit)] == list(gate.DEFAULT)
    assert not Xml.fromstring(junit).findall("testcase/*")
    assert markdown.startswith("## Gate: passed")
    assert record["benchmarks"][0]["slowdown"]["upper"] < gate.DELTA


def test_slower_head_exits_with_one_and_is_a_failed_test(fake_workers: FakeWorkers, run_gate: RunGate) -> None:
    fake_workers.slower = {"head's training step": 0.05}

    code, record, junit, markdown = run_gate(*DIFFERENT)

    assert (code, record["verdict"]) == (1, "failed")
    (failure,) = Xml.fromstring(junit).findall("testcase/failure")
    assert "in the second round at least" in (failure.get("message") or "")
    assert Xml.fromstring(junit).get("failures") == "1"
    assert "slower, or with a counter that rose: training-step-64" in markdown
    assert "training\\-step" not in markdown


def test_risen_counter_is_reported_with_both_values(fake_workers: FakeWorkers, run_gate: RunGate) -> None:
    fake_workers.counters["head's"] = {"FLOPs": 1234567, "peak memory": 100}

    code, record, junit, _ = run_gate(*DIFFERENT, "--select", "forward-1")

    assert code == 1
    assert record["benchmarks"][0]["reason"].startswith("FLOPs rose from 7 to 1,234,567; by time passed: at most +")
    assert "FLOPs rose from 7 to 1,234,567" in junit


def test_inconclusive_gate_exits_with_three_and_reports_the_detectable_slowdown(
    fake_workers: FakeWorkers, run_gate: RunGate
) -> None:
    fake_workers.noise = 0.05

    code, record, junit, _ = run_gate(*DIFFERENT, "--budget", "20s", "--select", "forward-1")

    assert (code, record["verdict"]) == (3, "inconclusive")
    found = record["benchmarks"][0]["slowdown"]
    detectable = (1 + gate.DELTA) * (1 + found["margin"]) - 1
    expected = f"undecided: slowdowns above {detectable:.2%} would have been detected in this time"
    assert record["benchmarks"][0]["reason"] == expected
    assert Xml.fromstring(junit).get("failures") == "1"


def test_inconclusive_gate_passes_where_asked_with_a_skipped_test(
    fake_workers: FakeWorkers, run_gate: RunGate, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_workers.noise = 0.05
    options = (*DIFFERENT, "--budget", "20s", "--select", "forward-1", "--inconclusive", "pass")

    code, record, junit, _ = run_gate(*options)

    assert (code, record["verdict"], record["tolerated"]) == (0, "inconclusive", True)
    assert (Xml.fromstring(junit).get("skipped"), Xml.fromstring(junit).get("failures")) == ("1", "0")
    assert capsys.readouterr().out.endswith(" (passes: --inconclusive pass)\n")


@pytest.mark.parametrize("inconclusive", gate.INCONCLUSIVE)
@pytest.mark.parametrize(("slower", "noise"), [(0.0, 0.003), (0.05, 0.003), (0.0, 0.05)])
def test_junit_fails_if_and_only_if_the_exit_code_is_not_zero(
    fake_workers: FakeWorkers, run_gate: RunGate, inconclusive: str, slower: float, noise: float
) -> None:
    fake_workers.slower, fake_workers.noise = {"head's": slower}, noise

    code, _, junit, _ = run_gate(*DIFFERENT, "--budget", "20s", "--inconclusive", inconclusive)

    suite = Xml.fromstring(junit)
    assert (suite.get("failures") == suite.get("errors") == "0") == (code == 0)


def test_failed_gate_fails_although_inconclusive_ones_pass(fake_workers: FakeWorkers, run_gate: RunGate) -> None:
    fake_workers.counters["head's"] = {"FLOPs": 8, "peak memory": 100}
    fake_workers.noise = 0.05

    code, record, _, _ = run_gate(*DIFFERENT, "--budget", "20s", "--select", "forward-1", "--inconclusive", "pass")

    assert (code, record["benchmarks"][0]["by_time"]) == (1, "inconclusive")


def test_table_shows_medians_and_percentiles_of_single_calls(
    fake_workers: FakeWorkers, run_gate: RunGate, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_workers.slow_calls, fake_workers.noise = {"head's": 1.0}, 0.0

    run_gate(*DIFFERENT, "--select", "forward-1")

    table = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    (row,) = ([cell.strip() for cell in line if cell.strip()] for line in table if line[0].strip() == "forward-1")
    assert row[5:9] == ["1000.000 ms", "1000.000 ms", "1000.000 ms", "2000.000 ms"]


def test_tail_is_a_test_of_its_own_with_time_of_its_own(fake_workers: FakeWorkers, run_gate: RunGate) -> None:
    fake_workers.slow_calls = {"head's": 1.0}

    code, record, junit, _ = run_gate(*DIFFERENT, "--select", "forward-1", "--tail", "10%")

    assert code == 1
    assert [(one["name"], one["verdict"], one["delta"]) for one in record["benchmarks"]] == [
        ("forward-1", "passed", gate.DELTA),
        ("forward-1 p99", "failed", 0.1),
    ]
    assert [test.get("name") for test in Xml.fromstring(junit)] == ["forward-1", "forward-1 p99"]
    options = gate._options(["--select", "forward-1", "--tail", "10%"])
    assert gate._settings(options).budget == 2 * gate.BUDGET


ACCEPTED = '[forward-1.FLOPs]\nat_most = 8\nreason = "a wider layer"\n'


def test_accepted_rise_of_the_judged_repository_passes(
    fake_workers: FakeWorkers, run_gate: RunGate, repository: Path
) -> None:
    fake_workers.counters["head's"] = {"FLOPs": 8, "peak memory": 100}
    (repository / "benchmarks").mkdir()
    (repository / "benchmarks/accepted.toml").write_text(ACCEPTED)

    code, record, _, _ = run_gate(*DIFFERENT, "--select", "forward-1")

    assert (code, record["verdict"]) == (0, "passed")
    assert record["benchmarks"][0]["excused"] == {"FLOPs": "accepted: a wider layer"}
    assert record["benchmarks"][0]["risen"] == {"FLOPs": [7, 8]}


def test_invalid_acceptance_is_an_error(
    fake_workers: FakeWorkers, run_gate: RunGate, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "benchmarks").mkdir()
    (repository / "benchmarks/accepted.toml").write_text('[forward-1.FLOPs]\nreason = "because"\n')

    code, _, _, _ = run_gate(*DIFFERENT)

    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "accepted.toml: forward-1.FLOPs: needs at_most and reason alone" in line


@pytest.mark.parametrize(("seconds", "pairs"), [(1, "1 pair is"), (4, "3 pairs are")])
def test_too_few_pairs_are_reported(fake_workers: FakeWorkers, run_gate: RunGate, seconds: int, pairs: str) -> None:
    code, record, _, _ = run_gate(*DIFFERENT, "--budget", f"{seconds}s", "--select", "forward-1")

    assert code == 3
    assert record["benchmarks"][0]["reason"] == f"undecided: {pairs} too few (raise --budget or --delta)"
    assert record["benchmarks"][0]["slowdown"]["upper"] is None


def test_large_speedup_is_pointed_out(fake_workers: FakeWorkers, run_gate: RunGate) -> None:
    fake_workers.slower = {"base's": 0.2}

    code, record, _, _ = run_gate(*DIFFERENT, "--select", "forward-1")

    assert code == 0
    assert record["benchmarks"][0]["reason"].endswith("; faster by more than delta")


def test_failing_worker_exits_with_two_and_is_an_error(
    fake_workers: FakeWorkers, run_gate: RunGate, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_workers.dies_at = 3

    code, record, junit, markdown = run_gate(*DIFFERENT)

    assert (code, record["verdict"]) == (2, "error")
    assert "SIGKILL" in record["reason"]
    assert "SIGKILL" in junit
    assert "SIGKILL" in markdown
    assert Xml.fromstring(junit).get("errors") == "1"
    output = capsys.readouterr()
    assert output.err == f"error: {record['reason']}\n"
    assert "SIGKILL" not in output.out


def test_markup_in_names_is_escaped(fake_workers: FakeWorkers, run_gate: RunGate) -> None:
    fake_workers.machines["head's"] = MACHINE | {"host": "<b>|there|</b>\n# `x`"}

    _, _, junit, markdown = run_gate(*DIFFERENT)

    assert "<b>" not in junit
    assert "\\<b\\>\\|there\\|\\</b\\> \\# \\`x\\`" in markdown


def test_files_of_the_previous_run_are_kept(fake_workers: FakeWorkers, run_gate: RunGate, tmp_path: Path) -> None:
    run_gate(*DIFFERENT)
    fake_workers.dies_at = fake_workers.blocks + 3

    run_gate(*DIFFERENT)

    assert json.loads((tmp_path / "gate.previous.json").read_text())["verdict"] == "passed"
    assert json.loads((tmp_path / "gate.json").read_text())["verdict"] == "error"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--select", "loss-*"], "no benchmark is named loss-*; there are forward-1, forward-4"),
        (["--select", "forward-1,"], "no benchmark is named ;"),
        (["--delta", "0%"], "not a share between 0 and 100%"),
        (["--delta", "2"], "not a share between 0 and 100%"),
        (["--delta", "abc"], "--delta: 'abc' is not a share between 0 and 100%: write a percentage such as 2% or a"),
        (["--budget", "0s"], "not a positive duration"),
        (["--budget", "inf"], "'inf' is not a positive duration"),
        (["--budget", "nan"], "'nan' is not a positive duration"),
        (
            ["--budget", "8ms"],
            "'8ms' is not a positive duration: write seconds or minutes, as 120s or 2m, up to 43200m",
        ),
        (["--budget", "1e9s"], "'1e9s' is not a positive duration"),
        (["--budget", "9999999m"], "'9999999m' is not a positive duration"),
        (["--seed", "-1"], "--seed: '-1' is not a whole number of at least 0"),
        (["--seed", "1.5"], "--seed: '1.5' is not a whole number of at least 0"),
        (["--json", "/"], "--json /: is a folder; name a file"),
        (["--json", "/dev/null"], "--json /dev/null: is not a regular file"),
        (["--json", "same", "--junit", "./same"], "same: is the file of another option, too"),
        (["--budget", "soon"], "--budget: 'soon' is not a positive duration: write seconds or minutes, as 120s or 2m"),
        (["--threads", "0"], "--threads: '0' is not a whole number of at least 1"),
        (["--threads", "two"], "--threads: 'two' is not a whole number of at least 1"),
        (["--dtype", "int8"], "invalid choice"),
        (["--inconclusive", "skip"], "invalid choice"),
        (["--tail", "0"], "not a share between 0 and 100%"),
        (["--base-python", "/nowhere/python"], "/nowhere/python is not an executable program"),
        (["--json", "/proc/none/gate.json"], "--json /proc/none/gate.json: not in a writable folder"),
    ],
)
def test_invalid_option_is_a_usage_error(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(options)

    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_folder_named_as_a_file_keeps_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "gate.json"
    folder.mkdir()

    with pytest.raises(SystemExit):
        main(["--json", str(folder)])

    assert [path.name for path in tmp_path.iterdir()] == ["gate.json"]


def test_unforeseen_error_is_no_verdict(
    fake_workers: FakeWorkers, run_gate: RunGate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("by \ud800")

    monkeypatch.setattr(gate, "compare", fails)

    code, record, junit, markdown = run_gate(*DIFFERENT)

    assert (code, record["verdict"]) == (2, "error")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(r"error: ZeroDivisionError: by \ud800 (test_gate.py, line ")
    assert line.removeprefix("error: ") == record["reason"]
    assert "ZeroDivisionError" in junit
    assert "ZeroDivisionError" in markdown


def test_verdict_is_printed_and_written_to_the_files_that_can_be_written(
    fake_workers: FakeWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = gate.write_atomically

    def fails_once(path: Path) -> object:
        if path.name == "full.json":
            raise OSError(28, "No space left on device")
        return original(path)

    monkeypatch.setattr(gate, "write_atomically", fails_once)
    fake_workers.slower = {"head's": 0.05}
    files = ("--json", str(tmp_path / "full.json"), "--markdown", str(tmp_path / "gate.md"))

    assert main([*DIFFERENT, *files]) == 2

    output = capsys.readouterr()
    assert "FAILED: slower" in output.out
    assert output.err == f"error: --json {tmp_path}/full.json: cannot be written: No space left on device\n"
    assert (tmp_path / "gate.md").read_text().startswith("## Gate: failed")


def test_verdict_that_cannot_be_printed_is_written(
    fake_workers: FakeWorkers, run_gate: RunGate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = gate._show

    def fails_at_the_end(text: str) -> None:
        if "PASSED" in text:
            raise BrokenPipeError(32, "Broken pipe")
        original(text)

    monkeypatch.setattr(gate, "_show", fails_at_the_end)

    code, record, _, _ = run_gate(*DIFFERENT)

    assert (code, record["verdict"]) == (2, "passed")
    assert capsys.readouterr().err == "error: the verdict cannot be printed: Broken pipe\n"


def test_terminal_without_unicode_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = TextIOWrapper(BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)

    gate._show("größer \ud800")

    assert terminal.buffer.getvalue() == rb"gr\xf6\xdfer \ud800" + b"\n"


def test_options_accept_patterns_percentages_and_units() -> None:
    options = gate._options(["--select", "forward-*,training-step-1", "--delta", "5%", "--budget", "2m"])

    assert options.select == (*(name for name in BENCHMARKS if name.startswith("forward")), "training-step-1")
    assert (options.delta, options.budget) == (0.05, 120.0)
    assert gate._options(["--delta", "0.05", "--budget", "120s"]).budget == 120.0


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with two commits on main; file.txt is `one`, then `two`."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("GITHUB_BASE_REF", raising=False)
    git("init", "-b", "main")
    for text in ("one", "two"):
        (folder / "file.txt").write_text(text)
        git("add", "file.txt")
        git("commit", "-m", text)
    return folder


def test_base_is_where_the_branch_began(repository: Path) -> None:
    start = git("rev-parse", "HEAD")
    git("checkout", "-b", "branch")
    git("commit", "--allow-empty", "-m", "three")
    git("commit", "--allow-empty", "-m", "four")

    assert default_base() == start


def test_base_on_the_main_branch_is_the_previous_state(repository: Path) -> None:
    assert default_base() == "HEAD~1"
    (repository / "file.txt").write_text("three")
    assert default_base() == "HEAD"


def test_base_of_a_pull_request_is_from_its_target_branch(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("update-ref", "refs/remotes/origin/develop", "HEAD~1")
    monkeypatch.setenv("GITHUB_BASE_REF", "develop")

    assert default_base() == git("rev-parse", "HEAD~1")


def test_missing_main_branch_is_an_error(repository: Path) -> None:
    git("branch", "-m", "only")

    with pytest.raises(ComparisonError, match="name a commit with --base REV"):
        default_base()


def test_shallow_clone_is_an_error(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("clone", "--depth", "1", f"file://{repository}", str(tmp_path / "shallow"))
    monkeypatch.chdir(tmp_path / "shallow")

    with pytest.raises(
        ComparisonError, match=r"name a commit with --base REV \(a shallow clone needs fetch-depth: 0\)"
    ):
        default_base()


def test_folder_outside_git_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ComparisonError, match="not a git repository"):
        default_base()


def test_checkout_leaves_the_repository_unchanged(repository: Path) -> None:
    with checkout("HEAD~1") as folder:
        assert (folder / "file.txt").read_text() == "one"
        assert (repository / "file.txt").read_text() == "two"

    assert not folder.exists()
    assert git("status", "--porcelain") == ""
    assert git("worktree", "list").count("\n") == 0


def test_unknown_commit_is_an_error(repository: Path, run_gate: RunGate, capsys: pytest.CaptureFixture[str]) -> None:
    code, record, _, _ = run_gate("--base", "nowhere")

    assert (code, record["verdict"]) == (2, "error")
    assert "--base nowhere: not a commit of this repository; name a commit, such as HEAD~1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("--output=FILE", "not a commit of this repository"),
        ("--remote=file:///", "not a commit of this repository"),
        ("--all", "not a commit of this repository"),
        ("", "not a commit of this repository"),
        ("HEAD HEAD", "not a commit of this repository"),
        ("HEAD..HEAD~1", "not a commit of this repository"),
        ("\udcff", "not a commit of this repository"),
        ("a\0b", "git cannot be executed"),
        ("HEAD:", "is a tree, not a commit"),
        ("HEAD:file.txt", "is a blob, not a commit"),
    ],
)
def test_base_that_is_no_commit_is_an_error_and_changes_nothing(
    repository: Path, revision: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`git archive --output=FILE` would empty FILE."""
    (repository / "FILE").write_text("kept")

    assert main([f"--base={revision}"]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert line.isprintable()
    assert (repository / "FILE").read_text() == "kept"


def test_every_name_of_a_commit_is_resolved(repository: Path) -> None:
    git("tag", "-a", "v1", "-m", "annotated", "HEAD~1")
    first, second = git("rev-parse", "HEAD~1"), git("rev-parse", "HEAD")

    assert [resolve(name) for name in ("v1", "HEAD~1", first[:8], ":/one")] == [first] * 4
    assert [resolve(name) for name in ("HEAD", "@", "main", second)] == [second] * 4


def test_message_of_a_commit_in_another_encoding_is_shown(repository: Path) -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-F", "-"],
        input=b"gr\xf6\xdfer \x1b[31m",
        capture_output=True,
        check=True,
    )

    assert describe("HEAD").split(" ", 1)[1].isprintable()


def test_missing_git_is_an_error(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert main([]) == 2

    expected = "error: git cannot be executed ([Errno 2] No such file or directory: 'git')"
    assert capsys.readouterr().err.startswith(expected)


def test_commit_without_a_worker_is_an_error(
    repository: Path, run_gate: RunGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is installed or on the path must not be used instead."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("lenet/oracle.py", "benchmarks/worker.py"):  # what this project's repository has now
        (repository / name).parent.mkdir()
        (repository / name).touch()

    code, record, _, _ = run_gate("--base", "HEAD")

    assert code == 2
    expected = "two: no benchmarks/worker.py in this commit: this commit cannot be compared; choose a newer --base"
    assert record["reason"].endswith(expected)


def test_wrong_answer_is_an_error(run_gate: RunGate, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)

    code, record, _, _ = run_gate("--head-subject", f"{tmp_path}/faulty.py:ReluMissing", "--select", "forward-4")

    assert code == 2
    assert "budgets of" in record["reason"]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (
            "fakes:dying",
            "head: lenet by fakes:dying on cpu in float32: the worker was terminated by SIGABRT; "
            "last line of stderr: the last words",
        ),
        ("none", "head: lenet by none on cpu in float32: EngineError: --engine none: not one of"),
    ],
)
def test_worker_that_dies_or_cannot_start_is_an_error(
    fake_engines: Path, run_gate: RunGate, engine: str, message: str
) -> None:
    code, record, _, _ = run_gate("--head-engine", engine, "--select", "forward-1")

    assert code == 2
    assert message in record["reason"]
    if engine != "none":
        assert not remaining_processes(fake_engines)


def test_worker_with_another_protocol_is_an_error(run_gate: RunGate, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '{\"ready\": true}'\n")
    python.chmod(0o755)

    code, record, _, _ = run_gate("--base-python", str(python), "--select", "forward-1")

    assert code == 2
    expected = (
        f"uses protocol None, this version protocol {PROTOCOL}: this commit cannot be compared; choose a newer --base"
    )
    assert expected in record["reason"]


@pytest.mark.slow
def test_ctrl_c_leaves_no_process(fake_engines: Path) -> None:
    with start_command("gate", "--head-engine", "fakes:hanging", "--select", "forward-1") as run:
        assert interrupt(run, fake_engines, processes=2) == "stopped"  # the worker and its child

    assert not remaining_processes(fake_engines)


@pytest.mark.slow
def test_killed_gate_leaves_no_process_and_no_file(
    fake_engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with start_command("gate", "--head-engine", "fakes:hanging", "--select", "forward-1") as run:
        wait_for_processes(run, fake_engines, processes=2)
        assert list(temporary.iterdir())
        run.kill()
        run.communicate()

    assert not remaining_processes(fake_engines)
    assert not list(temporary.iterdir())


@pytest.mark.slow
def test_real_comparison_times_pairs_on_one_core(run_gate: RunGate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict depends on the machine, but both sides are always counted, timed and decided."""
    monkeypatch.setattr(comparison, "MIN_BLOCKS", 4)

    code, record, _, _ = run_gate("--head-engine", "channels-last", "--select", "forward-4", "--budget", "12s")

    assert code in (0, 1, 3)
    (benchmark,) = record["benchmarks"]
    assert benchmark["counters"]["base"]["FLOPs"] == benchmark["counters"]["head"]["FLOPs"] == 4 * 833_040
    assert benchmark["pairs"]
    assert all(len(pair["cores"]) == 1 and pair["base"] > 0 and pair["head"] > 0 for pair in benchmark["pairs"])
    assert record["stacks"]["head"] == record["stack"]


KERNEL = """
import lenet

class Net(lenet.Net):
    def forward(self, images):
        return super().forward({images})
"""


@pytest.mark.slow
def test_kernel_in_a_repository_of_its_own_is_compared_with_its_base_commit(
    repository: Path, run_gate: RunGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commits differ in one file, and nothing of this project is in them."""
    monkeypatch.setattr(comparison, "MIN_BLOCKS", 4)
    (repository / "kernels").mkdir()
    file = repository / "kernels/mine.py"
    for images in ("images", "images.clone()"):
        file.write_text(KERNEL.replace("{images}", images))
        git("add", "kernels/mine.py")
        git("commit", "-m", f"takes {images}")
    options = ("--subject", "kernels/mine.py:Net", "--select", "forward-1", "--budget", "10s")

    code, record, _, _ = run_gate(*options, "--base", "HEAD~1")
    file.write_text(KERNEL.replace("{images}", "images"))
    _, reverted, _, _ = run_gate(*options, "--base", "HEAD")

    assert code == 1
    (benchmark,), (other,) = record["benchmarks"], reverted["benchmarks"]
    assert set(benchmark["risen"]) >= {"operators", "allocations"}
    assert benchmark["counters"] == {"base": other["counters"]["head"], "head": other["counters"]["base"]}
    assert not other["risen"]
    assert benchmark["pairs"]
    assert other["pairs"]
    assert record["compared"][0].endswith("takes images")
