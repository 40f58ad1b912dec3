"""Hooks of a module and activation checkpointing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from properties.mutants import Category, mutant
from properties.mutants.staged import StagedNet

Register = Callable[..., RemovableHandle]
register_forward_pre_hook, register_forward_hook = nn.Module.register_forward_pre_hook, nn.Module.register_forward_hook
register_full_backward_pre_hook = nn.Module.register_full_backward_pre_hook
register_full_backward_hook = nn.Module.register_full_backward_hook


def without_result(hook: Callable[..., Any]) -> Callable[..., None]:
    """Return a hook whose result is lost."""

    def call(*args: Any, **options: Any) -> None:
        hook(*args, **options)

    return call


@mutant("Net", law="full_backward_hooks_receive_the_gradients", category=Category.API)
class CallBypassesHooks(StagedNet):
    """Calling the network calls `forward` directly, without its hooks."""

    def __call__(self, images: Tensor) -> Tensor:
        return self.forward(images)


@mutant(
    "torch.nn.Module.register_full_backward_hook",
    law="full_backward_hooks_receive_the_gradients",
    category=Category.API,
)
def gradients_exchanged_in_hook(self: nn.Module, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
    """A full backward hook gets the gradient of the outputs as that of the inputs, and the reverse."""
    return register_full_backward_hook(self, lambda module, inputs, outputs: hook(module, outputs, inputs), **options)


@mutant(
    "torch.nn.Module.register_full_backward_pre_hook",
    law="full_backward_hooks_receive_the_gradients",
    category=Category.NUMERICS,
)
def gradient_normalized_in_hook(self: nn.Module, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
    """A full backward pre-hook gets the gradient divided by its number of elements."""
    return register_full_backward_pre_hook(
        self, lambda module, outputs: hook(module, tuple(each / each.numel() for each in outputs)), **options
    )


@mutant(
    "torch.nn.Module.register_full_backward_hook",
    law="gradients_that_backward_hooks_return_are_used",
    category=Category.API,
)
def backward_hook_result_ignored(self: nn.Module, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
    """The gradient that a full backward hook returns is ignored."""
    return register_full_backward_hook(self, without_result(hook), **options)


@mutant(
    "torch.nn.Module.register_full_backward_pre_hook",
    law="gradients_that_backward_hooks_return_are_used",
    category=Category.API,
)
def backward_pre_hook_result_ignored(self: nn.Module, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
    """The gradient that a full backward pre-hook returns is ignored."""
    return register_full_backward_pre_hook(self, without_result(hook), **options)


@mutant("torch.nn.Module.register_forward_hook", law="values_that_forward_hooks_return_are_used", category=Category.API)
def forward_hook_result_ignored(self: nn.Module, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
    """The value that a forward hook returns is ignored."""
    return register_forward_hook(self, without_result(hook), **options)


@mutant(
    "torch.nn.Module.register_forward_pre_hook", law="values_that_forward_hooks_return_are_used", category=Category.API
)
def forward_pre_hook_result_ignored(self: nn.Module, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
    """The value that a forward pre-hook returns is ignored."""
    return register_forward_pre_hook(self, without_result(hook), **options)


@mutant("torch.nn.Module.register_forward_hook", law="hooks_run_in_order_until_removed", category=Category.API)
def prepended_forward_hook_runs_last(
    self: nn.Module, hook: Callable[..., Any], prepend: bool = False, **options: Any
) -> RemovableHandle:
    """A forward hook registered with `prepend=True` runs after the earlier ones."""
    return register_forward_hook(self, hook, **options)


@mutant("torch.nn.Module.register_full_backward_hook", law="hooks_run_in_order_until_removed", category=Category.API)
def backward_hook_cannot_be_removed(self: nn.Module, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
    """The handle of a full backward hook does not remove it."""
    register_full_backward_hook(self, hook, **options)
    return RemovableHandle(OrderedDict())


# Activation checkpointing

CHECKPOINT = "torch.utils.checkpoint.checkpoint"


@mutant(CHECKPOINT, law="checkpointing_changes_no_bit", category=Category.COMPUTATION_MODEL)
def checkpoint_detaches_inputs(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The inputs of a checkpointed function get no gradient."""
    detached = [each.detach() if isinstance(each, Tensor) else each for each in args]
    return checkpoint(function, *detached, **options)


@mutant(CHECKPOINT, law="checkpointing_changes_no_bit", category=Category.COMPUTATION_MODEL)
def checkpoint_recomputes_from_zeros(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The backward pass recomputes the function from inputs whose memory has been reused, and is zero."""
    calls: list[int] = []

    def call(*inputs: Any) -> Any:
        calls.append(1)
        return function(*inputs) if len(calls) == 1 else function(*[each * 0 for each in inputs])

    return checkpoint(call, *args, **options)


@mutant(CHECKPOINT, law="checkpoint_recomputes_with_the_same_random_numbers", category=Category.COMPUTATION_MODEL)
def checkpoint_draws_new_random_numbers(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The backward pass recomputes the function with new random numbers, as with `preserve_rng_state=False`."""
    return checkpoint(function, *args, **options | {"preserve_rng_state": False})


@mutant(CHECKPOINT, law="checkpoint_recomputes_with_the_same_random_numbers", category=Category.COMPUTATION_MODEL)
def checkpoint_sets_random_state_back(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The backward pass recomputes with the same random numbers, but does not restore the state from before it."""
    state, calls = torch.get_rng_state(), list[int]()

    def call(*inputs: Any) -> Any:
        if calls:
            torch.set_rng_state(state)
        calls.append(1)
        return function(*inputs)

    return checkpoint(call, *args, **options | {"preserve_rng_state": False})
