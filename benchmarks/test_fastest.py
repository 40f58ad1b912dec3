"""The choice of the fastest correct engine, the reasons for excluding the others, and the cache."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from benchmarks import fastest as module
from benchmarks.fakes import mutated_json
from benchmarks.fastest import fastest, main
from lenet import engines
from lenet.engines import EngineError, Run
from lenet.net import Net

FAKES = r"""
from contextlib import contextmanager
import torch

active = False

@contextmanager
def activated():
    global active
    active = True
    yield
    active = False

def in_context(net):
    def run(images):
        assert active, "the engine's context is not active"
        return net(images)
    return run
in_context.context = activated

def wrong(net):
    return lambda images: net(images) * (1 + 1e-4)

def wrong_in_last_image(net):
    def run(images):
        logits = net(images)
        logits[-1, -1] += 1e-4
        return logits
    return run

def changing_parameters(net):
    torch.nn.init.zeros_(net.fc3.weight)
    return net

def misshaped(net):
    return lambda images: net(images)[:1]

def double(net):
    return lambda images: net(images).double()

def array(net):
    return lambda images: net(images).numpy()

def raising(net):
    raise NotImplementedError("cannot\nbe built")

def bfloat16_only(net):
    return net
bfloat16_only.claims = {"float32": "bfloat16"}

def cuda_only(net):
    return net
cuda_only.devices = ("cuda",)

fault = 0.0

def later_wrong(net):
    return lambda images: net(images) + fault
"""

EXCLUDED = {
    "fakes:wrong": "budgets of float32; 8 are allowed",
    "fakes:wrong_in_last_image": "budgets of float32; 8 are allowed",
    "fakes:changing_parameters": "budgets of float32; 8 are allowed",
    "fakes:misshaped": "the worst error of its logits is inf budgets",
    "fakes:double": "its logits: torch.float64 on cpu; the images are torch.float32 on cpu",
    "fakes:array": "its logits: of type ndarray, not a tensor",
    "fakes:raising": "NotImplementedError: cannot be built",
    "fakes:bfloat16_only": "claims bfloat16; float32 was requested",
    "fakes:cuda_only": "does not support float32 on cpu",
    "fakes:absent": "AttributeError: module 'fakes' has no attribute 'absent'",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the cache file; the engines are fakes, and the last of them is always the fastest."""
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fakes", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        module, "_seconds_per_call", lambda runs, images: {name: 1 / (1 + i) for i, name in enumerate(runs)}
    )
    set_engines(monkeypatch, "eager", "fakes:in_context")
    return tmp_path / "lenet-properties" / "fastest.json"


def set_engines(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make these the only engines."""
    monkeypatch.setattr(engines, "names", lambda: list(names))


def fail_if_measured(*_: object) -> None:
    raise AssertionError("the engines were measured again")


def test_fastest_correct_engine_is_chosen_and_table_explains_exclusions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_engines(monkeypatch, "eager", "fakes:in_context", *EXCLUDED)

    choice = fastest(Net(), 17)

    assert choice.engine.name == "fakes:in_context"
    assert [result.engine for result in choice.results if not result.excluded] == ["eager", "fakes:in_context"]
    head, first, second, *rest = choice.table.splitlines()
    assert head.split() == ["engine", "claims", "worst", "error", "startup", "images/s"]
    assert (first.split()[0], second.split()[0]) == ("fakes:in_context", "eager")
    assert first.split()[-1] == "34"
    assert len(rest) == len(EXCLUDED)
    for line, (engine, reason) in zip(rest, EXCLUDED.items(), strict=True):
        assert line.startswith(f"excluded: {engine}: ")
        assert reason in line


def test_run_uses_the_network_itself_and_the_engines_context() -> None:
    net, images = Net(), torch.rand(3, 1, 32, 32)

    run = fastest(net, 3).run
    with torch.no_grad():
        net.fc3.bias.add_(1)

    assert torch.equal(run(images), net(images))


def test_coarser_precision_can_be_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    set_engines(monkeypatch, "eager", "fakes:bfloat16_only")

    assert fastest(Net(), 1, precision="bfloat16").engine.name == "fakes:bfloat16_only"
    assert fastest(Net(), 1, precision="float16").engine.name == "eager"


def test_choice_is_cached_and_its_engine_verified_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fastest(Net(), 2)
    monkeypatch.setattr(module, "_measure", fail_if_measured)

    again = fastest(Net(), 2)

    assert not first.cached
    assert again.cached
    assert again.engine == first.engine
    assert again.results == first.results
    for other in ({"batch": 3}, {"batch": 2, "precision": "bfloat16"}, {"batch": 2, "remeasure": True}):
        with pytest.raises(AssertionError, match="measured again"):
            fastest(Net(), **other)
    with pytest.raises(AssertionError, match="measured again"):
        fastest(Net().double(), 2)


def test_choices_for_other_requests_stay_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastest(Net(), 2)
    fastest(Net(), 3)
    fastest(Net(), 3, remeasure=True)

    assert [entry["request"]["batch"] for entry in json.loads(cache.read_text())] == [2, 3]


def test_cached_engine_that_is_no_longer_correct_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    set_engines(monkeypatch, "eager", "fakes:later_wrong")
    assert fastest(Net(), 2).engine.name == "fakes:later_wrong"
    monkeypatch.setattr("fakes.fault", 1e-3)

    choice = fastest(Net(), 2)

    assert choice.engine.name == "eager"
    assert not choice.cached


CORRUPT = (
    b"",
    b'[{"request": 1, "re',
    b'{"a": 1}',
    b'[{"request": 1}]',
    b'[{"request": 1, "results": [{"x": 1}]}]',
    b"\xff",
    b"[" * 100_000,
    b"[" + b"9" * 5000 + b"]",
)


@pytest.mark.parametrize("content", CORRUPT)
def test_corrupt_cache_is_overwritten(cache: Path, content: bytes) -> None:
    cache.parent.mkdir()
    cache.write_bytes(content)

    with pytest.warns(UserWarning, match="ignoring the cached choices"):
        choice = fastest(Net(), 2)

    assert choice.engine.name == "fakes:in_context"
    assert fastest(Net(), 2).cached


def test_engine_that_the_cache_names_is_not_imported(cache: Path) -> None:
    (cache.parents[1] / "hostile.py").write_text("raise SystemExit('imported')")
    fastest(Net(), 2)
    cache.write_text(cache.read_text().replace("fakes:in_context", "hostile:build"))

    with pytest.warns(UserWarning, match="'hostile:build' is not the name of an engine"):
        choice = fastest(Net(), 2)

    assert choice.engine.name == "fakes:in_context"
    assert "hostile" not in sys.modules
    assert "hostile" not in cache.read_text()


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", "0", '"9"', "true", "[]", "1" + "0" * 400])
def test_cached_speed_that_is_none_is_not_used(cache: Path, value: str) -> None:
    fastest(Net(), 2)
    cache.write_text(re.sub(r'"images_per_second": [\d.]+', f'"images_per_second": {value}', cache.read_text()))

    with pytest.warns(UserWarning, match="ignoring the cached choices"):
        assert not fastest(Net(), 2).cached
    assert fastest(Net(), 2).cached


def test_cache_that_is_no_regular_file_is_not_read(cache: Path) -> None:
    """Reading a FIFO would wait forever."""
    cache.parent.mkdir()
    os.mkfifo(cache)

    with pytest.warns(UserWarning, match="not a regular file"):
        assert fastest(Net(), 2).engine.name == "fakes:in_context"


TIMED = {"claim": "float32", "worst_ratio": 0.5, "startup_seconds": 0.1, "images_per_second": 7.0, "excluded": ""}
CACHED = [{"request": {"batch": 2}, "results": [{"engine": "eager"} | TIMED]}]


@given(content=mutated_json(CACHED))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cache_is_read_or_ignored(cache: Path, content: bytes) -> None:
    cache.parent.mkdir(exist_ok=True)
    cache.write_bytes(content)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = module._read_results({"batch": 2})

    assert all(result.engine == "eager" and result.images_per_second for result in module._fastest_first(results))
    assert len(list(module._table_lines(results))) == 1 + sum(bool(result.excluded) for result in results)


def test_choice_works_without_a_writable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fakes.py"))

    with pytest.warns(UserWarning, match="ignoring the cached"), pytest.warns(UserWarning, match="is not cached"):
        assert fastest(Net(), 2).engine.name == "fakes:in_context"


def test_error_lists_reasons_when_no_engine_is_correct(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_engines(monkeypatch, "fakes:wrong", "fakes:raising")

    with pytest.raises(EngineError, match=r"no engine is correct: fakes:wrong: the worst .*; fakes:raising: NotImpl"):
        fastest(Net(), 1)
    assert main(["--batch", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: no engine is correct")


def test_other_parameters_and_empty_batches_raise() -> None:
    with pytest.raises(ValueError, match="Linear has other parameters than"):
        fastest(nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="batch size 0: must be at least 1"):
        fastest(Net(), 0)


def test_main_prints_the_table_and_whether_it_is_cached(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batch", "2"]) == 0
    first = capsys.readouterr().out
    assert main(["--batch", "2"]) == 0

    assert first.splitlines()[1].startswith("fakes:in_context")
    assert capsys.readouterr().out == first + "timed in an earlier run; --remeasure times the engines again\n"
    assert main(["--device", "toaster"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_engines_are_timed_in_interleaved_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(module, "SECONDS_PER_ENGINE", 0.0)
    monkeypatch.setattr(module, "MIN_BLOCK_SECONDS", 0.0)
    called = []

    def run(name: str, images: Tensor) -> Tensor:
        called.append(name)
        return images

    runs: dict[str, Run] = {name: partial(run, name) for name in "abc"}
    seconds = module._seconds_per_call(runs, torch.zeros(1))

    assert seconds.keys() == runs.keys()
    assert all(sorted(called[i : i + 3]) == ["a", "b", "c"] for i in range(0, 3 * module.MIN_ROUNDS, 3))
    assert len(called) == 3 * module.MIN_ROUNDS
