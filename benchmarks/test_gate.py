"""What the gate says, writes and exits with, of made-up workers and of real ones that break in every way."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from benchmarks import comparison, gate
from benchmarks.comparison import ComparisonError
from benchmarks.gate import NAMES, branched_from, checkout, main
from benchmarks.gate_report import FORMATS
from benchmarks.test_comparison import MACHINE, World, world
from benchmarks.test_worker import command, fakes, interrupted, left
from properties.test_options import FAULTY, ROOT

__all__ = ["fakes", "world"]

Judged = Callable[..., tuple[int, dict, str, str]]


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    """Runs the gate; its exit code, and what it wrote as JSON, JUnit and Markdown."""

    def run(*options: str) -> tuple[int, dict, str, str]:
        files = {kind: tmp_path / f"gate.{kind}" for kind in FORMATS}
        code = main([*options, *(text for kind, file in files.items() for text in (f"--{kind}", str(file)))])
        written = {kind: file.read_text() for kind, file in files.items()}
        return code, json.loads(written["json"]), written["junit"], written["markdown"]

    return run


APART = ("--base-engine", "base's", "--head-engine", "head's")


def test_what_passes_exits_with_zero(world: World, judged: Judged, capsys: pytest.CaptureFixture[str]) -> None:
    code, record, junit, markdown = judged(*APART)

    assert (code, record["verdict"]) == (0, "passed")
    assert "PASSED: no benchmark is slower by 1.2% or more" in capsys.readouterr().out
    assert [test.get("name") for test in Xml.fromstring(junit)] == list(gate.DEFAULT)
    assert not Xml.fromstring(junit).findall("testcase/*")
    assert markdown.startswith("## Gate: passed")
    assert record["benchmarks"][0]["found"]["upper"] < gate.DELTA


def test_what_is_slower_exits_with_one_and_is_a_failed_test(world: World, judged: Judged) -> None:
    world.slower = {"head's training step": 0.05}

    code, record, junit, markdown = judged(*APART)

    assert (code, record["verdict"]) == (1, "failed")
    (failure,) = Xml.fromstring(junit).findall("testcase/failure")
    assert "in other processes at least" in (failure.get("message") or "")
    assert Xml.fromstring(junit).get("failures") == "1"
    assert "slower, or with more to do: training-step-64" in markdown
    assert "training\\-step" not in markdown


def test_a_counter_that_rises_is_named_with_both_numbers(world: World, judged: Judged) -> None:
    world.counters["head's"] = {"FLOPs": 1234567, "peak memory": 100}

    code, record, junit, _ = judged(*APART, "--select", "forward-1")

    assert code == 1
    assert record["benchmarks"][0]["why"] == "FLOPs rose from 7 to 1,234,567"
    assert "FLOPs rose from 7 to 1,234,567" in junit


def test_what_cannot_be_told_exits_with_three_and_says_what_could_have_been_seen(world: World, judged: Judged) -> None:
    world.scatter = 0.05

    code, record, junit, _ = judged(*APART, "--budget", "20s", "--select", "forward-1")

    assert (code, record["verdict"]) == (3, "inconclusive")
    found = record["benchmarks"][0]["found"]
    seen = gate.DELTA + found["estimate"] - found["lower"]
    assert record["benchmarks"][0]["why"] == f"a slowdown of {seen:.2%} would have been seen"
    assert Xml.fromstring(junit).get("skipped") == "1"


def test_too_few_pairs_are_said(world: World, judged: Judged) -> None:
    code, record, _, _ = judged(*APART, "--budget", "3s", "--select", "forward-1")

    assert code == 3
    assert record["benchmarks"][0]["why"].endswith("pairs are too few to tell")
    assert record["benchmarks"][0]["found"]["upper"] is None


def test_a_speedup_that_nobody_has_explained_is_pointed_out(world: World, judged: Judged) -> None:
    world.slower = {"base's": 0.2}

    code, record, _, _ = judged(*APART, "--select", "forward-1")

    assert code == 0
    assert "faster by more than delta: is that explained?" in record["benchmarks"][0]["why"]


def test_what_breaks_exits_with_two_and_is_an_error(
    world: World, judged: Judged, capsys: pytest.CaptureFixture[str]
) -> None:
    world.dies_at = 3

    code, record, junit, markdown = judged(*APART)

    assert (code, record["verdict"]) == (2, "broken")
    assert "SIGKILL" in record["reason"]
    assert "SIGKILL" in junit
    assert "SIGKILL" in markdown
    assert Xml.fromstring(junit).get("errors") == "1"
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_markup_in_a_name_stays_text(world: World, judged: Judged) -> None:
    world.machines["head's"] = MACHINE | {"host": "<b>|there|</b>\n# `x`"}

    _, _, junit, markdown = judged(*APART)

    assert "<b>" not in junit
    assert "\\<b\\>\\|there\\|\\</b\\> \\# \\`x\\`" in markdown


def test_what_an_earlier_run_wrote_is_set_aside(world: World, judged: Judged, tmp_path: Path) -> None:
    judged(*APART)
    world.dies_at = world.blocks + 3

    judged(*APART)

    assert json.loads((tmp_path / "gate.previous.json").read_text())["verdict"] == "passed"
    assert json.loads((tmp_path / "gate.json").read_text())["verdict"] == "broken"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--select", "backward-*"], "no benchmark is named backward-*; there are forward-1, forward-4"),
        (["--select", "forward-1,"], "no benchmark is named ;"),
        (["--delta", "0%"], "no share between 0 and 100%"),
        (["--delta", "2"], "no share between 0 and 100%"),
        (["--budget", "0s"], "no time"),
        (["--budget", "soon"], "invalid"),
        (["--threads", "0"], "invalid"),
        (["--dtype", "int8"], "invalid choice"),
        (["--base-python", "/nowhere/python"], "/nowhere/python is no program that can be run"),
        (["--json", "/proc/none/gate.json"], "--json /proc/none/gate.json: not a folder that can be written to"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(options)

    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_options_read_as_people_write_them() -> None:
    options = gate._options(["--select", "forward-*,training-step-1", "--delta", "5%", "--budget", "2m"])

    assert options.select == (*(name for name in NAMES if name.startswith("forward")), "training-step-1")
    assert (options.delta, options.budget) == (0.05, 120.0)
    assert gate._options(["--delta", "0.05", "--budget", "120s"]).budget == 120.0


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits on main; file.txt is `one`, then `two`."""
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

    assert branched_from() == start


def test_on_the_main_branch_base_is_what_was_before(repository: Path) -> None:
    assert branched_from() == "HEAD~1"
    (repository / "file.txt").write_text("three")
    assert branched_from() == "HEAD"


def test_base_is_told_by_a_pull_request(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("update-ref", "refs/remotes/origin/develop", "HEAD~1")
    monkeypatch.setenv("GITHUB_BASE_REF", "develop")

    assert branched_from() == git("rev-parse", "HEAD~1")


def test_without_a_main_branch_one_is_to_name_a_commit(repository: Path) -> None:
    git("branch", "-m", "only")

    with pytest.raises(ComparisonError, match="name a commit with --base REV"):
        branched_from()


def test_a_commit_is_checked_out_beside_and_leaves_nothing(repository: Path) -> None:
    with checkout("HEAD~1") as folder:
        assert (folder / "file.txt").read_text() == "one"
        assert (repository / "file.txt").read_text() == "two"

    assert not folder.exists()
    assert git("status", "--porcelain") == ""
    assert git("worktree", "list").count("\n") == 0


def test_a_commit_that_is_not_there_breaks(
    repository: Path, judged: Judged, capsys: pytest.CaptureFixture[str]
) -> None:
    code, record, _, _ = judged("--base", "nowhere")

    assert (code, record["verdict"]) == (2, "broken")
    assert "--base nowhere: fatal: not a valid object name" in capsys.readouterr().err


def test_a_commit_without_this_gate_breaks(repository: Path, judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no worker at all: not even what is installed, or on the path, is timed in its place."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    code, record, _, _ = judged("--base", "HEAD")

    assert code == 2
    assert record["reason"].endswith("two: no benchmarks/worker.py in this commit")


def test_a_wrong_answer_breaks(judged: Judged, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)

    code, record, _, _ = judged("--head-subject", f"{tmp_path}/faulty.py:ReluMissing", "--select", "forward-4")

    assert code == 2
    assert "budgets of" in record["reason"]


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("fakes:dying", "fakes:dying on cpu in float32: its worker was ended by SIGABRT; its last words: last words"),
        ("none", "--engine none: not one of"),
    ],
)
def test_a_worker_that_dies_breaks_with_its_last_words(fakes: Path, judged: Judged, engine: str, words: str) -> None:
    code, record, _, _ = judged("--head-engine", engine, "--select", "forward-1")

    assert code == 2
    assert words in record["reason"]
    if engine != "none":
        assert not left(fakes)


def test_a_worker_of_another_protocol_breaks(judged: Judged, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '{\"ready\": true}'\n")
    python.chmod(0o755)

    code, record, _, _ = judged("--base-python", str(python), "--select", "forward-1")

    assert code == 2
    assert "speaks protocol None, this version 1" in record["reason"]


def test_ctrl_c_leaves_no_process(fakes: Path) -> None:
    with command("benchmarks.gate", "--head-engine", "fakes:hanging", "--select", "forward-1") as run:
        assert interrupted(run, fakes, processes=2) == "stopped"  # the worker and what it started

    assert not left(fakes)


def test_a_real_comparison_comes_to_pairs_on_one_core(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it decides depends on the machine; that it times both sides, counts and decides does not."""
    monkeypatch.setattr(comparison, "BLOCKS", 4)

    code, record, _, _ = judged("--head-engine", "channels-last", "--select", "forward-4", "--budget", "12s")

    assert code in (0, 1, 3)
    (benchmark,) = record["benchmarks"]
    assert benchmark["counters"]["base"]["FLOPs"] == benchmark["counters"]["head"]["FLOPs"] == 4 * 833_040
    if not benchmark["risen"]:
        assert benchmark["pairs"]
        assert all(len(pair["cores"]) == 1 and pair["base"] > 0 and pair["head"] > 0 for pair in benchmark["pairs"])
    assert record["stacks"]["head"] == record["stack"]
