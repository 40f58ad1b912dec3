"""
Choose the fastest correct engine for a network on this machine: `fastest(net, batch=32).run(images)`.

Every installed engine that supports the network's dtype on its device, and claims the requested precision, is built and
called on real digits. Engines whose logits are within budget of the oracle's are timed in interleaved blocks. The
choice is cached for this machine, and verified again whenever it is used. `lenet-properties fastest` prints a table
with every engine's speed, or the reason why it was excluded.
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

from benchmarks.arguments import positive_int
from benchmarks.command import ERROR, one_line
from benchmarks.worker_client import MIN_BLOCK_SECONDS
from benchmarks.workload import DISTINCT, output_problem
from lenet import digits, engines, oracle
from lenet.engines import Engine, EngineError, Run
from lenet.engines.eager import disable_tf32
from lenet.files import write_atomically
from lenet.fingerprint import fingerprint
from lenet.net import Net
from lenet.oracle import CLAIMS, SHAPES, THRESHOLD, Array, Budgeted
from lenet.table import table
from lenet.timer import timer

SECONDS_PER_ENGINE = 0.5
"""Duration of all timed blocks, per engine."""

MIN_ROUNDS = 5
"""Minimum number of timed blocks of each engine."""

MAX = sys.float_info.max
"""A cached figure is less."""


@dataclass(frozen=True)
class EngineResult:
    """The verification and the timing of one engine."""

    engine: str
    claim: str = ""  # the name of the precision that it claims
    worst_ratio: float | None = None  # the worst error of its logits, in budgets at that precision
    startup_seconds: float | None = None  # to build it and to call it for the first time
    images_per_second: float | None = None
    excluded: str = ""  # the reason why it was not timed


@dataclass(frozen=True)
class Choice:
    """The fastest correct engine, the network's forward pass with it, and the results of all engines."""

    engine: Engine
    run: Run
    """(N,1,32,32) -> (N,10). If the engine has no dynamic batch, N must be the requested batch size."""
    results: tuple[EngineResult, ...]
    cached: bool
    """Whether the engines were timed in an earlier call, and this call only verified the fastest."""

    @property
    def table(self) -> str:
        """The timed engines, the fastest first, and the reason why each of the others was excluded."""
        return "\n".join(_table_lines(self.results))


def _fastest_first(results: tuple[EngineResult, ...]) -> list[EngineResult]:
    """Return the results of the engines that were timed, the fastest first."""
    timed = [result for result in results if result.images_per_second]
    return sorted(timed, key=lambda result: -(result.images_per_second or 0.0))


def _table_lines(results: tuple[EngineResult, ...]) -> Iterator[str]:
    cells = [["engine", "claims", "worst error", "startup", "images/s"]]
    for result in _fastest_first(results):
        error, startup = f"{result.worst_ratio:.2f} budgets", f"{result.startup_seconds:.2f} s"
        cells.append([result.engine, result.claim, error, startup, f"{result.images_per_second:,.0f}"])
    yield table(cells)
    yield from (f"excluded: {result.engine}: {result.excluded}" for result in results if result.excluded)


class _Request:
    """The network, batch size and precision that an engine is requested for."""

    def __init__(self, net: nn.Module, batch: int, precision: str | None) -> None:
        if {name: tuple(p.shape) for name, p in net.named_parameters()} != SHAPES:
            raise ValueError(
                f"{type(net).__name__} has other parameters than lenet.Net, so the oracle cannot verify it"
            )
        if batch < 1:
            raise ValueError(f"batch size {batch}: must be at least 1")
        parameter = next(net.parameters())
        distinct = digits.load().test_images[: min(batch, DISTINCT)]
        self.net, self.batch, self.device = net, batch, parameter.device
        self.dtype = str(parameter.dtype).removeprefix("torch.")
        self.precision = precision or self.dtype
        self.images = distinct.repeat(-(-batch // DISTINCT), 1, 1, 1)[:batch].to(parameter)

    @property
    def key(self) -> dict[str, Any]:
        """Everything that a choice depends on, as JSON values: the key of the cache."""
        return {
            "stack": fingerprint(),
            "net": f"{type(self.net).__module__}.{type(self.net).__qualname__}",
            "batch": self.batch,
            "device": str(self.device),
            "dtype": self.dtype,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
        }

    def exclude(self, engine: Engine) -> str:
        """Return the reason why the engine cannot serve this request by its own declaration, or an empty string."""
        if not engine.supports(self.device.type, self.dtype):
            return f"does not support {self.dtype} on {self.device.type}"
        claim, requested = CLAIMS[engine.claims[self.dtype]], CLAIMS[self.precision]
        if claim.coarsest_unit > requested.coarsest_unit or claim.largest < requested.largest:
            return f"claims {claim.name}; {requested.name} was requested"
        return ""

    def worst_ratio(self, logits: Tensor, claim: str) -> float:
        """Return the worst error of the logits, in budgets at the precision `claim`; inf if the shape is wrong."""
        if logits.shape != (self.batch, 10):
            return float("inf")
        parameters = {name: _float64(parameter) for name, parameter in self.net.named_parameters()}
        images = _float64(self.images[:DISTINCT])
        precision = oracle.claimed_precision(claim, self.dtype)
        exact = oracle.solve(parameters, images, np.zeros((len(images), 10)), precision).logits
        rows = np.arange(self.batch) % DISTINCT
        return float(Budgeted(exact.value[rows], exact.budget[rows]).ratio(_float64(logits)).max())

    def attempt(self, name: str, net: nn.Module) -> tuple[EngineResult, Run | None]:
        """Build an engine for the network, call it and verify its logits; returns no run if it is excluded."""
        result = EngineResult(name)
        try:
            engine = engines.load(name)
            if reason := self.exclude(engine):
                return replace(result, excluded=reason), None
            claim, start = engine.claims[self.dtype], timer()
            run = _build(engine, net)
            with torch.no_grad():
                logits = run(self.images)
            startup = timer() - start
            if problem := output_problem(logits, self.images):
                return replace(result, excluded=f"its logits: {problem}"), None
            ratio = self.worst_ratio(logits, claim)
        except Exception as raised:  # an engine may raise any exception
            return replace(result, excluded=_one_line(name, raised)), None
        if ratio > THRESHOLD:
            wrong = f"the worst error of its logits is {ratio:,.0f} budgets of {claim}; {THRESHOLD:g} are allowed"
            return replace(result, excluded=wrong), None
        return EngineResult(name, claim, ratio, startup), run


def _one_line(name: str, raised: Exception) -> str:
    """Return the exception as one line, without the engine's name at its beginning."""
    message = str(raised) if isinstance(raised, EngineError) else f"{type(raised).__name__}: {raised}"
    return one_line(message).removeprefix(f"--engine {name}: ")[:300]


def _float64(tensor: Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _build(engine: Engine, net: nn.Module) -> Run:
    """Return the engine's forward pass of the network, which enters the engine's context in every call."""
    with engine.context():
        run = engine.build(net)
    if engine.context is nullcontext:
        return run

    def run_in_context(images: Tensor) -> Tensor:
        with engine.context():
            return run(images)

    return run_in_context


def fastest(
    net: nn.Module, batch: int, device: str | None = None, precision: str | None = None, remeasure: bool = False
) -> Choice:
    """
    Choose the engine that executes the network's forward pass fastest, without a graph, among those that are correct.

    An engine is correct if it claims `precision` (default: the precision of the network's dtype) or a finer one, and
    its logits for `batch` digits are within budget at the precision that it claims. The settings of this process apply:
    by default, PyTorch's convolutions on CUDA do not compute in float32. If `device` is given, the network is moved to
    it.

    A choice that was cached on this machine is rebuilt and verified, but not timed again unless `remeasure` is true.
    Measuring resets `torch.compile`: functions that were compiled before are recompiled at their next call.

    Raises EngineError if no engine is correct, and ValueError if the network's parameters are not those of `lenet.Net`
    or `batch` is less than 1.
    """
    request = _Request(net if device is None else net.to(device), batch, precision)
    cached = () if remeasure else _read_results(request.key)
    for result in _fastest_first(cached)[:1]:
        if choice := _choose(request, cached, result.engine):
            return replace(choice, cached=True)
    results = _measure(request)
    for result in _fastest_first(results):
        if choice := _choose(request, results, result.engine):
            _write_results(request.key, results)
            return choice
    raise EngineError("no engine is correct: " + "; ".join(f"{result.engine}: {result.excluded}" for result in results))


def _choose(request: _Request, results: tuple[EngineResult, ...], engine: str) -> Choice | None:
    """Build this engine for the network itself and verify it; returns None if it fails."""
    _, run = request.attempt(engine, request.net)
    return Choice(engines.load(engine), run, results, cached=False) if run else None


def _measure(request: _Request) -> tuple[EngineResult, ...]:
    """Verify and time every engine; each executes a copy of the network, since some change its memory format."""
    results, runs = [], {}
    with tqdm(engines.names(), leave=False, disable=None) as bar:
        for name in bar:
            bar.set_description_str(name)
            result, run = request.attempt(name, copy.deepcopy(request.net))
            results.append(result)
            if run:
                runs[name] = run
        bar.set_description_str(f"timing {len(runs)} engines")
        speeds = {name: request.batch / seconds for name, seconds in _seconds_per_call(runs, request.images).items()}
    torch.compiler.reset()  # PyTorch limits how often one function is compiled
    return tuple(replace(result, images_per_second=speeds.get(result.engine)) for result in results)


@torch.no_grad()
def _seconds_per_call(runs: dict[str, Run], images: Tensor) -> dict[str, float]:
    """Return the median duration of a call of each run, over blocks that are interleaved in random order."""
    calls = dict.fromkeys(runs, 1)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)
    end = time.perf_counter() + SECONDS_PER_ENGINE * len(runs)
    while time.perf_counter() < end or any(len(blocks) < MIN_ROUNDS for blocks in seconds.values()):
        for name in order.sample(list(runs), len(runs)):
            start = timer()
            for _ in range(calls[name]):
                runs[name](images)
            elapsed = timer() - start
            if elapsed < MIN_BLOCK_SECONDS:
                calls[name] *= 2
            else:
                seconds[name].append(elapsed / calls[name])
    return {name: median(blocks) for name, blocks in seconds.items()}


def _cache_file() -> Path:
    """Return the path of the cached choices, in `$XDG_CACHE_HOME` or `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "lenet-properties" / "fastest.json"


def _entries() -> list[dict[str, Any]]:
    """Return all cached choices; none, with a warning, if the file is corrupt."""
    try:
        if _cache_file().exists() and not _cache_file().is_file():
            raise ValueError("not a regular file")
        entries = json.loads(_cache_file().read_text())
        return [
            {"request": entry["request"], "results": [_read_result(**result) for result in entry["results"]]}
            for entry in entries
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        warnings.warn(f"ignoring the cached choices in {_cache_file()}: {error!r}", stacklevel=3)
        return []


def _read_result(
    engine: Any, claim: Any, worst_ratio: Any, startup_seconds: Any, images_per_second: Any, excluded: Any
) -> EngineResult:
    """
    Return a cached result; raises ValueError unless its fields have the values that a measurement gives them.

    An engine is one of the known names, so that nothing that the file names is imported.
    """
    figures = (worst_ratio, startup_seconds, images_per_second)
    if engine not in engines.names():
        raise ValueError(f"{engine!r:.100} is not the name of an engine")
    if images_per_second is None:
        if not isinstance(excluded, str) or not excluded:
            raise ValueError(f"{engine} has neither a speed nor a reason for its exclusion")
        return EngineResult(engine, excluded=one_line(excluded))
    if claim not in CLAIMS or excluded or not all(type(n) in (int, float) and 0 <= n < MAX for n in figures):
        raise ValueError(f"the figures of {engine} are not those of a measurement")
    if not images_per_second:
        raise ValueError(f"the speed of {engine} is 0")
    return EngineResult(engine, claim, float(worst_ratio), float(startup_seconds), float(images_per_second))


def _read_results(key: dict[str, Any]) -> tuple[EngineResult, ...]:
    return next((tuple(entry["results"]) for entry in _entries() if entry["request"] == key), ())


def _write_results(key: dict[str, Any], results: tuple[EngineResult, ...]) -> None:
    entries = [entry for entry in _entries() if entry["request"] != key] + [{"request": key, "results": results}]
    content = [
        {"request": entry["request"], "results": [asdict(result) for result in entry["results"]]} for entry in entries
    ]
    try:
        with write_atomically(_cache_file()) as file:
            file.write(json.dumps(content, indent=1).encode())
    except OSError as error:
        warnings.warn(f"the choice is not cached: {_cache_file()} cannot be written: {error}", stacklevel=3)


def main(arguments: list[str]) -> int:
    """Print the table for the reference network; returns 2 if no engine is correct or the device is unavailable."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties fastest",
        description="Choose the fastest engine for this machine among those whose results are correct.",
        epilog="example: lenet-properties fastest --batch 32",
    )
    parser.add_argument("--batch", type=positive_int, default=1, help="batch size, default %(default)s")
    parser.add_argument("--device", default="cpu", help="default %(default)s")
    parser.add_argument("--precision", choices=CLAIMS, default="float32", help="minimum, default %(default)s")
    parser.add_argument("--remeasure", action="store_true", help="time the engines even if a choice is cached")
    options = parser.parse_args(arguments)
    disable_tf32()
    torch.manual_seed(0)
    net = Net().to(torch.float64 if options.precision == "float64" else torch.float32)
    try:
        choice = fastest(net, options.batch, options.device, options.precision, options.remeasure)
    except (EngineError, RuntimeError, AssertionError) as error:  # PyTorch raises the latter two for a device
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return ERROR
    print(choice.table)
    if choice.cached:
        print("timed in an earlier run; --remeasure times the engines again")
    return 0
