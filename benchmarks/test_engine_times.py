"""Engine times are summarized correctly, only right answers are timed, and no process remains."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import engine_times
from benchmarks.engine_times import AGAIN, PRODUCT, Block, Result, choose, main, order_effects, tables, timings
from benchmarks.fakes import interrupt, remaining_processes, start_command
from benchmarks.worker_client import Startup
from lenet.engines import EngineError


def rounds(seconds: dict[str, float], slow_after: str, factor: float = 1.0, count: int = 60) -> list[Block]:
    """Return rounds in random order, with 1 % noise; after one engine, each block takes `factor` times as long."""
    random = np.random.default_rng(0)
    blocks, previous = [], None
    for name in (name for _ in range(count) for name in random.permutation(list(seconds)).tolist()):
        slowdown = factor if previous == slow_after else 1.0
        blocks.append(Block(name, previous, seconds[name] * slowdown * random.uniform(0.99, 1.01)))
        previous = name
    return blocks


def test_order_effect_of_one_engine_is_detected_and_no_other() -> None:
    fair, unfair = (
        order_effects([rounds({"a": 1e-3, "b": 2e-3, "c": 3e-3, PRODUCT: 1e-2}, "b", factor)], np.random.default_rng(1))
        for factor in (1.0, 1.05)
    )

    assert {order.engine for order in fair} == {"a", "b", "c"}
    assert all(order.p > 0.05 for order in fair)
    assert {order.engine: (order.after, order.p < 0.01) for order in unfair if order.engine != "b"} == {
        "a": ("b", True),
        "c": ("b", True),
    }


def test_first_block_and_blocks_after_the_same_engine_are_left_out() -> None:
    blocks = [Block("a", None, 9.0), Block("a", "a", 9.0), *[Block("a", PRODUCT, 1.0)] * 3]

    (order,) = order_effects([blocks], np.random.default_rng())

    assert (order.after, order.difference, order.by_chance, order.p) == (PRODUCT, 0.0, 0.0, 1.0)


def test_time_is_the_median_over_blocks_and_share_is_of_the_matrix_product() -> None:
    blocks = [Block("eager", None, seconds) for seconds in (1.0, 2.0, 3.0, 4.0, 100.0)]
    blocks.append(Block(PRODUCT, "eager", 2.0))

    (timing,) = timings("forward", 16, blocks, {"eager": Startup(0.0, 0.1, None)})

    assert (timing.seconds, timing.quartiles, timing.blocks) == (3.0, (2.0, 4.0), 5)
    assert timing.limit == 2 * 1024**3 / 2.0
    assert timing.rates["images_per_second"] == 16 / 3.0
    assert timing.rates["share_of_matrix_product"] == timing.rates["flops_per_second"] / timing.limit
    assert "unknown" in tables(Result([timing]))


def test_second_process_of_the_first_engine_is_compared_with_the_first() -> None:
    blocks = [Block("eager", None, 2.0), Block("eager" + AGAIN, "eager", 3.0), Block(PRODUCT, "eager", 1.0)]
    startups = {name: Startup(0.0, 0.1, 2**20) for name in ("eager", "eager" + AGAIN)}

    result = Result(timings("forward", 1, blocks, startups))

    assert result.again() == [1.5]
    assert "1.500 to 1.500" in tables(result)


def test_unavailable_engine_is_an_error_only_if_it_was_named(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = choose(None, "cpu", "float64")

    assert "eager" in [engine.name for engine in chosen]
    with pytest.raises(EngineError, match="does not support float64 on cpu"):
        choose("eager,autocast", "cpu", "float64")
    assert all(line.startswith("left out: --engine") for line in capsys.readouterr().err.splitlines())


@pytest.mark.slow
def test_wrong_engine_is_reported_and_the_others_are_timed(
    fake_engines: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(fake_engines)
    monkeypatch.delitem(sys.modules, "fakes", raising=False)
    monkeypatch.setattr(engine_times, "MIN_ROUNDS", 3)
    options = ["--engines", "eager,fakes:wrong", "--batches", "1,16", "--threads", "1", "--budget", "0"]

    assert main([*options, "--record", str(fake_engines)]) == 1

    output = capsys.readouterr()
    record = json.loads((fake_engines / "engine_times.json").read_text())
    timed = {(entry["engine"], entry["operation"], entry["batch"]) for entry in record["timings"]}
    not_timed = {(entry["engine"], entry["operation"], entry["batch"]) for entry in record["not_timed"]}
    cells = [("forward", 1), ("forward", 16), ("training step", 16)]
    assert timed == {(engine, *cell) for engine in ("eager", "eager again") for cell in cells}
    assert not_timed == {("fakes:wrong", *cell) for cell in cells}
    assert all("budgets of" in entry["reason"] for entry in record["not_timed"])
    assert len(record["again"]) == len(cells)
    assert "eager again" in output.out
    assert output.err.count("not timed: fakes:wrong") == len(cells)
    assert not remaining_processes(fake_engines)


@pytest.mark.slow
def test_dying_worker_is_a_one_line_error(fake_engines: Path) -> None:
    result = start_command("engine-times", "--engines", "eager,fakes:dying", "--batches", "1").communicate()

    lines = [line for line in result[1].splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("error: lenet by fakes:dying on cpu in float32: the worker was terminated by SIGABRT")
    assert not remaining_processes(fake_engines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "code", "reason"),
    [("failing_later", 1, "ZeroDivisionError: division by zero"), ("dying_later", 2, "terminated by SIGABRT")],
)
def test_engine_that_fails_while_it_is_timed_loses_no_other_times(
    fake_engines: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    engine: str,
    code: int,
    reason: str,
) -> None:
    monkeypatch.syspath_prepend(fake_engines)
    monkeypatch.delitem(sys.modules, "fakes", raising=False)
    monkeypatch.setattr(engine_times, "MIN_ROUNDS", 3)
    options = ["--engines", f"fakes:{engine},eager", "--batches", "1,4", "--threads", "1", "--budget", "0"]

    assert main([*options, "--record", str(fake_engines)]) == code

    record = json.loads((fake_engines / "engine_times.json").read_text())
    assert [(entry["engine"], entry["batch"]) for entry in record["timings"]] == [("eager", 1), ("eager", 4)]
    assert all(entry["reason"].count(reason) for entry in record["not_timed"])
    assert {entry["engine"] for entry in record["not_timed"]} == {f"fakes:{engine}", f"fakes:{engine} again"}
    assert {effect["engine"] for effect in record["order"]} == {"eager"}
    assert all(line.count(reason) for line in capsys.readouterr().err.splitlines())
    assert not remaining_processes(fake_engines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "nan"], "'nan' is not a positive duration"),
        (["--budget", "inf"], "'inf' is not a positive duration"),
        (["--budget=-1"], "'-1' is not a positive duration"),
        (["--record", "/proc/none"], "--record /proc/none: engine_times.json not in a writable folder"),
    ],
)
def test_invalid_option_is_a_usage_error(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(options)

    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("names", ["", ",", "eager,"])
def test_empty_name_of_an_engine_is_an_error(names: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engines", names]) == 2

    assert capsys.readouterr().err.startswith("error: --engine : not one of eager, ")


@pytest.mark.slow
def test_ctrl_c_leaves_no_process(fake_engines: Path) -> None:
    with start_command("engine-times", "--engines", "eager,fakes:hanging", "--batches", "1") as run:
        assert interrupt(run, fake_engines, processes=3) == "stopped"  # the parent, the worker and its child

    assert not remaining_processes(fake_engines)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ("0", "'0' is not a whole number of at least 1"),
        ("1,x", "'x' is not a whole number of at least 1"),
        ("24", "24 is not a multiple of 16, as batch sizes above 16 must be"),
    ],
)
def test_invalid_batch_size_is_a_usage_error(batches: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--batches", batches])

    assert f"argument --batches: {message}" in capsys.readouterr().err
