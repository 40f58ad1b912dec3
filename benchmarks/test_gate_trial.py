"""The trial counts what the gate decided, exactly, and goes on where it stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gate_trial
from benchmarks.gate import BUDGET, DEFAULT, DELTA
from benchmarks.gate_trial import (
    CONDITIONS,
    RULES,
    background,
    main,
    rarest,
    read,
    replayed,
    sequential,
    share,
    summary,
    write,
)
from benchmarks.worker import Worker, WorkerError
from lenet import subject
from lenet.fingerprint import fingerprint

KEPT = {"stack": fingerprint(), "delta": DELTA, "budget": BUDGET, "verdicts": []}


def verdict(condition: str = "A/A", verdict: str = "passed", beside: int = 0, **others: Any) -> dict[str, Any]:
    """One of a trial."""
    made_up = {"benchmark": "forward-1", "seed": 1, "ratios": [[1, 0.001]] * 7, "sequential": {"ratio": 1.0, "p": 0.5}}
    return {"condition": condition, "verdict": verdict, "beside": beside} | made_up | others


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=lambda condition: condition.name)
def test_every_condition_compares_what_there_is(condition: gate_trial.Condition) -> None:
    for spec in (condition.base, condition.head):
        assert subject.load(spec).spec == spec
    assert set(condition.benchmarks) <= set(DEFAULT)


def test_a_share_has_its_exact_interval() -> None:
    """Of none in n, Clopper and Pearson's interval ends at 1 - 0.025^(1/n)."""
    assert share(0, 100) == f"0 of 100: 0.0% (0.0% to {1 - 0.025 ** (1 / 100):.1%})"
    assert share(0, 0) == "-"
    assert 1 - 0.025 ** (1 / gate_trial.REPLAYS) < 0.001 < 1 - 0.025 ** (1 / (gate_trial.REPLAYS - 100))


def test_conditions_are_tried_by_their_weight() -> None:
    verdicts: list[dict[str, Any]] = []
    tried: Counter[str] = Counter()
    for _ in range(sum(condition.weight for condition in CONDITIONS.values())):
        name = rarest(verdicts, beside=0)
        tried[name] += 1
        verdicts += [verdict(name, benchmark=benchmark) for benchmark in CONDITIONS[name].benchmarks]

    assert tried == {name: condition.weight for name, condition in CONDITIONS.items()}
    assert rarest(verdicts, beside=1) == rarest([], beside=1)


def test_rules_of_other_tools_see_a_slower_second_arm_only() -> None:
    slow, fast = [1.10 + 0.001 * k for k in range(40)], [1.0 + 0.001 * k for k in range(40)]

    assert all(rule(**sequential(fast, slow)) for rule in RULES.values())
    assert not any(rule(**sequential(slow, fast)) for rule in RULES.values())
    assert not any(rule(**sequential(fast, fast)) for rule in RULES.values())


def test_the_summary_counts_by_condition_and_by_what_ran_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_trial, "REPLAYS", 3)
    verdicts = [verdict(), verdict(verdict="failed", beside=1, sequential={"ratio": 1.2, "p": 0.0})]
    verdicts += [verdict("+5%", "failed"), verdict("+5%", "inconclusive"), verdict("+5%", "failed")]

    lines = summary(verdicts).splitlines()

    assert [line.split("  ")[0].strip() for line in lines[1:4]] == ["A/A", "A/A", "+5%"]
    assert "0 of 1" in lines[1]
    assert lines[2].count("1 of 1") == 1 + len(RULES)
    assert "2 of 3: 66.7%" in lines[3]
    assert lines[-1] == "replayed from the pairs of A/A, forward-1 fails in 0 of 3: 0.0% (0.0% to 70.8%)"


def test_replays_of_wild_pairs_fail_no_more_often_than_the_rule_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_trial, "REPLAYS", 400)
    wild = [verdict(ratios=[[1, 0.2 * (-1) ** k * (1 + k / 100)] for k in range(20)])]

    assert replayed(wild, "forward-1").startswith("0 of 400")


def test_verdicts_are_kept_and_read_again(tmp_path: Path) -> None:
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
        (json.dumps(KEPT | {"stack": {"torch": "1.0"}}), "of another torch, 1.0; here it is"),
        (json.dumps(KEPT | {"delta": 0.05}), "of another gate, delta and budget were (0.05, 60.0), now"),
    ],
)
def test_another_file_is_refused_and_kept(
    tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gate_trial.json").write_text(content)

    assert main(["--record", str(tmp_path), "--minutes", "0"]) == 2

    assert message in capsys.readouterr().err
    assert (tmp_path / "gate_trial.json").read_text() == content


def test_a_trial_that_breaks_keeps_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "gate_trial.json", [verdict()])

    def broken(*_: Any) -> None:
        raise WorkerError("lenet by eager: its worker was ended by SIGKILL")

    monkeypatch.setattr(gate_trial, "judge", broken)

    assert main(["--record", str(tmp_path), "--minutes", "1"]) == 2

    assert "its worker was ended by SIGKILL" in capsys.readouterr().err
    assert read(tmp_path / "gate_trial.json") == [verdict()]


def test_another_process_trains_beside_until_it_is_no_longer_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_trial, "SAMPLED", 0.01)
    started = []

    class Noted(Worker):
        def start(self) -> None:
            super().start()
            started.append(self.process)

    monkeypatch.setattr(gate_trial, "Worker", Noted)

    with background(1) as check:
        check()
        assert started[0].poll() is None
    assert started[0].poll() is not None


def test_a_trial_whose_load_has_ended_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: Any) -> None:
        raise WorkerError("its worker was ended by SIGKILL")

    monkeypatch.setattr(Worker, "sample", ended)

    def wait(check: Callable[[], None]) -> None:
        while True:
            check()

    with background(1) as check, pytest.raises(WorkerError, match="ended by SIGKILL"):
        wait(check)
