"""
The fastest engine that is right, for one network on this machine: `fastest(net, batch=32).run(images)`.

Every installed engine that takes the network's dtype on its device, and claims the precision asked for, is built and
called on real digits. Those whose logits lie within budget of the oracle's are timed by turns. What was chosen is
remembered for this machine, and verified again before it is returned. `python -m benchmarks.fastest` prints the
table of why.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lenet import digits, engines, oracle
from lenet.engines import Engine, EngineError, Run
from lenet.engines.eager import compute_as_claimed
from lenet.files import write_atomically
from lenet.fingerprint import fingerprint
from lenet.net import Net
from lenet.oracle import CLAIMS, SHAPES, THRESHOLD, Array, Bounded
from lenet.table import table
from lenet.timer import timer

DISTINCT = 16
"""Images that differ in a batch; a larger one repeats them, so that the oracle need not compute thousands."""

BLOCK = 0.005
"""Seconds that a block of calls takes at least."""

SECONDS = 0.5
"""Of blocks, for each engine."""

ROUNDS = 5
"""Blocks of each engine at least."""


@dataclass(frozen=True)
class Row:
    """What was found of an engine."""

    engine: str
    claims: str = ""
    error: float | None = None  # the worst of its logits', in budgets at the precision that it claims
    begins: float | None = None  # seconds to build it and to call it for the first time
    speed: float | None = None  # images per second
    left_out: str = ""  # why


@dataclass(frozen=True)
class Choice:
    """The fastest engine, its run of the network, and what was found of every engine."""

    engine: Engine
    run: Run
    """(N,1,32,32) -> (N,10), N being the batch size asked for where the engine builds for each."""
    rows: tuple[Row, ...]
    remembered: bool
    """Whether the engines were timed before, and only the fastest was verified again."""

    @property
    def table(self) -> str:
        """The engines from the fastest on, and why the others were left out."""
        return "\n".join(_lines(self.rows))


def _by_speed(rows: tuple[Row, ...]) -> list[Row]:
    """Those that were timed, from the fastest on."""
    return sorted((row for row in rows if row.speed), key=lambda row: -(row.speed or 0.0))


def _lines(rows: tuple[Row, ...]) -> Iterator[str]:
    cells = [["engine", "claims", "worst error", "begins in", "images/s"]]
    for row in _by_speed(rows):
        cells.append([row.engine, row.claims, f"{row.error:.2f} budgets", f"{row.begins:.2f} s", f"{row.speed:,.0f}"])
    yield table(cells)
    yield from (f"left out: {row.engine}: {row.left_out}" for row in rows if row.left_out)


class _Task:
    """What an engine is to run, and how precisely."""

    def __init__(self, net: nn.Module, batch: int, precision: str | None) -> None:
        if {name: tuple(p.shape) for name, p in net.named_parameters()} != SHAPES:
            raise ValueError(f"{type(net).__name__} has other parameters than lenet.Net: the oracle cannot judge it")
        if batch < 1:
            raise ValueError(f"a batch of {batch} cannot be timed")
        parameter = next(net.parameters())
        some = digits.load().test_images[: min(batch, DISTINCT)]
        self.net, self.batch, self.device = net, batch, parameter.device
        self.dtype = str(parameter.dtype).removeprefix("torch.")
        self.precision = precision or self.dtype
        self.images = some.repeat(-(-batch // DISTINCT), 1, 1, 1)[:batch].to(parameter)

    @property
    def key(self) -> dict[str, Any]:
        """What a choice depends on."""
        return {
            "stack": fingerprint(),
            "net": f"{type(self.net).__module__}.{type(self.net).__qualname__}",
            "batch": self.batch,
            "device": str(self.device),
            "dtype": self.dtype,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
        }

    def unfit(self, engine: Engine) -> str:
        """Why it need not be tried, if so."""
        if not engine.takes(self.device.type, self.dtype):
            return f"takes no {self.dtype} on {self.device.type}"
        claim, asked = CLAIMS[engine.claims[self.dtype]], CLAIMS[self.precision]
        if claim.coarsest > asked.coarsest or claim.largest < asked.largest:
            return f"claims {claim.name}, {asked.name} was asked for"
        return ""

    def error(self, logits: Tensor, claim: str) -> float:
        """The worst of the logits', in budgets; infinite where they are of another shape."""
        if logits.shape != (self.batch, 10):
            return float("inf")
        parameters = {name: _float64(parameter) for name, parameter in self.net.named_parameters()}
        images = _float64(self.images[:DISTINCT])
        precision = oracle.claimed(claim, self.dtype)
        exact = oracle.solve(parameters, images, np.zeros((len(images), 10)), precision).logits
        rows = np.arange(self.batch) % DISTINCT
        return float(Bounded(exact.value[rows], exact.budget[rows]).ratio(_float64(logits)).max())

    def attempt(self, name: str, net: nn.Module) -> tuple[Row, Run | None]:
        """Have an engine built for the network, call it and verify the answer; no run where it is to be left out."""
        row = Row(name)
        try:
            engine = engines.load(name)
            if reason := self.unfit(engine):
                return replace(row, left_out=reason), None
            claim, start = engine.claims[self.dtype], timer()
            run = _within(engine, net)
            with torch.no_grad():
                logits = run(self.images)
            begins = timer() - start
            error = self.error(logits, claim)
        except Exception as raised:  # an engine may raise whatever it likes
            return replace(row, left_out=_words(name, raised)), None
        if error > THRESHOLD:
            wrong = f"its logits are {error:,.0f} budgets of {claim} off, {THRESHOLD:g} are allowed"
            return replace(row, left_out=wrong), None
        return Row(name, claim, error, begins), run


def _words(name: str, raised: Exception) -> str:
    """What an engine raised, in a line that does not begin with its name once more."""
    words = str(raised) if isinstance(raised, EngineError) else f"{type(raised).__name__}: {raised}"
    return " ".join(words.split()).removeprefix(f"--engine {name}: ")[:300]


def _float64(tensor: Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _within(engine: Engine, net: nn.Module) -> Run:
    """The engine's run of the network, with what the engine wants to be set while it runs."""
    with engine.context():
        run = engine.build(net)
    if engine.context is nullcontext:
        return run

    def within(images: Tensor) -> Tensor:
        with engine.context():
            return run(images)

    return within


def fastest(
    net: nn.Module, batch: int, device: str | None = None, precision: str | None = None, anew: bool = False
) -> Choice:
    """
    The engine that runs the network's forward pass on so many images fastest, without a graph, and does it right.

    The network is moved to `device`, if one is given; an engine is right if it claims `precision` (by default that of
    the network's dtype) or a finer one, and keeps what it claims as this process is set: by default PyTorch's
    convolutions on CUDA do not compute in float32. What was chosen before on this machine is built and verified, not
    timed again; with `anew` it is. To time compiled engines, what `torch.compile` compiled before is forgotten, and
    compiled again at its next call.

    Raises EngineError where no engine is right, and ValueError where the network's parameters are not the Net's.
    """
    task = _Task(net if device is None else net.to(device), batch, precision)
    remembered = () if anew else _recall(task.key)
    for row in _by_speed(remembered)[:1]:
        if choice := _choice(task, remembered, row.engine):
            return replace(choice, remembered=True)
    rows = _measure(task)
    for row in _by_speed(rows):
        if choice := _choice(task, rows, row.engine):
            _remember(task.key, rows)
            return choice
    raise EngineError("no engine is right: " + "; ".join(f"{row.engine}: {row.left_out}" for row in rows))


def _choice(task: _Task, rows: tuple[Row, ...], engine: str) -> Choice | None:
    """This engine, if it can be built for the network itself and is still right."""
    _, run = task.attempt(engine, task.net)
    return Choice(engines.load(engine), run, rows, remembered=False) if run else None


def _measure(task: _Task) -> tuple[Row, ...]:
    """What is found of every engine; each runs a copy of the network, since some lay its parameters out anew."""
    found, runs = [], {}
    with tqdm(engines.names(), leave=False, disable=None) as bar:
        for name in bar:
            bar.set_description_str(name)
            row, run = task.attempt(name, copy.deepcopy(task.net))
            found.append(row)
            if run:
                runs[name] = run
        bar.set_description_str(f"{len(runs)} engines by turns")
        speeds = {name: task.batch / seconds for name, seconds in _seconds(runs, task.images).items()}
    torch.compiler.reset()  # PyTorch limits how often one function is compiled
    return tuple(replace(row, speed=speeds.get(row.engine)) for row in found)


@torch.no_grad()
def _seconds(runs: dict[str, Run], images: Tensor) -> dict[str, float]:
    """Of one call: the median over blocks, in rounds of random order."""
    calls = dict.fromkeys(runs, 1)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)
    end = time.perf_counter() + SECONDS * len(runs)
    while time.perf_counter() < end or any(len(times) < ROUNDS for times in seconds.values()):
        for name in order.sample(list(runs), len(runs)):
            start = timer()
            for _ in range(calls[name]):
                runs[name](images)
            taken = timer() - start
            if taken < BLOCK:
                calls[name] *= 2
            else:
                seconds[name].append(taken / calls[name])
    return {name: median(times) for name, times in seconds.items()}


def _file() -> Path:
    """Where choices are remembered."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "lenet-properties" / "fastest.json"


def _entries() -> list[dict[str, Any]]:
    """What is remembered; nothing where the file is missing or torn."""
    try:
        entries = json.loads(_file().read_text())
        return [{"for": entry["for"], "rows": [Row(**row) for row in entry["rows"]]} for entry in entries]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, LookupError) as error:
        warnings.warn(f"{_file()} remembers no engines, and is written anew: {error!r}", stacklevel=3)
        return []


def _recall(key: dict[str, Any]) -> tuple[Row, ...]:
    return next((tuple(entry["rows"]) for entry in _entries() if entry["for"] == key), ())


def _remember(key: dict[str, Any], rows: tuple[Row, ...]) -> None:
    entries = [entry for entry in _entries() if entry["for"] != key] + [{"for": key, "rows": rows}]
    content = [{"for": entry["for"], "rows": [asdict(row) for row in entry["rows"]]} for entry in entries]
    try:
        with write_atomically(_file()) as file:
            file.write(json.dumps(content, indent=1).encode())
    except OSError as error:
        warnings.warn(f"{_file()} cannot be written, so the choice is not remembered: {error}", stacklevel=3)


def main(arguments: list[str] | None = None) -> int:
    """Print the table of the reference network; 2 where no engine is right, or there is no such device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fastest", description=__doc__)
    parser.add_argument("--batch", type=int, default=1, help="images a call, default %(default)s")
    parser.add_argument("--device", default="cpu", help="default %(default)s")
    parser.add_argument("--precision", choices=CLAIMS, default="float32", help="at least, default %(default)s")
    parser.add_argument("--anew", action="store_true", help="time the engines even if a choice is remembered")
    options = parser.parse_args(arguments)
    if options.batch < 1:
        parser.error(f"--batch {options.batch}: at least one image is possible")
    compute_as_claimed()
    torch.manual_seed(0)
    net = Net().to(torch.float64 if options.precision == "float64" else torch.float32)
    try:
        choice = fastest(net, options.batch, options.device, options.precision, options.anew)
    except (EngineError, RuntimeError, AssertionError) as error:  # the latter two are PyTorch's, of a device
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(choice.table)
    if choice.remembered:
        print("as timed before; --anew times them again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
