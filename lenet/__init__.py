"""The network of PyTorch's "Neural Networks" tutorial, how to train it, and what it is verified against."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenet.net import Net, feature_maps
    from lenet.training import sgd_update, train_step

__all__ = ["Net", "feature_maps", "sgd_update", "train_step"]

_HOME = {"Net": "net", "feature_maps": "net", "sgd_update": "training", "train_step": "training"}


def __getattr__(name: str) -> Any:
    """Import on first use: the oracle can be had without torch, and `python -m lenet.training` runs only once."""
    if name in _HOME:
        return getattr(import_module(f"lenet.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lenet' has no attribute {name!r}")
