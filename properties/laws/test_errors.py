"""
Laws of invalid input: it raises an error instead of giving a result.

An error is demanded where PyTorch documents one or where its layers raise one, as `nn.Conv2d(1, 6, 5)` does. Where they
raise none, the result must be right. `lenet/subject.py` lists what this means for a subject.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption
from torch import Tensor, nn

from lenet.oracle import SHAPES
from properties.case import Case
from properties.comparison import assert_exact, assert_same_bits, assert_within_budget
from properties.stack import Stack, gradients
from properties.strategies import cases, learning_rates

BATCH_SIZES = (1, 2, 4, 9, 25)
"""
`view(-1, 400)` accepts the 6x6 feature maps of 25 images of 36x36 pixels: it makes 36 rows of them.

Zero images have no values: nothing is computed from them, so that most laws demand no error for them.
"""

WRONG_SHAPES = ((), (1024,), (32, 32), (2, 32, 32), (1, 1, 1, 32, 32), (2, 1, 32, 32, 1))

WRONG_SIZES = (
    (33, 33),
    (34, 34),
    (35, 35),
    (31, 31),
    (36, 36),
    (52, 52),
    (72, 72),
    (32, 33),
    (33, 32),
    (16, 64),
    (32, 0),
)
"""33 to 35 pixels give 5x5 pooled maps, as 32 do; 52 and 72 give 10x10 and 15x15, which `view(-1, 400)` accepts."""

IMAGE_DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
)


def assert_raises(call: Callable[[], Any], what: str) -> None:
    """Assert that the call raises an exception of any type; `what` describes the call's input."""
    __tracebackhide__ = True
    for result in unless_raised(call):
        returned = f"a tensor of shape {tuple(result.shape)}" if isinstance(result, Tensor) else repr(result)
        raise AssertionError(f"{what}: no error was raised, but {returned} was returned")


def unless_raised(call: Callable[[], Any]) -> list[Any]:
    """Return a list of the call's result, or an empty list if it raises an exception of any type."""
    try:
        return [call()]
    except UnsatisfiedAssumption:  # by an engine that does not support the example
        raise
    except Exception:
        return []


def with_every(**choices: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Also judge each of the given values of one argument, with two images."""
    ((name, values),) = choices.items()

    def decorate(law: Callable[..., None]) -> Callable[..., None]:
        for value in values:
            law = example(**{name: value}, batch=2)(law)
        return law

    return decorate


@pytest.mark.engine
@pytest.mark.parametrize("channels", [0, 2, 3])
def test_wrong_channel_count_raises(stack: Stack, channels: int) -> None:
    """
    Images with zero, two or three channels raise an error for every number of images.

    `nn.Conv2d(1, 6, 5)` raises it. Rejects: a network that uses only the first channel, or that turns channels into a
    larger batch.
    """
    net = stack.net(Case())

    for batch in BATCH_SIZES:
        images = torch.ones(batch, channels, 32, 32, device=stack.device, dtype=stack.dtype)
        assert_raises(lambda images=images: net(images), f"{batch} images with {channels} channels")


@pytest.mark.engine
def test_wrong_dimension_count_raises(stack: Stack) -> None:
    """
    Input that has neither four dimensions nor the shape (1,32,32) of a single image raises an error.

    `nn.Conv2d` documents (N,C,H,W) and (C,H,W) as its only inputs. Rejects: a batch without a channel dimension, whose
    images it would take for channels; a vector of 1,024 pixels that is reshaped.
    """
    net = stack.net(Case())

    for shape in WRONG_SHAPES:
        images = torch.ones(shape, device=stack.device, dtype=stack.dtype)
        assert_raises(lambda images=images: net(images), f"images of shape {shape}")


@pytest.mark.engine
@given(case=cases(batches=(1,)))
def test_unbatched_image_raises_or_gives_its_logits(stack: Stack, case: Case) -> None:
    """
    A single image (1,32,32) without a batch dimension raises an error or gives its logits, (10,) or (1,10).

    `nn.Conv2d` and `nn.MaxPool2d` document (C,H,W) as input; `torch.flatten(maps, 1)` raises an error after them.
    Rejects: an image whose rows are treated as a batch, or that is transposed.
    """
    net, image = stack.net(case), stack.images(case)[0]

    for logits in unless_raised(lambda: net(image)):
        shape = tuple(logits.shape)
        assert shape in ((10,), (1, 10)), f"an unbatched image gives shape {shape}, expected an error, (10,) or (1,10)"
        assert_within_budget(logits.reshape(1, 10), stack.exact(case).logits, "logits of an unbatched image")


@pytest.mark.engine
@example(size=(36, 36), batch=25)
@with_every(size=WRONG_SIZES)
@given(
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)).filter(lambda size: size != (32, 32)),
    batch=st.sampled_from((*BATCH_SIZES, 0)),
)
def test_wrong_image_size_raises_or_gives_one_row_per_image(stack: Stack, size: tuple[int, int], batch: int) -> None:
    """
    Images that are not 32x32 pixels raise an error, or each gives one row of logits that depends on it alone.

    The tutorial's network accepts 33 to 35 pixels, whose feature maps have the right size after pooling. A row depends
    on its image alone if it stays the same, bit for bit, when all other images of the batch are replaced. Rejects:
    `view(-1, 400)`, which changes the number of rows; features of one image in the row of another.
    """
    net, pixels = stack.net(Case()), torch.rand(2, batch, 1, *size, generator=torch.Generator().manual_seed(0))
    images, others = pixels.to(stack.device, stack.dtype)

    for logits in unless_raised(lambda: net(images)):
        shape, what = tuple(logits.shape), f"{batch} images of {size[0]}x{size[1]} pixels"
        assert shape == (batch, 10), f"{what} give logits of shape {shape}, expected an error or {(batch, 10)}"
        for row in range(batch):
            mixed = others.clone()
            mixed[row] = images[row]
            assert_same_bits(net(mixed)[row], logits[row], f"{what}: logits of image {row} after all others changed")


@pytest.mark.parametrize("dtype", IMAGE_DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_wrong_dtype_raises(stack: Stack, dtype: torch.dtype) -> None:
    """
    Images raise an error if their dtype is not the network's, whether floating-point, integer, bool or complex.

    `nn.Conv2d` and `nn.Linear` raise it, since they do not promote dtypes. Rejects: a silent cast, with which a float64
    network would compute on float32 images, or a float32 one on float64.
    """
    if dtype is stack.dtype:
        pytest.skip("this is the dtype of the network")
    net = stack.net(Case())

    for batch in BATCH_SIZES:
        images = torch.ones(batch, 1, 32, 32, device=stack.device).to(dtype)
        assert_raises(lambda images=images: net(images), f"{batch} images of {dtype}")


def test_wrong_device_raises(stack: Stack) -> None:
    """
    Images raise an error if they are on another device than the network.

    PyTorch documents the error for an operation on tensors of different devices (CUDA semantics). The other device is
    `meta`, which every machine has, and also the CPU if the stack's device is not the CPU; network and images are
    exchanged as well. `nn.Conv2d` raises it for `meta`, too; a network of operations that do not, such as
    `torch.einsum`, must check the device itself. Rejects: a silent copy between devices, a result without values.
    """
    device = stack.device

    for other in [torch.device("meta")] + [torch.device("cpu")] * (device.type != "cpu"):
        for batch in BATCH_SIZES:
            for net_device, images_device in ((device, other), (other, device)):
                net = stack.net(Case()).to(net_device)
                images = torch.ones(batch, 1, 32, 32, device=images_device, dtype=stack.dtype)
                what = f"{batch} images on {images_device} for a network on {net_device}"
                assert_raises(lambda net=net, images=images: net(images), what)


def test_non_tensor_input_raises(stack: Stack) -> None:
    """
    A NumPy array, a list, a number, a string or None instead of images raises an error.

    PyTorch's layers raise TypeError. Rejects: an implicit conversion to a tensor, which would choose the dtype and the
    device.
    """
    net, images = stack.net(Case()), torch.ones(1, 1, 32, 32)

    for wrong in (images.numpy(), images.double().numpy(), images.tolist(), 1.0, "images", None):
        assert_raises(lambda wrong=wrong: net(wrong), f"{type(wrong).__name__} instead of images")


@pytest.mark.engine
@given(case=cases(batches=(2, 1)), size=st.sampled_from(WRONG_SIZES), batch=st.sampled_from((*BATCH_SIZES, 0)))
def test_network_is_unchanged_after_an_error(stack: Stack, case: Case, size: tuple[int, int], batch: int) -> None:
    """
    After an error the network gives the same logits as before for valid images, bit for bit.

    So it does after a batch of another shape that it accepts. Rejects: a buffer, a flag or a size that such a batch has
    changed.
    """
    net = stack.net(case)
    before = net(stack.images(case))

    for shape in ((batch, 1, *size), (batch, 3, 32, 32), (32, 32)):
        images = torch.ones(shape, device=stack.device, dtype=stack.dtype)
        unless_raised(lambda images=images: net(images))

    assert_same_bits(net(stack.images(case)), before, "logits after batches of other shapes")


@given(case=cases(batches=(2, 3)), lr=learning_rates())
def test_failed_training_step_changes_no_parameter(stack: Stack, case: Case, lr: float) -> None:
    """
    A training step with the wrong number of targets or of channels raises and changes no parameter.

    The parameters have gradients from an earlier backward pass, by which a faulty step could update them. Rejects: an
    update in a `finally` block, an error that is swallowed.
    """
    net, images, targets = stack.net(case), stack.images(case), stack.targets(case)
    stack.loss(net, case).backward()
    before = [parameter.detach().clone() for parameter in net.parameters()]

    def step(images: Tensor, targets: Tensor) -> None:
        with warnings.catch_warnings():  # PyTorch warns about the targets' shape before it raises
            warnings.simplefilter("ignore")
            stack.subject.train_step(net, images, targets, lr)

    assert_raises(lambda: step(images, targets.repeat(2, 1)), "twice as many targets as images")
    assert_raises(lambda: step(images, targets[:, :9]), "targets with nine columns")
    assert_raises(lambda: step(images.expand(-1, 3, -1, -1), targets), "images with three channels")

    for (name, parameter), old in zip(net.named_parameters(), before, strict=True):
        assert_same_bits(parameter, old, name)


@pytest.mark.parametrize("caller", ["F.mse_loss", "nn.MSELoss", "train_step"])
@given(
    case=cases(weights=("default",), batches=(2, 1, 3, 10)),
    shape=st.sampled_from(["(N,)", "(N,1)", "(10,)", "(1,1)", "()"]),
)
def test_misshaped_targets_raise_or_warn(stack: Stack, caller: str, case: Case, shape: str) -> None:
    """
    The mean squared error of (N,10) logits raises or warns if the targets have another shape.

    Judged for targets of shape (N,), (N,1), (10,), (1,1) and (). PyTorch documents targets of the logits' shape and
    warns before it broadcasts others; class indices (N,) instead of (N,10) targets are a common mistake. Rejects: a
    loss by plain subtraction, which broadcasts silently, so that training optimizes a meaningless loss.
    """
    net, images, targets = stack.net(case), stack.images(case), stack.targets(case)
    wrong = {
        "(N,)": targets[:, 0],
        "(N,1)": targets[:, :1],
        "(10,)": targets[0],
        "(1,1)": targets[:1, :1],
        "()": targets[0, 0],
    }
    calls: dict[str, Callable[[Tensor], Any]] = {
        "F.mse_loss": lambda targets: F.mse_loss(net(images), targets),
        "nn.MSELoss": lambda targets: nn.MSELoss()(net(images), targets),
        "train_step": lambda targets: stack.subject.train_step(net, images, targets, 0.5),
    }

    expected = errors_and_warnings(lambda: calls[caller](targets))
    got = errors_and_warnings(lambda: calls[caller](wrong[shape]))

    assert got - expected, f"targets of shape {shape} for logits of shape (N,10): no error and no warning"


def errors_and_warnings(call: Callable[[], Any]) -> set[str]:
    """Return the messages of the exception that the call raises and of its UserWarnings, whichever occur."""
    messages = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except Exception as error:
            messages.add(repr(error))
    return messages | {str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@given(
    case=cases(batches=(2, 1, 17)),
    wrong=st.sampled_from([10, -1, 11, -10, -99, -101, 2**31, 2**40]),
    row=st.integers(0, 16),
)
def test_class_index_out_of_range_raises(stack: Stack, reduction: str, case: Case, wrong: int, row: int) -> None:
    """
    Cross-entropy raises if the class index of any image is neither from 0 to 9 nor -100, which it ignores.

    PyTorch documents these indices, and raises IndexError for others on the CPU. The law is skipped on a GPU, where an
    assertion in the kernel ends the process. Rejects: a read beyond the logits, a negative index that counts from the
    end as in Python, an index that wraps around.
    """
    if stack.device.type != "cpu":
        pytest.skip("an index out of range ends the process on a GPU")
    logits = stack.logits(case)
    labels = torch.randint(0, 10, (case.batch,), generator=torch.Generator().manual_seed(case.seed))
    labels[row % case.batch] = wrong

    assert_raises(lambda: F.cross_entropy(logits, labels, reduction=reduction), f"class index {wrong}")


@given(case=cases(batches=(2, 1, 3)), excess=st.sampled_from([1, -1, 2]))
def test_mismatched_target_count_raises(stack: Stack, case: Case, excess: int) -> None:
    """
    Cross-entropy raises if the number of targets is not N, or if probabilities do not have ten columns.

    Rejects: rows of logits that are left out, targets that are used twice, probabilities that are broadcast.
    """
    logits = stack.logits(case)
    labels = torch.zeros(case.batch + excess, dtype=torch.int64, device=stack.device)
    probabilities = torch.ones(case.batch, 10 + excess, dtype=stack.dtype, device=stack.device)

    assert_raises(lambda: F.cross_entropy(logits, labels), f"{len(labels)} class indices for {case.batch} images")
    assert_raises(lambda: F.cross_entropy(logits, probabilities), f"{10 + excess} probabilities for ten logits")


@given(case=cases(batches=(2, 1, 0, 3)))
def test_backward_from_nonscalar_raises(stack: Stack, case: Case) -> None:
    """
    `logits.backward()` without an upstream gradient raises RuntimeError and computes no gradients.

    So does an upstream gradient of another shape than the logits. Rejects: an implicit sum over the logits.
    """
    net = stack.net(case)
    logits = net(stack.images(case))

    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        logits.backward()
    with pytest.raises(RuntimeError, match="shape"):
        logits.backward(torch.ones(case.batch + 1, 10, device=stack.device, dtype=stack.dtype))

    assert gradients(net) == {}


PARAMETER_NAMES = st.sampled_from(list(SHAPES))


@given(name=PARAMETER_NAMES)
def test_missing_state_dict_entry_raises_by_name(stack: Stack, name: str) -> None:
    """
    Loading a state_dict with a missing entry raises RuntimeError and names the entry.

    Rejects: a parameter that silently keeps its random initial values.
    """
    net, state = stack.net(Case()), stack.net(Case(seed=1)).state_dict()
    del state[name]

    with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
        net.load_state_dict(state)


@given(name=PARAMETER_NAMES | st.sampled_from(["conv3.weight", "scale", "conv1.running_mean"]))
def test_unexpected_state_dict_entry_raises_by_name(stack: Stack, name: str) -> None:
    """
    Loading a state_dict with an unexpected entry raises RuntimeError and names the entry.

    This includes the name of a parameter with a prefix. Rejects: a checkpoint of another network, or one with the
    prefix `module.` of a data-parallel network, that is loaded in part.
    """
    net, state = stack.net(Case()), stack.net(Case(seed=1)).state_dict()
    extra = f"module.{name}"
    state[extra] = torch.ones(1)

    with pytest.raises(RuntimeError, match=f'Unexpected key.*"{extra}"'):
        net.load_state_dict(state)


@pytest.mark.parametrize("strict", [True, False])
@given(name=PARAMETER_NAMES, change=st.sampled_from(["longer", "shorter", "flat", "wrapped", "scalar"]))
def test_misshaped_state_dict_entry_raises_by_name(stack: Stack, strict: bool, name: str, change: str) -> None:
    """
    Loading a state_dict with a misshaped entry raises RuntimeError, names the entry and keeps the parameter.

    Also with `strict=False`, and also if the entry could be broadcast or has as many elements. Rejects: an entry that
    is reshaped, broadcast or copied in part.
    """
    net, state = stack.net(Case()), stack.net(Case(seed=1)).state_dict()
    before, value = net.get_parameter(name).detach().clone(), state[name]
    state[name] = {
        "longer": torch.cat([value, value]),
        "shorter": value[:-1],
        "flat": value.reshape(-1, 1),
        "wrapped": value[None],
        "scalar": value.flatten()[0],
    }[change]

    with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
        net.load_state_dict(state, strict=strict)

    assert_exact(net.get_parameter(name), before, name)


@given(name=PARAMETER_NAMES)
def test_non_strict_load_reports_skipped_entries(stack: Stack, name: str) -> None:
    """
    `load_state_dict(strict=False)` returns missing and unexpected entries by name and loads all others.

    The parameter whose entry is missing is unchanged, bit for bit. Rejects: a load that stops early, or that does not
    report the entries.
    """
    net, other = stack.net(Case()), stack.net(Case(seed=1))
    before, state = net.get_parameter(name).detach().clone(), other.state_dict()
    state["extra"] = state.pop(name)

    result = net.load_state_dict(state, strict=False)

    assert (result.missing_keys, result.unexpected_keys) == ([name], ["extra"])
    assert_exact(net.get_parameter(name), before, name)
    for loaded in SHAPES.keys() - {name}:
        assert_exact(net.get_parameter(loaded), other.get_parameter(loaded), loaded)
