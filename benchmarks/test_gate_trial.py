"""The trial counts the gate's verdicts and resumes where it stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks import gate_trial
from benchmarks.fakes import mutated_json
from benchmarks.gate import BUDGET, DEFAULT, DELTA
from benchmarks.gate_trial import background, main, next_condition, read, replayed, sequential, summary, write
from benchmarks.trial_table import CONDITIONS, RULES, Condition, proportion, rows
from benchmarks.worker_client import Worker, WorkerError
from lenet import subject
from lenet.fingerprint import FORMAT, fingerprint

CONTENT = {"format": FORMAT, "stack": fingerprint(), "delta": DELTA, "budget": BUDGET, "verdicts": []}


def verdict(condition: str = "A/A", verdict: str = "passed", processes: int = 0, **others: Any) -> dict[str, Any]:
    """Return a verdict as gate_trial.json has it."""
    measured = {"benchmark": "forward-1", "seed": 1, "ratios": [[1, 0.001]] * 7, "sequential": {"ratio": 1.0, "p": 0.5}}
    return {"condition": condition, "verdict": verdict, "background_processes": processes} | measured | others


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=lambda condition: condition.name)
def test_subjects_and_benchmarks_of_every_condition_exist(condition: Condition) -> None:
    for spec in (condition.base, condition.head):
        assert subject.load(spec).spec == spec
    assert set(condition.benchmarks) <= set(DEFAULT)


def test_proportion_has_its_exact_interval() -> None:
    """For none of n, the Clopper-Pearson interval ends at 1 - 0.025^(1/n)."""
    assert proportion(0, 100) == f"0 of 100: 0.0% (0.0% to {1 - 0.025 ** (1 / 100):.1%})"
    assert proportion(0, 0) == "-"
    assert 1 - 0.025 ** (1 / gate_trial.REPLAYS) < 0.001 < 1 - 0.025 ** (1 / (gate_trial.REPLAYS - 100))


def test_conditions_are_tried_in_proportion_to_their_weights() -> None:
    verdicts: list[dict[str, Any]] = []
    tried: Counter[str] = Counter()
    for _ in range(sum(condition.weight for condition in CONDITIONS.values())):
        name = next_condition(verdicts, processes=0)
        tried[name] += 1
        verdicts += [verdict(name, benchmark=benchmark) for benchmark in CONDITIONS[name].benchmarks]

    assert tried == {name: condition.weight for name, condition in CONDITIONS.items()}
    assert next_condition(verdicts, processes=1) == next_condition([], processes=1)


def test_rules_of_other_tools_detect_only_a_slower_second_side() -> None:
    slow, fast = [1.10 + 0.001 * k for k in range(40)], [1.0 + 0.001 * k for k in range(40)]

    assert all(rule(**sequential(fast, slow)) for rule in RULES.values())
    assert not any(rule(**sequential(slow, fast)) for rule in RULES.values())
    assert not any(rule(**sequential(fast, fast)) for rule in RULES.values())


def test_summary_counts_by_condition_and_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_trial, "REPLAYS", 3)
    verdicts = [verdict(), verdict(verdict="failed", processes=1, sequential={"ratio": 1.2, "p": 0.0})]
    verdicts += [verdict("+5%", "failed"), verdict("+5%", "inconclusive"), verdict("+5%", "failed")]

    lines = summary(verdicts).splitlines()

    assert [line.split("  ")[0].strip() for line in lines[1:4]] == ["A/A", "A/A", "+5%"]
    assert "0 of 1" in lines[1]
    assert lines[2].count("1 of 1") == 1 + len(RULES)
    assert "2 of 3: 66.7%" in lines[3]
    assert lines[-1] == "replayed from the pairs of A/A, forward-1 fails in 0 of 3: 0.0% (0.0% to 70.8%)"


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
        (json.dumps(CONTENT | {"delta": 0.05}), "its delta and time limit are (0.05, 60.0), now"),
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
    assert next_condition(verdicts, 0) in CONDITIONS
    assert rows(verdicts)


def test_error_in_a_trial_keeps_earlier_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "gate_trial.json", [verdict()])

    def fails(*_: Any) -> None:
        raise WorkerError("lenet by eager: the worker was terminated by SIGKILL")

    monkeypatch.setattr(gate_trial, "compare", fails)

    assert main(["--record", str(tmp_path), "--minutes", "1"]) == 2

    assert "the worker was terminated by SIGKILL" in capsys.readouterr().err
    assert read(tmp_path / "gate_trial.json") == [verdict()]


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
