"""
Engines timed against each other: `python -m benchmarks.engine_times` prints the table, `--record DIR` writes it down.

One fresh process holds one engine, and only one of them runs at any moment. Each time is the median over blocks of at
least 5 ms of calls; the blocks of all engines take turns, in another random order in every round. The first engine is
there twice, and the rate of a matrix product is measured in the same rounds: the share is of that rate. What an engine
answers is verified before it is timed, in each of its batches.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.worker import Arm, Cold, NotTimed, Worker, WorkerError
from benchmarks.workload import BATCHES, DISTINCT
from lenet import engines
from lenet.engines import PEERS, Engine, EngineError
from lenet.files import set_aside, writable, write_atomically
from lenet.fingerprint import fingerprint, headline, stamp
from lenet.net import FORWARD_FLOPS, TRAINING_FLOPS
from lenet.oracle import PRECISIONS, Array
from lenet.table import table

DEFAULT = ("eager", "channels-last", "no-onednn", "compiled", "compiled-deterministic", "aot-inductor", *PEERS)
TRAINING_BATCHES = (16, 256)
FLOPS = {"forward": FORWARD_FLOPS, "training step": TRAINING_FLOPS}
"""Of one image."""

MATRIX = 1024
PRODUCT = "matrix product"
AGAIN = " again"
ROUNDS = 20
"""At least, however long a block takes."""

SPLITS = 999
"""Random ones, that the order of the engines is compared with."""

SEED = 0


@dataclass(frozen=True)
class Block:
    """The seconds of one call in a block of an engine's, and which engine's block came before it."""

    engine: str
    before: str | None
    seconds: float


@dataclass(frozen=True)
class Timing:
    """An engine's operation on a batch."""

    engine: str
    operation: str
    batch: int
    seconds: float  # of one call: the median over blocks
    quartiles: tuple[float, float]
    blocks: int
    limit: float  # floating-point operations per second of the matrix product beside it
    cold: Cold

    @property
    def rates(self) -> dict[str, float]:
        """Images and floating-point operations per second, and which share of the limit these are."""
        flops = self.batch * FLOPS[self.operation] / self.seconds
        return {
            "images_per_second": self.batch / self.seconds,
            "flops_per_second": flops,
            "share": flops / self.limit,
        }


@dataclass(frozen=True)
class Order:
    """How far the median of an engine's blocks differs with the engine whose block came before."""

    engine: str
    after: str  # where it differs most
    difference: float  # relative to the median of all its blocks; the largest
    by_chance: float  # the same for random splits into parts of these sizes: their median
    p: float  # the share of random splits that differ as much, times the number of engines


@dataclass(frozen=True)
class Refusal:
    """What was not timed, and why: it raised, or its answer was wrong."""

    engine: str
    operation: str
    batch: int
    reason: str


@dataclass
class Result:
    """What a run found."""

    timings: list[Timing] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    order: list[Order] = field(default_factory=list)

    def again(self) -> list[float]:
        """The times of the first engine's second process, relative to those of its first."""
        seconds = {(t.engine, t.operation, t.batch): t.seconds for t in self.timings}
        pairs = [((engine.removesuffix(AGAIN), *rest), t) for (engine, *rest), t in seconds.items() if AGAIN in engine]
        return [t / seconds[first] for first, t in pairs if first in seconds]


def interleave(workers: dict[str, Worker], budget: float, random: np.random.Generator) -> list[Block]:
    """
    Rounds of a block of each worker, in random order, for `budget` seconds a worker.

    What the workers have prepared is what is timed; the first block of each is for warming up, and is left out.
    """
    for worker in workers.values():
        worker.measure()
    blocks: list[Block] = []
    before = None
    end = time.perf_counter() + budget * len(workers)
    while len(blocks) < ROUNDS * len(workers) or time.perf_counter() < end:
        for name in random.permutation(list(workers)).tolist():
            blocks.append(Block(name, before, workers[name].measure()))
            before = name
    return blocks


def seconds_of(blocks: list[Block], engine: str) -> Array:
    """Of one call, block by block."""
    return np.array([block.seconds for block in blocks if block.engine == engine])


def order_effects(cells: list[list[Block]], random: np.random.Generator) -> list[Order]:
    """
    Of each engine: do its times depend on whose block came before? Over all cells, each relative to its own median.

    Where they do not, every split of a cell's blocks by what came before is as likely as any other.
    """
    names = list(dict.fromkeys(block.engine for blocks in cells for block in blocks if block.engine != PRODUCT))
    return [_order_effect(name, cells, len(names), random) for name in names]


def _order_effect(name: str, cells: list[list[Block]], engines: int, random: np.random.Generator) -> Order:
    relative, befores = [], []
    for blocks in cells:
        own = [block for block in blocks if block.engine == name and block.before not in (None, name)]
        seconds = seconds_of(own, name)
        relative.append(seconds / np.median(seconds) if own else seconds)
        befores.append(np.array([block.before for block in own], dtype=object))
    times = np.concatenate(relative)
    differences = _differences(times, np.concatenate(befores))
    after = max(differences, key=lambda before: differences[before])
    splits = [
        max(_differences(times, np.concatenate([random.permutation(part) for part in befores])).values())
        for _ in range(SPLITS)
    ]
    as_large = 1 + sum(split >= differences[after] for split in splits)
    p = min(1.0, engines * as_large / (1 + SPLITS))
    return Order(name, after, differences[after], float(np.median(splits)), p)


def _differences(times: Array, befores: Any) -> dict[str, float]:
    """How far the median of those after each engine is from 1, the median of all."""
    return {name: abs(float(np.median(times[befores == name])) - 1) for name in dict.fromkeys(befores)}


@contextmanager
def started(arms: dict[str, Arm]) -> Iterator[dict[str, Worker]]:
    """A worker for each arm, of which none finds anything that was compiled before."""
    with ExitStack() as stack:
        workers = {}
        for name, arm in tqdm(arms.items(), "workers start", leave=False, disable=None):
            cache = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            workers[name] = stack.enter_context(Worker(arm, environment={"TORCHINDUCTOR_CACHE_DIR": cache}))
        yield workers


def compare(chosen: Sequence[Engine], arm: Arm, cells: Sequence[tuple[str, int]], budget: float) -> Result:
    """
    Time each cell, an operation on a batch, of all engines that have it, in `budget` seconds each.

    Raises WorkerError where a worker dies or hangs; no process is left, whatever happens.
    """
    random, result, measured = np.random.default_rng(SEED), Result(), []
    loaded = {engine.name: engine for engine in chosen} | {chosen[0].name + AGAIN: chosen[0]}
    arms = {name: replace(arm, engine=engine.name) for name, engine in loaded.items()}
    todo = [(*cell, [n for n, e in loaded.items() if cell[0] == "forward" or e.differentiable]) for cell in cells]
    with (
        started({**arms, PRODUCT: replace(arm, engine="eager")}) as workers,
        tqdm(total=sum(1 + len(able) for *_, able in todo), leave=False, disable=None) as bar,
    ):
        workers[PRODUCT].prepare(PRODUCT, MATRIX)
        for operation, batch, able in todo:
            cold: dict[str, Cold] = {}
            for name in able:
                bar.set_description_str(f"{operation} of {batch}: {name} begins")
                try:
                    cold[name] = workers[name].prepare(operation, batch)
                except NotTimed as error:
                    result.refused.append(Refusal(name, operation, batch, str(error)))
                bar.update()
            bar.set_description_str(f"{operation} of {batch}: {len(cold)} engines by turns")
            if cold:
                blocks = interleave({name: workers[name] for name in (*cold, PRODUCT)}, budget, random)
                result.timings += timings(operation, batch, blocks, cold)
                measured.append(blocks)
            bar.update()
    result.order = order_effects(measured, random)
    return result


def timings(operation: str, batch: int, blocks: list[Block], cold: dict[str, Cold]) -> list[Timing]:
    """What the blocks of a cell come to, engine by engine."""
    limit = 2 * MATRIX**3 / float(np.median(seconds_of(blocks, PRODUCT)))
    found = []
    for name, begun in cold.items():
        seconds = seconds_of(blocks, name)
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        found.append(Timing(name, operation, batch, median, (low, high), len(seconds), limit, begun))
    return found


def tables(result: Result) -> str:
    """What a terminal shows of it."""
    shown = []
    for operation in FLOPS:
        if timed := [timing for timing in result.timings if timing.operation == operation]:
            shown += [_speeds(operation, timed), _colds(operation, timed)]
    if latencies := [timing for timing in result.timings if (timing.operation, timing.batch) == ("forward", 1)]:
        shown.append(_latencies(latencies))
    if result.order:
        shown.append(_orders(result.order))
    if again := result.again():
        shown.append(f"the first engine again, its time / that before: {min(again):.3f} to {max(again):.3f}")
    return "\n\n".join(shown)


def _rows(timed: list[Timing]) -> tuple[list[int], dict[str, dict[int, Timing]]]:
    """The batches, and the timings of each engine by batch."""
    rows: dict[str, dict[int, Timing]] = {}
    for timing in timed:
        rows.setdefault(timing.engine, {})[timing.batch] = timing
    return sorted({timing.batch for timing in timed}), rows


def _speeds(operation: str, timed: list[Timing]) -> str:
    batches, rows = _rows(timed)

    def cell(timing: Timing | None) -> str:
        return "{images_per_second:,.0f} ({share:.1%})".format(**timing.rates) if timing else "-"

    head = [f"{operation}, images/s", *(f"{batch:,}" for batch in batches)]
    return table([head, *([name, *(cell(row.get(batch)) for batch in batches)] for name, row in rows.items())])


def _colds(operation: str, timed: list[Timing]) -> str:
    batches, rows = _rows(timed)
    shown = [[f"{operation}, first call", *(f"{batch:,}" for batch in batches), "build", "memory"]]
    for name, row in rows.items():
        build = max(timing.cold.build for timing in row.values())
        known = [timing.cold.memory for timing in row.values() if timing.cold.memory is not None]
        first = [f"{row[batch].cold.first:.3f} s" if batch in row else "-" for batch in batches]
        memory = f"{max(known) / 2**20:,.0f} MiB" if known else "unknown"
        shown.append([name, *first, f"{build:.3f} s", memory])
    return table(shown)


def _latencies(timed: list[Timing]) -> str:
    rows = [["forward of one image, us", "median", "quartiles", "blocks"]]
    for timing in timed:
        low, high = (f"{1e6 * seconds:,.1f}" for seconds in timing.quartiles)
        rows.append([timing.engine, f"{1e6 * timing.seconds:,.1f}", f"{low} to {high}", f"{timing.blocks:,}"])
    return table(rows)


def _orders(effects: list[Order]) -> str:
    rows = [["median by the block before", "differs by", "after", "random splits by", "p"]]
    rows += [[o.engine, f"{o.difference:.2%}", o.after, f"{o.by_chance:.2%}", f"{o.p:.3f}"] for o in effects]
    return table(rows)


def choose(names: str | None, device: str, dtype: str) -> list[Engine]:
    """
    The engines of these names; by default those of DEFAULT that can be had, and a line for each that cannot.

    Raises EngineError where one that was asked for cannot be had.
    """
    chosen = []
    for name in names.split(",") if names else DEFAULT:
        try:
            engine = engines.load(name)
            if not engine.takes(torch.device(device).type, dtype):
                raise EngineError(f"--engine {name}: takes no {dtype} on {device}")
            chosen.append(engine)
        except EngineError as error:
            if names:
                raise
            print(f"left out: {error}", file=sys.stderr)
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """0 where all was timed, 1 where an engine raised or was wrong, 2 where a worker broke, 130 after Ctrl-C."""
    options = _options(arguments)
    if options.record:
        set_aside(options.record / "engine_times.json")
    cells = [("forward", batch) for batch in options.batches]
    cells += [("training step", batch) for batch in options.batches if batch in TRAINING_BATCHES]
    arm = Arm(device=options.device, dtype=options.dtype, threads=options.threads)
    try:
        chosen = choose(options.engines, options.device, options.dtype)
        print(f"{headline(fingerprint())}: {options.dtype} on {options.device}, {options.threads} threads", flush=True)
        result = compare(chosen, arm, cells, options.budget)
    except (EngineError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(tables(result))
    for refusal in result.refused:
        print(f"not timed: {refusal.engine}, {refusal.operation} of {refusal.batch}: {refusal.reason}", file=sys.stderr)
    if options.record:
        _record(options, chosen, result)
    return 1 if result.refused else 0


def _record(options: argparse.Namespace, chosen: list[Engine], result: Result) -> None:
    command = shlex.join(["python", "-m", "benchmarks.engine_times", *sys.argv[1:]])
    run = {name: getattr(options, name) for name in ("device", "dtype", "threads", "budget")}
    claims = {engine.name: engine.claims[options.dtype] for engine in chosen}
    found = {
        "timings": [asdict(timing) | timing.rates for timing in result.timings],
        "again": result.again(),
        "order": [asdict(order) for order in result.order],
        "refused": [asdict(refusal) for refusal in result.refused],
    }
    content = stamp(command) | run | {"seed": SEED, "claims": claims} | found
    with write_atomically(options.record / "engine_times.json") as file:
        file.write(json.dumps(content, indent=1).encode())


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_times", description="Time engines by turns.")
    parser.add_argument("--engines", metavar="NAMES", help=f"comma-separated; default: {','.join(DEFAULT)}, if there")
    parser.add_argument("--batches", type=_batches, default=BATCHES[:-1], metavar="SIZES", help="comma-separated")
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--device", default="cpu", help="default %(default)s")
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32", help="default %(default)s")
    parser.add_argument(
        "--budget", type=float, default=2.0, metavar="SECONDS", help="for an engine and batch, default %(default)s"
    )
    parser.add_argument("--record", type=Path, metavar="DIR", help="write the times to engine_times.json there")
    options = parser.parse_args(arguments)
    if options.record and not writable(options.record):
        parser.error(f"--record {options.record}: not a folder that can be written to")
    return options


def positive(text: str) -> int:
    """A number from 1 on, as an option."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _batches(text: str) -> tuple[int, ...]:
    """Sizes that repeat the workload's digits a whole number of times."""
    batches = tuple(positive(part) for part in text.split(","))
    if wrong := [batch for batch in batches if batch > DISTINCT and batch % DISTINCT]:
        raise argparse.ArgumentTypeError(f"{wrong[0]} is no multiple of {DISTINCT}")
    return batches


if __name__ == "__main__":
    sys.exit(main())
