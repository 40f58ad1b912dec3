"""Loading data: the samples, batches, order and seeds of a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import data

from properties.mutants import Category, mutant

LOADER = "torch.utils.data.DataLoader"


@mutant(LOADER, law="loader_yields_every_sample_once_an_epoch", category=Category.BATCH)
class LastBatchAlwaysDropped(data.DataLoader):
    """A last batch that is not full is always left out."""

    def __init__(self, *args: Any, drop_last: bool = False, **options: Any) -> None:
        super().__init__(*args, drop_last=True, **options)


@mutant(LOADER, law="loader_yields_every_sample_once_an_epoch", category=Category.BATCH)
class LastBatchNeverDropped(data.DataLoader):
    """`drop_last` is ignored."""

    def __init__(self, *args: Any, drop_last: bool = False, **options: Any) -> None:
        super().__init__(*args, drop_last=False, **options)


@mutant(LOADER, law="loader_yields_every_sample_once_an_epoch", category=Category.INPUT)
class SamplesDrawnWithReplacement(data.DataLoader):
    """Shuffled samples are drawn with replacement, so that some occur twice in an epoch and some not at all."""

    def __init__(self, dataset: Any, shuffle: bool = False, generator: Any = None, **options: Any) -> None:
        sampler = data.RandomSampler(dataset, replacement=True, generator=generator) if shuffle else None
        super().__init__(dataset, sampler=sampler, generator=generator, **options)


@mutant(LOADER, law="loader_yields_every_sample_once_an_epoch", category=Category.BATCH)
class LastBatchFilledUp(data.DataLoader):
    """A last batch that is not full is filled up with its own samples."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            short = isinstance(batch, Tensor) and len(batch) < (self.batch_size or 1)
            yield batch.repeat(self.batch_size)[: self.batch_size] if short else batch


@mutant(LOADER, law="loader_yields_every_sample_once_an_epoch", category=Category.COMPUTATION_MODEL)
class SecondEpochEmpty(data.DataLoader):
    """The sampler is an iterator that the first epoch exhausts."""

    def __iter__(self) -> Any:
        batches = self.__dict__.setdefault("batches", super().__iter__())
        return iter(batches) if self.num_workers else batches


@mutant(LOADER, law="loaded_samples_are_unchanged", category=Category.INPUT)
class FirstColumnOfImagesLost(data.DataLoader):
    """The pixels of the first column are set to 1, as by a crop that is padded with white."""

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            if isinstance(batch, list) and batch[0].dim() == 4:
                batch[0][..., 0] = 1
            yield batch


@mutant(LOADER, law="loaded_samples_are_unchanged", category=Category.LABELS)
class TargetsShuffledSeparately(data.DataLoader):
    """The targets of a batch are in the reverse order of its images."""

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            if isinstance(batch, list) and batch[0].dim() == 4:
                batch[1] = batch[1].flip(0)
            yield batch


@mutant(LOADER, law="loaded_samples_are_unchanged", category=Category.NUMERICS, unseen={"bfloat16": "it is the dtype"})
class ImagesStoredInBfloat16(data.DataLoader):
    """Images are rounded to bfloat16, as in a cache of half the size."""

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            if isinstance(batch, list) and batch[0].dim() == 4:
                batch[0] = batch[0].bfloat16().to(batch[0].dtype)
            yield batch


@mutant(LOADER, law="seed_determines_the_order_of_each_epoch", category=Category.API)
class GeneratorIgnored(data.DataLoader):
    """The order depends on the global seed even if a generator is given."""

    def __init__(self, *args: Any, generator: Any = None, **options: Any) -> None:
        super().__init__(*args, **options)


@mutant(LOADER, law="seed_determines_the_order_of_each_epoch", category=Category.INPUT)
class SameOrderEveryEpoch(data.DataLoader):
    """The generator is set back to its first seed before each epoch."""

    def __iter__(self) -> Any:
        if self.generator is not None:
            self.generator.manual_seed(self.generator.initial_seed())
        return super().__iter__()


@mutant(LOADER, law="seed_determines_the_order_of_each_epoch", category=Category.INPUT)
class OrderFromOtherRandomness(data.DataLoader):
    """Samples are shuffled by a generator with a new seed from the operating system, so that no run can be repeated."""

    def __init__(self, *args: Any, generator: Any = None, **options: Any) -> None:
        generator = torch.Generator()
        generator.seed()
        super().__init__(*args, generator=generator, **options)


def restart(worker: int) -> None:
    """Give each worker the same seed."""
    info = data.get_worker_info()
    assert info is not None, "called outside of a worker"
    torch.manual_seed(info.seed - worker)


@mutant(LOADER, law="workers_draw_different_random_numbers", category=Category.INPUT)
class WorkersHaveTheSameSeed(data.DataLoader):
    """All workers start from the seed of the epoch, without their number, so that they draw the same numbers."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, worker_init_fn=restart, **options)


@mutant(LOADER, law="workers_draw_different_random_numbers", category=Category.INPUT)
class WorkersStartEqualInEveryEpoch(data.DataLoader):
    """The seed of the workers is the same in every epoch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, worker_init_fn=torch.manual_seed, **options)


@mutant(LOADER, law="workers_draw_different_random_numbers", category=Category.PROCESS)
class WorkersIgnored(data.DataLoader):
    """The main process loads all samples, whatever the number of workers."""

    def __init__(self, *args: Any, num_workers: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
