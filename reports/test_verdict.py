"""The verdict: a failure in any part of a run makes the whole run fail, everywhere that the verdict is shown."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reports import figures, sentences, verdict
from reports.commands import make_index, report
from reports.conftest import Files, entry, page, parsed, write
from reports.loading import load
from reports.page import render_index
from reports.run import Run

STOPPED = {
    "outcome": "failed",
    "failure_kind": "crash",
    "message": "RuntimeError: not judged: since an earlier law, the GPU no longer works in this process: CUDA error",
}
ISSUE = {"title": "Steps are lost", "reference": "pytorch/pytorch#1"}


def laws(file: str, **fields: Any) -> Callable[[Files], Any]:
    """A function that changes the first law of a file, if it has one."""
    return lambda files: [law.update(fields) for law in files[file]["laws"][:1]]


def field(file: str, **fields: Any) -> Callable[[Files], Any]:
    """A function that changes fields of a file."""
    return lambda files: files[file].update(fields)


def gate_benchmark(**fields: Any) -> Callable[[Files], Any]:
    """A function that changes the benchmark of the gate, but not the gate's own verdict."""
    return lambda files: [benchmark.update(fields) for benchmark in files["gate.json"]["benchmarks"]]


def training(run: str, **fields: Any) -> Callable[[Files], Any]:
    """A function that changes the last epoch of the recorded training, or of its comparison."""

    def change(files: Files) -> None:
        content = files["training.json"]
        history = content["history"] if run == "history" else content["comparisons"]["the oracle"]
        history[-1] |= fields

    return change


UNTIMED = {"engine": "eager", "operation": "forward", "batch": 4, "reason": "logits[0] is 1, the oracle computes 2"}

pytestmark = pytest.mark.usefixtures("undrawn")

FAILURES: dict[str, tuple[str, Callable[[Files], Any]]] = {
    "violated law": ("laws", laws("laws.json", outcome="failed")),
    "stopped GPU": ("laws", laws("laws.json", **STOPPED)),
    "error beside the laws": ("laws", field("laws.json", errors=["worker gw0 crashed"])),
    "unfinished laws": ("laws", field("laws.json", finished=False)),
    "failed benchmark": ("benchmarks", field("benchmarks.json", errors=["bench_training.py::bench_forward[1]"])),
    "training at another accuracy": ("training", training("history", accuracy=0.1)),
    "comparison at another accuracy": ("training", training("comparisons", accuracy=0.5)),
    "loss of training is not finite": ("training", training("history", loss=None)),
    "loss of comparison is not finite": ("training", training("comparisons", loss=None)),
    "law violated by an engine": ("engines", laws("engines.json", outcome="failed")),
    "GPU stopped under engines": ("engines", laws("engines.json", **STOPPED)),
    "error beside the engines' laws": ("engines", field("engines.json", errors=["properties/laws/test_x.py"])),
    "unfinished engines": ("engines", field("engines.json", finished=False)),
    "no engine judged": ("engines", field("engines.json", laws=[])),
    "wrong result of a timed engine": ("engine times", field("engine_times.json", not_timed=[UNTIMED])),
    "failed gate": ("gate", field("gate.json", verdict="failed")),
    "error of the gate": ("gate", field("gate.json", verdict="error", benchmarks=[])),
    "failed benchmark of a gate that passed": ("gate", gate_benchmark(verdict="failed")),
    "gate that timed nothing": ("gate", field("gate.json", benchmarks=[])),
}
"""Ways in which a run can fail: the part that fails, and a function that plants the failure."""

WITHOUT_FAILURE: dict[str, Callable[[Files], Any]] = {
    "inconclusive gate": field("gate.json", verdict="inconclusive"),
    "known issue": laws("laws.json", known_issues=[ISSUE], forgiven=3),
    "law not judged: known issue": laws("laws.json", known_issues=[ISSUE], forgiven=30),
    "skipped law": laws("laws.json", outcome="skipped"),
    "accuracy that rounding explains": training("comparisons", accuracy=0.96),
    "no engines": lambda files: files.pop("engines.json"),
    "no times of engines": lambda files: files.pop("engine_times.json"),
    "no gate": lambda files: files.pop("gate.json"),
}
"""Changes after which a run still passes."""


def planted(files: Files, *plants: Callable[[Files], Any]) -> Files:
    """The same files with these changes."""
    changed = copy.deepcopy(files)
    for plant in plants:
        plant(changed)
    return changed


def loaded(files: Files) -> Run:
    """The run with these files."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), files)
        return load(Path(folder))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures consist of their title; drawing them is slow."""
    monkeypatch.setattr(figures, "_svg", lambda figure: f"<svg>{figure.get_suptitle()}</svg>")


def junit_failures(folder: Path) -> list[str]:
    """The parts that fail in `junit.xml`."""
    tests = Xml.parse(folder / "junit.xml").getroot().findall("testcase[@classname='verdict'][failure]")
    return [test.get("name", "") for test in tests]


@pytest.mark.parametrize("failure", FAILURES)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(others=st.sets(st.sampled_from(list(FAILURES))))
def test_failure_in_any_part_fails_the_run_whatever_else_fails(complete: Files, failure: str, others: set[str]) -> None:
    failures = sorted({failure, *others})

    run = loaded(planted(complete, *(FAILURES[name][1] for name in failures)))

    expected = {FAILURES[name][0] for name in failures}
    assert {part.name for part in verdict.failed_parts(run)} == expected
    assert not verdict.passed(run)
    assert verdict.status(run).startswith("FAILED (")
    assert all(part in verdict.status(run) for part in expected)
    assert all(reason in sentences.verdict(run) for part in verdict.failed_parts(run) for reason in part.failures)


@pytest.mark.parametrize("failure", FAILURES)
def test_failure_in_any_part_is_shown_everywhere(
    tmp_path: Path, complete: Files, capsys: pytest.CaptureFixture[str], failure: str
) -> None:
    """The exit code, the headline, the page, its picture, the summary, JUnit and the page of all runs agree."""
    part, plant = FAILURES[failure]
    write(tmp_path, planted(complete, plant))

    assert report([str(tmp_path)]) == 1

    assert capsys.readouterr().out.startswith(f"FAILED ({part}): ")
    assert f"Failed ({part})" in parsed(tmp_path).text
    assert '<div class="verdict bad">' in page(tmp_path)
    assert f"FAILED ({part})" in (tmp_path / "picture.svg").read_text()
    assert (tmp_path / "summary.md").read_text().splitlines()[1].startswith(f"# Failed ({part})")
    assert junit_failures(tmp_path) == [part]
    assert f'<td class="bad">failed ({part})</td>' in render_index([("name", load(tmp_path))])


@pytest.mark.parametrize("change", WITHOUT_FAILURE)
def test_run_without_a_failure_passes(tmp_path: Path, complete: Files, change: str) -> None:
    write(tmp_path, planted(complete, WITHOUT_FAILURE[change]))

    assert report([str(tmp_path)]) == 0
    assert '<div class="verdict good">' in page(tmp_path)
    assert "PASSED" in (tmp_path / "picture.svg").read_text()
    assert junit_failures(tmp_path) == []


def test_headline_of_a_complete_run_names_what_was_judged(complete: Files) -> None:
    run = loaded(complete)

    assert sentences.verdict(run) == (
        "PyTorch 2.13.0 (CPU) on Test, 2 cores: 2 laws hold, 0 known issues, 0 violations; "
        "engines: 2 laws hold, 0 known issues, 0 violations; "
        "gate: passed, training step takes 1.001 times as long as base (interval 0.990 to 1.010)."
    )


def test_inconclusive_gate_is_in_the_headline_and_skipped_in_junit(tmp_path: Path, complete: Files) -> None:
    write(tmp_path, planted(complete, WITHOUT_FAILURE["inconclusive gate"]))
    report([str(tmp_path)])

    assert "; gate: inconclusive, training step takes" in parsed(tmp_path).text
    tests = Xml.parse(tmp_path / "junit.xml").getroot()
    assert tests.find("testcase[@classname='verdict'][@name='gate']/skipped") is not None


def test_headline_of_a_gpu_names_the_gpu_first(files: Files) -> None:
    for content in files.values():
        content["stack"] = content["stack"] | {"GPU": "NVIDIA H200"}
    files["laws.json"]["laws"] = [entry("test_sums", stack="lenet on cuda in float32")]
    for benchmark in files["benchmarks.json"]["benchmarks"]:
        benchmark["extra_info"]["device"] = "cuda"

    assert sentences.verdict(loaded(files)).startswith("PyTorch 2.13.0 (CUDA) on NVIDIA H200, Test, 2 cores: ")


def test_missing_parts_are_listed_with_their_commands(
    tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 0

    summary = (tmp_path / "summary.md").read_text()
    assert "not run: laws on engines (`lenet-properties judge --engine NAMES`), " in capsys.readouterr().out
    for what in verdict.not_run(loaded(files)):
        assert f"- not run: {what}\n" in summary
    assert "Not run: laws on engines (lenet-properties judge --engine NAMES), " in parsed(tmp_path).text


def test_complete_run_lacks_only_the_trial_of_the_gate(complete: Files) -> None:
    assert verdict.not_run(loaded(complete)) == ["error rates of the gate (`lenet-properties gate-trial`)"]


DEVIATION = {"reason": "bfloat16 sums <b>", "link": "https://example.org/1", "place": "known.toml: 1", "seen": True}


def test_known_deviations_are_counted_apart_and_listed(tmp_path: Path, files: Files) -> None:
    files["laws.json"]["laws"][1] |= {"known_deviations": [DEVIATION, DEVIATION | {"seen": False}], "deviating": 3}
    files["laws.json"]["laws"].append(entry("test_all", known_deviations=[DEVIATION], deviating=30))
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 0

    text = parsed(tmp_path).text
    holding = "2 laws hold (1 of them except on examples of known deviations)"
    assert f": {holding}, 1 law not judged: known deviation, 0 known issues, 1 known deviation, 0 violations." in text
    assert "90 examples were judged (33 with a known deviation forgiven)" in text
    assert "Except for a known deviation: bfloat16 sums <b> (https://example.org/1)." in text
    assert "In 3 of 30 examples, a known deviation was forgiven." in text
    summary = (tmp_path / "summary.md").read_text()
    assert "# Passed: this PyTorch stack trains LeNet correctly, except for known deviations\n" in summary
    assert "- known deviation: `bfloat16 sums <b> (https://example.org/1)`\n" in summary


def test_laws_that_the_user_left_out_are_not_judged_and_no_failure(tmp_path: Path, files: Files) -> None:
    skipped = {"examples": 0, "reason": "Skipped: left out by --skip-laws: too slow"}
    files["laws.json"]["laws"].append(entry("test_slow", "skipped", **skipped))
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 0

    text = parsed(tmp_path).text
    assert ": 2 laws hold, 1 law not judged: left out, 0 known issues, 0 violations." in text
    assert "On lenet on cpu in float32: not judged: left out: too slow." in text
    assert "- not judged, left out: slow holds: " in (tmp_path / "summary.md").read_text()


def test_law_with_every_example_forgiven_on_a_stack_does_not_hold(tmp_path: Path, files: Files) -> None:
    forgiven = {"known_issues": [ISSUE], "examples": 30, "forgiven": 30}
    files["laws.json"]["laws"].append(entry("test_order", stack="lenet on cpu in float16", **forgiven))
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 0

    text, summary = parsed(tmp_path).text, (tmp_path / "summary.md").read_text()
    assert ": 1 law holds, 1 law not judged: known issue, 1 known issue, 0 violations." in text
    assert "On lenet on cpu in float16: not judged: known issue." in text
    assert "1 law holds, 1 law is not judged: known issue, 1 s" in text
    assert "In 30 of 60 examples, a known issue was forgiven." in text
    assert "| forward pass | 1 | 0 | 1 | 90 | 30 | 0 | 1.5 |" in summary


def test_law_with_one_judged_example_on_each_stack_holds(files: Files) -> None:
    files["laws.json"]["laws"][1] |= {"known_issues": [ISSUE], "forgiven": 29}

    run = loaded(files)

    assert ": 2 laws hold (1 of them except on examples of known issues), 1 known issue, 0" in sentences.verdict(run)
    assert sentences.evidence(run).startswith("60 examples were judged (29 with a known issue forgiven); the worst")


def test_forms_of_a_law_on_one_stack_are_counted_together(files: Files) -> None:
    files["laws.json"]["laws"].append(entry("test_order", known_issues=[ISSUE], forgiven=30))

    assert len(loaded(files).laws.holding) == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"partly_judged": 2}, " (2 only in part)"),
        (
            {"known_issues": [ISSUE], "forgiven": 3, "partly_judged": 2},
            " (2 only in part, 3 with a known issue forgiven)",
        ),
        ({"known_issues": [ISSUE]}, " (the number with a known issue forgiven was not recorded)"),
        ({}, ""),
    ],
)
def test_evidence_counts_forgiven_and_partly_judged_examples(files: Files, fields: dict[str, Any], words: str) -> None:
    """A record without `forgiven` is of an older version; without a known issue, nothing was forgiven in it."""
    files["laws.json"]["laws"][0] |= fields

    assert sentences.evidence(loaded(files)).startswith(f"60 examples were judged{words}; the worst")


def test_laws_after_the_gpu_stopped_are_not_violations(tmp_path: Path, files: Files) -> None:
    """The law that stopped it is violated; the others were not judged, and have no examples."""
    files["laws.json"]["laws"] += [
        entry("test_stops", "failed", failure_kind="crash", message="CUDA error: misaligned")
    ]
    files["laws.json"]["laws"] += [entry(f"test_{number}", **STOPPED | {"examples": 1}) for number in range(44)]
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 1

    text, summary = parsed(tmp_path).text, (tmp_path / "summary.md").read_text()
    assert ": 2 laws hold, 0 known issues, 1 violation, 44 laws not judged." in text
    assert "On lenet on cpu in float32: not judged: since an earlier law, the GPU no longer works" in text
    assert "90 examples were judged;" in text
    assert summary.count("## Violated: ") == 1
    tests = Xml.parse(tmp_path / "junit.xml").getroot()
    assert len(tests.findall("testcase/skipped")) == 44


def test_law_that_crashes_by_itself_is_violated(files: Files) -> None:
    files["laws.json"]["laws"][0] |= {"outcome": "failed", "failure_kind": "crash", "message": "RuntimeError: a"}

    assert len(loaded(files).laws.violated) == 1


def test_violation_by_an_engine_is_shown_with_its_counterexample(tmp_path: Path, complete: Files) -> None:
    violation = {
        "message": "grad[6] is 1",
        "counterexample": "case=Case(batch=3)",
        "command": "pytest x --engine eager",
    }
    write(tmp_path, planted(complete, laws("engines.json", outcome="failed", **violation)))
    report([str(tmp_path)])

    for text in (parsed(tmp_path).text, (tmp_path / "summary.md").read_text()):
        assert all(part in text for part in violation.values())


def test_picture_shows_the_worst_error_of_engines(
    tmp_path: Path, complete: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(figures, "overview", lambda status, laws, *_: shown.extend(laws) or "<svg></svg>")
    write(tmp_path, planted(complete, laws("engines.json", worst_ratio=19.5, outcome="failed")))
    report([str(tmp_path)])

    assert [law.worst_ratio for law in shown] == [19.5, 1.5]


def test_failed_names_are_listed_but_not_in_the_headline(tmp_path: Path, complete: Files) -> None:
    names = {"failed benchmark": "bench_forward[1]", "wrong result of a timed engine": "the oracle computes 2"}
    run = planted(complete, *(FAILURES[name][1] for name in names))
    write(tmp_path, run)
    report([str(tmp_path)])

    for name in names.values():
        assert name in parsed(tmp_path).text
        assert name in (tmp_path / "summary.md").read_text()
        assert name in (tmp_path / "junit.xml").read_text()
        assert name not in sentences.verdict(loaded(run))


def test_index_writes_the_pages_of_published_runs_again(
    tmp_path: Path, complete: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that an older version wrote does not contradict the verdict of today."""
    monkeypatch.setattr("reports.history.RUNS", tmp_path / "runs")
    folder = tmp_path / "runs" / "2026-11-22_test_torch-2.13.0"
    folder.mkdir(parents=True)
    write(folder, planted(complete, FAILURES["failed gate"][1]))
    (folder / "index.html").write_text("Passed")
    before = json.loads((folder / "gate.json").read_text())

    assert make_index([]) == 0

    assert "Failed (gate)" in parsed(folder).text
    assert "failed (gate)" in (tmp_path / "index.html").read_text()
    assert json.loads((folder / "gate.json").read_text()) == before
