"""The engine that is chosen is the fastest of those that are right; the others are left out for a reason."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import fastest as module
from benchmarks.fastest import fastest, main
from lenet import engines
from lenet.engines import EngineError, Run
from lenet.net import Net

FAKES = r"""
from contextlib import contextmanager
import torch

active = False

@contextmanager
def needed():
    global active
    active = True
    yield
    active = False

def careful(net):
    def run(images):
        assert active, "its context is not set"
        return net(images)
    return run
careful.context = needed

def wrong(net):
    return lambda images: net(images) * (1 + 1e-4)

def wrong_last(net):
    def run(images):
        logits = net(images)
        logits[-1, -1] += 1e-4
        return logits
    return run

def altering(net):
    torch.nn.init.zeros_(net.fc3.weight)
    return net

def misshaped(net):
    return lambda images: net(images)[:1]

def raising(net):
    raise NotImplementedError("cannot\nbe built")

def coarse(net):
    return net
coarse.claims = {"float32": "bfloat16"}

def elsewhere(net):
    return net
elsewhere.devices = ("cuda",)

fault = 0.0

def fickle(net):
    return lambda images: net(images) + fault
"""

LEFT_OUT = {
    "fakes:wrong": "budgets of float32 off, 8 are allowed",
    "fakes:wrong_last": "budgets of float32 off, 8 are allowed",
    "fakes:altering": "budgets of float32 off, 8 are allowed",
    "fakes:misshaped": "its logits are inf budgets",
    "fakes:raising": "NotImplementedError: cannot be built",
    "fakes:coarse": "claims bfloat16, float32 was asked for",
    "fakes:elsewhere": "takes no float32 on cpu",
    "fakes:absent": "AttributeError: module 'fakes' has no attribute 'absent'",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where choices are remembered; the engines are fakes, of which the last is always the fastest."""
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fakes", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_seconds", lambda runs, images: {name: 1 / (1 + i) for i, name in enumerate(runs)})
    are(monkeypatch, "eager", "fakes:careful")
    return tmp_path / "lenet-properties" / "fastest.json"


def are(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let these be the engines that there are."""
    monkeypatch.setattr(engines, "names", lambda: list(names))


def never(*_: object) -> None:
    raise AssertionError("was measured again")


def test_the_fastest_that_is_right_is_chosen_and_the_table_says_why_not_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    are(monkeypatch, "eager", "fakes:careful", *LEFT_OUT)

    choice = fastest(Net(), 17)

    assert choice.engine.name == "fakes:careful"
    assert [row.engine for row in choice.rows if not row.left_out] == ["eager", "fakes:careful"]
    head, first, second, *rest = choice.table.splitlines()
    assert head.split() == ["engine", "claims", "worst", "error", "begins", "in", "images/s"]
    assert (first.split()[0], second.split()[0]) == ("fakes:careful", "eager")
    assert first.split()[-1] == "34"
    assert len(rest) == len(LEFT_OUT)
    for line, (engine, reason) in zip(rest, LEFT_OUT.items(), strict=True):
        assert line.startswith(f"left out: {engine}: ")
        assert reason in line


def test_the_run_is_of_the_network_itself_with_what_the_engine_wants_set() -> None:
    net, images = Net(), torch.rand(3, 1, 32, 32)

    run = fastest(net, 3).run
    with torch.no_grad():
        net.fc3.bias.add_(1)

    assert torch.equal(run(images), net(images))


def test_a_coarser_precision_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    are(monkeypatch, "eager", "fakes:coarse")

    assert fastest(Net(), 1, precision="bfloat16").engine.name == "fakes:coarse"
    assert fastest(Net(), 1, precision="float16").engine.name == "eager"


def test_a_choice_is_remembered_and_the_engine_verified_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fastest(Net(), 2)
    monkeypatch.setattr(module, "_measure", never)

    again = fastest(Net(), 2)

    assert not first.remembered
    assert again.remembered
    assert again.engine == first.engine
    assert again.rows == first.rows
    for other in ({"batch": 3}, {"batch": 2, "precision": "bfloat16"}, {"batch": 2, "anew": True}):
        with pytest.raises(AssertionError, match="was measured again"):
            fastest(Net(), **other)
    with pytest.raises(AssertionError, match="was measured again"):
        fastest(Net().double(), 2)


def test_choices_for_other_tasks_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastest(Net(), 2)
    fastest(Net(), 3)
    fastest(Net(), 3, anew=True)

    assert [entry["for"]["batch"] for entry in json.loads(cache.read_text())] == [2, 3]


def test_what_is_remembered_and_no_longer_right_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    are(monkeypatch, "eager", "fakes:fickle")
    assert fastest(Net(), 2).engine.name == "fakes:fickle"
    monkeypatch.setattr("fakes.fault", 1e-3)

    choice = fastest(Net(), 2)

    assert choice.engine.name == "eager"
    assert not choice.remembered


TORN = (b"", b'[{"for": 1, "ro', b'{"a": 1}', b'[{"for": 1}]', b'[{"for": 1, "rows": [{"x": 1}]}]', b"\xff")


@pytest.mark.parametrize("content", TORN)
def test_a_torn_memory_is_written_anew(cache: Path, content: bytes) -> None:
    cache.parent.mkdir()
    cache.write_bytes(content)

    with pytest.warns(UserWarning, match="remembers no engines, and is written anew"):
        choice = fastest(Net(), 2)

    assert choice.engine.name == "fakes:careful"
    assert fastest(Net(), 2).remembered


def test_without_a_memory_the_choice_is_made_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fakes.py"))

    with pytest.warns(UserWarning, match="remembers no engines"), pytest.warns(UserWarning, match="is not remembered"):
        assert fastest(Net(), 2).engine.name == "fakes:careful"


def test_where_none_is_right_it_is_said_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    are(monkeypatch, "fakes:wrong", "fakes:raising")

    with pytest.raises(EngineError, match=r"no engine is right: fakes:wrong: its logits .*; fakes:raising: NotImpl"):
        fastest(Net(), 1)
    assert main(["--batch", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: no engine is right")


def test_a_network_that_the_oracle_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has other parameters than"):
        fastest(nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="a batch of 0 cannot be timed"):
        fastest(Net(), 0)


def test_the_table_is_printed_and_says_that_it_was_remembered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batch", "2"]) == 0
    first = capsys.readouterr().out
    assert main(["--batch", "2"]) == 0

    assert first.splitlines()[1].startswith("fakes:careful")
    assert capsys.readouterr().out == first + "as timed before; --anew times them again\n"
    assert main(["--device", "toaster"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_engines_are_timed_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(module, "SECONDS", 0.0)
    monkeypatch.setattr(module, "BLOCK", 0.0)
    called = []

    def run(name: str, images: Tensor) -> Tensor:
        called.append(name)
        return images

    runs: dict[str, Run] = {name: partial(run, name) for name in "abc"}
    seconds = module._seconds(runs, torch.zeros(1))

    assert seconds.keys() == runs.keys()
    assert all(sorted(called[i : i + 3]) == ["a", "b", "c"] for i in range(0, 3 * module.ROUNDS, 3))
    assert len(called) == 3 * module.ROUNDS
