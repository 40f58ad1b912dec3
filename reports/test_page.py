"""The page and the summary of a run: what they show, and that text from users is escaped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from benchmarks.step_parts import PARTS
from reports import figures
from reports.commands import report
from reports.conftest import EVIL, ROOFLINE, Files, Page, entry, page, parsed, timing, write
from reports.glossary import GLOSSARY
from reports.loading import load
from reports.page import environment, mutants_by_dtype


def test_page_begins_with_the_verdict(tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 0
    verdict, evidence, *_ = capsys.readouterr().out.splitlines()
    assert verdict == "PASSED: PyTorch 2.13.0 (CPU) on Test, 2 cores: 2 laws hold, 0 known issues, 0 violations."
    assert evidence.startswith("60 examples were judged; the worst error is 1.5 of the 8 allowed budgets. A ")
    text = parsed(tmp_path).text
    assert text.index("Passed") < text.index("2 laws hold, 0 known issues, 0 violations") < text.index("Throughput")
    assert "97.5 % of the test digits" in text
    assert "25,600" in text  # images/s of the forward pass at batch size 256
    assert "torch 2.13.0, Python 3.11, Test, 2 cores" in text


def test_page_loads_nothing_from_elsewhere(tmp_path: Path, files: Files) -> None:
    write(tmp_path, files)
    report([str(tmp_path)])

    assert parsed(tmp_path).external == []


def test_page_explains_every_term(tmp_path: Path, files: Files) -> None:
    write(tmp_path, files)
    report([str(tmp_path)])

    text = parsed(tmp_path).text
    assert all(meaning.replace("`", "") in text for meaning in GLOSSARY.values())


def test_page_shows_title_and_function_name_of_a_law(tmp_path: Path, files: Files) -> None:
    statement = "A pass with `retain_graph=True`\nkeeps the graph.\n\nRejects: a freed graph."
    files["laws.json"]["laws"].append(entry("test_graphs", statement=statement))
    write(tmp_path, files)
    report([str(tmp_path)])

    shown = page(tmp_path)
    assert "<summary>A pass with <code>retain_graph=True</code> keeps the graph</summary>" in shown
    assert "<code>test_graphs</code>" in shown
    assert "Rejects: a freed graph." in shown


def test_violation_fails_the_run_and_shows_its_counterexample(tmp_path: Path, files: Files) -> None:
    violation = {"counterexample": "case=Case(batch=3)", "message": "logits[0] is 1", "command": "pytest x --case y"}
    files["laws.json"]["laws"].append(entry("test_sums", "failed", **violation))
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 1
    for text in (parsed(tmp_path).text, (tmp_path / "summary.md").read_text()):
        assert "1 law holds, 0 known issues, 1 violation." in text
        assert all(part in text for part in violation.values())


def test_run_with_times_of_updates_only_has_a_page(tmp_path: Path, files: Files) -> None:
    files["laws.json"]["laws"].append(entry("test_sums", "failed"))
    files["benchmarks.json"]["benchmarks"] = [timing("update, manual", 1, 1e-5)]
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 1
    assert "1 law holds, 0 known issues, 1 violation." in parsed(tmp_path).text


@pytest.mark.parametrize(
    ("change", "message"),
    [({"finished": False}, "stopped before the end"), ({"errors": ["worker gw0 crashed"]}, "worker gw0 crashed")],
)
def test_incomplete_run_fails(tmp_path: Path, files: Files, change: dict[str, Any], message: str) -> None:
    files["laws.json"] |= change
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 1
    assert message in parsed(tmp_path).text


def test_benchmark_with_wrong_result_fails_the_run(tmp_path: Path, files: Files) -> None:
    files["benchmarks.json"]["errors"] = ["benchmarks/bench_training.py::bench_forward[1]"]
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 1
    assert "bench_forward[1]" in page(tmp_path)


def test_skipped_laws_are_not_counted_as_holding(tmp_path: Path, files: Files) -> None:
    files["laws.json"]["laws"].append(
        entry("test_other", "skipped", reason="Skipped: cuda is not available", examples=0)
    )
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 0
    assert ": 2 laws hold, 0 known issues, 0 violations." in page(tmp_path)
    assert "2 laws hold, 1 law is not checked, 1 s" in page(tmp_path)
    assert "cuda is not available" in page(tmp_path)


def test_reason_that_every_law_was_skipped_for_is_shown_once(tmp_path: Path, files: Files) -> None:
    skipped = {"outcome": "skipped", "reason": "Skipped: cuda is not available", "examples": 0}
    files["laws.json"]["laws"] += [entry(law, **skipped) for law in ("test_sums", "test_order")]
    files["laws.json"]["laws"].append(entry("test_order", "skipped", reason="Skipped: no cuDNN"))
    write(tmp_path, files)
    report([str(tmp_path)])

    text = parsed(tmp_path).text
    assert text.count("cuda is not available") == text.count("Not judged: cuda is not available.") == 1
    assert text.count("Skipped on some stacks: no cuDNN.") == 1


def test_text_from_users_is_escaped(tmp_path: Path, files: Files) -> None:
    hostile = dict.fromkeys(("stack", "message", "counterexample", "command", "statement"), EVIL)
    files["laws.json"]["laws"].append(entry("test_sums", "failed", **hostile))
    files["benchmarks.json"]["errors"] = [EVIL]
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 1
    assert parsed(tmp_path).external == []
    assert EVIL in parsed(tmp_path).text
    rows = [line for line in (tmp_path / "summary.md").read_text().splitlines() if "alert" in line and line[0] == "|"]
    assert rows
    assert all("\\|" in row and "`<script>" in row for row in rows)


def test_names_in_the_summary_are_no_markup(tmp_path: Path, files: Files) -> None:
    """Neither those in sentences and headings, nor those in tables."""
    evil = "<img src=x>\n\n# [a](http://b) | *x* _y_"
    files["laws.json"]["laws"].append(entry("test_sums", "failed", statement=evil, chapter=evil))
    files["laws.json"]["laws"].append(entry("test_other", statement=evil, chapter=evil))
    files["training.json"]["data"] = evil
    for content in files.values():
        content["stack"] = content["stack"] | {"processor": evil}
    files["benchmarks.json"]["benchmarks"].append(timing(evil, 1, 0.1))
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 1

    lines = (tmp_path / "summary.md").read_text().splitlines()
    escaped = r"\<img src=x\> \# \[a\](http://b) \| \*x\* \_y\_"
    shown = [line for line in lines if "img" in line and "`" not in line]
    assert all(escaped in line for line in shown)
    assert [line[:6] for line in shown] == ["**PyTo", f"| {escaped}"[:6], f"| {escaped}"[:6], "Traine"]
    assert "# [a]" not in {line[:5] for line in lines}


def test_loss_that_is_not_finite_is_drawn_as_a_gap(tmp_path: Path, files: Files) -> None:
    training = files["training.json"]
    training["history"][0]["loss"] = None
    training["settings"]["lr"] = None
    training["feature_maps"]["after"] = {"conv1": [[[None, 1.0]]] * 6, "conv2": [[[None, None]]] * 16}
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 1

    assert "Failed (training)" in parsed(tmp_path).text
    assert "the loss of this training is not finite" in parsed(tmp_path).text
    assert "weight = weight - infinite * gradient" in parsed(tmp_path).text


def test_dollar_signs_are_no_formula(tmp_path: Path, complete: Files) -> None:
    complete["gate.json"]["benchmarks"][0]["name"] = r"a $\frac$ b"
    write(tmp_path, complete)

    assert report([str(tmp_path)]) == 0
    assert r"a $\frac$ b" in parsed(tmp_path).text


def test_long_counterexample_is_clipped_in_the_summary(tmp_path: Path, files: Files) -> None:
    files["laws.json"]["laws"].append(entry("test_sums", "failed", counterexample="x" * 10**6))
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 1
    assert len((tmp_path / "summary.md").read_text()) < 10_000


def test_mutants_are_counted_by_dtype() -> None:
    seen = {"dtype": "float32", "broken": {"law": {}}, "other_dtypes": {"bfloat16": {"law": {}}}, "unseen": {}}
    unseen = seen | {"other_dtypes": {"bfloat16": {}}, "unseen": {"bfloat16": "it is rounded"}}
    table = {"judged": {"float32": ["law", "other"], "bfloat16": ["law"]}, "mutants": {"seen": seen, "unseen": unseen}}

    assert mutants_by_dtype(table) == [("float32", 2, 2, 0), ("bfloat16", 1, 1, 1)]


def test_known_issues_are_listed_with_the_laws_that_show_them(tmp_path: Path, files: Files) -> None:
    issue = {"title": f"Steps {EVIL}", "reference": "pytorch/pytorch#1"}
    files["laws.json"]["laws"] = [entry("test_sums", known_issues=[issue], partly_judged=3), entry("test_order")]
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 0
    shown, summary = page(tmp_path), (tmp_path / "summary.md").read_text()
    assert ": 2 laws hold (1 of them except on examples of known issues), 1 known issue, 0 violations." in shown
    assert "pytorch/pytorch#1" in shown
    assert '<a href="https://github.com/pytorch/pytorch/issues/1">pytorch/pytorch#1</a>' in shown
    assert '<td class="soft law"><p>sums holds</p></td>' in shown
    assert "In 3 of 30 examples, some numbers could not be judged" in shown
    assert EVIL not in shown
    assert "known issue: " in summary
    assert "pytorch/pytorch#1" in summary


def test_laws_by_engine_are_listed_by_title(tmp_path: Path, files: Files) -> None:
    issue = {"title": "Steps are lost", "reference": "pytorch/pytorch#1"}
    compiled = {"stack": "lenet by compiled on cpu in float32", "engine": "compiled"}
    laws = [entry("test_sums", **compiled), entry("test_order", known_issues=[issue], **compiled)]
    laws.append(entry("test_left_out", "skipped", **compiled))
    write(tmp_path, files | {"engines.json": files["laws.json"] | {"laws": laws, "matrix": {}}})

    assert report([str(tmp_path)]) == 0
    assert '<th scope="row">sums holds</th><td class="good">' in page(tmp_path)
    assert '<th scope="row">order holds</th><td class="soft"><abbr title="holds except for a known issue">!' in page(
        tmp_path
    )
    assert "left out holds" not in page(tmp_path)
    assert "Known issue: Steps are lost (pytorch/pytorch#1)." in page(tmp_path)
    assert "- known issue of engines: `Steps are lost (pytorch/pytorch#1)`" in (tmp_path / "summary.md").read_text()
    assert "compiled, float32" in page(tmp_path)


def test_smallest_errors_that_laws_see_are_shown(tmp_path: Path, files: Files) -> None:
    write(tmp_path, files)
    report([str(tmp_path)])

    text = parsed(tmp_path).text
    assert "How small a fault is seen" in text
    assert "test_logits_agree_with_the_oracle" in text
    assert "1.1e-16" in text  # the unit roundoff of float64


def test_error_that_is_not_seen_in_a_tensor_is_drawn_at_1() -> None:
    def entry(*errors: float | None) -> dict[str, Any]:
        return {"tensors": {str(number): {"scaled": error} for number, error in enumerate(errors)}}

    laws = {"test_first": {"float32": entry(1e-6, None)}, "test_second": {"float64": entry(None)}, "test_third": {}}
    picture = figures.sensitivity(laws)

    shown = "".join(Xml.fromstring(picture).itertext())
    assert all(word in shown for word in ("first", "second", "third", "float32", "unit roundoff"))
    assert "float64" not in shown


def test_gate_and_its_trial_are_shown(tmp_path: Path, gated: Files) -> None:
    write(tmp_path, gated)

    assert report([str(tmp_path)]) == 1

    shown, summary = Page(), (tmp_path / "summary.md").read_text()
    shown.feed(page(tmp_path))
    assert not shown.external
    assert "above delta, the tolerated slowdown,\n1.5 %" in shown.text
    slowdown = "forward-1 takes 1.050 times as long as base (interval 1.020 to unbounded)"
    assert f"Gate failed: slower: forward-1. {slowdown}." in shown.text
    assert "0 of 20: 0.0% (0.0% to 16.8%)" in shown.text
    assert "20 of 20" in shown.text
    assert "Gate: **failed**" in summary


def test_page_without_gate_names_its_commands(tmp_path: Path, files: Files) -> None:
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 0

    assert "lenet-properties gate --json DIR/gate.json</code>" in page(tmp_path)
    assert "lenet-properties gate-trial</code>" in page(tmp_path)


def test_times_are_shown_below_the_measured_roofline(tmp_path: Path, files: Files) -> None:
    latency = {name: {"value": 0.001, "low": 0.0009, "high": 0.0011} for name in ("p50", "p90", "p99")}
    files["benchmarks.json"]["benchmarks"] += [
        timing("forward", 16, 0.002, **ROOFLINE),
        timing("training step", 16, 0.002, **ROOFLINE),
        timing("copy", 1, 1e-3, bytes=10**8, flops=0),
        timing("latency", 1, 0.001, queries=1000, latency=latency, quantiles=[1e-3] * 101),
    ]
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 0
    text = parsed(tmp_path).text
    assert "62.5 %" in text
    assert "copy, 100.0 GB/s" in text
    assert "% of queries" in text
    assert "1 (0.9 to 1.1)" in text


def test_roofline_needs_only_forward_passes(tmp_path: Path, files: Files) -> None:
    more = [timing("forward", 16, 0.002, **ROOFLINE), timing("copy", 1, 1e-3, bytes=10**8, flops=0)]
    files["benchmarks.json"]["benchmarks"] += more
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 0
    assert "Roofline: lenet, cpu, float32, 2 threads" in parsed(tmp_path).text


def test_verdict_includes_the_training_step_of_the_gate(tmp_path: Path, gated: Files) -> None:
    gated["gate.json"]["benchmarks"][0]["name"] = "training-step-64"
    gated["gate.json"]["compared"] = ["base: lenet at c112b5b Rename a test", "head: lenet"]
    write(tmp_path, gated)

    assert report([str(tmp_path)]) == 1
    slowdown = "training step takes 1.050 times as long as on the base commit (interval 1.020 to unbounded)"
    text = parsed(tmp_path).text
    assert f"0 violations; gate: failed, {slowdown}." in text
    assert 'Compared: base: lenet at c112b5b "Rename a test"; head: lenet.' in text


def test_comparisons_of_training_are_shown(tmp_path: Path, files: Files) -> None:
    epochs = [{"loss": 0.1, "accuracy": 0.5}, {"loss": 0.05, "accuracy": 0.9}]
    files["training.json"]["comparisons"] = {"the oracle": epochs}
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 0
    assert "Test accuracy of the same training with the oracle: 90.0 %." in parsed(tmp_path).text


def test_infinite_error_is_shown_and_drawn_within_the_figure(tmp_path: Path, files: Files) -> None:
    files["laws.json"]["laws"].append(entry("test_sums", "failed", worst_ratio=None))
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 1
    assert "the worst error is inf of the 8 allowed budgets" in parsed(tmp_path).text


def test_main_figure_is_a_complete_svg_file_with_the_status(tmp_path: Path, files: Files) -> None:
    write(tmp_path, files)
    report([str(tmp_path)])

    picture = Xml.parse(tmp_path / "picture.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert "rounding budgets" in "".join(picture.itertext())
    assert "PASSED" in "".join(picture.itertext())


@pytest.mark.parametrize(("device", "shown"), [("cpu", "float32 on cpu, 2 threads\n"), ("cuda", "float32 on cuda\n")])
def test_times_of_engines_state_cpu_threads_only_on_a_cpu(
    tmp_path: Path, complete: Files, device: str, shown: str
) -> None:
    complete["engine_times.json"]["device"] = device
    write(tmp_path, complete)
    report([str(tmp_path)])

    assert shown in parsed(tmp_path).text


@pytest.mark.parametrize(
    ("number", "text"),
    [(4386.2, "4,386"), (374.0, "374"), (78.54, "78.5"), (20.0, "20"), (0.0000667, "0.0000667"), (0.0, "0")],
)
def test_significant_digits_have_no_exponent(number: float, text: str) -> None:
    assert environment().filters["significant"](number) == text


def test_parts_of_a_step_are_drawn_and_listed(tmp_path: Path, files: Files) -> None:
    parts = dict(zip(PARTS, (0.001, 0.01, 0.002, 0.015, 0.002), strict=True))
    files["benchmarks.json"]["benchmarks"][2]["extra_info"]["parts"] = parts
    files["laws.json"]["project"] = {"version": "0.1", "commit": "abc", "dirty": True}
    write(tmp_path, files)

    ((label, (step,)),) = load(tmp_path).step_breakdown()
    assert (label, step.median, step.parts) == ("lenet, cpu, float32, 2 threads", 0.03, parts)
    assert report([str(tmp_path)]) == 0
    text = page(tmp_path)
    cells = "".join(f'<td class="number">{ms}</td>' for ms in (256, 1, 10, 2, 15, 2, 30))
    assert f"<tr>{cells}</tr>" in text
    assert "30 ms" in text
    assert "<dt>lenet-properties</dt><dd>0.1, commit abc, with uncommitted changes</dd>" in text


def test_limits_of_a_timing_are_those_between_its_own_blocks(tmp_path: Path, files: Files) -> None:
    """Without them, as in older files, they are those of the configuration."""
    own = {"flops_per_second": 5e9, "bytes_per_second": 3e9}
    files["benchmarks.json"]["benchmarks"][1]["extra_info"]["limits"] = own
    files["benchmarks.json"]["benchmarks"].append(timing("copy", 1, 0.5, bytes=10**9))
    write(tmp_path, files)

    run = load(tmp_path)

    rates = [(run.matrix_product_rate(timing), run.copy_bandwidth(timing)) for timing in run.timings[:2]]
    assert rates == [(10**6 / 1e-5, 2e9), (5e9, 3e9)]


def test_second_process_of_an_engine_is_drawn_dotted_in_the_color_of_the_first() -> None:
    names = ("channels-last", "channels-last again")
    timings = [{"engine": name, "batch": n, "images_per_second": 10.0 * n} for name in names for n in (1, 4)]

    picture = figures.engines(timings)

    dotted = re.findall(r"stroke-dasharray: [^;]*; stroke-dashoffset: 0; stroke: (#[0-9a-f]{6})", picture)
    assert dotted == ["#0072b2"]
