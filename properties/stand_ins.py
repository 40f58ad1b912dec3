"""
What the files of `--repro` contain in place of larger parts of this project, of pytest and of Hypothesis.

`properties.bundle` copies a definition from here if a law uses one of that name, and leaves out methods that no other
part of the file uses. The constants are defaults: `properties.reproduce` writes those of the example.
"""

from __future__ import annotations

import base64  # noqa: F401 (what is written in place of a constant uses this, and other names below)
import importlib
import importlib.util
import platform
import re
import signal
import sys
import textwrap  # noqa: F401
import traceback
import zlib  # noqa: F401
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lenet.exact_sgd import SGD  # noqa: F401
from lenet.net import Net
from lenet.oracle import Array, Budgeted
from lenet.training import sgd_update, train_step
from properties.case import Case
from properties.executed import Executed
from properties.stack import float64, gradients, lay_out
from properties.strategies import LossOptions, Placed, Vectors  # noqa: F401

SUBJECT = ""
DEVICE, DTYPE, THREADS = "cpu", torch.float32, 1
PRECISION: Any = None
STORED: Any = None
RAISES = "AssertionError"
COMPARED = ("", 0)
EXPECTED: list[tuple[tuple[int, ...], float, float]] = []
DIGITS: dict[int, str] = {}
SPARSE_WEIGHTS, STEP = "", 0.0
THRESHOLD = 8.0
PREDICTED, LOSSES = "", [0.0]

SHAPES = {name: tuple(parameter.shape) for name, parameter in Net().named_parameters()}


class SkipError(Exception):
    """The law does not apply."""


class UnsatisfiedAssumption(Exception):  # noqa: N818 (Hypothesis's name)
    """The example does not apply."""


def skip(reason: str) -> None:
    """End the law, which does not apply."""
    raise SkipError(reason)


def skip_unless_reference(stack: Any, reason: str) -> None:
    """End the law, which does not apply to this network."""
    raise SkipError(reason)


def _reject_example() -> None:
    raise UnsatisfiedAssumption("the engine does not support an empty batch")


def _skip_law(engine: str) -> None:
    raise SkipError(f"{engine} has no backward pass")


def fail(message: str) -> None:
    """Report that the law is violated."""
    raise AssertionError(message)


@contextmanager
def raises(error: type[Exception], match: str) -> Iterator[None]:
    """Assert that the block raises this error."""
    try:
        yield
    except error as raised:
        if not re.search(match, str(raised)):
            raise AssertionError(f"{raised!r} does not match {match!r}") from raised
        return
    raise AssertionError(f"{error.__name__} was not raised")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds."""

    def expire(*arguments: Any) -> None:
        raise TimeoutError(f"not finished within {seconds:g} s")

    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)


def current_ledger() -> Any:
    """Return what nobody reads."""
    return SimpleNamespace(notes=[], begin_example=lambda drawn: None)


def require(case: Case) -> None:
    """The network can run the case."""


ONE_IMAGE, EMPTY_BATCH = "one image", "an empty batch"


def assert_met(stack: Stack, name: str) -> None:
    """Assert that the network runs one image or, forward and backward, an empty batch."""
    case = Case(batch=0) if name == EMPTY_BATCH else Case()
    try:
        logits = stack.net(case)(stack.images(case))
        if name == EMPTY_BATCH and logits.requires_grad:
            logits.sum().backward()
    except Exception as error:
        raise AssertionError(f"the network raises for {name}: {error!r}") from error


def with_exact_sums(stack: Stack, case: Case) -> Case:
    """Return the case with weights that are sparse enough for all sums to be exact, as the oracle has found."""
    return Case(**{**vars(case), "weights": SPARSE_WEIGHTS})


def points_on_both_sides(stack: Stack, case: Case, name: str, tangent: Tensor) -> Any:
    """Return parameters on both sides between which no ReLU or pooling decision changes, as the oracle has found."""
    parameters = {name: parameter.detach() for name, parameter in stack.net(case).named_parameters()}
    return [parameters | {name: parameters[name] + sign * STEP * tangent} for sign in (1, -1)], STEP


class digits:  # noqa: N801
    """scikit-learn's digits, as far as they are in DIGITS: 8x8 gray levels from 0 to g (16), and a label."""

    @staticmethod
    def load() -> Any:
        table = np.full((1797, 65), np.nan)
        for row, text in DIGITS.items():
            table[row] = [int(level, 17) for level in text]
        enlarge = np.maximum(0, 1 - np.abs(np.clip((np.arange(32)[:, None] - 1.5) / 4, 0, 7) - np.arange(8)))  # 32,8
        images = torch.tensor(enlarge @ table[:, :64].reshape(-1, 1, 8, 8) @ enlarge.T / 16, dtype=torch.float32)
        order = np.random.RandomState(0).permutation(1797)
        train, test = order[360:], order[:360]
        found = SimpleNamespace(name="digits", train_images=images[train])
        found.train_labels = torch.tensor(table[train, 64]).long()  # if training
        found.test_labels, found.test_images = torch.tensor(table[test, 64]).long(), images[test]  # if training
        return found


def oracle_run(dtype: torch.dtype) -> tuple[Any, list[float]]:
    """Return the classes that the oracle predicts after its training, where they do not depend on rounding."""
    value = np.array([[float(str(label) == predicted) for label in range(10)] for predicted in PREDICTED])
    return Budgeted(value, np.zeros((len(value), 1))), LOSSES


class tqdm:  # noqa: N801
    """No progress bar."""

    def __init__(self, *words: Any, **options: Any) -> None:
        self.update = self.close = lambda: None


def unknown(*shape: int) -> Any:
    """Return numbers that the oracle has computed; EXPECTED has those that count."""
    return SimpleNamespace(value=np.full(shape, np.nan), budget=np.full(shape, np.nan))


def unknown_answer(batch: int) -> Any:
    """Return the oracle's results for a batch."""
    gradients, pixels = unknown_gradients(), unknown(batch, 1, 32, 32)
    return SimpleNamespace(logits=unknown(batch, 10), loss=unknown(), gradients=gradients, input_gradient=pixels)


def unknown_gradients(*arguments: Any) -> dict[str, Any]:
    """Return the ten gradients, or parameters."""
    return {name: unknown(*shape) for name, shape in SHAPES.items()}


class oracle:  # noqa: N801
    """The exact computation of the network, whose results are in EXPECTED."""

    mse = cross_entropy = dot = None
    accumulated_gradients = updated_parameters = staticmethod(unknown_gradients)

    @staticmethod
    def scaled(*arguments: Any) -> None:
        """Return a loss that is scaled."""

    @staticmethod
    def solve(parameters: Any, images: Any, *arguments: Any, **options: Any) -> Any:
        """Return the results for the images."""
        return unknown_answer(len(images))

    @staticmethod
    def loss(*arguments: Any, **options: Any) -> Any:
        """Return a loss."""
        return unknown()

    @staticmethod
    def budgeted(value: Array, budget: Array, precision: Any) -> Budgeted:
        """Return the value with its budget."""
        return Budgeted(value, budget)

    PRECISIONS = {"float64": None}  # noqa: RUF012


def precision_of(dtype: torch.dtype) -> Any:
    """Return the unit roundoff, the error of a result that underflows, and the largest number of a dtype."""
    info = torch.finfo(dtype)
    underflow = max(info.smallest_normal * info.eps / 2, 2.0**-1074)
    return SimpleNamespace(unit=info.eps / 2, coarsest_unit=info.eps / 2, underflow=underflow, largest=info.max)


def large(precision: Any, root: int) -> float:
    """Return a factor for huge values whose results mostly do not overflow."""
    return float(min(precision.largest, torch.finfo(torch.float32).max) ** (1 / root)) if precision else 1.0


@dataclass(frozen=True, eq=False)
class Engine:
    """A way to execute a network's forward pass."""

    name: str
    build: Any
    claims: Any = None
    devices: Any = ()
    differentiable: bool = True
    copies_parameters: bool = False
    dynamic_batch: bool = True
    empty_batch: Any = ("forward", "backward")
    context: Any = field(default=nullcontext)


def engine_of(name: str) -> Engine:
    """Return the engine `module:name`, an Engine or a function that builds one."""
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    known = {key: getattr(found, key) for key in Engine.__dataclass_fields__ if hasattr(found, key)}
    return Engine(**{"name": name, "build": found} | known)


def built_engine() -> Any:
    """Return the engine, None for PyTorch's eager execution."""
    return None


class Stack:
    """The network under test on its device, and the tensors of a case."""

    device, dtype = torch.device(DEVICE), DTYPE

    def __init__(self, subject: Any) -> None:
        self.subject: Any = subject
        self.engine: Any = None

    @property
    def precision(self) -> Any:
        return PRECISION

    @property
    def stored_precision(self) -> Any:
        return STORED

    def tensor(self, values: Array) -> Tensor:
        return torch.tensor(values).to(self.dtype).to(self.device)

    def net(self, case: Case) -> Any:
        net = self.subject.Net().to(self.device, self.dtype)
        net.load_state_dict({name: self.tensor(value) for name, value in case.parameters(STORED).items()})
        if self.engine:  # if engine
            return Executed(net, self.engine, "")  # if engine
        return net

    def images(self, case: Case) -> Tensor:
        images = self.tensor(case.pixels(STORED))
        if case.layout == "expanded":  # if expanded
            return images[:1].expand(case.batch, -1, -1, -1)  # if expanded
        images = lay_out(images, case.layout)  # if layout
        return images

    def targets(self, case: Case) -> Tensor:
        return self.tensor(case.target_values())

    def logits(self, case: Case) -> Any:
        return self.net(case)(self.images(case))

    def loss(self, net: nn.Module, case: Case) -> Tensor:
        return F.mse_loss(net(self.images(case)), self.targets(case))

    def exact(self, case: Case, **options: Any) -> Any:
        return unknown_answer(case.batch)

    def solve(self, case: Case, images: Tensor, *arguments: Any, **options: Any) -> Any:
        return unknown_answer(len(images))


def assert_exact(got: Tensor, want: Tensor, what: str, signed_zeros: bool = False) -> None:
    """Assert the same dtype and equal values."""
    assert got.dtype == want.dtype, f"{what} has dtype {got.dtype}, expected {want.dtype}"
    actual, expected = float64(got), float64(want)
    differs = signed_zeros and actual.shape == expected.shape
    signs = (np.signbit(actual) != np.signbit(expected)) & (actual == 0) & (expected == 0) if differs else False
    compare(actual, expected, np.zeros(expected.shape), what, other_signs=signs)


def assert_same_bits(got: Tensor, want: Tensor, what: str) -> None:
    """Assert the same dtype and equal values, also the same sign of zero."""
    assert_exact(got, want, what, signed_zeros=True)


def assert_rounded(got: Tensor, exact: Any, what: str) -> None:
    """Assert that each element is exact up to the roundings of its formula."""
    actual = float64(got)
    compare(actual, exact.high, exact.error_bound, what, error=lambda: exact.error_of(actual))


def assert_within_budget(got: Tensor, exact: Budgeted, what: str) -> None:
    """Assert that the error of each element is at most THRESHOLD times what rounding explains."""
    compare(float64(got), exact.value, THRESHOLD * exact.budget, what)


def assert_gradients(net: nn.Module, exact: dict[str, Budgeted]) -> None:
    """Assert that the ten parameters, and no others, have their exact gradients."""
    got = gradients(net)
    assert got.keys() == exact.keys(), f"{', '.join(got.keys() ^ exact.keys())}: has a gradient, or has none"
    for name, budgeted in exact.items():
        assert_within_budget(got[name], budgeted, f"{name}.grad")


counts: dict[str, int] = {}


def compare(got: Array, want: Array, allowed: Array, what: str, error: Any = None, other_signs: Any = False) -> None:
    """Assert that errors are allowed. The oracle's numbers are in EXPECTED; here they are NaN and not compared."""
    assert got.shape == want.shape, f"{what} has shape {got.shape}, expected {want.shape}"
    counts[what] = counts.get(what, 0) + 1
    want, allowed, compared = np.array(want), np.array(allowed), np.array(~np.isnan(want))
    for at, value, most in EXPECTED if (what, counts[what]) == COMPARED else ():
        if np.isnan(want[at]):
            want[at], compared[at] = value, True
        if np.isnan(allowed[at]):
            allowed[at] = most
    with np.errstate(all="ignore"):
        errors = error() if error else np.abs(got - want)
        right = (errors <= allowed) | (got == want) | np.isnan(got) & np.isnan(want) | np.isinf(allowed)
        compared &= ~np.isnan(allowed)
        wrong = compared & (~right | other_signs)
    for at in np.argwhere(wrong)[:8]:
        at = tuple(map(int, at))
        print(f"{what}{list(at)}: got {got[at]}, expected {want[at]}, error {errors[at]:.3g} > {allowed[at]:.3g}")
    assert not wrong.any(), f"{what}: {wrong.sum():,} of {compared.sum():,} compared elements are wrong"


class Reference:
    """The network of PyTorch's tutorial, and its training."""

    spec, replaces = "lenet", dict[str, Any]()
    Net: Any = Net
    sgd_update = staticmethod(sgd_update)
    train_step = staticmethod(train_step)


def load_subject(spec: str) -> Any:
    """Return the network that is judged, with the reference for what it does not define."""
    place, _, name = spec.partition(":")
    sys.path.append(str(Path(place).parent.resolve()))  # if file
    found: Any = importlib.util.spec_from_file_location(Path(place).stem, place)  # if file
    part: Any = importlib.util.module_from_spec(found)  # if file
    sys.modules.setdefault(part.__name__, part)  # if file
    found.loader.exec_module(part)  # if file
    sys.path.append(str(Path.cwd()))  # if module
    part = importlib.import_module(place)  # if module
    part = reduce(getattr, name.split("."), part)  # if name
    subject: Any = Reference()
    subject.Net = part  # if class
    setattr(subject, part.__name__, part)  # if function
    for own in ("Net", "sgd_update", "train_step", "replaces"):  # if parts
        setattr(subject, own, getattr(part, own, getattr(subject, own, None)))  # if parts
    if subject.sgd_update is not sgd_update and subject.train_step is train_step:  # if training
        subject.train_step = partial(train_step, update=subject.sgd_update)  # if training
    return subject


def choose_subject() -> Any:
    """Return the network that is judged, by default SUBJECT."""
    words = [word for word in sys.argv[1:] if word != "--reference"]
    return Reference() if "--reference" in sys.argv else load_subject(words[0] if words else SUBJECT)


def example(stack: Stack) -> None:
    """Run the law."""


def main() -> int:
    """Run the law on the example; return 1 if it is violated, 0 if it holds, 2 if it cannot be run."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # if cuda
    torch.backends.cudnn.deterministic = True  # if cuda
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {DTYPE} on {DEVICE}, {THREADS} threads")
    stack: Any = None
    try:
        with ExitStack() as installed:
            stack = Stack(choose_subject())
            for name, part in stack.subject.replaces.items():  # if replaces
                installed.enter_context(mock.patch(name, part))  # if replaces
            if "--reference" not in sys.argv:  # if engine
                stack.engine = built_engine()  # if engine
                installed.enter_context(stack.engine.context())  # if engine
            example(stack)
    except BaseException as error:
        violated = stack and {RAISES, "AssertionError"} & {kind.__name__ for kind in type(error).__mro__}
        if violated:
            traceback.print_exc()
        print("FAULT: the law is violated" if violated else f"CANNOT RUN: {type(error).__name__}: {error}")
        return 1 if violated else 2
    print("NO FAULT: the law holds on this example")
    return 0
