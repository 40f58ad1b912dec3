"""The trial counts the gate's verdicts and resumes where it stopped."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks import gate_trial
from benchmarks.comparison import BENCHMARKS, ComparisonError, Side
from benchmarks.fakes import mutated_json
from benchmarks.gate import BUDGET, DELTA
from benchmarks.gate_trial import (
    background,
    check_checkout,
    main,
    read,
    replayed,
    run,
    sample_statistics,
    summary,
    write,
)
from benchmarks.trial_table import CONDITIONS, LOADS, RULES, Condition, interval, next_gate, plan, proportion, rows
from benchmarks.worker_client import Worker, WorkerError
from lenet import subject
from lenet.fingerprint import FORMAT, fingerprint

CONTENT = {"format": FORMAT, "stack": fingerprint(), "delta": DELTA, "budget": BUDGET, "verdicts": []}


def verdict(condition: str = "A/A", verdict: str = "passed", processes: int = 0, **others: Any) -> dict[str, Any]:
    """Return a verdict as gate_trial.json has it."""
    measured = {"benchmark": "forward-1", "seed": 1, "ratios": [[1, 0.001]] * 7}
    measured |= {kind: {"ratio": 1.0, "p": 0.5} for kind in ("sequential", "interleaved")}
    return {"condition": condition, "verdict": verdict, "background_processes": processes} | measured | others


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=lambda condition: condition.name)
def test_subjects_and_benchmarks_of_every_condition_exist(condition: Condition) -> None:
    for spec in (condition.base, condition.head):
        assert subject.load(spec).spec == spec
    assert set(condition.benchmarks) <= BENCHMARKS.keys()


def test_proportion_has_its_exact_interval() -> None:
    """For none of n, the Clopper-Pearson interval ends at 1 - 0.025^(1/n)."""
    assert proportion(0, 100) == f"0 of 100: 0.0% (0.0% to {1 - 0.025 ** (1 / 100):.1%})"
    assert proportion(0, 0) == "-"
    assert 1 - 0.025 ** (1 / gate_trial.REPLAYS) < 0.001 < 1 - 0.025 ** (1 / (gate_trial.REPLAYS - 100))


def test_clustered_interval_is_that_of_as_many_gates() -> None:
    """Clopper-Pearson: for none of n it ends at 1 - 0.025^(1/n), for all of n it begins at 0.025^(1/n)."""
    assert proportion(0, 42, 14) == f"0 of 42: 0.0% (0.0% to {1 - 0.025 ** (1 / 14):.1%})"
    assert proportion(18, 18, 6) == f"18 of 18: 100.0% ({0.025 ** (1 / 6):.1%} to 100.0%)"
    assert all(abs(a - b) < 1e-12 for a, b in zip(interval(3, 9, 3), interval(1, 3, 3), strict=True))


def test_plan_bounds_false_alarms_by_5_percent_and_detections_by_90() -> None:
    gates = {name: 2 * sum(n for condition, _, n in plan(False) if condition.name == name) for name in ("A/A", "+5%")}

    assert (gates["A/A"], gates["+5%"]) == (74, 36)
    assert interval(0, gates["A/A"], gates["A/A"])[1] <= 0.05
    assert interval(gates["+5%"], gates["+5%"], gates["+5%"])[0] >= 0.9


@pytest.mark.parametrize("other_environment", [False, True])
def test_gates_are_made_until_the_plan_is_done(other_environment: bool) -> None:
    verdicts: list[dict[str, Any]] = []
    made: Counter[tuple[str, tuple[str, ...]]] = Counter()
    while gate := next_gate(verdicts, 0, other_environment):
        condition, benchmarks = gate
        made[condition.name, benchmarks] += 1
        seed = len(verdicts) + 1
        verdicts += [verdict(condition.name, benchmark=benchmark, seed=seed) for benchmark in benchmarks]

    assert made == {(condition.name, benchmarks): n for condition, benchmarks, n in plan(other_environment)}
    assert ("A/A, other environment" in {name for name, _ in made}) == other_environment
    assert next_gate(verdicts, 1) == next_gate([], 1)


def test_all_conditions_are_begun_before_one_is_repeated() -> None:
    verdicts: list[dict[str, Any]] = []
    for seed in range(len(list(plan(False)))):
        condition, benchmarks = next_gate(verdicts, 0) or (None, ())
        assert condition
        verdicts += [verdict(condition.name, benchmark=benchmark, seed=seed) for benchmark in benchmarks]

    assert {one["condition"] for one in verdicts} == {condition.name for condition, _, _ in plan(False)}


def test_rules_of_other_tools_detect_only_a_slower_second_side() -> None:
    slow, fast = [1.15 + 0.001 * k for k in range(40)], [1.0 + 0.001 * k for k in range(40)]

    assert all(rule(**sample_statistics(fast, slow)) for rule in RULES.values())
    assert not any(rule(**sample_statistics(slow, fast)) for rule in RULES.values())
    assert not any(rule(**sample_statistics(fast, fast)) for rule in RULES.values())


def test_summary_counts_gates_and_verdicts_by_condition_and_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_trial, "REPLAYS", 3)
    slower = {"ratio": 1.2, "p": 0.0}
    verdicts = [verdict(), verdict(benchmark="forward-256")]
    verdicts += [verdict(verdict="failed", processes=1, sequential=slower, interleaved=slower)]
    verdicts += [verdict("+5%", "failed"), verdict("+5%", "inconclusive"), verdict("+5%", "failed", seed=2)]

    table = rows(verdicts)

    assert [row[:2] for row in table[1:]] == [["A/A", "none"], ["A/A", "a training run"], ["+5%", "none"]]
    assert [row[2].partition(":")[0] for row in table[1:]] == ["0 of 1", "1 of 1", "2 of 2"]
    assert [row[3].partition(":")[0] for row in table[1:]] == ["0 of 2", "1 of 1", "2 of 3"]
    assert [row[4:6] for row in table[1:]] == [["2", "0"], ["0", "0"], ["0", "1"]]
    assert table[1][8:] == ["0 of 2"] * 2 * len(RULES)
    assert table[2][8:] == ["1 of 1"] * 2 * len(RULES)
    lines = summary(verdicts).splitlines()
    assert lines[-2] == "replayed from the pairs of A/A, forward-1 fails in 0 of 3: 0.0% (0.0% to 70.8%)"


def test_table_of_verdicts_without_interleaved_samples_has_no_such_columns() -> None:
    old = verdict()
    del old["interleaved"]

    header, row = rows([old])

    assert len(header) == len(row) == 8 + len(RULES)
    assert row[6] == "-"


@pytest.mark.slow
def test_replays_of_noisy_pairs_keep_the_false_alarm_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_trial, "REPLAYS", 400)
    noisy = [verdict(ratios=[[1, 0.2 * (-1) ** k * (1 + k / 100)] for k in range(20)])]

    assert replayed(noisy, "forward-1").startswith("0 of 400")


def test_verdicts_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "gate_trial.json"
    assert read(path) == []

    write(path, [verdict()])

    assert read(path) == [verdict()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format"', "not a file of this command"),
        ("[]", "not a file of this command"),
        ("{}", "not a file of this command"),
        (json.dumps(CONTENT | {"format": 2}), f"format 2, this version continues format {FORMAT}"),
        (
            json.dumps(CONTENT | {"stack": {"torch": "1.0"}}),
            "cannot be continued on another stack; move or delete the file to start a new trial",
        ),
        (json.dumps(CONTENT | {"stack": {"torch": "1.0"}}), "its torch is 1.0, here it is"),
        ("[" * 100_000, "not a file of this command"),
        (
            json.dumps(CONTENT | {"verdicts": [verdict(condition="none")]}),
            "one of its verdicts is none of this command",
        ),
        (json.dumps(CONTENT | {"verdicts": [verdict(benchmark="none")]}), "benchmark or verdict is unknown"),
        (json.dumps(CONTENT | {"verdicts": [verdict(seed="1")]}), "a seed, a round or a number of processes is not"),
        (json.dumps(CONTENT | {"verdicts": [verdict(ratios=[[1, float("nan")]])]}), "a figure is not a finite number"),
        (json.dumps(CONTENT | {"delta": 0.05}), "its delta and time limit are (0.05, 120.0), now"),
    ],
)
def test_file_of_another_run_is_an_error_and_is_kept(
    tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gate_trial.json").write_text(content)

    assert main(["--record", str(tmp_path), "--minutes", "0"]) == 2

    assert message in capsys.readouterr().err
    assert (tmp_path / "gate_trial.json").read_text() == content


@given(content=mutated_json(CONTENT | {"verdicts": [verdict(), verdict("+5%", "failed")]}))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_continued_or_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "gate_trial.json").write_bytes(content)

    try:
        verdicts = read(tmp_path / "gate_trial.json")
    except ValueError:
        return
    gate = next_gate(verdicts, 0)
    assert gate is None or gate[0].name in CONDITIONS
    assert rows(verdicts)


def test_error_in_a_trial_keeps_earlier_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "gate_trial.json", [verdict()])

    def fails(*_: Any) -> None:
        raise WorkerError("lenet by eager: the worker was terminated by SIGKILL")

    monkeypatch.setattr(gate_trial, "compare", fails)
    monkeypatch.setattr(gate_trial, "check_checkout", lambda: None)

    assert main(["--record", str(tmp_path), "--minutes", "1"]) == 2

    assert "the worker was terminated by SIGKILL" in capsys.readouterr().err
    assert read(tmp_path / "gate_trial.json") == [verdict()]


def test_base_is_checked_out_and_head_is_the_working_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[Side] = []

    def record(*arguments: Any) -> None:
        base, head = arguments[:2]
        sides.extend((base, head))
        assert (base.folder / "lenet/oracle.py").is_file()
        assert not list(base.folder.rglob("*.pyc"))
        raise ComparisonError("enough")

    monkeypatch.setattr(gate_trial, "compare", record)
    for condition in (CONDITIONS["A/A"], CONDITIONS["A/A, other environment"]):
        with pytest.raises(ComparisonError, match="enough"):
            gate_trial.trial(condition, ("forward-1",), 1, "/other/python")

    assert [side.python for side in sides] == [sys.executable, sys.executable, "/other/python", sys.executable]
    assert [side.folder is None for side in sides] == [False, True, False, True]


def test_trial_of_a_changed_working_tree_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_trial, "has_changes", lambda: True)

    with pytest.raises(ComparisonError, match="commit them first"):
        check_checkout()


def test_trial_outside_the_clone_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ComparisonError, match="not a git repository"):
        check_checkout()


@pytest.mark.parametrize("processes", LOADS)
def test_finished_plan_ends_the_run(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    monkeypatch.setattr(gate_trial, "next_gate", lambda *_: None)
    monkeypatch.setattr(gate_trial, "background", lambda _: nullcontext(lambda: None))

    run([], Namespace(minutes=600.0, background=processes, base_python=None, record=Path()))


def test_background_process_trains_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_trial, "SAMPLE_SECONDS", 0.01)
    started = []

    class RecordedWorker(Worker):
        def start(self) -> None:
            super().start()
            started.append(self.process)

    monkeypatch.setattr(gate_trial, "Worker", RecordedWorker)

    with background(1) as check:
        check()
        assert started[0].poll() is None
    assert started[0].poll() is not None


def test_trial_whose_background_process_died_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: Any) -> None:
        raise WorkerError("the worker was terminated by SIGKILL")

    monkeypatch.setattr(Worker, "sample", dies)

    def wait(check: Callable[[], None]) -> None:
        while True:
            check()

    with background(1) as check, pytest.raises(WorkerError, match="terminated by SIGKILL"):
        wait(check)
