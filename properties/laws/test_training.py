"""Laws of training in any order: a machine takes the steps as they come, and knows what each of them may change."""

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
from lenet.oracle import SHAPES, Answer
from lenet.training import SGD_FORMS
from lenet.update import SGD
from properties.case import Case
from properties.comparison import assert_exact, assert_rounded, assert_within_budget, ledger
from properties.laws.test_gradients import STALE
from properties.stack import Stack, float64, gradients
from properties.strategies import cases

Tensors: TypeAlias = Mapping[str, Tensor]
"""By parameter; of gradients, those that are not None."""

STEPS = 12
"""Steps of one run: sixteen faults that this was tried on show in one to eight, if these are the right ones."""

KEPT = 3
"""Graphs, and nets left behind, that a run holds on to: enough to tell the latest from the one before."""

RAISED = {"good": r"^$", "stale": rf"^$|{STALE.pattern}", "gone": r"second time|does not require grad"}
"""What backward may say in a RuntimeError, by what has become of the graph: changed parameters, freed buffers."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class State:
    """What can be seen of a net: its parameters, their gradients, and which of them are trained, that is not frozen."""

    parameters: Tensors
    gradients: Tensors
    trained: frozenset[str]


@dataclass(eq=False)
class Graph:
    """A loss, and the gradient that a backward pass through its graph adds."""

    name: str
    loss: Tensor
    gradient: Tensors
    now: Literal["good", "stale", "gone"] = "good"


def batches() -> SearchStrategy[Case]:
    """One or two images, and parameters, from which a run of training stays within every dtype's range."""
    return cases(weights=("default", "sparse"), images=("digits", "normal"), batches=(1, 2))


def rates() -> SearchStrategy[float]:
    """Learning rates at which gradients that have added up for some steps still do no harm."""
    return st.sampled_from([0.01, 0.1, 2.0**-4, 0.001]) | st.floats(0.001, 0.1)


def places() -> SearchStrategy[str]:
    """How the names of some parameters begin: those of one, of a layer, or of all."""
    layers = dict.fromkeys(name.split(".")[0] for name in SHAPES)
    return st.sampled_from([*SHAPES, *layers, ""])


def forms(stack: Stack) -> list[str]:
    """The forms of `optim.SGD` that work: fused leaves much of a 16-bit parameter as it is, pytorch/pytorch#191763."""
    wide = stack.dtype in (torch.float64, torch.float32)
    return [form for form in SGD_FORMS if wide or form != "fused"]


def state(net: nn.Module) -> State:
    """A copy of all that can be seen of a net."""
    values = {name: p.detach().clone() for name, p in net.named_parameters()}
    return State(values, gradients(net), frozenset(name for name, p in net.named_parameters() if p.requires_grad))


def counts(net: nn.Module) -> dict[str, int]:
    """How often autograd has seen each parameter change in place."""
    return {name: p._version for name, p in net.named_parameters()}


def plus(before: Tensors, more: Tensors) -> Tensors:
    """The gradients after more were added to those that were there."""
    return {**before, **{name: before[name] + g if name in before else g for name, g in more.items()}}


def partly(now: Tensors, before: Tensors, after: Tensors) -> Tensors:
    """The gradients after a pass that may have stopped halfway: of each parameter as before, if it is, or as after."""
    kept = {name for name in after if name not in now or (name in before and torch.equal(now[name], before[name]))}
    return {name: before[name] if name in kept else g for name, g in after.items() if name in before or name in now}


def to(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """The tensors rounded to a dtype."""
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def complaint(loss: Tensor, retain: bool) -> str:
    """What backward says in the RuntimeError that it raises; empty where it raises none."""
    try:
        loss.backward(retain_graph=retain)
    except RuntimeError as error:
        return str(error)
    return ""


def keep(items: list[Any], item: Any) -> None:
    """Add an item, and let go of the oldest."""
    items.append(item)
    del items[:-KEPT]


def assert_state(net: nn.Module, want: State, whose: str) -> None:
    """All that can be seen of a net is as wanted, bit for bit."""
    got = state(net)
    for name in SHAPES:
        now, right = name in got.trained, name in want.trained
        assert now == right, f"{whose} {name} is {'trained' if now else 'frozen'}"
        now, right = name in got.gradients, name in want.gradients
        assert now == right, f"{whose} {name}.grad is {'not ' if now else ''}None"
        assert_exact(got.parameters[name], want.parameters[name], f"{whose} {name}")
        if right:
            assert_exact(got.gradients[name], want.gradients[name], f"{whose} {name}.grad")


class Training(RuleBasedStateMachine):
    """
    A net that takes the steps of training in any order, and what must be seen of it after each.

    A rule is a step: it acts on the net, and puts into `state` what must then be seen. Where the law is exact, that
    follows from the state before. Where it is not, the rule judges the net's new numbers and takes them over, so that
    errors do not pile up. After every step all that can be seen is compared with `state`.
    """

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack
        self.graphs: list[Graph] = []
        self.left: list[tuple[nn.Module, State]] = []  # nets that training did not go on with
        self.losses = 0  # made so far, to name them by
        self.steps: list[str] = []
        ledger.begin({"steps": self.steps})

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        """The net is what its steps made of it, and no net that was left behind has changed."""
        assert_state(self.net, self.state, "the net's")
        for net, left in self.left:
            assert_state(net, left, "the net left behind's")
        self.counted = counts(self.net)

    @initialize(case=batches(), frozen=st.none() | places())
    def begin(self, case: Case, frozen: str | None) -> None:
        """A net with the case's parameters, some of them frozen, and no gradients."""
        self.steps.append(f"begin with {case}")

        self.net = self.stack.net(case)

        drawn = {name: self.stack.tensor(value) for name, value in case.parameters(self.stack.precision).items()}
        self.state = State(drawn, {}, frozenset(SHAPES))
        self.save()
        if frozen is not None:
            self.freeze(frozen)

    @rule(case=batches())
    def forward(self, case: Case) -> None:
        """The loss has a graph, from which `torch.autograd.grad` gives the gradient without adding it to anything."""
        self.losses += 1
        name = f"loss {self.losses}"
        self.steps.append(f"{name} of {case}")
        trained = {name: self.net.get_parameter(name) for name in SHAPES if name in self.state.trained}
        answer = self.answer(case)

        loss = self.stack.loss(self.net, case)

        assert_within_budget(loss, answer.loss, name)
        assert loss.requires_grad == bool(trained), f"{name} has {'a' if loss.requires_grad else 'no'} graph"
        if not trained:
            keep(self.graphs, Graph(name, loss, {}, "gone"))
            return
        slopes = torch.autograd.grad(loss, list(trained.values()), retain_graph=True)
        gradient = dict(zip(trained, slopes, strict=True))
        for parameter, slope in gradient.items():
            assert_within_budget(slope, answer.gradients[parameter], f"the gradient of {name} by {parameter}")
        keep(self.graphs, Graph(name, loss, gradient))

    @precondition(lambda self: self.graphs)
    @rule(which=st.integers(0, KEPT - 1), retain=st.booleans())
    def backward(self, which: int, retain: bool) -> None:
        """Any graph may be gone through again, also one that was freed."""
        self.go_through(self.graphs[-1 - which % len(self.graphs)], retain)

    @rule(case=batches(), retain=st.booleans())
    def forward_and_backward(self, case: Case, retain: bool) -> None:
        """The two together, as they mostly are."""
        self.forward(case)
        self.go_through(self.graphs[-1], retain)

    @precondition(lambda self: self.state.gradients)
    @rule(to_none=st.booleans())
    def zero_grad(self, to_none: bool) -> None:
        """Every gradient, also of a frozen parameter, is None, or zeros where there was one; graphs stay good."""
        self.steps.append(f"zero_grad(set_to_none={to_none})")

        self.net.zero_grad(set_to_none=to_none)

        zeros = {name: torch.zeros_like(gradient) for name, gradient in self.state.gradients.items()}
        self.state = replace(self.state, gradients={} if to_none else zeros)

    @precondition(lambda self: self.state.gradients)
    @rule(lr=rates())
    def update_by_hand(self, lr: float) -> None:
        """The subject's `sgd_update` moves every parameter that has a gradient, also a frozen one, and no other."""
        self.steps.append(f"sgd_update(lr={lr})")

        self.stack.subject.sgd_update(self.net.parameters(), lr)

        self.take_over(lr)

    @precondition(lambda self: self.state.gradients)
    @rule(lr=rates(), form=st.runner().flatmap(lambda machine: st.sampled_from(forms(machine.stack))))
    def update_by_optimizer(self, lr: float, form: str) -> None:
        """A step of `optim.SGD` does the same, in each of its forms."""
        self.steps.append(f"optim.SGD(lr={lr}), {form}")

        optim.SGD(self.net.parameters(), lr=lr, **SGD_FORMS[form]).step()

        self.take_over(lr)

    @precondition(lambda self: self.state.trained)
    @rule(case=batches(), lr=rates())
    def train(self, case: Case, lr: float) -> None:
        """The subject's `train_step` forgets earlier gradients, leaves that of its own pass, and updates by it."""
        self.steps.append(f"train_step on {case}, lr={lr}")
        answer = self.answer(case)

        loss = self.stack.subject.train_step(self.net, self.stack.images(case), self.stack.targets(case), lr)

        assert_within_budget(loss, answer.loss, "loss")
        assert not loss.requires_grad, "the loss is not detached"
        after = gradients(self.net)
        for name, gradient in answer.gradients.items():
            if name in self.state.trained:
                assert name in after, f"{name}.grad is None"
                assert_within_budget(after[name], gradient, f"{name}.grad")
            elif name in after:
                assert_exact(after[name], torch.zeros_like(after[name]), f"the frozen {name}.grad")
        self.state = replace(self.state, gradients=after)
        self.take_over(lr)

    @rule(save=st.booleans(), fresh=st.booleans())
    def load(self, save: bool, fresh: bool) -> None:
        """A net takes the numbers that were saved last and keeps the rest; a new one has no gradients, all trained."""
        self.steps.append(f"{'save, ' if save else ''}load into {'a new net' if fresh else 'the net'}")
        if save:
            self.save()
        if fresh:
            self.go_on_with(self.stack.subject.Net().to(self.stack.device, self.stack.dtype))
            self.state = State({}, {}, frozenset(SHAPES))
        content, parameters = self.saved

        self.net.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))

        self.state = replace(self.state, parameters=parameters)
        self.age_graphs(SHAPES)

    @rule(go_on_with_it=st.booleans())
    def deepcopy(self, go_on_with_it: bool) -> None:
        """A copy has the same parameters, as frozen, and shares nothing; its gradients are the same, or None."""
        self.steps.append(f"deepcopy, go on with the {'copy' if go_on_with_it else 'original'}")

        twin = copy.deepcopy(self.net)

        copied = {name: g for name, g in self.state.gradients.items() if name in gradients(twin)}
        copied_state = replace(self.state, gradients=copied)
        if go_on_with_it:
            self.go_on_with(twin)
            self.state = copied_state
        else:
            keep(self.left, (twin, copied_state))

    @rule(place=places())
    def freeze(self, place: str) -> None:
        """
        A frozen parameter keeps its gradient and is given no more, until it is trained again.

        Then also by the graphs that were made before it was frozen, but not by those that were made while it was.
        """
        names = {name for name in SHAPES if name.startswith(place)}
        frozen = names.isdisjoint(self.state.trained)
        self.steps.append(f"{'unfreeze' if frozen else 'freeze'} {place or 'all'}")

        for name in names:
            self.net.get_parameter(name).requires_grad_(frozen)

        now = self.state.trained | names if frozen else self.state.trained - names
        self.state = replace(self.state, trained=now)

    @rule(dtype=st.sampled_from(DTYPES))
    def convert(self, dtype: torch.dtype) -> None:
        """
        `net.to(dtype)` and back rounds parameters and gradients to the dtype, and leaves frozen what is.

        Nothing is computed there: a subject may know no other dtype than the one that is judged.
        """
        own = self.stack.dtype
        self.steps.append(f"to {dtype} and back")

        for there in (dtype, own):
            self.net.to(there)

            parameters, gradients = to(self.state.parameters, there), to(self.state.gradients, there)
            self.state = replace(self.state, parameters=parameters, gradients=gradients)
            assert_state(self.net, self.state, f"in {there} the net's")
        if dtype != own:
            self.forget_graphs()  # what they have saved is of two dtypes

    def answer(self, case: Case) -> Answer:
        """The oracle's answer to the case's images and targets, for the net's parameters as they are."""
        images, targets = float64(self.stack.images(case)), float64(self.stack.targets(case))
        parameters = {name: float64(value) for name, value in self.state.parameters.items()}
        return oracle.solve(parameters, images, targets, self.stack.precision, seed=case.seed)

    def go_through(self, graph: Graph, retain: bool) -> None:
        """
        Each pass through a graph adds its gradient again, to every parameter that is not frozen by now.

        Where the graph was freed, or no parameter was trained, it raises RuntimeError and changes nothing. Where the
        parameters have changed since, it adds the gradient as of before, or raises: which of the two depends on what
        the graph has saved, and some may be added before it raises, but never a mixture of old and new.
        """
        self.steps.append(f"backward of {graph.name}, which is {graph.now}, retain_graph={retain}")
        before, after = self.state.gradients, plus(self.state.gradients, self.due(graph))

        raised = complaint(graph.loss, retain)

        assert re.search(RAISED[graph.now], raised), f"backward of a {graph.now} graph raised {raised or 'nothing'}"
        if graph.now == "stale":
            self.graphs.remove(graph)
            after = partly(gradients(self.net), before, after) if raised else after
        if graph.now != "gone":
            self.state = replace(self.state, gradients=after)
        if not retain:
            graph.now = "gone"

    def due(self, graph: Graph) -> Tensors:
        """What a pass through the graph adds: frozen parameters are given nothing."""
        return {name: gradient for name, gradient in graph.gradient.items() if name in self.state.trained}

    def take_over(self, lr: float) -> None:
        """Judge an update by the gradients that are there, and take over its numbers."""
        old, new = dict(self.state.parameters), to(state(self.net).parameters, self.stack.dtype)
        for name, gradient in self.state.gradients.items():
            exact, _ = SGD(lr).step(float64(old[name]), float64(gradient), None, self.stack.precision)
            assert_rounded(new[name], exact, name)
            old[name] = new[name]
        self.state = replace(self.state, parameters=old)
        self.age_graphs(self.state.gradients)

    def save(self) -> None:
        """Write the parameters as a file has them."""
        file = io.BytesIO()
        torch.save(self.net.state_dict(), file)
        self.saved = file.getvalue(), self.state.parameters

    def go_on_with(self, net: nn.Module) -> None:
        """Another net takes the place of this one, which must stay as it is: its graphs are used no more."""
        keep(self.left, (self.net, self.state))
        self.net = net
        self.forget_graphs()

    def age_graphs(self, changed: Iterable[str]) -> None:
        """
        After a change of parameters the graphs are stale, if autograd has counted it; the latest is tried at once.

        If not, backward may give anything. So it is after a change of `.data`, and, with torch 2.13.0, a fused step.
        """
        counted = counts(self.net)
        if any(counted[name] == self.counted[name] for name in changed):
            self.forget_graphs()
        good = [graph for graph in self.graphs if graph.now == "good"]
        for graph in good:
            graph.now = "stale"
        if good:
            self.go_through(good[-1], retain=False)

    def forget_graphs(self) -> None:
        """Nothing can be said of the graphs any more, but that those that are gone stay so."""
        self.graphs = [graph for graph in self.graphs if graph.now == "gone"]


def test_training_in_any_order_matches_the_model(stack: Stack) -> None:
    """
    Whatever the order of the steps of training, each changes what it must, bit for bit or within budget, and no more.

    Forward, backward through graphs new, kept, freed and older than an update, zero_grad, updates by hand and by
    `optim.SGD`, train_step, save and load, deepcopy, freezing, dtypes. Rejects: a gradient that is overwritten, lost or
    given to a frozen parameter, what copies share, a parameter that an update leaves out, state kept between steps.
    """
    ledger.examples = 0  # the runs are counted, not the law's one call
    # A partial, because Hypothesis tells one machine's examples from another's by what it is made with: the stack.
    run_state_machine_as_test(
        partial(Training, stack=stack), settings=settings(settings.default, stateful_step_count=STEPS)
    )
