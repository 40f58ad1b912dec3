"""The network of PyTorch's "Neural Networks" tutorial, how to train it, and what it is verified against."""

from lenet.net import Net, feature_maps
from lenet.training import sgd_update, train_step

__all__ = ["Net", "feature_maps", "sgd_update", "train_step"]
