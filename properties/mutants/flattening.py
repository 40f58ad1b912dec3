"""The flattening of conv2's maps (N,16,5,5) to features (N,400)."""

from __future__ import annotations

import torch
from torch import Tensor

from properties.mutants import Category, mutant
from properties.mutants.staged import StagedNet


@mutant("Net", law="logits_have_shape_dtype_and_device", category=Category.TENSOR_SHAPE)
class FlattensBatchDimension(StagedNet):
    """`torch.flatten` without `start_dim=1` also flattens the batch: the logits of one image have shape (10,)."""

    def flatten(self, maps: Tensor) -> Tensor:
        return torch.flatten(maps)


@mutant("Net", law="wrong_image_size_raises_or_gives_one_row_per_image", category=Category.TENSOR_SHAPE)
class ViewMinusOne400(StagedNet):
    """`view(-1, 400)` without a check of the image size: a larger image becomes several rows of features."""

    def check(self, images: Tensor) -> None:
        pass

    def flatten(self, maps: Tensor) -> Tensor:
        return maps.reshape(-1, 400)


@mutant("Net", law="wrong_image_size_raises_or_gives_one_row_per_image", category=Category.TENSOR_SHAPE)
class FeaturesFlowIntoNextRow(StagedNet):
    """Each row has the next 400 features of the batch: with a larger image, the rest of it fills the next row."""

    def check(self, images: Tensor) -> None:
        pass

    def flatten(self, maps: Tensor) -> Tensor:
        return maps.flatten()[: 400 * len(maps)].view(-1, 400)


@mutant("Net", law="permuting_channels_and_units_preserves_logits", category=Category.UNALIGNED_TENSOR)
class FlattensChannelsLast(StagedNet):
    """The features have the order row, column, channel, for which the weights of another framework would fit."""

    def flatten(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).flatten(1)


@mutant("Net", law="one_hot_weights_route_pixels_to_logits", category=Category.UNALIGNED_TENSOR)
class FlattensColumnMajor(StagedNet):
    """Each 5x5 map is flattened in column-major order."""

    def flatten(self, maps: Tensor) -> Tensor:
        return maps.transpose(2, 3).flatten(1)


@mutant("Net", law="splitting_the_batch_preserves_logits", category=Category.UNALIGNED_TENSOR)
class BatchAndChannelsSwapped(StagedNet):
    """Batch and channels are transposed before the reshape, so that each image gets features of other images."""

    def flatten(self, maps: Tensor) -> Tensor:
        return maps.transpose(0, 1).reshape(-1, 400)


@mutant("Net", law="results_are_correct_in_any_memory_layout", category=Category.UNALIGNED_TENSOR)
class FlattensInMemoryOrder(StagedNet):
    """The features are read in memory order, regardless of the maps' strides."""

    def flatten(self, maps: Tensor) -> Tensor:
        return maps.as_strided((len(maps), 400), (400, 1))
