"""Laws of loading data: the samples, batches, order and random seeds of a `torch.utils.data.DataLoader`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import data

from properties.case import Case
from properties.comparison import assert_same_bits
from properties.stack import Stack
from properties.strategies import cases

SEEDS = st.integers(0, 2**32 - 1)
ENOUGH = 30
"""Samples of which two random orders agree with a probability of 1 / 30!, less than 1e-32."""


def generator_of(seed: int) -> torch.Generator:
    """Return a generator of random numbers with this seed."""
    return torch.Generator().manual_seed(seed)


def epoch_of(loader: Any) -> list[list[int]]:
    """Return the batches of an epoch of a dataset of integers."""
    return [batch.tolist() for batch in loader]


@example(count=10, batch=4, drop_last=False, shuffle=True, seed=0)
@example(count=10, batch=4, drop_last=True, shuffle=True, seed=0)
@given(count=st.integers(1, 40), batch=st.integers(1, 12), drop_last=st.booleans(), shuffle=st.booleans(), seed=SEEDS)
def test_loader_yields_every_sample_once_an_epoch(
    stack: Stack, count: int, batch: int, drop_last: bool, shuffle: bool, seed: int
) -> None:
    """
    In each epoch a DataLoader yields every sample once, in batches of the given size.

    The last batch has the rest, or is left out with `drop_last=True`; `len(loader)` counts the batches. Without
    `shuffle` the samples keep their order. https://docs.pytorch.org/docs/stable/data.html Rejects: samples that are
    drawn with replacement, a last batch that is lost or filled up, an epoch that continues the one before.
    """
    loader = torch.utils.data.DataLoader(
        range(count), batch_size=batch, shuffle=shuffle, drop_last=drop_last, generator=generator_of(seed)
    )
    full, rest = divmod(count, batch)
    sizes = [batch] * full + [rest] * (rest > 0 and not drop_last)

    epochs = [epoch_of(loader) for _ in range(2)]

    assert len(loader) == len(sizes), f"len(loader) is {len(loader)}, expected {len(sizes)}"
    for epoch in epochs:
        got, samples = [len(each) for each in epoch], [index for each in epoch for index in each]
        assert got == sizes, f"the batches have {got} samples, expected {sizes}"
        distinct = len(set(samples) & set(range(count)))
        assert distinct == len(samples), f"the samples of an epoch are {samples}, expected each of {count} once"
        assert shuffle or samples == list(range(len(samples))), f"without shuffle the order is {samples}"


@example(case=Case(images="normal", targets="normal", batch=5), batch=4, shuffle=True)
@given(case=cases(batches=(5, 1, 2, 8)), batch=st.integers(1, 4), shuffle=st.booleans())
def test_loaded_samples_are_unchanged(stack: Stack, case: Case, batch: int, shuffle: bool) -> None:
    """
    Each image that a DataLoader yields has the bits of the dataset's image and comes with its own target.

    Whatever the memory layout of the dataset's tensors, which stay unchanged. Rejects: a conversion to another dtype,
    images that are normalized, images and targets that are shuffled separately.
    """
    images, targets = stack.images(case), stack.targets(case)
    before, index = images.clone(), torch.arange(case.batch)
    dataset = data.TensorDataset(images, targets, index)

    for got_images, got_targets, got_index in torch.utils.data.DataLoader(dataset, batch_size=batch, shuffle=shuffle):
        assert_same_bits(got_images, before[got_index], "images of a batch")
        assert_same_bits(got_targets, targets[got_index], "targets of a batch")
    assert_same_bits(images, before, "images of the dataset")


@pytest.mark.parametrize("seeded_by", ["generator", "manual_seed"])
@given(seed=SEEDS, other=SEEDS)
def test_seed_determines_the_order_of_each_epoch(stack: Stack, seeded_by: str, seed: int, other: int) -> None:
    """
    Two DataLoaders with the same seed shuffle alike, in the first epoch and in the second, which has another order.

    The seed is that of the `generator` that the DataLoader is given, or else that of `torch.manual_seed`; with a
    generator, the global seed has no effect. "Reproducibility" in https://docs.pytorch.org/docs/stable/notes/randomness.html
    Rejects: an order that does not depend on the seed, the same order in every epoch, a generator that is ignored.
    """
    orders = []
    with torch.random.fork_rng(devices=[]):
        for global_seed in (seed, other if seeded_by == "generator" else seed):
            torch.manual_seed(global_seed)
            generator = generator_of(seed) if seeded_by == "generator" else None
            loader = torch.utils.data.DataLoader(range(ENOUGH), batch_size=7, shuffle=True, generator=generator)
            orders.append([epoch_of(loader) for _ in range(2)])

    first, second = orders
    assert first == second, f"with the same seed, two DataLoaders have the orders {first} and {second}"
    assert first[0] != first[1], f"two epochs have the same order, {first[0]}"


class RandomNumbers(data.Dataset[tuple[int, int, Tensor]]):
    """A dataset whose samples are their index, the number of the worker that loads them, and a random number."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[int, int, Tensor]:
        worker = data.get_worker_info()
        return index, -1 if worker is None else worker.id, torch.rand(4, dtype=self.dtype)


def test_workers_draw_different_random_numbers(stack: Stack) -> None:
    """
    Worker processes load every sample once and in order, draw different random numbers, and new ones in each epoch.

    With the same generator they draw the same numbers again. A worker's seed is a number drawn for the epoch plus the
    worker's number, as "Randomness in multi-process data loading" says: https://docs.pytorch.org/docs/stable/data.html
    Two epochs and one repetition, since each starts two processes. Rejects: workers that start from the same seed, so
    that they augment alike; an epoch that repeats the random numbers of the one before.
    """
    epochs = []
    for repetition in range(2):
        loader = torch.utils.data.DataLoader(
            RandomNumbers(stack.dtype), batch_size=2, num_workers=2, generator=generator_of(0)
        )
        epochs += [[torch.cat(column) for column in zip(*loader, strict=True)] for _ in range(2 - repetition)]

    for index, worker, numbers in epochs:
        assert index.tolist() == list(range(8)), f"the order of the samples is {index.tolist()}"
        assert set(worker.tolist()) == {0, 1}, f"the samples were loaded by the workers {worker.tolist()}"
        different = len({tuple(row) for row in numbers.tolist()})
        assert different == 8, f"{8 - different} of 8 samples have the random numbers of another sample"
    assert not torch.equal(epochs[0][2], epochs[1][2]), "two epochs have the same random numbers"
    assert_same_bits(epochs[2][2], epochs[0][2], "random numbers with the same generator")
