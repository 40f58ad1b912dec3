"""Laws of the roles: Parameter is registered, Module moves its parameters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lenet.oracle import SHAPES
from properties.case import Case
from properties.comparison import assert_exact
from properties.stack import Stack
from properties.strategies import cases, learning_rates


def test_assigned_parameter_is_registered(stack: Stack) -> None:
    """
    A `Parameter` assigned to a Module is one of its parameters; a plain tensor is not, and neither is in the way.

    Rejects: a Module that loses its registration, or trains what is no Parameter.
    """
    net = stack.subject.Net()

    net.scale = nn.Parameter(torch.ones(3))
    net.offset = torch.ones(3)

    assert [name for name, _ in net.named_parameters()] == ["scale", *SHAPES] or [
        name for name, _ in net.named_parameters()
    ] == [*SHAPES, "scale"]
    assert any(parameter is net.scale for parameter in net.parameters())
    assert "scale" in net.state_dict()
    assert "offset" not in net.state_dict()


@given(case=cases(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_to_dtype_converts_every_parameter(stack: Stack, case: Case, dtype: torch.dtype) -> None:
    """
    `net.to(dtype)` rounds every parameter to the dtype, the same as each tensor's own `to`, in the same Parameters.

    Rejects: a parameter left behind, or one that an optimizer no longer holds.
    """
    net = stack.net(case)
    held = list(net.parameters())
    want = [parameter.detach().to(dtype) for parameter in held]

    net.to(dtype)

    assert all(now is before for now, before in zip(net.parameters(), held, strict=True))
    for (name, parameter), value in zip(net.named_parameters(), want, strict=True):
        assert_exact(parameter, value, name)


@pytest.mark.parametrize("target", ["the stack's device", "meta"])
def test_to_device_moves_every_parameter(stack: Stack, target: str) -> None:
    """
    `net.to(device)` moves every parameter, bit for bit, and the network then runs there.

    To the device that is judged, and to `meta`, which every machine has: there only shape and dtype are left.
    Rejects: a tensor that is kept in a plain attribute instead of a Parameter or buffer, and stays behind.
    """
    device = torch.device("meta") if target == "meta" else stack.device
    net = stack.subject.Net().to(stack.dtype)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}

    net.to(device)

    for name, parameter in net.named_parameters():
        assert parameter.device.type == device.type, f"{name} is on {parameter.device}"
        assert (parameter.shape, parameter.dtype) == (before[name].shape, before[name].dtype)
        if target != "meta":
            assert_exact(parameter.cpu(), before[name], name)
    logits = net(torch.zeros(1, 1, 32, 32, device=device, dtype=stack.dtype))
    assert (logits.shape, logits.device.type) == ((1, 10), device.type)


@given(case=cases(batches=(1,)), lr=learning_rates())
def test_state_dict_shares_memory_with_parameters(stack: Stack, case: Case, lr: float) -> None:
    """
    `state_dict()` holds the parameters themselves, not copies: after a training step it holds the new numbers.

    The documentation calls it "a shallow copy" with "references to the module's parameters and buffers". Rejects:
    a copy, which keeps the memory of a whole network and grows old unnoticed.
    """
    net = stack.net(case)
    state = net.state_dict()

    stack.subject.train_step(net, stack.images(case), stack.targets(case), lr)

    for name, parameter in net.named_parameters():
        assert state[name].data_ptr() == parameter.data_ptr(), f"{name} has memory of its own in the state_dict"
        assert_exact(state[name], parameter, name)
