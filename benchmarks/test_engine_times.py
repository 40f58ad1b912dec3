"""What the times of engines come to, and that only right answers are timed, in processes that none is left of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import engine_times
from benchmarks.engine_times import AGAIN, PRODUCT, Block, Cold, Result, choose, main, order_effects, tables, timings
from benchmarks.test_worker import command, fakes, interrupted, left
from lenet.engines import EngineError

__all__ = ["fakes"]


def rounds(seconds: dict[str, float], slow_after: str, by: float = 1.0, count: int = 60) -> list[Block]:
    """Rounds in random order of engines that take so long, and `by` times that after one of them, but for noise."""
    random = np.random.default_rng(0)
    blocks, before = [], None
    for name in (name for _ in range(count) for name in random.permutation(list(seconds)).tolist()):
        factor = by if before == slow_after else 1.0
        blocks.append(Block(name, before, seconds[name] * factor * random.uniform(0.99, 1.01)))
        before = name
    return blocks


def test_an_engine_that_slows_the_next_is_found_and_no_other() -> None:
    fair, unfair = (
        order_effects([rounds({"a": 1e-3, "b": 2e-3, "c": 3e-3, PRODUCT: 1e-2}, "b", by)], np.random.default_rng(1))
        for by in (1.0, 1.05)
    )

    assert {order.engine for order in fair} == {"a", "b", "c"}
    assert all(order.p > 0.05 for order in fair)
    assert {order.engine: (order.after, order.p < 0.01) for order in unfair if order.engine != "b"} == {
        "a": ("b", True),
        "c": ("b", True),
    }


def test_a_block_that_came_after_none_or_after_its_own_engines_is_left_out() -> None:
    blocks = [Block("a", None, 9.0), Block("a", "a", 9.0), *[Block("a", PRODUCT, 1.0)] * 3]

    (order,) = order_effects([blocks], np.random.default_rng())

    assert (order.after, order.difference, order.by_chance, order.p) == (PRODUCT, 0.0, 0.0, 1.0)


def test_a_time_is_the_median_over_blocks_and_its_share_that_of_the_product_beside_it() -> None:
    blocks = [Block("eager", None, seconds) for seconds in (1.0, 2.0, 3.0, 4.0, 100.0)]
    blocks.append(Block(PRODUCT, "eager", 2.0))

    (timing,) = timings("forward", 16, blocks, {"eager": Cold(0.0, 0.1, None)})

    assert (timing.seconds, timing.quartiles, timing.blocks) == (3.0, (2.0, 4.0), 5)
    assert timing.limit == 2 * 1024**3 / 2.0
    assert timing.rates["images_per_second"] == 16 / 3.0
    assert timing.rates["share"] == timing.rates["flops_per_second"] / timing.limit
    assert "unknown" in tables(Result([timing]))


def test_the_second_process_of_the_first_engine_is_compared_with_its_first() -> None:
    blocks = [Block("eager", None, 2.0), Block("eager" + AGAIN, "eager", 3.0), Block(PRODUCT, "eager", 1.0)]
    cold = {name: Cold(0.0, 0.1, 2**20) for name in ("eager", "eager" + AGAIN)}

    result = Result(timings("forward", 1, blocks, cold))

    assert result.again() == [1.5]
    assert "1.500 to 1.500" in tables(result)


def test_what_was_not_asked_for_by_name_may_be_missing(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = choose(None, "cpu", "float64")

    assert "eager" in [engine.name for engine in chosen]
    with pytest.raises(EngineError, match="takes no float64 on cpu"):
        choose("eager,autocast", "cpu", "float64")
    assert all(line.startswith("left out: --engine") for line in capsys.readouterr().err.splitlines())


def test_a_wrong_engine_is_reported_and_the_others_are_timed(
    fakes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(fakes)
    monkeypatch.setattr(engine_times, "ROUNDS", 3)
    options = ["--engines", "eager,fakes:wrong", "--batches", "1,16", "--threads", "1", "--budget", "0"]

    assert main([*options, "--record", str(fakes)]) == 1

    output = capsys.readouterr()
    record = json.loads((fakes / "engine_times.json").read_text())
    timed = {(entry["engine"], entry["operation"], entry["batch"]) for entry in record["timings"]}
    refused = {(entry["engine"], entry["operation"], entry["batch"]) for entry in record["refused"]}
    cells = [("forward", 1), ("forward", 16), ("training step", 16)]
    assert timed == {(engine, *cell) for engine in ("eager", "eager again") for cell in cells}
    assert refused == {("fakes:wrong", *cell) for cell in cells}
    assert all("budgets of" in entry["reason"] for entry in record["refused"])
    assert len(record["again"]) == len(cells)
    assert "eager again" in output.out
    assert output.err.count("not timed: fakes:wrong") == len(cells)
    assert not left(fakes)


def test_a_worker_that_dies_ends_the_run_with_one_line(fakes: Path) -> None:
    result = command("benchmarks.engine_times", "--engines", "eager,fakes:dying", "--batches", "1").communicate()

    lines = [line for line in result[1].splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("error: lenet by fakes:dying on cpu in float32: its worker was ended by SIGABRT")
    assert not left(fakes)


def test_ctrl_c_leaves_no_process(fakes: Path) -> None:
    with command("benchmarks.engine_times", "--engines", "eager,fakes:hanging", "--batches", "1") as run:
        assert interrupted(run, fakes, processes=3) == "stopped"  # the parent, the worker and what it started

    assert not left(fakes)


@pytest.mark.parametrize("batches", ["0", "x", "24"])
def test_a_batch_that_cannot_be_made_is_refused(batches: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--batches", batches])

    assert "--batches" in capsys.readouterr().err
