"""The options of `F.cross_entropy`, in the form in which the oracle computes them: as weights of the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from lenet import oracle
from lenet.oracle import Array, Loss
from properties.case import Case
from properties.laws.networks import cross_entropy_targets
from properties.stack import Stack, float64
from properties.strategies import LossOptions, cases

UNEQUAL_LOGITS = Case(weights="pairs", batch=5)
"""A case whose logits differ by 5 to 8, so that every option of the loss matters in 16 bits; an image is a 3."""


@dataclass(frozen=True)
class CrossEntropy:
    """
    A call of `F.cross_entropy`, and what its documentation says it computes.

    The loss of image n is -sum(weights[n] * log_softmax(logits[n])), and the mean is the sum of all divided by
    `divisor`. https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """

    targets: Tensor  # class indices (N,) or a weight of each class (N,10)
    options: dict[str, Any]
    weights: Array  # N,10
    divisor: float

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the loss of the logits (N,10): a scalar, or (N,) if it is not reduced."""
        return F.cross_entropy(logits, self.targets, **self.options)

    @property
    def exact(self) -> Loss:
        """The oracle's loss function: the mean, or else the sum of all images' losses."""
        divisor = self.divisor if self.options["reduction"] == "mean" else 1.0
        return oracle.scaled(oracle.cross_entropy, len(self.weights) / divisor)


def cross_entropy_of(stack: Stack, case: Case, options: LossOptions) -> CrossEntropy:
    """Return the cross-entropy of the case, which has at least one image, with these options."""
    case, targets = cross_entropy_targets(stack, case, options.targets)
    arguments: dict[str, Any] = {"reduction": options.reduction, "label_smoothing": options.label_smoothing}
    by_class = stack.tensor(options.class_weights(case.seed))
    if options.weighted:
        arguments["weight"] = by_class
    mixture = (1 - options.label_smoothing) * float64(stack.targets(case)) + options.label_smoothing / 10
    weights, divisor = float64(by_class) * mixture, float(case.batch)
    if options.targets == "indices":
        ignored = options.ignore_index + int(targets[0] == options.ignore_index)  # so that the first image counts
        arguments["ignore_index"] = ignored
        kept = (targets != ignored).cpu().numpy() & options.kept(case.seed, case.batch)
        divisor = float(float64(by_class)[targets.cpu().numpy()][kept].sum())
        targets = torch.where(torch.tensor(kept, device=stack.device), targets, ignored)
        weights = weights * kept[:, None]
    return CrossEntropy(targets, arguments, weights, divisor)


def labelled_cases() -> SearchStrategy[Case]:
    """Cases of few images whose numbers stay well within the range of every dtype."""
    return cases(("pairs", "default", "sparse"), ("digits", "normal", "uniform"), (2, 1, 3))
