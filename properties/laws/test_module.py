"""Laws of `nn.Module`: it registers its parameters, converts and moves them, and exposes them in its state_dict."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lenet.oracle import SHAPES
from properties.case import Case
from properties.comparison import assert_same_bits
from properties.stack import Stack
from properties.strategies import cases, learning_rates


def test_assigned_parameter_is_registered(stack: Stack) -> None:
    """
    A Module registers an assigned `Parameter` and does not register an assigned tensor.

    Both assignments leave the ten parameters of the network registered. Rejects: a Module that does not register a
    Parameter, or that registers a plain tensor.
    """
    net = stack.subject.Net()

    net.scale = nn.Parameter(torch.ones(3))
    net.offset = torch.ones(3)

    names = [name for name, _ in net.named_parameters()]
    assert names in (["scale", *SHAPES], [*SHAPES, "scale"]), f"named_parameters() yields {names}"
    assert any(parameter is net.scale for parameter in net.parameters()), "parameters() does not yield net.scale itself"
    assert "scale" in net.state_dict(), "the state_dict does not contain the assigned Parameter"
    assert "offset" not in net.state_dict(), "the state_dict contains the assigned plain tensor"


@given(case=cases(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_to_dtype_converts_every_parameter(stack: Stack, case: Case, dtype: torch.dtype) -> None:
    """
    `net.to(dtype)` rounds every parameter as `Tensor.to(dtype)` does and keeps the same Parameter objects.

    Rejects: a parameter that is not converted, or one that is replaced, so that an optimizer no longer updates it.
    """
    net = stack.net(case)
    parameters = list(net.parameters())
    expected = [parameter.detach().to(dtype) for parameter in parameters]

    net.to(dtype)

    assert all(now is before for now, before in zip(net.parameters(), parameters, strict=True)), (
        "a Parameter was replaced"
    )
    for (name, parameter), value in zip(net.named_parameters(), expected, strict=True):
        assert_same_bits(parameter, value, name)


@pytest.mark.parametrize("target", ["the stack's device", "meta"])
def test_to_device_moves_every_parameter(stack: Stack, target: str) -> None:
    """
    `net.to(device)` moves every parameter bit for bit, and the network then runs on that device.

    Judged for the stack's device and for `meta`, which every machine has and which keeps only shapes and dtypes.
    Rejects: a tensor that is a plain attribute instead of a Parameter or buffer, and therefore is not moved.
    """
    device = torch.device("meta") if target == "meta" else stack.device
    net = stack.subject.Net().to(stack.dtype)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}

    net.to(device)

    for name, parameter in net.named_parameters():
        assert parameter.device.type == device.type, f"{name} is on {parameter.device}"
        old = before[name]
        assert parameter.shape == old.shape, f"{name} has shape {tuple(parameter.shape)}, expected {tuple(old.shape)}"
        assert parameter.dtype == old.dtype, f"{name} is {parameter.dtype}, expected {old.dtype}"
        if target != "meta":
            assert_same_bits(parameter.cpu(), old, name)
    logits = net(torch.zeros(1, 1, 32, 32, device=device, dtype=stack.dtype))
    assert logits.shape == (1, 10), f"the logits have shape {tuple(logits.shape)}, expected (1, 10)"
    assert logits.device.type == device.type, f"the logits are on {logits.device}, expected {device}"


@given(case=cases(batches=(1,)), lr=learning_rates())
def test_state_dict_shares_memory_with_parameters(stack: Stack, case: Case, lr: float) -> None:
    """
    `state_dict()` shares memory with the parameters, so that it shows their new values after a training step.

    The documentation calls it "a shallow copy" with "references to the module's parameters and buffers". Rejects: a
    copy, which takes the memory of an entire network and becomes outdated unnoticed.
    """
    net = stack.net(case)
    state = net.state_dict()

    stack.subject.train_step(net, stack.images(case), stack.targets(case), lr)

    for name, parameter in net.named_parameters():
        assert state[name].data_ptr() == parameter.data_ptr(), f"{name} in the state_dict is a copy"
        assert_same_bits(state[name], parameter, name)
