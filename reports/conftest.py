"""A small complete run, as the files that the commands write, and a parser for its page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lenet.fingerprint import FORMAT
from reports import figures
from reports.history import PAGES

STACK = {"torch": "2.13.0", "python": "3.11", "processor": "Test", "cores": "2"}
STAMP = {"format": FORMAT, "stack": STACK, "date": "2026-11-22T12:00:00+00:00", "command": "pytest"}
LAWS = {"profile": "ci", "threshold": 8.0, "finished": True, "errors": []}
ROOFLINE = {"roofline": {"intensity": 10.0, "attainable": 1e12, "share": 0.625, "bound": "compute"}, "bytes": 10**5}
LINKS = ("src", "href", "xlink:href")
EVIL = '<script>alert("1")</script> | `x` & co'

Files = dict[str, Any]


def entry(law: str, outcome: str = "passed", **fields: Any) -> dict[str, Any]:
    """An entry of `laws.json`, whose statement begins with the words of the law's name."""
    return {
        "id": f"properties/laws/test_forward.py::{law}",
        "chapter": "forward",
        "law": law,
        "statement": f"{law.removeprefix('test_').replace('_', ' ')} holds.\n\nFor everyone.",
        "subject": "lenet",
        "stack": "lenet on cpu in float32",
        "outcome": outcome,
        "examples": 30,
        "partly_judged": 0,
        "worst_ratio": 1.5,
        "known_issues": [],
        "seconds": 0.25,
        "notes": [],
        "counterexample": "",
        "message": "",
        "reason": "",
        "command": "",
    } | fields


def timing(operation: str, batch: int, median: float, **info: Any) -> dict[str, Any]:
    """An entry of `benchmarks.json`."""
    configuration = {"operation": operation, "subject": "lenet", "device": "cpu", "dtype": "float32", "threads": 2}
    work = {"batch": batch, "images": batch, "flops": 10**6 * batch}
    stats = {"median": median, "q1": median, "q3": median, "rounds": 7, "iterations": 3}
    return {"extra_info": configuration | work | info, "stats": stats}


@pytest.fixture(scope="session", autouse=True)
def feature_maps_drawn_once() -> Iterator[None]:
    """The same feature maps are drawn once for all tests, since they take half of a page's time."""
    drawn, draw = dict[str, str](), figures.feature_maps

    def once(maps: list[Any]) -> str:
        return drawn.get(repr(maps)) or drawn.setdefault(repr(maps), draw(maps))

    with mock.patch.object(figures, "feature_maps", once):
        yield


@pytest.fixture
def files() -> Files:
    """The required files of a run that passed."""
    maps = {"conv1": [[[0.0, 1.0]] * 2] * 6, "conv2": [[[1.0, 0.0]] * 2] * 16}
    return {
        "laws.json": STAMP | LAWS | {"laws": [entry("test_sums"), entry("test_order")]},
        "benchmarks.json": STAMP
        | {
            "errors": [],
            "benchmarks": [
                timing("forward", 1, 0.001),
                timing("forward", 256, 0.01),
                timing("training step", 256, 0.03),
                timing("matrix product", 1, 1e-5),
            ],
        },
        "training.json": STAMP
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
    """The same run with files of the gate and its trial."""
    slowdown = {"estimate": 0.05, "lower": 0.02, "upper": None}
    benchmark: dict[str, Any] = {"name": "forward-1", "verdict": "failed", "reason": f"slower {EVIL}"}
    benchmark |= {"pairs": [{"ratio": 0.05}] * 14, "slowdown": slowdown}
    gate = {"verdict": "failed", "reason": "slower: forward-1", "compared": ["base: a", EVIL], "delta": 0.015}
    verdict: dict[str, Any] = {
        "condition": "A/A",
        "background_processes": 0,
        "benchmark": "forward-1",
        "verdict": "passed",
        "ratios": [[1, 0.0]] * 7,
    }
    verdicts = [verdict | {"seed": seed, "sequential": {"ratio": 1.2, "p": 0.5}} for seed in range(20)]
    trial = {"delta": 0.015, "budget": 60.0, "verdicts": verdicts}
    return files | {"gate.json": STAMP | gate | {"benchmarks": [benchmark]}, "gate_trial.json": STAMP | trial}


@pytest.fixture
def complete(files: Files) -> Files:
    """A run that passed, with all files that have a verdict."""
    stack = "lenet by eager on cpu in float32"
    laws = [entry(law, stack=stack, engine="eager") for law in ("test_sums", "test_order")]
    startup = {"build": 0.001, "first_call": 0.002, "memory": None}
    timed = {"engine": "eager", "operation": "forward", "batch": 1, "seconds": 0.001, "quartiles": [0.001, 0.001]}
    timed |= {"blocks": 20, "images_per_second": 1000.0, "startup": startup}
    times = {"device": "cpu", "dtype": "float32", "threads": 2, "timings": [timed], "not_timed": []}
    slowdown = {"estimate": 0.001, "lower": -0.01, "upper": 0.01}
    benchmark: dict[str, Any] = {"name": "training-step-64", "verdict": "passed", "reason": "at most +1%"}
    benchmark |= {"pairs": [{"ratio": 0.001}] * 14, "slowdown": slowdown}
    gate = {"verdict": "passed", "reason": "not slower", "compared": ["base: a", "head: b"], "delta": 0.015}
    training = files["training.json"]
    return files | {
        "training.json": training | {"comparisons": {"the oracle": [dict(epoch) for epoch in training["history"]]}},
        "engines.json": STAMP | LAWS | {"laws": laws, "matrix": {}},
        "engine_times.json": STAMP | times,
        "gate.json": STAMP | gate | {"benchmarks": [benchmark]},
    }


def write(folder: Path, files: Files) -> None:
    """Write the files; content that is text already is written as it is."""
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def page(folder: Path) -> str:
    """The pages of a run, one after another."""
    return "".join((folder / name).read_text() for name in PAGES if name.endswith(".html"))


class Page(HTMLParser):
    """Collects the text and everything that the page loads or runs, and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.external: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        if tag == "script":
            self.external.append(tag)
        for name, value in attributes:
            if tag == "a" and value and value.startswith(("https://github.com/", "https://docs.pytorch.org/")):
                continue  # a link loads nothing
            if name in LINKS and value and ":" in value and not value.startswith("data:"):
                self.external.append(value)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(folder: Path) -> Page:
    """The parsed page of a run."""
    parser = Page()
    parser.feed(page(folder))
    assert parser.open == []
    return parser
