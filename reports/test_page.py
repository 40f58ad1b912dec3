"""The page and the summary: what they show, what they escape, and what no page is made of."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from reports.__main__ import main

STACK = {"torch": "2.13.0", "python": "3.11", "processor": "Test", "cores": "2"}
HEAD = {"format": 2, "stack": STACK, "date": "2026-11-22T12:00:00+00:00", "command": "pytest"}
LAWS = {"profile": "ci", "threshold": 8.0, "finished": True, "broken": []}
LINKS = ("src", "href", "xlink:href")
EVIL = '<script>alert("1")</script> | `x` & co'

ROOF = {"roofline": {"intensity": 10.0, "attainable": 1e12, "share": 0.625, "bound": "compute"}, "bytes": 10**5}

Files = dict[str, Any]


def entry(law: str, outcome: str = "passed", **more: Any) -> dict[str, Any]:
    return {
        "id": f"properties/test_forward.py::{law}",
        "group": "forward",
        "law": law,
        "wording": "It holds.\n\nFor everyone.",
        "subject": "lenet",
        "stack": "lenet on cpu in float32",
        "outcome": outcome,
        "examples": 30,
        "open": 0,
        "worst": 1.5,
        "known": [],
        "seconds": 0.25,
        "notes": [],
        "counterexample": "",
        "message": "",
        "reason": "",
        "command": "",
    } | more


def timing(operation: str, batch: int, median: float, **more: Any) -> dict[str, Any]:
    info = {
        "operation": operation,
        "subject": "lenet",
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "flops": 10**6 * batch,
    }
    stats = {"median": median, "q1": median, "q3": median, "rounds": 7, "iterations": 3}
    return {"extra_info": info | {"batch": batch, "images": batch} | more, "stats": stats}


@pytest.fixture
def files() -> Files:
    """A whole run, small."""
    maps = {"conv1": [[[0.0, 1.0]] * 2] * 6, "conv2": [[[1.0, 0.0]] * 2] * 16}
    return {
        "laws.json": HEAD | LAWS | {"laws": [entry("test_sums"), entry("test_order")]},
        "benchmarks.json": HEAD
        | {
            "failed": [],
            "benchmarks": [
                timing("forward", 1, 0.001),
                timing("forward", 256, 0.01),
                timing("training step", 256, 0.03),
                timing("matrix product", 1, 1e-5),
            ],
        },
        "training.json": HEAD
        | {
            "data": "digits",
            "settings": {"lr": 0.5, "batch": 16},
            "history": [{"loss": 0.1, "accuracy": 0.5}, {"loss": 0.05, "accuracy": 0.975}],
            "digit": {"label": 2, "pixels": [[0.0, 1.0]] * 2},
            "feature_maps": {"before": maps, "after": maps},
        },
    }


@pytest.fixture
def gated(files: Files) -> Files:
    """The same, with a run of the gate and a trial of it."""
    benchmark: dict[str, Any] = {"name": "forward-1", "verdict": "failed", "why": f"slower {EVIL}"}
    benchmark |= {"pairs": [{"ratio": 0.05}] * 14, "found": {"estimate": 0.05, "lower": 0.02, "upper": None}}
    said = {"verdict": "failed", "reason": "slower: forward-1", "compared": ["base: a", EVIL], "delta": 0.015}
    verdict: dict[str, Any] = {
        "condition": "A/A",
        "beside": 0,
        "benchmark": "forward-1",
        "verdict": "passed",
        "ratios": [[1, 0.0]] * 7,
    }
    trial = {"delta": 0.015, "budget": 60.0, "verdicts": [verdict | {"sequential": {"ratio": 1.2, "p": 0.5}}] * 20}
    return files | {"gate.json": HEAD | said | {"benchmarks": [benchmark]}, "gate_trial.json": HEAD | trial}


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def page(folder: Path) -> str:
    return (folder / "index.html").read_text()


class Page(HTMLParser):
    """Collects what would leave the file or run, and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        if tag == "script":
            self.outside.append(tag)
        for name, value in attributes:
            if tag == "a" and value and value.startswith("https://github.com/"):
                continue  # to be followed, not fetched
            if name in LINKS and value and ":" in value and not value.startswith("data:"):
                self.outside.append(value)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(folder: Path) -> Page:
    parser = Page()
    parser.feed(page(folder))
    assert parser.open == []
    return parser


def test_a_passed_run_says_so_first(tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 0
    said, evidence, *_ = capsys.readouterr().out.splitlines()
    assert said == "PASSED: PyTorch 2.13.0 (CPU) on Test, 2 cores: 2 laws hold, 0 known issues, 0 violations."
    assert evidence.startswith("60 examples were judged; the worst error is 1.5 of 8 budgets. A training step handles")
    text = parsed(tmp_path).text
    assert text.index("Passed") < text.index("2 laws hold, 0 known issues, 0 violations") < text.index("Throughput")
    assert "97.5 % of the test digits" in text
    assert "25,600" in text  # images a second of the forward pass at 256
    assert "torch 2.13.0, Python 3.11, Test, 2 cores" in text


def test_the_page_stands_alone(tmp_path: Path, files: Files) -> None:
    write(tmp_path, files)
    main([str(tmp_path)])

    assert parsed(tmp_path).outside == []


def test_a_violation_fails_the_run_and_shows_its_counterexample(tmp_path: Path, files: Files) -> None:
    violated = {"counterexample": "case=Case(batch=3)", "message": "logits[0] is 1", "command": "pytest x --case y"}
    files["laws.json"]["laws"].append(entry("test_sums", "failed", **violated))
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 1
    for text in (parsed(tmp_path).text, (tmp_path / "summary.md").read_text()):
        assert "1 law holds, 0 known issues, 1 violation." in text
        assert all(part in text for part in violated.values())


def test_a_run_in_which_only_updates_could_be_timed_has_a_page(tmp_path: Path, files: Files) -> None:
    files["laws.json"]["laws"].append(entry("test_sums", "failed"))
    files["benchmarks.json"]["benchmarks"] = [timing("update, manual", 1, 1e-5)]
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 1
    assert "1 law holds, 0 known issues, 1 violation." in parsed(tmp_path).text


@pytest.mark.parametrize(
    ("change", "message"),
    [({"finished": False}, "stopped before its end"), ({"broken": ["worker gw0 crashed"]}, "worker gw0 crashed")],
)
def test_a_run_that_broke_off_has_not_passed(
    tmp_path: Path, files: Files, change: dict[str, Any], message: str
) -> None:
    files["laws.json"] |= change
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 1
    assert message in parsed(tmp_path).text


def test_a_benchmark_that_answered_wrongly_fails_the_run(tmp_path: Path, files: Files) -> None:
    files["benchmarks.json"]["failed"] = ["benchmarks/bench_training.py::bench_forward[1]"]
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 1
    assert "bench_forward[1]" in page(tmp_path)


def test_laws_that_were_not_judged_are_not_counted_as_holding(tmp_path: Path, files: Files) -> None:
    files["laws.json"]["laws"].append(entry("test_other", "skipped", reason="Skipped: cuda is not there", examples=0))
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 0
    assert ": 2 laws hold, 0 known issues, 0 violations." in page(tmp_path)
    assert "not judged" in page(tmp_path)
    assert "cuda is not there" in page(tmp_path)


def test_what_came_from_a_user_is_escaped(tmp_path: Path, files: Files) -> None:
    hostile = dict.fromkeys(("stack", "message", "counterexample", "command", "wording"), EVIL)
    files["laws.json"]["laws"].append(entry("test_sums", "failed", **hostile))
    files["benchmarks.json"]["failed"] = [EVIL]
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 1
    assert parsed(tmp_path).outside == []
    assert EVIL in parsed(tmp_path).text
    rows = [line for line in (tmp_path / "summary.md").read_text().splitlines() if "alert" in line and line[0] == "|"]
    assert rows
    assert all("\\|" in row and "`<script>" in row for row in rows)


def test_a_counterexample_of_a_megabyte_does_not_fill_the_summary(tmp_path: Path, files: Files) -> None:
    files["laws.json"]["laws"].append(entry("test_sums", "failed", counterexample="x" * 10**6))
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 1
    assert len((tmp_path / "summary.md").read_text()) < 10_000


def without(*keys: str) -> Callable[[Any], Any]:
    def cut(content: Any) -> Any:
        content = copy.deepcopy(content)
        place = content
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]
        return content

    return cut


BAD: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "empty": ("laws.json", lambda _: "", "laws.json is empty"),
    "torn": ("laws.json", lambda content: json.dumps(content)[:100], "laws.json is torn"),
    "binary": ("training.json", lambda _: "\x00\x01", "training.json is torn"),
    "foreign": ("benchmarks.json", lambda _: {"hello": 1}, "not a file of this project"),
    "a list": ("benchmarks.json", lambda _: [], "not a file of this project"),
    "newer": ("laws.json", lambda content: content | {"format": 3}, "format 3, this version reads format 2"),
    "no laws": ("laws.json", lambda content: content | {"laws": []}, "no law was judged"),
    "all skipped": (
        "laws.json",
        lambda content: content | {"laws": [entry("test_sums", "skipped")]},
        "no law was judged",
    ),
    "no times": ("benchmarks.json", lambda content: content | {"benchmarks": []}, "nothing was timed"),
    "no epochs": ("training.json", lambda content: content | {"history": []}, "no epoch was trained"),
    "a lacking part": (
        "laws.json",
        without("threshold"),
        "laws.json: $: 'threshold' is a required property; write it anew with `pytest",
    ),
    "a lacking map": (
        "training.json",
        without("feature_maps", "after"),
        "training.json: $.feature_maps: 'after' is a required",
    ),
    "another subject": (
        "laws.json",
        lambda content: content | {"laws": [entry("test_sums", subject="mine.py")]},
        "benchmarks.json is of lenet, laws.json of mine.py",
    ),
    "another stack": (
        "training.json",
        lambda content: content | {"stack": STACK | {"torch": "2.5.1"}},
        "another torch than that of laws.json",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_no_page_is_made_of_a_bad_file(
    tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    name, spoil, message = BAD[fault]
    write(tmp_path, files)
    main([str(tmp_path)])
    earlier = page(tmp_path)
    write(tmp_path, {name: spoil(files[name])})
    capsys.readouterr()

    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "index.html").exists()
    assert (tmp_path / "index.previous.html").read_text() == earlier


@pytest.mark.parametrize("name", ["laws.json", "benchmarks.json", "training.json"])
def test_a_missing_file_is_named_with_what_writes_it(
    tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    del files[name]
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 2
    assert f"{name} is missing: it is written by `" in capsys.readouterr().err


def test_known_issues_are_listed_with_the_laws_that_see_them(tmp_path: Path, files: Files) -> None:
    issue = {"title": f"Steps {EVIL}", "reference": "pytorch/pytorch#1"}
    files["laws.json"]["laws"] = [entry("test_sums", known=[issue], open=3), entry("test_order")]
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 0
    shown, summary = page(tmp_path), (tmp_path / "summary.md").read_text()
    assert ": 2 laws hold, 1 known issue, 0 violations." in shown
    assert "pytorch/pytorch#1" in shown
    assert '<a href="https://github.com/pytorch/pytorch/issues/1">pytorch/pytorch#1</a>' in shown
    assert '<td class="soft">sums</td>' in shown
    assert "10.00 % of the examples could not be judged in full" in shown
    assert EVIL not in shown
    assert "known issue: " in summary
    assert "pytorch/pytorch#1" in summary


def test_the_gate_and_its_trial_are_shown(tmp_path: Path, gated: Files) -> None:
    write(tmp_path, gated)

    assert main([str(tmp_path)]) == 0

    shown, summary = Page(), (tmp_path / "summary.md").read_text()
    shown.feed(page(tmp_path))
    assert not shown.outside
    assert "above 1.5 %" in shown.text
    assert "The gate failed: slower: forward-1. forward-1 1.050x of base (1.020 to any)." in shown.text
    assert "0 of 20: 0.0% (0.0% to 16.8%)" in shown.text
    assert "20 of 20: 100.0%" in shown.text
    assert "Gate: **failed**" in summary


def test_what_was_not_gated_says_which_command_does(tmp_path: Path, files: Files) -> None:
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 0

    assert "tox run -e gate</code>" in page(tmp_path)
    assert "tox run -e gate-trial</code>" in page(tmp_path)


@pytest.mark.parametrize("name", ["gate.json", "gate_trial.json"])
def test_a_torn_gate_is_no_page(tmp_path: Path, gated: Files, name: str) -> None:
    write(tmp_path, gated | {name: "{"})

    assert main([str(tmp_path)]) == 2


def test_times_under_a_measured_roof_are_drawn_there(tmp_path: Path, files: Files) -> None:
    latency = {name: {"value": 0.001, "low": 0.0009, "high": 0.0011} for name in ("p50", "p90", "p99")}
    files["benchmarks.json"]["benchmarks"] += [
        timing("forward", 16, 0.002, **ROOF),
        timing("training step", 16, 0.002, **ROOF),
        timing("copy", 1, 1e-3, bytes=10**8, flops=0),
        timing("latency", 1, 0.001, queries=1000, latency=latency, quantiles=[1e-3] * 101),
    ]
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 0
    text = parsed(tmp_path).text
    assert "62.5 %" in text
    assert "copy, 100.0 GB/s" in text
    assert "% of queries answered" in text
    assert "1 (0.9 to 1.1)" in text


def test_a_roof_is_drawn_where_only_forward_passes_were_timed(tmp_path: Path, files: Files) -> None:
    more = [timing("forward", 16, 0.002, **ROOF), timing("copy", 1, 1e-3, bytes=10**8, flops=0)]
    files["benchmarks.json"]["benchmarks"] += more
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 0
    assert "Under the roof: lenet, cpu, float32, 2 threads" in parsed(tmp_path).text


def test_the_training_step_of_the_gate_is_in_the_verdict(tmp_path: Path, gated: Files) -> None:
    gated["gate.json"]["benchmarks"][0]["name"] = "training-step-64"
    write(tmp_path, gated)

    assert main([str(tmp_path)]) == 0
    assert "0 violations; training step 1.050x of base (1.020 to any)." in parsed(tmp_path).text


def test_other_ways_to_train_are_drawn_beside(tmp_path: Path, files: Files) -> None:
    files["training.json"]["others"] = {"the oracle": [{"loss": 0.1, "accuracy": 0.5}, {"loss": 0.05, "accuracy": 0.9}]}
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 0
    assert "90.0 % by the oracle, from the same weights" in parsed(tmp_path).text


def test_an_error_without_end_is_shown_and_not_drawn_beyond_the_picture(tmp_path: Path, files: Files) -> None:
    files["laws.json"]["laws"].append(entry("test_sums", "failed", worst=None))
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 1
    assert "the worst error is inf of 8 budgets" in parsed(tmp_path).text


def test_the_main_picture_stands_by_itself(tmp_path: Path, files: Files) -> None:
    write(tmp_path, files)
    main([str(tmp_path)])

    picture = Xml.parse(tmp_path / "picture.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert "rounding budgets" in "".join(picture.itertext())
