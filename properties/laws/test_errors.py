"""Laws of refusal: an error, not an answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lenet.oracle import SHAPES
from properties.case import Case
from properties.comparison import assert_exact
from properties.stack import Stack, gradients
from properties.strategies import cases, learning_rates

BATCHES = (1, 2, 4, 9, 25, 0)
SHAPES_OF_NO_IMAGES = ((), (0,), (1024,), (32, 32), (1, 32, 32), (1, 1, 1, 32, 32), (2, 1, 32, 32, 1))
# 33 to 35 pixels leave 5x5 after both poolings; 36, 52 and 72 leave squares, of which `view(-1, 400)` makes a batch.
SIZES = ((33, 33), (34, 34), (35, 35), (31, 31), (36, 36), (52, 52), (72, 72), (32, 33), (33, 32), (16, 64), (32, 0))
DTYPES = (
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


def assert_refused(call: Callable[[], Any], what: str) -> None:
    """The call raises an error, of whatever kind."""
    __tracebackhide__ = True
    try:
        answer = call()
    except Exception:
        return
    raise AssertionError(f"{what}: no error, but {_words(answer)}")


def _words(answer: Any) -> str:
    return f"an answer of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"{answer!r}"


def always(**choices: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Judge each of the one argument's choices, beside whatever is drawn."""
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
    Images of two or three channels, or of none, are an error in every batch.

    Rejects: a first channel that is taken alone, channels that become a larger batch.
    """
    net = stack.net(Case())

    for batch in BATCHES:
        images = torch.ones(batch, channels, 32, 32, device=stack.device, dtype=stack.dtype)
        assert_refused(lambda images=images: net(images), f"{batch} images of {channels} channels")


@pytest.mark.engine
def test_wrong_dimension_count_raises(stack: Stack) -> None:
    """
    A single image without its batch dimension is an error, and so is every tensor that has not four dimensions.

    Rejects: an unbatched image that is read as a batch or as channels, a row of 1,024 pixels that is folded up.
    """
    net = stack.net(Case())

    for shape in SHAPES_OF_NO_IMAGES:
        images = torch.ones(shape, device=stack.device, dtype=stack.dtype)
        assert_refused(lambda images=images: net(images), f"images of shape {shape}")


@pytest.mark.engine
@always(size=SIZES)
@given(
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)).filter(lambda size: size != (32, 32)),
    batch=st.sampled_from(BATCHES),
)
def test_wrong_image_size_raises(stack: Stack, size: tuple[int, int], batch: int) -> None:
    """
    Images that are not 32x32 are an error: larger, smaller, or not square.

    Also those of 33 to 35 pixels, whose feature maps have the right size after pooling, and those of which the 400
    features make another number of rows. Rejects: scores for what is left of such an image, `view(-1, 400)`.
    """
    net, images = stack.net(Case()), torch.ones(batch, 1, *size, device=stack.device, dtype=stack.dtype)

    assert_refused(lambda: net(images), f"{batch} images of {size[0]}x{size[1]} pixels")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_wrong_dtype_raises(stack: Stack, dtype: torch.dtype) -> None:
    """
    Images of another dtype than the network's are an error: of other floats, integers, booleans or complex numbers.

    Rejects: a silent cast, by which a float64 network would compute with float32 images, or the other way round.
    """
    if dtype is stack.dtype:
        pytest.skip("this is the network's own dtype")
    net = stack.net(Case())

    for batch in BATCHES:
        images = torch.ones(batch, 1, 32, 32, device=stack.device).to(dtype)
        assert_refused(lambda images=images: net(images), f"{batch} images of {dtype}")


def test_wrong_device_raises(stack: Stack) -> None:
    """
    Images on another device than the network's are an error, whichever of the two is where.

    The other device is `meta`, which every machine has, and the CPU for a network that is elsewhere. Rejects: a silent
    copy from device to device, an answer without numbers.
    """
    here = stack.device

    for there in [torch.device("meta")] + [torch.device("cpu")] * (here.type != "cpu"):
        for batch in BATCHES:
            for net_at, images_at in ((here, there), (there, here)):
                net = stack.net(Case()).to(net_at)
                images = torch.ones(batch, 1, 32, 32, device=images_at, dtype=stack.dtype)
                what = f"{batch} images on {images_at} for a network on {net_at}"
                assert_refused(lambda net=net, images=images: net(images), what)


def test_non_tensor_input_raises(stack: Stack) -> None:
    """
    A NumPy array, a list, a number, a text or None instead of images is an error.

    Rejects: a conversion on the way in, which would choose a dtype and a device of its own.
    """
    net, images = stack.net(Case()), torch.ones(1, 1, 32, 32)

    for wrong in (images.numpy(), images.double().numpy(), images.tolist(), 1.0, "images", None):
        assert_refused(lambda wrong=wrong: net(wrong), f"{type(wrong).__name__} instead of images")


@pytest.mark.engine
@given(case=cases(batches=(2, 1)), size=st.sampled_from(SIZES), batch=st.sampled_from(BATCHES))
def test_network_is_unchanged_after_an_error(stack: Stack, case: Case, size: tuple[int, int], batch: int) -> None:
    """
    After an error the network gives the same scores as before, bit for bit, for images that are right.

    Rejects: a buffer, a flag or a size that the refused batch has left behind.
    """
    net = stack.net(case)
    before = net(stack.images(case))

    for shape in ((batch, 1, *size), (batch, 3, 32, 32), (32, 32)):
        images = torch.ones(shape, device=stack.device, dtype=stack.dtype)
        assert_refused(lambda images=images: net(images), f"images of shape {shape}")

    assert_exact(net(stack.images(case)), before, "logits after the errors")


@given(case=cases(batches=(2, 3)), lr=learning_rates())
def test_failed_training_step_changes_no_parameter(stack: Stack, case: Case, lr: float) -> None:
    """
    A training step on a wrong number of targets or on images of a wrong size is an error, and updates nothing.

    Also where gradients of an earlier backward are there to be used. Rejects: an update in a `finally`, an error that
    is swallowed.
    """
    net, images, targets = stack.net(case), stack.images(case), stack.targets(case)
    stack.loss(net, case).backward()
    before = [parameter.detach().clone() for parameter in net.parameters()]

    def step(images: Tensor, targets: Tensor) -> None:
        with warnings.catch_warnings():  # torch warns of the targets' shape before it fails
            warnings.simplefilter("ignore")
            stack.subject.train_step(net, images, targets, lr)

    assert_refused(lambda: step(images, targets.repeat(2, 1)), "twice as many targets as images")
    assert_refused(lambda: step(images, targets[:, :9]), "targets of nine scores")
    assert_refused(lambda: step(images[..., :31], targets), "images of 32x31 pixels")

    for (name, parameter), kept in zip(net.named_parameters(), before, strict=True):
        assert_exact(parameter, kept, name)


@pytest.mark.parametrize("who", ["F.mse_loss", "nn.MSELoss", "train_step"])
@given(
    case=cases(weights=("default",), batches=(2, 1, 3, 10)),
    shape=st.sampled_from(["(N,)", "(N,1)", "(10,)", "(1,1)", "()"]),
)
def test_misshaped_targets_raise_or_warn(stack: Stack, who: str, case: Case, shape: str) -> None:
    """
    Mean squared error of (N,10) scores and targets of (N,), (N,1), (10,), (1,1) or () is an error, or warned of.

    PyTorch documents that it broadcasts them, with a UserWarning; class numbers (N,) instead of (N,10) targets are the
    usual mistake. Rejects: a loss by subtraction, which broadcasts in silence and trains towards nothing.
    """
    net, images, right = stack.net(case), stack.images(case), stack.targets(case)
    wrong = {"(N,)": right[:, 0], "(N,1)": right[:, :1], "(10,)": right[0], "(1,1)": right[:1, :1], "()": right[0, 0]}
    calls: dict[str, Callable[[Tensor], Any]] = {
        "F.mse_loss": lambda targets: F.mse_loss(net(images), targets),
        "nn.MSELoss": lambda targets: nn.MSELoss()(net(images), targets),
        "train_step": lambda targets: stack.subject.train_step(net, images, targets, 0.5),
    }

    usual = complaints(lambda: calls[who](right))
    heard = complaints(lambda: calls[who](wrong[shape]))

    assert heard - usual, f"targets of shape {shape} for scores of shape (N,10): no error and no warning"


def complaints(call: Callable[[], Any]) -> set[str]:
    """The error that the call raises and the UserWarnings that it gives."""
    heard = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except Exception as error:
            heard.add(repr(error))
    return heard | {str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@given(
    case=cases(batches=(2, 1, 17)),
    wrong=st.sampled_from([10, -1, 11, -10, -99, -101, 2**31, 2**40]),
    row=st.integers(0, 16),
)
def test_class_index_out_of_range_raises(stack: Stack, reduction: str, case: Case, wrong: int, row: int) -> None:
    """
    Cross-entropy raises where one target is no class from 0 to 9, wherever in the batch, except -100, which it ignores.

    Not judged on a GPU, where this is an assertion that ends the process. Rejects: a read beyond the scores, a class
    from the end as in Python, an index that wraps around.
    """
    if stack.device.type != "cpu":
        pytest.skip("an index out of range ends a process on a GPU")
    logits = stack.logits(case)
    labels = torch.randint(0, 10, (case.batch,), generator=torch.Generator().manual_seed(case.seed))
    labels[row % case.batch] = wrong

    assert_refused(lambda: F.cross_entropy(logits, labels, reduction=reduction), f"class {wrong}")


@given(case=cases(batches=(2, 1, 3)), more=st.sampled_from([1, -1, 2]))
def test_mismatched_target_count_raises(stack: Stack, case: Case, more: int) -> None:
    """
    Cross-entropy raises where there are more or fewer targets than rows of scores, or rows of another length.

    Rejects: rows left out, targets read twice, probabilities that are broadcast.
    """
    logits = stack.logits(case)
    labels = torch.zeros(case.batch + more, dtype=torch.int64, device=stack.device)
    shares = torch.ones(case.batch, 10 + more, dtype=stack.dtype, device=stack.device)

    assert_refused(lambda: F.cross_entropy(logits, labels), f"{len(labels)} classes for {case.batch} images")
    assert_refused(lambda: F.cross_entropy(logits, shares), f"{10 + more} shares for ten scores")


@given(case=cases(batches=(2, 1, 0, 3)))
def test_backward_from_nonscalar_raises(stack: Stack, case: Case) -> None:
    """
    `.backward()` on the ten scores, without a gradient to begin with, raises RuntimeError and leaves no gradient.

    Nor with one of another shape. Rejects: a sum over the scores that nobody asked for.
    """
    net = stack.net(case)
    logits = net(stack.images(case))

    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        logits.backward()
    with pytest.raises(RuntimeError, match="shape"):
        logits.backward(torch.ones(case.batch + 1, 10, device=stack.device, dtype=stack.dtype))

    assert gradients(net) == {}


NAMES = st.sampled_from(list(SHAPES))


@given(name=NAMES)
def test_missing_state_dict_entry_raises_by_name(stack: Stack, name: str) -> None:
    """
    A state_dict that lacks an entry raises RuntimeError, which names it.

    Rejects: a parameter that stays at its random beginning, unnoticed.
    """
    net, state = stack.net(Case()), stack.net(Case(seed=1)).state_dict()
    del state[name]

    with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
        net.load_state_dict(state)


@given(name=NAMES | st.sampled_from(["conv3.weight", "scale", "conv1.running_mean"]))
def test_unexpected_state_dict_entry_raises_by_name(stack: Stack, name: str) -> None:
    """
    A state_dict with an entry too many raises RuntimeError, which names it, be it the ten's under another prefix.

    Rejects: a checkpoint of another network, or of `module.` from a parallel one, that loads in part.
    """
    net, state = stack.net(Case()), stack.net(Case(seed=1)).state_dict()
    extra = f"module.{name}"
    state[extra] = torch.ones(1)

    with pytest.raises(RuntimeError, match=f'Unexpected key.*"{extra}"'):
        net.load_state_dict(state)


@pytest.mark.parametrize("strict", [True, False])
@given(name=NAMES, how=st.sampled_from(["longer", "shorter", "flat", "wrapped", "scalar"]))
def test_misshaped_state_dict_entry_raises_by_name(stack: Stack, strict: bool, name: str, how: str) -> None:
    """
    A state_dict with an entry of another shape raises RuntimeError, which names it, and leaves that parameter.

    Also with `strict=False`, and also where the entry would broadcast or has as many numbers. Rejects: a reshape, a
    broadcast, a part that is copied.
    """
    net, state = stack.net(Case()), stack.net(Case(seed=1)).state_dict()
    before, value = net.get_parameter(name).detach().clone(), state[name]
    state[name] = {
        "longer": torch.cat([value, value]),
        "shorter": value[:-1],
        "flat": value.reshape(-1, 1),
        "wrapped": value[None],
        "scalar": value.flatten()[0],
    }[how]

    with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
        net.load_state_dict(state, strict=strict)

    assert_exact(net.get_parameter(name), before, name)


@given(name=NAMES)
def test_non_strict_load_reports_skipped_entries(stack: Stack, name: str) -> None:
    """
    With `strict=False` a missing and an extra entry are returned by name, and all the others are loaded.

    The parameter whose entry is missing stays bit for bit. Rejects: a load that stops early, or keeps silent.
    """
    net, other = stack.net(Case()), stack.net(Case(seed=1))
    before, state = net.get_parameter(name).detach().clone(), other.state_dict()
    state["extra"] = state.pop(name)

    result = net.load_state_dict(state, strict=False)

    assert (result.missing_keys, result.unexpected_keys) == ([name], ["extra"])
    assert_exact(net.get_parameter(name), before, name)
    for own in SHAPES.keys() - {name}:
        assert_exact(net.get_parameter(own), other.get_parameter(own), own)
