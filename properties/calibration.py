"""
Measure the errors of correct results in budgets of the oracle, from which `lenet.oracle.THRESHOLD` is derived.

`tox run -e calibrate` runs the reference network on random cases, degenerate ones included, with every loss of the
oracle and at every precision that a computation may claim. It writes the distribution of each case's worst
`error / budget` and the worst case of each claim, loss and tensor to `properties/calibration.json`. A run continues
what the file has already, so that cases can be added on any machine. The threshold is the power of two above twice
the worst of all cases. Only what a known issue of PyTorch makes wrong is left out: the loss of
float16 numbers, where their sum overflows before it is divided by their number (pytorch/pytorch#85791).
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import multiprocessing
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.overrides import TorchFunctionMode

from lenet import oracle, subject
from lenet.files import writable, write_atomically
from lenet.fingerprint import stamp
from lenet.oracle import PRECISIONS, Answer, Budgeted
from properties.case import IMAGE_LAYOUTS, IMAGES, TARGETS, WEIGHTS, Case
from properties.stack import Stack, dtype_name, float64, gradients, lay_out, precision_of
from properties.strategies import BATCHES

RESULT = Path(__file__).with_suffix(".json")
LR = 0.1
QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)
SAVE_INTERVAL = 120.0  # seconds between two files, so that an interrupted run loses little
BINS_PER_OCTAVE = 16  # of the histogram: a bin is 4 % wide
THREADS = (1, 1, 1, 4)  # four are more than the small machines have that measure, and split every loop

CLAIMS = {
    "float64": ("float64", "float32", "tf32"),
    "float32": ("float32", "tf32", "bfloat16", "float16", "autocast to bfloat16", "autocast to float16"),
    "bfloat16": ("bfloat16",),
    "float16": ("float16",),
}
"""
What is claimed by a computation whose parameters and images have a dtype.

A precision lower than the dtype is claimed for unrounded operands, as by engines. "autocast to" is judged as in the
laws of mixed precision: the oracle computes with operands that are rounded already.
"""

FACTORS = (0.5, 1 / 3, 2.0**10)
"""Factors of scaled losses: of an average, of one in thirds, and of a GradScaler."""

TorchLoss = Callable[[Tensor, Tensor], Tensor]


def _dot(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits * targets).sum()


def _cross_entropy_of_indices(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets.argmax(dim=1))


LOSSES: dict[str, tuple[TorchLoss, oracle.Loss]] = {
    "mse": (F.mse_loss, oracle.mse),
    "cross-entropy of indices": (_cross_entropy_of_indices, oracle.cross_entropy),
    "cross-entropy of weights": (F.cross_entropy, oracle.cross_entropy),
    "dot": (_dot, oracle.dot),
    "scaled mse": (F.mse_loss, oracle.mse),
    "scaled cross-entropy": (F.cross_entropy, oracle.cross_entropy),
}


@dataclass(frozen=True)
class Trial:
    """A case with the loss, the claim, the number of times that the batch is repeated, and the number of threads."""

    case: Case
    claim: str
    loss: str = "mse"
    factor: float = 1.0  # of the loss
    repeats: int = 1
    threads: int = 1


def draw(dtype: str, seed: int) -> Trial:
    """
    Return a random trial: all recipes, losses and claims are equally likely, larger batches are less likely.

    One batch in 32 is empty, since it has no errors. Of the batches of one to three images, one in ten is repeated 4
    times and one in ten 32 times; but for the dot product, which is a sum and no mean.
    """
    random = np.random.RandomState([seed, 3])
    weights, images, targets, layout, claim, loss = (
        str(random.choice(choices))
        for choices in (WEIGHTS, IMAGES, TARGETS, IMAGE_LAYOUTS, CLAIMS[dtype], list(LOSSES))
    )
    shares = np.array([1 / batch if batch else 1 / 14 for batch in BATCHES])
    batch = int(random.choice(BATCHES, p=shares / shares.sum()))
    factor = float(random.choice(FACTORS)) if loss.startswith("scaled") else 1.0
    repeats = int(random.choice([1] * 8 + [4, 32])) if 1 <= batch <= 3 and loss != "dot" else 1
    if loss == "cross-entropy of indices":
        targets = "one-hot"
    threads = int(random.choice(THREADS))
    return Trial(Case(weights, images, targets, batch, layout, seed), claim, loss, factor, repeats, threads)


class _TF32(torch.autograd.Function):
    """A convolution or a linear layer, in float32, whose operands are rounded to TF32 in both passes."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        layer = F.linear if weight.dim() == 2 else F.conv2d
        return layer(_to_tf32(inputs), _to_tf32(weight), bias)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, weight = (_to_tf32(saved) for saved in ctx.saved_tensors)
        delta = _to_tf32(deltas[0])
        if weight.dim() == 2:
            return delta @ weight, delta.T @ inputs, deltas[0].sum(dim=0)
        by_inputs = conv2d_input(inputs.shape, weight, delta)
        return by_inputs, conv2d_weight(inputs, weight.shape, delta), deltas[0].sum(dim=(0, 2, 3))


def _to_tf32(numbers: Tensor) -> Tensor:
    """Round finite float32 numbers to the nearest TF32 number, which has 10 explicit bits of mantissa."""
    return ((numbers.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class EmulatedTF32(TorchFunctionMode):
    """Within this block, convolutions and linear layers compute in TF32, on every device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.conv2d, F.linear):
            return _TF32.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def logits_at(claim: str, net: nn.Module, images: Tensor) -> Tensor:
    """Return the net's logits in the dtype of the images, computed at the precision of the claim."""
    name = claim.split()[-1]
    if name == dtype_name(images.dtype):
        logits: Tensor = net(images)
    elif name in ("float32", "tf32"):
        single = {key: parameter.float() for key, parameter in net.named_parameters()}
        with EmulatedTF32() if name == "tf32" else nullcontext():
            logits = torch.func.functional_call(net, single, images.float())
    else:
        with torch.autocast(images.device.type, getattr(torch, name)):
            logits = net(images)
    return logits.to(images.dtype)


class Inputs(NamedTuple):
    """The inputs of a trial's computation, in the dtype of the stack."""

    net: nn.Module
    images: Tensor  # N,1,32,32
    targets: Tensor  # N,10


def inputs(stack: Stack, trial: Trial) -> Inputs:
    """Return the inputs; tiny and huge values are those of the narrower range of the dtype and the claim."""
    case, claimed = trial.case, oracle.CLAIMS[trial.claim.split()[-1]]
    narrower = min(stack.stored_precision, claimed, key=lambda precision: precision.largest)
    net = stack.subject.Net().to(stack.dtype)
    net.load_state_dict({name: stack.tensor(values) for name, values in case.parameters(narrower).items()})
    pixels = stack.tensor(case.pixels(narrower))
    expanded = case.layout == "expanded" and case.batch
    images = pixels[:1].expand_as(pixels) if expanded else lay_out(pixels, case.layout)
    return Inputs(net, images, stack.targets(case))


def exact_answer(stack: Stack, trial: Trial, given: Inputs) -> Answer:
    """Return the oracle's answer, with the budgets of the trial's claim."""
    images, parameters = given.images, {name: p.detach() for name, p in given.net.named_parameters()}
    if trial.claim.startswith("autocast to"):
        images = images.to(getattr(torch, trial.claim.split()[-1]))
        parameters = {name: parameter.to(images.dtype) for name, parameter in parameters.items()}
        precision = precision_of(images.dtype)
    else:
        precision = oracle.claimed_precision(trial.claim, stack.stored_precision.name)
    loss = LOSSES[trial.loss][1]
    return oracle.solve(
        {name: float64(parameter) for name, parameter in parameters.items()},
        float64(images),
        float64(given.targets),
        precision,
        seed=trial.case.seed,
        repeats=trial.repeats,
        loss=loss if trial.factor == 1 else oracle.scaled(loss, trial.factor),
        with_input_gradient=trial.repeats == 1,
    )


def results(stack: Stack, trial: Trial, given: Inputs, answer: Answer) -> dict[str, tuple[Tensor, Budgeted]]:
    """
    Return what the reference network computes, and the exact values: logits, loss, gradients and a step of SGD.

    The gradient of repeated images is spread over their copies, so it is left out. The step is that of a training step:
    of the mean squared error, in the precision of the dtype.
    """
    net, images, targets = given
    if trial.repeats > 1:
        images, targets = images.repeat(trial.repeats, 1, 1, 1), targets.repeat(trial.repeats, 1)
    images.requires_grad_()
    logits = logits_at(trial.claim, net, images)
    loss = LOSSES[trial.loss][0](logits, targets)
    loss = loss if trial.factor == 1 else loss * trial.factor
    loss.backward()
    got = gradients(net)

    compared = {"logits": (logits, _repeated(answer.logits, trial.repeats))}
    if not (loss.isinf() and sum_overflows(trial, answer.loss)):
        compared["loss"] = loss, answer.loss
    if answer.input_gradient is not None:
        assert images.grad is not None
        compared["images.grad"] = images.grad, answer.input_gradient
    compared |= {f"{name}.grad": (got[name], exact) for name, exact in answer.gradients.items()}
    if trial.loss == "mse" and trial.repeats == 1 and trial.claim == stack.stored_precision.name:
        before = {name: float64(parameter).copy() for name, parameter in net.named_parameters()}
        stack.subject.sgd_update(net.parameters(), LR)
        after = oracle.updated_parameters(before, answer, LR, stack.stored_precision)
        moved = dict(net.named_parameters())
        compared |= {f"{name} after a step": (moved[name], exact) for name, exact in after.items()}
    return compared


def sum_overflows(trial: Trial, loss: Budgeted) -> bool:
    """Whether the rounded sum of all images' losses may be out of float16's range, so that the mean is infinite."""
    count, float16 = trial.case.batch * trial.repeats, PRECISIONS["float16"]
    total = abs(float(loss.value)) / trial.factor * count
    overflows = total * (1 + count * float16.unit) > float16.largest
    return trial.claim == "float16" and "cross-entropy" in trial.loss and overflows


def _repeated(exact: Budgeted, times: int) -> Budgeted:
    return Budgeted(np.tile(exact.value, (times, 1)), np.tile(exact.budget, (times, 1)))


class Measured(NamedTuple):
    """What was measured of a trial."""

    dtype: str
    trial: Trial
    ratios: dict[str, float]  # the worst error / budget of each tensor
    has_undecided: bool
    without_loss: bool  # because of a known issue
    unjudged: float  # the share of all elements whose budget is infinite

    @property
    def worst(self) -> float:
        """The worst error / budget of all tensors."""
        return max(self.ratios.values())


@cache
def reference(dtype: str) -> Stack:
    """Return the stack of the reference network on the CPU."""
    return Stack(subject.load("lenet"), torch.device("cpu"), getattr(torch, dtype))


def measure(dtype: str, trial: Trial) -> Measured:
    """Return the errors of the reference network on the CPU."""
    stack = reference(dtype)
    given = inputs(stack, trial)
    answer = exact_answer(stack, trial, given)
    compared = results(stack, trial, given, answer)
    ratios = {name: float(exact.ratio(float64(got)).max(initial=0.0)) for name, (got, exact) in compared.items()}
    infinite = sum(int(np.isinf(exact.budget).sum()) for _, exact in compared.values())
    count = sum(exact.budget.size for _, exact in compared.values())
    return Measured(dtype, trial, ratios, answer.has_undecided, "loss" not in compared, infinite / count)


def _measure_seed(job: tuple[str, int]) -> Measured:
    dtype, seed = job
    trial = draw(dtype, seed)
    torch.set_num_threads(trial.threads)
    return measure(dtype, trial)


Worst = dict[tuple[str, str, str], tuple[float, str]]
"""The largest error / budget, and the trial that has it, by claim, loss and tensor."""


@dataclass
class Distribution:
    """The errors of the trials of one dtype, those of the seeds from 0 on."""

    cases: int = 0
    bins: Counter[int] = field(default_factory=Counter)  # trials by the bin of their worst error / budget
    worst: Worst = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # by claim and loss
    undecided: int = 0
    without_loss: int = 0
    judged_in_part: int = 0
    unjudged: float = 0.0

    def add(self, measured: Measured) -> None:
        """Add the trial of the next seed."""
        trial = measured.trial
        assert trial.case.seed == self.cases
        self.cases += 1
        for name, ratio in measured.ratios.items():
            key = trial.claim, trial.loss, name
            if key not in self.worst or ratio > self.worst[key][0]:
                self.worst[key] = round(ratio, 3), repr(trial)
        self.bins[_bin(measured.worst)] += 1
        self.counts[trial.claim, trial.loss] += 1
        self.undecided += measured.has_undecided
        self.without_loss += measured.without_loss
        self.judged_in_part += measured.unjudged > 0
        self.unjudged += measured.unjudged

    def summary(self) -> dict[str, Any]:
        """Return the distribution for the JSON file."""
        by_claim: dict[str, dict[str, Any]] = {}
        for (claim, loss), count in sorted(self.counts.items()):
            worst = {
                tensor: {"ratio": ratio, "trial": trial}
                for (of_claim, of_loss, tensor), (ratio, trial) in self.worst.items()
                if (of_claim, of_loss) == (claim, loss)
            }
            by_claim.setdefault(claim, {})[loss] = {"cases": count, "worst": worst}
        largest = sorted(((ratio, *key, trial) for key, (ratio, trial) in self.worst.items()), reverse=True)
        return {
            "cases": self.cases,
            "cases with undecided decisions": self.undecided,
            "cases without their loss, by a known issue": self.without_loss,
            "cases judged in part": self.judged_in_part,
            "elements not judged, summed over the cases": self.unjudged,
            "quantiles": list(QUANTILES),
            "error / budget": self.quantiles(),
            "worst cases": [
                {"ratio": ratio, "tensor": tensor, "trial": trial} for ratio, _, _, tensor, trial in largest[:5]
            ],
            "bins": {str(number): self.bins[number] for number in sorted(self.bins)},
            "by claim and loss": by_claim,
        }

    def quantiles(self) -> list[float]:
        """Return the quantiles of the cases' worst error / budget, at most 4 % too high; the last is the worst."""
        numbers = sorted(self.bins)
        totals = np.cumsum([self.bins[number] for number in numbers])
        at = np.searchsorted(totals, np.array(QUANTILES[:-1]) * self.cases)
        worst = max((ratio for ratio, _ in self.worst.values()), default=0.0)
        return [round(min(2 ** (numbers[i] / BINS_PER_OCTAVE), worst), 3) for i in at] + [worst]

    @classmethod
    def from_summary(cls, summary: dict[str, Any]) -> Distribution:
        """Return the distribution with this summary; raises KeyError, TypeError, AttributeError or ValueError."""
        own = cls(
            summary["cases"],
            Counter({int(number): count for number, count in summary["bins"].items()}),
            undecided=summary["cases with undecided decisions"],
            without_loss=summary["cases without their loss, by a known issue"],
            judged_in_part=summary["cases judged in part"],
            unjudged=summary["elements not judged, summed over the cases"],
        )
        for claim, by_loss in summary["by claim and loss"].items():
            for loss, found in by_loss.items():
                own.counts[claim, loss] = found["cases"]
                for tensor, row in found["worst"].items():
                    own.worst[claim, loss, tensor] = row["ratio"], row["trial"]
        if not own.cases == own.bins.total() == own.counts.total():
            raise ValueError("the counts do not add up")
        return own


def _bin(ratio: float) -> int:
    """Return k with 2**((k - 1) / BINS_PER_OCTAVE) < ratio <= 2**(k / BINS_PER_OCTAVE), within +-1,024."""
    with np.errstate(divide="ignore"):
        return int(np.clip(np.ceil(np.log2(ratio) * BINS_PER_OCTAVE), -1_024, 1_024))


def read(path: Path) -> dict[str, Distribution]:
    """
    Return the distributions by dtype that a run has written, or none if there is no file.

    Raises ValueError if the file is damaged, or of another oracle, of other trials or of another PyTorch.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        code, torch_version = content["code"], content["stack"]["torch"]
        found = {dtype: Distribution.from_summary(summary) for dtype, summary in content["dtypes"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}): remove it to begin again") from error
    if (code, torch_version) != (digest_of_code(), torch.__version__):
        raise ValueError(f"{path} is of other code or another PyTorch: remove it to begin again")
    return found


def digest_of_code() -> str:
    """Return a digest of the code that determines the trials and their budgets, without its comments and docstrings."""
    sources = (Path(inspect.getfile(each)).read_text() for each in (Answer, Case, Trial))
    words = (word for source in sources for word in _words(ast.parse(source)))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _words(node: object) -> Iterator[str]:
    """Yield what a syntax tree consists of, without docstrings and what is empty, alike in each version of Python."""
    if isinstance(node, ast.AST):
        yield type(node).__name__
        for name, value in ast.iter_fields(node):
            if value not in (None, []):
                yield name
                yield from _words(value)
    elif isinstance(node, list):
        for each in node:
            if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)):
                yield from _words(each)
    else:
        yield repr(node)


def calibrate(
    distributions: dict[str, Distribution],
    dtypes: Sequence[str],
    cases: int,
    processes: int,
    save: Callable[[dict[str, Any]], None],
) -> None:
    """
    Measure the trials that are missing to so many `cases` in each of the dtypes.

    `save` gets the summaries by dtype, every SAVE_INTERVAL seconds and at the end.
    """
    done = {dtype: distributions.setdefault(dtype, Distribution()).cases for dtype in dtypes}
    jobs = [(dtype, seed) for seed in range(cases) for dtype in dtypes if seed >= done[dtype]]
    started = saved = time.monotonic()

    def save_all(count: int) -> None:
        measured_in = [name for name in PRECISIONS if name in distributions and distributions[name].cases]
        summaries = {name: distributions[name].summary() for name in measured_in}
        save(summaries)
        worst = max(summary["error / budget"][-1] for summary in summaries.values())
        rate = count / (time.monotonic() - started)
        print(f"{count:,} of {len(jobs):,} cases, {rate:.0f} cases/s, worst {worst} budgets", flush=True)

    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, measured in enumerate(pool.imap(_measure_seed, jobs, chunksize=16), 1):
            distributions[measured.dtype].add(measured)
            if measured.worst > oracle.THRESHOLD:
                print(f"{measured.dtype}: {measured.worst:.1f} budgets in {measured.trial}", flush=True)
            if time.monotonic() - saved > SAVE_INTERVAL:
                saved = time.monotonic()
                save_all(number)
    save_all(len(jobs))


def main(arguments: list[str]) -> int:
    """Measure and write the distribution; return 0."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties calibrate",
        description=__doc__.split("\n\n")[0].strip(),
        epilog="example: lenet-properties calibrate --cases 1000 --output calibration.json",
    )
    parser.add_argument("--cases", type=int, default=100_000, help="cases per dtype (default %(default)s)")
    parser.add_argument("--dtype", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="default: all")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: all cores, %(default)s")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="where to write the distributions; a file of an earlier run is continued",
    )
    options = parser.parse_args(arguments)
    for name in ("cases", "processes"):
        if (number := getattr(options, name)) < 1:
            parser.error(f"--{name} {number}: at least 1 is needed")
    if options.output.is_dir() or not writable(options.output.parent):
        parser.error(f"--output {options.output}: not a file that can be written")
    try:
        found = read(options.output)
    except ValueError as error:
        parser.error(str(error))
    # NumPy computes with one thread in each process; the threads that PyTorch is told to use must not spin.
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    header = stamp(shlex.join(["lenet-properties", "calibrate", *arguments])) | {"code": digest_of_code()}

    def save(summaries: dict[str, Any]) -> None:
        with write_atomically(options.output) as file:
            file.write(json.dumps(header | {"dtypes": summaries}, indent=1).encode() + b"\n")

    calibrate(found, options.dtype, options.cases, options.processes, save)
    return 0
