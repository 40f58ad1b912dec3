"""The law of training steps in any order: a state machine takes them and checks the network's state after each."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn, optim

from lenet import oracle
from lenet.exact_sgd import SGD
from lenet.oracle import SHAPES, Answer
from lenet.training import SGD_FORMS
from properties.case import Case
from properties.comparison import assert_exact, assert_rounded, assert_same_bits, assert_within_budget
from properties.laws.networks import STALE_GRAPH
from properties.ledger import current_ledger
from properties.stack import Stack, float64, gradients
from properties.strategies import cases, seeded

Tensors: TypeAlias = Mapping[str, Tensor]
"""Tensors by parameter name. A mapping of gradients leaves out those that are None."""

STEPS_PER_RUN = 12
"""The largest number of steps in a run. Each of sixteen known faults was found within one to eight suitable steps."""

MAX_KEPT = 3
"""How many graphs and replaced networks a run keeps: enough to use the latest or an earlier one."""

EXPECTED_ERRORS = {
    "valid": r"^$",
    "stale": rf"^$|{STALE_GRAPH.pattern}",
    "unusable": r"second time|does not require grad",
}
"""By status of a graph: the RuntimeError message that backward through it may raise; an empty one means no error."""

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class State:
    """The observable state of a network: its parameters, their gradients, and which parameters are not frozen."""

    parameters: Tensors
    gradients: Tensors
    trainable: frozenset[str]


@dataclass(eq=False)
class Graph:
    """
    A loss with its graph, and the gradients that one backward pass through the graph adds.

    The graph is valid after the forward pass, stale once a parameter has changed in place, and unusable once a backward
    pass has freed it. It is also unusable if all parameters were frozen, so that there is no graph.
    """

    loss_name: str
    loss: Tensor
    gradients: Tensors
    status: Literal["valid", "stale", "unusable"] = "valid"


def small_cases() -> SearchStrategy[Case]:
    """Cases with one or two images and parameters with which a run of training stays in every dtype's range."""
    return cases(weights=("default", "sparse"), images=("digits", "normal"), batches=(1, 2))


def small_learning_rates() -> SearchStrategy[float]:
    """Learning rates up to 0.1, at which gradients that several steps have accumulated do not make training diverge."""
    return st.sampled_from([0.01, 0.1, 2.0**-4, 0.001]) | st.floats(0.001, 0.1)


def parameter_prefixes() -> SearchStrategy[str]:
    """Prefixes that select one parameter ("conv1.weight"), one layer ("conv1") or all parameters ("")."""
    layers = dict.fromkeys(name.split(".")[0] for name in SHAPES)
    return st.sampled_from([*SHAPES, *layers, ""])


def observed_state(net: nn.Module) -> State:
    """Return a copy of the network's observable state."""
    parameters = {name: p.detach().clone() for name, p in net.named_parameters()}
    return State(parameters, gradients(net), frozenset(name for name, p in net.named_parameters() if p.requires_grad))


def versions(net: nn.Module) -> dict[str, int]:
    """Return autograd's version counter of every parameter, which counts its in-place changes."""
    return {name: p._version for name, p in net.named_parameters()}


def accumulated(before: Tensors, added: Tensors) -> Tensors:
    """Return the gradients after `added` was accumulated in `before`."""
    return {**before, **{name: before[name] + g if name in before else g for name, g in added.items()}}


def partially_accumulated(current: Tensors, before: Tensors, after: Tensors) -> Tensors:
    """
    Return the gradients that are expected after a backward pass that raised an error on the way.

    Each parameter has its gradient of `before` if the pass has not changed it, as `current` shows, otherwise that of
    `after`.
    """
    expected = {}
    for name, gradient in after.items():
        if name in current and not (name in before and same_bits(current[name], before[name])):
            expected[name] = gradient
        elif name in before:
            expected[name] = before[name]
    return expected


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors without NaN have equal elements, also in the sign of zero."""
    return torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())


def rounded_to(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Return the tensors rounded to a dtype."""
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def backward_error(loss: Tensor, retain_graph: bool) -> str:
    """Call `loss.backward()`; return the message of the RuntimeError that it raises, or an empty string."""
    try:
        loss.backward(retain_graph=retain_graph)
    except RuntimeError as error:
        return str(error)
    return ""


def append_latest(items: list[Any], item: Any) -> None:
    """Append an item, and keep only the latest MAX_KEPT items of the list."""
    items.append(item)
    del items[:-MAX_KEPT]


def assert_state(net: nn.Module, expected: State, owner: str) -> None:
    """Assert that the network's observable state is as expected, bit for bit; `owner` names the network in messages."""
    state = observed_state(net)
    for name in SHAPES:
        trainable, expected_trainable = name in state.trainable, name in expected.trainable
        assert trainable == expected_trainable, f"{owner} {name} is {'not frozen' if trainable else 'frozen'}"
        has_gradient, expected_gradient = name in state.gradients, name in expected.gradients
        assert has_gradient == expected_gradient, f"{owner} {name}.grad is {'not ' if has_gradient else ''}None"
        assert_same_bits(state.parameters[name], expected.parameters[name], f"{owner} {name}")
        if expected_gradient:
            assert_same_bits(state.gradients[name], expected.gradients[name], f"{owner} {name}.grad")


class TrainingMachine(RuleBasedStateMachine):
    """
    Takes the steps of training on a network in any order, and compares the network with its expected state after each.

    A rule takes a step on the network and updates `expected`, the state that the network must have. If the result of
    the step is determined exactly, the new expected state is computed from the old one. Otherwise the rule judges the
    network's new values, within budget or roundings, and copies them into the expected state, so that errors do not
    accumulate. The invariant then compares the network with its expected state bit for bit.
    """

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack
        self.graphs: list[Graph] = []
        self.replaced: list[tuple[nn.Module, State]] = []  # networks that are no longer trained, and their last state
        self.loss_count = 0  # numbers the losses in messages
        self.steps: list[str] = []  # the run in words, for the record
        current_ledger().begin_example({"steps": self.steps})

    def teardown(self) -> None:
        """Restore the grad mode, so that a run in which it was left off does not affect later runs and laws."""
        torch.set_grad_enabled(True)

    @initialize(case=small_cases(), frozen=st.none() | parameter_prefixes(), first=small_cases())
    def create_net(self, case: Case, frozen: str | None, first: Case) -> None:
        """
        Start from a network with the case's parameters, without gradients, and with some parameters frozen.

        The first step is a forward pass, so that no run passes without having computed anything.
        """
        self.steps.append(f"start with {case}")

        self.net = self.stack.net(case)

        parameters = {name: self.stack.tensor(value) for name, value in case.parameters(self.stack.precision).items()}
        self.expected = State(parameters, {}, frozenset(SHAPES))
        self.save_parameters()
        if frozen is not None:
            self.freeze_or_unfreeze(frozen)
        self.forward(first)

    @invariant()
    def networks_have_the_expected_state(self) -> None:
        """The network has the expected state, and networks that were replaced have not changed since."""
        assert torch.is_grad_enabled(), "the grad mode is off"
        assert_state(self.net, self.expected, "the network's")
        for net, state in self.replaced:
            assert_state(net, state, "the replaced network's")
        self.versions = versions(self.net)

    @rule(case=small_cases())
    def forward(self, case: Case) -> None:
        """A forward pass gives a loss with a graph, and `torch.autograd.grad` computes gradients without adding any."""
        self.loss_count += 1
        name = f"loss {self.loss_count}"
        self.steps.append(f"forward: {name} of {case}")
        trainable = {name: self.net.get_parameter(name) for name in SHAPES if name in self.expected.trainable}
        answer = self.oracle_answer(case)

        loss = self.stack.loss(self.net, case)

        assert_within_budget(loss, answer.loss, name)
        assert loss.requires_grad == bool(trainable), f"{name} has {'a' if loss.requires_grad else 'no'} graph"
        if not trainable:
            append_latest(self.graphs, Graph(name, loss, {}, "unusable"))
            return
        grads = torch.autograd.grad(loss, list(trainable.values()), retain_graph=True)
        by_parameter = dict(zip(trainable, grads, strict=True))
        for parameter, gradient in by_parameter.items():
            what = f"the gradient of {name} with respect to {parameter}"
            assert_within_budget(gradient, answer.gradients[parameter], what)
        append_latest(self.graphs, Graph(name, loss, by_parameter))

    @precondition(lambda self: self.graphs)
    @rule(which=st.integers(0, MAX_KEPT - 1), retain_graph=st.booleans())
    def backward(self, which: int, retain_graph: bool) -> None:
        """A backward pass may be run through any kept graph, even a stale or freed one."""
        self.run_backward(self.graphs[-1 - which % len(self.graphs)], retain_graph)

    @rule(case=small_cases(), retain_graph=st.booleans())
    def forward_and_backward(self, case: Case, retain_graph: bool) -> None:
        """A forward pass is followed by its backward pass, as in ordinary training."""
        self.forward(case)
        self.run_backward(self.graphs[-1], retain_graph)

    @precondition(lambda self: self.expected.gradients)
    @rule(to_none=st.booleans())
    def zero_grad(self, to_none: bool) -> None:
        """`zero_grad` makes every gradient None or zero, also of frozen parameters; graphs stay valid."""
        self.steps.append(f"zero_grad(set_to_none={to_none})")

        self.net.zero_grad(set_to_none=to_none)

        zeros = {name: torch.zeros_like(gradient) for name, gradient in self.expected.gradients.items()}
        self.expected = replace(self.expected, gradients={} if to_none else zeros)

    @precondition(lambda self: self.expected.gradients)
    @rule(lr=small_learning_rates())
    def sgd_update(self, lr: float) -> None:
        """The subject's `sgd_update` updates the parameters that have a gradient, frozen or not, and no others."""
        self.steps.append(f"sgd_update(lr={lr})")

        self.stack.subject.sgd_update(self.net.parameters(), lr)

        self.check_update(lr, "sgd_update")

    @precondition(lambda self: self.expected.gradients)
    @rule(lr=small_learning_rates(), form=st.sampled_from(list(SGD_FORMS)))
    def optimizer_step(self, lr: float, form: str) -> None:
        """A step of `optim.SGD` makes the same update in each implementation."""
        self.steps.append(f"optim.SGD(lr={lr}), {form}")

        optim.SGD(self.net.parameters(), lr=lr, **SGD_FORMS[form]).step()

        self.check_update(lr, f"optim.SGD, {form}")

    @precondition(lambda self: self.expected.trainable)
    @rule(case=small_cases(), lr=small_learning_rates())
    def train_step(self, case: Case, lr: float) -> None:
        """The subject's `train_step` discards earlier gradients, computes its own and updates by them."""
        self.steps.append(f"train_step on {case}, lr={lr}")
        answer = self.oracle_answer(case)

        loss = self.stack.subject.train_step(self.net, self.stack.images(case), self.stack.targets(case), lr)

        assert_within_budget(loss, answer.loss, "loss")
        assert not loss.requires_grad, "the returned loss is not detached"
        after = gradients(self.net)
        for name, gradient in answer.gradients.items():
            if name in self.expected.trainable:
                assert name in after, f"{name}.grad is None"
                assert_within_budget(after[name], gradient, f"{name}.grad")
            elif name in after:
                assert_exact(after[name], torch.zeros_like(after[name]), f"the frozen {name}.grad")
        self.expected = replace(self.expected, gradients=after)
        self.check_update(lr, "train_step")

    @rule(save=st.booleans(), into_new_net=st.booleans())
    def load_state_dict(self, save: bool, into_new_net: bool) -> None:
        """
        Loading a file sets all parameters to the saved values and changes nothing else.

        The parameters may be saved before. A new network that they are loaded into has no gradients and no frozen
        parameters.
        """
        self.steps.append(f"{'save, ' if save else ''}load into {'a new network' if into_new_net else 'the network'}")
        if save:
            self.save_parameters()
        if into_new_net:
            self.replace_net(self.stack.subject.Net().to(self.stack.device, self.stack.dtype))
            self.expected = State({}, {}, frozenset(SHAPES))
        content, parameters = self.saved

        self.net.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))

        self.expected = replace(self.expected, parameters=parameters)
        self.mark_graphs_stale(SHAPES)

    @rule(train_copy=st.booleans())
    def deepcopy(self, train_copy: bool) -> None:
        """A deep copy has the same parameters, frozen alike, and shares no memory; its gradients are equal or None."""
        self.steps.append(f"deepcopy, continue with the {'copy' if train_copy else 'original'}")

        net_copy = copy.deepcopy(self.net)

        copied_gradients = {name: g for name, g in self.expected.gradients.items() if name in gradients(net_copy)}
        copied_state = replace(self.expected, gradients=copied_gradients)
        if train_copy:
            self.replace_net(net_copy)
            self.expected = copied_state
        else:
            append_latest(self.replaced, (net_copy, copied_state))

    @rule(prefix=parameter_prefixes())
    def freeze_or_unfreeze(self, prefix: str) -> None:
        """
        Frozen parameters keep their gradients, and backward passes add nothing to them until they are unfrozen.

        Once unfrozen, they also get gradients from graphs that were made before they were frozen, but none from graphs
        that were made while they were frozen.
        """
        names = {name for name in SHAPES if name.startswith(prefix)}
        unfreeze = names.isdisjoint(self.expected.trainable)
        self.steps.append(f"{'unfreeze' if unfreeze else 'freeze'} {prefix or 'all'}")

        for name in names:
            self.net.get_parameter(name).requires_grad_(unfreeze)

        trainable = self.expected.trainable | names if unfreeze else self.expected.trainable - names
        self.expected = replace(self.expected, trainable=trainable)

    @rule(dtype=st.sampled_from(FLOAT_DTYPES))
    def convert_dtype(self, dtype: torch.dtype) -> None:
        """
        `net.to(dtype)`, and back to the stack's dtype, rounds parameters and gradients and keeps frozen ones frozen.

        Nothing is computed in the other dtype, because a subject may support only the dtype that is judged.
        """
        own = self.stack.dtype
        self.steps.append(f"to {dtype} and back")

        for target in (dtype, own):
            self.net.to(target)

            self.expected = replace(
                self.expected,
                parameters=rounded_to(self.expected.parameters, target),
                gradients=rounded_to(self.expected.gradients, target),
            )
            assert_state(self.net, self.expected, f"after conversion to {target}, the network's")
        if dtype != own:
            self.discard_graphs()  # their saved tensors have mixed dtypes now

    def oracle_answer(self, case: Case) -> Answer:
        """Return the oracle's answer for the case's images and targets and the expected parameters."""
        images, targets = float64(self.stack.images(case)), float64(self.stack.targets(case))
        parameters = {name: float64(value) for name, value in self.expected.parameters.items()}
        return oracle.solve(parameters, images, targets, self.stack.precision, seed=case.seed)

    def run_backward(self, graph: Graph, retain_graph: bool) -> None:
        """
        Run a backward pass through the graph, and check its effect by the graph's status.

        Valid: the pass adds the graph's gradients to those of all parameters that are not frozen now. Unusable: it
        raises RuntimeError and changes nothing. Stale: it adds the gradients from before the parameters changed, or
        raises, depending on the tensors that the graph has saved. If it raises, it may have added the gradients of some
        parameters, but never a mixture of old and new values.
        """
        self.steps.append(f"backward of {graph.loss_name}, a {graph.status} graph, retain_graph={retain_graph}")
        added = {name: gradient for name, gradient in graph.gradients.items() if name in self.expected.trainable}
        before, after = self.expected.gradients, accumulated(self.expected.gradients, added)

        error = backward_error(graph.loss, retain_graph)

        expected_error = EXPECTED_ERRORS[graph.status]
        assert re.search(expected_error, error), f"backward of a graph that is {graph.status}: {error or 'no error'}"
        if graph.status == "stale":
            self.graphs.remove(graph)
            after = partially_accumulated(gradients(self.net), before, after) if error else after
        if graph.status != "unusable":
            self.expected = replace(self.expected, gradients=after)
        if not retain_graph:
            graph.status = "unusable"

    def check_update(self, lr: float, update: str) -> None:
        """Judge an update by the expected gradients, and copy the updated parameters into the expected state."""
        parameters = dict(self.expected.parameters)
        updated = rounded_to(observed_state(self.net).parameters, self.stack.dtype)
        for name, gradient in self.expected.gradients.items():
            exact, _ = SGD(lr).step(float64(parameters[name]), float64(gradient), None, self.stack.precision)
            assert_rounded(updated[name], exact, f"{name} after {update}")
            parameters[name] = updated[name]
        self.expected = replace(self.expected, parameters=parameters)
        self.mark_graphs_stale(self.expected.gradients)

    def save_parameters(self) -> None:
        """Save the network's state_dict to a file in memory, and keep the expected parameters with it."""
        file = io.BytesIO()
        torch.save(self.net.state_dict(), file)
        self.saved = file.getvalue(), self.expected.parameters

    def replace_net(self, net: nn.Module) -> None:
        """Train another network from now on; the replaced one must not change, and its graphs are discarded."""
        append_latest(self.replaced, (self.net, self.expected))
        self.net = net
        self.discard_graphs()

    def mark_graphs_stale(self, changed: Iterable[str]) -> None:
        """
        Mark valid graphs as stale after a change of parameters, and run backward through the latest of them.

        If autograd has not counted one of the changes, backward may give any result, so the graphs are discarded. This
        happens if `.data` is changed and, in torch 2.13.0, in a fused step.
        """
        current = versions(self.net)
        if any(current[name] == self.versions[name] for name in changed):
            self.discard_graphs()
        valid = [graph for graph in self.graphs if graph.status == "valid"]
        for graph in valid:
            graph.status = "stale"
        if valid:
            self.run_backward(valid[-1], retain_graph=False)

    def discard_graphs(self) -> None:
        """Discard all graphs but the unusable ones, which stay unusable whatever happens to the parameters."""
        self.graphs = [graph for graph in self.graphs if graph.status == "unusable"]


def test_training_in_any_order_gives_the_expected_state(stack: Stack) -> None:
    """
    After training steps in any order, parameters, gradients and frozen state are the expected ones.

    The steps are forward, backward through valid, stale and unusable graphs, zero_grad, updates by `sgd_update`
    and `optim.SGD`, train_step, save and load, deepcopy, freezing and dtype conversion. Results are compared bit for
    bit or within budget. Rejects: a gradient that is overwritten, lost or given to a frozen parameter, memory that
    copies share, a parameter that an update leaves out, state that is kept between steps.
    """
    current_ledger().examples = 0  # counts the runs of the machine, not the one call of this function
    machine = seeded(partial(TrainingMachine, stack=stack))
    run_state_machine_as_test(machine, settings=settings(settings.default, stateful_step_count=STEPS_PER_RUN))
