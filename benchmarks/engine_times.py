"""
Times of the engines, measured together: `lenet-properties engine-times` prints tables, `--record DIR` a JSON file.

Each engine has a fresh process of its own, and only one process computes at any moment; the others are stopped. Each
library waits as it does by default: idle threads may spin. A time is the median over blocks of calls of at least 5 ms,
once they have no trend. The blocks of all engines are interleaved, in a new random order in every round. As
controls, the first engine has a second process, and the rate of a matrix product is measured in the same rounds: the
throughput of each engine is stated as a share of it. Every answer is verified before it is timed, in every batch size.
"""

from __future__ import annotations

import argparse
import json
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

from benchmarks.arguments import duration, file_problem, positive_int
from benchmarks.command import ERROR, STOPPED
from benchmarks.guard import folder as run_folder
from benchmarks.interleaved import BLOCKS, PRODUCT_SIZE, WARMUP_SECONDS, has_trend
from benchmarks.worker_client import Arm, Startup, Worker, WorkerError
from benchmarks.workload import DISTINCT, TIMED_BATCHES
from lenet import engines
from lenet.engines import PEERS, Engine, EngineError
from lenet.files import set_aside, write_atomically
from lenet.fingerprint import fingerprint, headline, stamp
from lenet.net import FORWARD_FLOPS, TRAINING_FLOPS
from lenet.oracle import PRECISIONS, Array
from lenet.system import usable_cores
from lenet.table import table

DEFAULT = ("eager", "channels-last", "no-onednn", "compiled", "compiled-deterministic", "aot-inductor", *PEERS)
TRAINING_BATCHES = (16, 256)
TRAINING = " and ".join(map(str, TRAINING_BATCHES))
FLOPS = {"forward": FORWARD_FLOPS, "training step": TRAINING_FLOPS}
"""The FLOPs of each operation per image."""

PRODUCT = "matrix product"
AGAIN = " again"
"""The suffix of the name of the first engine's second process."""

MIN_ROUNDS = 20
"""Rounds of blocks, at least, however long a block takes."""

PERMUTATIONS = 999
"""Random permutations in the test for order effects."""

SEED = 0

FILE = "engine_times.json"


@dataclass(frozen=True)
class Block:
    """The seconds of one call in a block of an engine, and the engine whose block came before it."""

    engine: str
    previous: str | None
    seconds: float


@dataclass(frozen=True)
class Timing:
    """The time of an engine's operation with a batch size."""

    engine: str
    operation: str
    batch: int
    seconds: float  # of one call: the median over blocks
    quartiles: tuple[float, float]
    blocks: int
    limit: float  # FLOP/s of the matrix product in the same rounds
    startup: Startup

    @property
    def rates(self) -> dict[str, float]:
        """Images/s, FLOP/s, and the latter as a share of the matrix product's."""
        flops = self.batch * FLOPS[self.operation] / self.seconds
        return {
            "images_per_second": self.batch / self.seconds,
            "flops_per_second": flops,
            "share_of_matrix_product": flops / self.limit,
        }


@dataclass(frozen=True)
class OrderEffect:
    """How much the median of an engine's blocks depends on the engine whose block came before."""

    engine: str
    after: str  # the engine after which the median differs most
    difference: float  # that difference, relative to the median of all blocks of the engine
    by_chance: float  # the median of the same statistic over random permutations
    p: float  # the p-value of the permutation test, with Bonferroni's correction for the number of engines


@dataclass(frozen=True)
class Untimed:
    """An operation that was not timed because the engine raised or gave a wrong answer, or its worker failed."""

    engine: str
    operation: str
    batch: int
    reason: str


@dataclass
class Result:
    """The result of a run."""

    timings: list[Timing] = field(default_factory=list)
    not_timed: list[Untimed] = field(default_factory=list)
    order: list[OrderEffect] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)  # engines whose worker can no longer be used, and why

    def again(self) -> list[float]:
        """Return the times of the first engine's second process, relative to those of its first process."""
        seconds = {(t.engine, t.operation, t.batch): t.seconds for t in self.timings}
        pairs = [((engine.removesuffix(AGAIN), *rest), t) for (engine, *rest), t in seconds.items() if AGAIN in engine]
        return [t / seconds[first] for first, t in pairs if first in seconds]


def interleave(
    workers: dict[str, Worker], budget: float, random: np.random.Generator
) -> tuple[list[Block], dict[str, str]]:
    """
    Time rounds of blocks of what the workers have prepared, for `budget` seconds per worker.

    A round is one block of each worker, in random order. Warm-up rounds come first, and are left out: until the last
    blocks of each worker had no trend at least once, or for WARMUP_SECONDS per worker. A worker that raises is left out
    from then on; the error is returned by its name. Only that of the matrix product, which all are compared with, is
    raised.
    """
    left, errors = dict(workers), dict[str, str]()

    def seconds(name: str) -> float | None:
        try:
            return left[name].measure()
        except WorkerError as error:
            if name == PRODUCT:
                raise
            errors[name] = str(error)
            del left[name]
            return None

    cold, warmup = {name: list[float]() for name in workers}, time.perf_counter() + WARMUP_SECONDS * len(workers)
    while cold and time.perf_counter() < warmup:
        for name in random.permutation(list(left)).tolist():
            if (measured := seconds(name)) is not None and name in cold:
                cold[name].append(measured)
        cold = {name: times for name, times in cold.items() if name in left and not _warm(times)}
    blocks: list[Block] = []
    previous = None
    end, rounds = time.perf_counter() + budget * len(workers), 0
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        for name in random.permutation(list(left)).tolist():
            if (measured := seconds(name)) is not None:
                blocks.append(Block(name, previous, measured))
            previous = name
        rounds += 1
    return blocks, errors


def _warm(times: list[float]) -> bool:
    return len(times) >= BLOCKS and not has_trend(times[-BLOCKS:])


def seconds_of(blocks: list[Block], engine: str) -> Array:
    """Return the seconds of one call in each block of an engine."""
    return np.array([block.seconds for block in blocks if block.engine == engine])


def order_effects(cells: list[list[Block]], random: np.random.Generator) -> list[OrderEffect]:
    """
    Test, for each engine, whether its times depend on the engine whose block came before.

    `cells` are the blocks of each operation and batch size. Times are relative to the engine's median in the cell. If
    they do not depend on the previous block, all permutations of the previous engines within a cell are equally likely.
    """
    names = list(dict.fromkeys(block.engine for blocks in cells for block in blocks if block.engine != PRODUCT))
    return [_order_effect(name, cells, len(names), random) for name in names]


def _order_effect(name: str, cells: list[list[Block]], engines: int, random: np.random.Generator) -> OrderEffect:
    relative, previous = [], []
    for blocks in cells:
        selected = [block for block in blocks if block.engine == name and block.previous not in (None, name)]
        seconds = seconds_of(selected, name)
        relative.append(seconds / np.median(seconds) if selected else seconds)
        previous.append(np.array([block.previous for block in selected], dtype=object))
    times = np.concatenate(relative)
    differences = _differences(times, np.concatenate(previous))
    after = max(differences, key=lambda engine: differences[engine])
    permuted = [
        max(_differences(times, np.concatenate([random.permutation(part) for part in previous])).values())
        for _ in range(PERMUTATIONS)
    ]
    as_large = 1 + sum(difference >= differences[after] for difference in permuted)
    p = min(1.0, engines * as_large / (1 + PERMUTATIONS))
    return OrderEffect(name, after, differences[after], float(np.median(permuted)), p)


def _differences(times: Array, previous: Any) -> dict[str, float]:
    """Return how far the median of the times after each engine is from 1, the median of all times."""
    return {name: abs(float(np.median(times[previous == name])) - 1) for name in dict.fromkeys(previous)}


@contextmanager
def started_workers(arms: dict[str, Arm]) -> Iterator[dict[str, Worker]]:
    """Start a worker for each of these, with an empty compilation cache of its own."""
    with ExitStack() as stack:
        workers = {}
        for name, arm in tqdm(arms.items(), "starting workers", leave=False, disable=None):
            cache = stack.enter_context(tempfile.TemporaryDirectory(dir=run_folder(), ignore_cleanup_errors=True))
            workers[name] = stack.enter_context(Worker(arm, environment={"TORCHINDUCTOR_CACHE_DIR": cache}))
        yield workers


def compare(chosen: Sequence[Engine], arm: Arm, cells: Sequence[tuple[str, int]], budget: float) -> Result:
    """
    Time each cell, an operation and a batch size, of all engines that support it, for `budget` seconds each.

    An engine that raises is not timed in that cell, and one whose worker exits or hangs in no later one either; the
    others are. Raises WorkerError if a worker cannot start. All processes are stopped in any case.
    """
    random, result, measured = np.random.default_rng(SEED), Result(), []
    loaded = {engine.name: engine for engine in chosen} | {chosen[0].name + AGAIN: chosen[0]}
    arms = {name: replace(arm, engine=engine.name) for name, engine in loaded.items()}
    plan = [(*cell, [n for n, e in loaded.items() if cell[0] == "forward" or e.differentiable]) for cell in cells]
    with (
        started_workers({**arms, PRODUCT: replace(arm, engine="eager")}) as workers,
        tqdm(total=sum(1 + len(able) for *_, able in plan), leave=False, disable=None) as bar,
    ):

        def leave_out(one: Untimed) -> None:
            """Note that an operation was not timed; a worker that exited or hangs is stopped and not asked again."""
            result.not_timed.append(one)
            if not workers[one.engine].running:
                workers[one.engine].stop()
                result.lost[one.engine] = one.reason

        workers[PRODUCT].prepare(PRODUCT, PRODUCT_SIZE)
        for operation, batch, able in plan:
            startups: dict[str, Startup] = {}
            for name in [name for name in able if name not in result.lost]:
                bar.set_description_str(f"{operation}, batch size {batch}: preparing {name}")
                try:
                    startups[name] = workers[name].prepare(operation, batch)
                except WorkerError as error:
                    leave_out(Untimed(name, operation, batch, str(error)))
            bar.update(len(able))
            bar.set_description_str(f"{operation}, batch size {batch}: timing {len(startups)} engines")
            if startups:
                blocks, errors = interleave({name: workers[name] for name in (*startups, PRODUCT)}, budget, random)
                for name, reason in errors.items():
                    leave_out(Untimed(name, operation, batch, reason))
                timed = {name: startup for name, startup in startups.items() if name not in errors}
                result.timings += timings(operation, batch, blocks, timed)
                measured.append([block for block in blocks if block.engine not in errors])
            bar.update()
    result.order = order_effects(measured, random)
    return result


def timings(operation: str, batch: int, blocks: list[Block], startups: dict[str, Startup]) -> list[Timing]:
    """Summarize the blocks of a cell, engine by engine."""
    limit = 2 * PRODUCT_SIZE**3 / float(np.median(seconds_of(blocks, PRODUCT)))
    summarized = []
    for name, startup in startups.items():
        seconds = seconds_of(blocks, name)
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        summarized.append(Timing(name, operation, batch, median, (low, high), len(seconds), limit, startup))
    return summarized


def tables(result: Result) -> str:
    """Return the tables for a terminal."""
    shown = []
    for operation in FLOPS:
        if timed := [timing for timing in result.timings if timing.operation == operation]:
            shown += [_throughput_table(operation, timed), _startup_table(operation, timed)]
    if single := [timing for timing in result.timings if (timing.operation, timing.batch) == ("forward", 1)]:
        shown.append(_latency_table(single))
    if result.order:
        shown.append(_order_table(result.order))
    if again := result.again():
        shown.append(f"first engine, time of its second process / first: {min(again):.3f} to {max(again):.3f}")
    return "\n\n".join(shown)


def _by_engine(timed: list[Timing]) -> tuple[list[int], dict[str, dict[int, Timing]]]:
    """Return the batch sizes, and the timings of each engine by batch size."""
    engines: dict[str, dict[int, Timing]] = {}
    for timing in timed:
        engines.setdefault(timing.engine, {})[timing.batch] = timing
    return sorted({timing.batch for timing in timed}), engines


def _throughput_table(operation: str, timed: list[Timing]) -> str:
    batches, engines = _by_engine(timed)

    def cell(timing: Timing | None) -> str:
        return "{images_per_second:,.0f} ({share_of_matrix_product:.1%})".format(**timing.rates) if timing else "-"

    header = [f"{operation}, images/s", *(f"{batch:,}" for batch in batches)]
    return table([header, *([name, *(cell(row.get(batch)) for batch in batches)] for name, row in engines.items())])


def _startup_table(operation: str, timed: list[Timing]) -> str:
    batches, engines = _by_engine(timed)
    rows = [[f"{operation}, first call", *(f"{batch:,}" for batch in batches), "build", "memory"]]
    for name, row in engines.items():
        build = max(timing.startup.build for timing in row.values())
        known = [timing.startup.memory for timing in row.values() if timing.startup.memory is not None]
        first_calls = [f"{row[batch].startup.first_call:.3f} s" if batch in row else "-" for batch in batches]
        memory = f"{max(known) / 2**20:,.0f} MiB" if known else "unknown"
        rows.append([name, *first_calls, f"{build:.3f} s", memory])
    return table(rows)


def _latency_table(timed: list[Timing]) -> str:
    rows = [["forward, batch size 1, in us", "median", "quartiles", "blocks"]]
    for timing in timed:
        low, high = (f"{1e6 * seconds:,.1f}" for seconds in timing.quartiles)
        rows.append([timing.engine, f"{1e6 * timing.seconds:,.1f}", f"{low} to {high}", f"{timing.blocks:,}"])
    return table(rows)


def _order_table(effects: list[OrderEffect]) -> str:
    rows = [["effect of the previous block", "largest", "after", "permuted", "p"]]
    rows += [[o.engine, f"{o.difference:.2%}", o.after, f"{o.by_chance:.2%}", f"{o.p:.3f}"] for o in effects]
    return table(rows)


def choose(names: str | None, device: str, dtype: str) -> list[Engine]:
    """
    Load the engines of these names; by default those of DEFAULT that are available, with a line for each other one.

    Raises EngineError if an engine that was named is not available.
    """
    chosen = []
    for name in DEFAULT if names is None else names.split(","):
        try:
            engine = engines.load(name)
            if not engine.supports(torch.device(device).type, dtype):
                raise EngineError(f"--engine {name}: does not support {dtype} on {device}")
            chosen.append(engine)
        except EngineError as error:
            if names is not None:
                raise
            print(f"left out: {error}", file=sys.stderr)
    return chosen


def main(arguments: list[str]) -> int:
    """
    Return 0 if everything was timed, 1 if an engine raised or was wrong, 2 if a worker failed, 130 after Ctrl-C.

    What was timed is printed and written in the first three cases.
    """
    options = _options(arguments)
    if options.record:
        set_aside(options.record / FILE)
    cells = [("forward", batch) for batch in options.batches]
    cells += [("training step", batch) for batch in options.batches if batch in TRAINING_BATCHES]
    arm = Arm(device=options.device, dtype=options.dtype, threads=options.threads)
    try:
        chosen = choose(options.engines, options.device, options.dtype)
        print(f"{headline(fingerprint())}: {options.dtype} on {options.device}, {options.threads} threads", flush=True)
        result = compare(chosen, arm, cells, options.budget)
    except (EngineError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    print(tables(result))
    for one in result.not_timed:
        if one.reason not in result.lost.values():
            print(f"not timed: {one.engine}, {one.operation}, batch size {one.batch}: {one.reason}", file=sys.stderr)
    for reason in dict.fromkeys(result.lost.values()):
        print(f"error: {reason}", file=sys.stderr)
    if options.record:
        _record(options, chosen, result)
    return ERROR if result.lost else int(bool(result.not_timed))


def _record(options: argparse.Namespace, chosen: list[Engine], result: Result) -> None:
    """Write engine_times.json."""
    settings = {name: getattr(options, name) for name in ("device", "dtype", "threads", "budget")}
    claims = {engine.name: engine.claims[options.dtype] for engine in chosen}
    measured = {
        "timings": [asdict(timing) | timing.rates for timing in result.timings],
        "again": result.again(),
        "order": [asdict(effect) for effect in result.order],
        "not_timed": [asdict(one) for one in result.not_timed],
    }
    content = stamp(options.command) | settings | {"seed": SEED, "claims": claims} | measured
    with write_atomically(options.record / FILE) as file:
        file.write(json.dumps(content, indent=1).encode())


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lenet-properties engine-times",
        description="Time the engines in interleaved blocks.",
        epilog="example: lenet-properties engine-times --engines eager,compiled --batches 1,256",
    )
    parser.add_argument(
        "--engines", metavar="NAMES", help=f"comma-separated; default: {','.join(DEFAULT)}, as far as available"
    )
    parser.add_argument(
        "--batches",
        type=_batches,
        default=TIMED_BATCHES[:-1],
        metavar="SIZES",
        help=f"comma-separated; above {DISTINCT}, multiples of {DISTINCT}; "
        f"default {','.join(map(str, TIMED_BATCHES[:-1]))}; training steps are timed only at {TRAINING}",
    )
    parser.add_argument("--threads", type=positive_int, default=usable_cores(), help="default: all usable cores")
    parser.add_argument("--device", default="cpu", help="default %(default)s")
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32", help="default %(default)s")
    parser.add_argument(
        "--budget",
        type=_seconds,
        default=2.0,
        metavar="SECONDS",
        help=f"time per engine, operation and batch size, for at least {MIN_ROUNDS} blocks; default %(default)s",
    )
    parser.add_argument("--record", type=Path, metavar="DIR", help="write the times to DIR/engine_times.json")
    parser.set_defaults(command=shlex.join(["lenet-properties", "engine-times", *arguments]))
    options = parser.parse_args(arguments)
    if options.record and (problem := file_problem(options.record / FILE)):
        parser.error(f"--record {options.record}: {FILE} {problem}")
    return options


def _seconds(text: str) -> float:
    """Return a number of seconds, of which 0 means as short as possible."""
    return 0.0 if text == "0" else duration(text)


def _batches(text: str) -> tuple[int, ...]:
    """Return batch sizes that repeat the workload's distinct digits a whole number of times."""
    batches = tuple(positive_int(part) for part in text.split(","))
    if wrong := [batch for batch in batches if batch > DISTINCT and batch % DISTINCT]:
        raise argparse.ArgumentTypeError(
            f"{wrong[0]} is not a multiple of {DISTINCT}, as batch sizes above {DISTINCT} must be"
        )
    return batches
