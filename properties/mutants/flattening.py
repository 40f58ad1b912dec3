"""The flattening of conv2's maps (N,16,5,5) to features (N,400)."""

from __future__ import annotations

import torch
from torch import Tensor

from properties.mutants import Category, mutant
from properties.mutants.staged import Staged


@mutant("Net", law="one_image_gives_ten_logits", category=Category.TENSOR_SHAPE)
class FromTheFirstDimension(Staged):
    """`torch.flatten` without its `start_dim` takes the batch in: one image gives ten scores without their row."""

    def flatten(self, maps: Tensor) -> Tensor:
        return torch.flatten(maps)


@mutant("Net", law="wrong_image_size_raises", category=Category.TENSOR_SHAPE)
class FourHundredAtATime(Staged):
    """`view(-1, 400)`, and no look at the images: one that is too large becomes several rows of features."""

    def check(self, images: Tensor) -> None:
        pass

    def flatten(self, maps: Tensor) -> Tensor:
        return maps.reshape(-1, 400)


@mutant("Net", law="permuting_channels_and_units_preserves_logits", category=Category.UNALIGNED_TENSOR)
class ChannelsLast(Staged):
    """The features are in the order row, column, channel: weights of another framework's order would fit."""

    def flatten(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).flatten(1)


@mutant("Net", law="one_hot_weights_route_pixels_to_logits", category=Category.UNALIGNED_TENSOR)
class ColumnsFirst(Staged):
    """Each 5x5 map is flattened column after column."""

    def flatten(self, maps: Tensor) -> Tensor:
        return maps.transpose(2, 3).flatten(1)


@mutant("Net", law="splitting_the_batch_preserves_logits", category=Category.UNALIGNED_TENSOR)
class BatchTakenForChannels(Staged):
    """Channels and images change places before they are reshaped: of several images each has some of the others'."""

    def flatten(self, maps: Tensor) -> Tensor:
        return maps.transpose(0, 1).reshape(-1, 400)


@mutant("Net", law="any_memory_layout_gives_right_results", category=Category.UNALIGNED_TENSOR)
class InMemorysOrder(Staged):
    """The features are taken as they lie in memory, whatever the strides of the maps are."""

    def flatten(self, maps: Tensor) -> Tensor:
        return maps.as_strided((len(maps), 400), (400, 1))
