"""State machines draw the same examples for every subject if the profile is not random."""

from __future__ import annotations

from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from properties.strategies import seed_of_examples, seeded

FEW = settings(derandomize=True, database=None, max_examples=5, stateful_step_count=3)


def drawn(stack: str, seed: int | None) -> list[int]:
    """The numbers that a state machine draws which judges this stack."""
    numbers: list[int] = []

    class Machine(RuleBasedStateMachine):
        def __init__(self, stack: str) -> None:
            super().__init__()

        @rule(number=st.integers())
        def step(self, number: int) -> None:
            numbers.append(number)

    with seed_of_examples(seed):
        run_state_machine_as_test(seeded(partial(Machine, stack=stack)), settings=FEW)
    return numbers


def test_state_machine_draws_the_examples_of_the_seed_whatever_it_judges() -> None:
    assert drawn("lenet", seed=7) == drawn("mine.py", seed=7) != drawn("lenet", seed=8)


def test_state_machine_without_a_seed_is_left_alone() -> None:
    assert drawn("lenet", seed=None) != drawn("mine.py", seed=None)
