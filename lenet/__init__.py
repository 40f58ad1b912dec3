"""The network of PyTorch's "Neural Networks" tutorial, its training, and the oracle that verifies both."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenet.net import Net, feature_maps
    from lenet.training import sgd_update, train_step

__all__ = ["Net", "feature_maps", "sgd_update", "train_step"]

_MODULE_OF = {"Net": "net", "feature_maps": "net", "sgd_update": "training", "train_step": "training"}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `lenet.oracle` can be imported without torch."""
    if name in _MODULE_OF:
        return getattr(import_module(f"lenet.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'lenet' has no attribute {name!r}")
