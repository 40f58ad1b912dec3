"""
What the laws are judged by: mutants, each with one fault that a law must reject, and twins, correct and different.

Both come through the same door as a user's code, `--subject properties.mutants.KIND:NAME`. `tox run -e mutants` judges
them all. The faults' categories are those of published studies:

- Humbatova et al. 2020, "Taxonomy of Real Faults in Deep Learning Systems", ICSE, figure 2;
- Humbatova, Jahangirova & Tonella 2021, "DeepCrime: Mutation Testing of Deep Learning Systems Based on Real Faults",
  ISSTA, table 1 (the names of its operators, in brackets);
- Islam et al. 2019, "A Comprehensive Study on Deep Learning Bug Characteristics", ESEC/FSE, section 3.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from types import SimpleNamespace
from typing import Any

KINDS = (
    "structure",
    "activation",
    "flattening",
    "state",
    "gradients",
    "loss",
    "step",
    "update",
    "optimizer",
    "numbers",
    "interface",
    "scaling",
)
"""The modules of mutants, each about one thing that can be faulty; their docstrings say where to look for it."""


class Category(StrEnum):
    """Where published taxonomies of real faults have a fault."""

    LAYER = "Humbatova 2020, Model, Layers: missing, redundant or wrong layer"
    LAYER_PROPERTIES = "Humbatova 2020, Model, Layers: wrong layer properties"
    ACTIVATION = "Humbatova 2020, Model, Activation function: missing or wrong [DeepCrime ARM, AAL, ACH]"
    INITIALISATION = "Humbatova 2020, Training, Hyperparameters: weights initialisation [DeepCrime WCI]"
    BIAS = "Humbatova 2020, Model, Layers: bias needed or not [DeepCrime WAB, WRB]"
    MODEL_PROPERTIES = "Humbatova 2020, Model, Model type and properties"
    TENSOR_SHAPE = "Humbatova 2020, Tensors and inputs: wrong tensor shape"
    INPUT = "Humbatova 2020, Tensors and inputs: wrong input"
    LOSS = "Humbatova 2020, Training, Loss function: wrong calculation or selection [DeepCrime LCH]"
    LABELS = "Humbatova 2020, Training, Training data quality: wrong labels [DeepCrime TCL]"
    LEARNING_RATE = "Humbatova 2020, Training, Hyperparameters: learning rate [DeepCrime HLR]"
    BATCH = "Humbatova 2020, Training, Hyperparameters: data batching [DeepCrime HBS, HDB]"
    OPTIMISER = "Humbatova 2020, Training, Optimiser: wrong choice or parameters [DeepCrime OCH]"
    CLIPPING = "Humbatova 2020, Training, Optimiser: gradient clipping [DeepCrime OCG]"
    REGULARISATION = "Humbatova 2020, Training, Regularisation [DeepCrime RAW, RCW, RRW, RCD]"
    PROCESS = "Humbatova 2020, Training, Training process"
    GPU = "Humbatova 2020, GPU usage"
    API = "Humbatova 2020, API: wrong or missing call"
    COMPUTATION_MODEL = "Islam 2019, confusion with the computation model"
    TYPE_CHECK = "Islam 2019, absence of type checking"
    UNALIGNED_TENSOR = "Islam 2019, unaligned tensor"
    API_CHANGE = "Islam 2019, API change"
    NUMERICS = "Islam 2019, data bug: numbers beyond their range or precision"
    UPSTREAM = "a bug that a framework shipped"


@dataclass(frozen=True)
class Variant:
    """An entry of the catalogue: a mutant, or a twin, which no law is to reject."""

    spec: str
    part: str  # of a subject what is other: Net, sgd_update, train_step, or the name of what it replaces of PyTorch
    wording: str
    law: str = ""
    category: str = ""
    dtype: str = "float32"

    @property
    def kind(self) -> str:
        """The module that it is in."""
        return self.spec.split(":")[0].rpartition(".")[2]

    @property
    def name(self) -> str:
        """What it is called there."""
        return self.spec.partition(":")[2]

    @property
    def parts(self) -> set[str]:
        """What of a subject is other: a step is taken with the subject's own update."""
        return {self.part, "train_step"} if self.part == "sgd_update" else {self.part}


_entered: list[Variant] = []


def mutant(part: str, law: str, category: Category, dtype: str = "float32") -> Callable[[Any], Any]:
    """
    Enter a class or function as a mutant: `part` of a subject with the one fault that its docstring states.

    `law` is the one that is to reject it, in `dtype`, without its `test_`.
    """
    return lambda faulty: _enter(faulty, part, f"test_{law}", str(category), dtype)


def twin(part: str) -> Callable[[Any], Any]:
    """Enter a class or function as a twin: `part` of a subject, correct, and different in what its docstring states."""
    return lambda correct: _enter(correct, part)


def _enter(variant: Any, part: str, *rest: str) -> Any:
    spec = f"{variant.__module__}:{variant.__name__}"
    _entered.append(Variant(spec, part, inspect.cleandoc(variant.__doc__), *rest))
    if part == "Net":
        return variant
    return SimpleNamespace(**({"replaces": {part: variant}} if part.startswith("torch.") else {part: variant}))


def all_mutants() -> list[Variant]:
    """All mutants, by kind."""
    return [variant for kind in KINDS for variant in _of(kind)]


def all_twins() -> list[Variant]:
    """All twins; not called `twins`, which is their module."""
    return _of("twins")


def _of(module: str) -> list[Variant]:
    name = f"{__name__}.{module}"
    importlib.import_module(name)
    return [variant for variant in _entered if variant.spec.startswith(f"{name}:")]
