"""
Mutants, each with one fault that a law must reject, and twins, which are correct but look different.

Both test the laws. Both are subjects like a user's code: `--subject properties.mutants.KIND:NAME` selects one, and
`tox run -e mutants` judges all of them. The categories of faults are those of published studies:

- Humbatova et al. 2020, "Taxonomy of Real Faults in Deep Learning Systems", ICSE, figure 2;
- Humbatova, Jahangirova & Tonella 2021, "DeepCrime: Mutation Testing of Deep Learning Systems Based on Real Faults",
  ISSTA, table 1 (the names of its operators, in brackets);
- Islam et al. 2019, "A Comprehensive Study on Deep Learning Bug Characteristics", ESEC/FSE, section 3.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    "recipes",
    "numerics",
    "interface",
    "scaling",
    "data",
    "hooks",
    "masked",
)
"""The modules of mutants; the docstring of each says which part of training has the fault, and ends a diagnosis."""


BLIND: dict[str, dict[str, str]] = {}
"""The laws that reject no mutant in a dtype in which they judge: by law and dtype, why no mutant is missing."""


class Category(StrEnum):
    """The category of a fault in published taxonomies of real faults."""

    LAYER = "Humbatova 2020, Model, Layers: missing, redundant or wrong layer"
    LAYER_PROPERTIES = "Humbatova 2020, Model, Layers: wrong layer properties"
    ACTIVATION = "Humbatova 2020, Model, Activation function: missing or wrong [DeepCrime ARM, AAL, ACH]"
    INITIALIZATION = "Humbatova 2020, Training, Hyperparameters: weights initialization [DeepCrime WCI]"
    BIAS = "Humbatova 2020, Model, Layers: bias needed or not [DeepCrime WAB, WRB]"
    MODEL_PROPERTIES = "Humbatova 2020, Model, Model type and properties"
    TENSOR_SHAPE = "Humbatova 2020, Tensors and inputs: wrong tensor shape"
    INPUT = "Humbatova 2020, Tensors and inputs: wrong input"
    LOSS = "Humbatova 2020, Training, Loss function: wrong calculation or selection [DeepCrime LCH]"
    LABELS = "Humbatova 2020, Training, Training data quality: wrong labels [DeepCrime TCL]"
    LEARNING_RATE = "Humbatova 2020, Training, Hyperparameters: learning rate [DeepCrime HLR]"
    BATCH = "Humbatova 2020, Training, Hyperparameters: data batching [DeepCrime HBS, HDB]"
    OPTIMIZER = "Humbatova 2020, Training, Optimizer: wrong choice or parameters [DeepCrime OCH]"
    CLIPPING = "Humbatova 2020, Training, Optimizer: gradient clipping [DeepCrime OCG]"
    REGULARIZATION = "Humbatova 2020, Training, Regularization [DeepCrime RAW, RCW, RRW, RCD]"
    PROCESS = "Humbatova 2020, Training, Training process"
    GPU = "Humbatova 2020, GPU usage"
    API = "Humbatova 2020, API: wrong or missing call"
    COMPUTATION_MODEL = "Islam 2019, confusion with the computation model"
    TYPE_CHECK = "Islam 2019, absence of type checking"
    UNALIGNED_TENSOR = "Islam 2019, unaligned tensor"
    API_CHANGE = "Islam 2019, API change"
    NUMERICS = "Islam 2019, data bug: numbers beyond their range or precision"
    UPSTREAM = "a bug in a released version of a framework"


@dataclass(frozen=True)
class Variant:
    """An entry of the catalogue: a mutant, or, if `law` is empty, a twin."""

    spec: str
    part: str  # what differs from the reference: Net, sgd_update, train_step, or the name of a replaced part of PyTorch
    statement: str  # its docstring: the fault, or what differs and why it is correct
    law: str = ""
    category: str = ""
    dtype: str = "float32"  # in which all laws judge it
    unseen: Mapping[str, str] = field(default_factory=dict)  # the other dtypes in which no law rejects it, and why

    @property
    def kind(self) -> str:
        """The name of its module."""
        return self.spec.split(":")[0].rpartition(".")[2]

    @property
    def name(self) -> str:
        """The name of its class or function."""
        return self.spec.partition(":")[2]

    @property
    def parts(self) -> set[str]:
        """The parts of the subject that differ from the reference; an update also changes the step that calls it."""
        return {self.part, "train_step"} if self.part == "sgd_update" else {self.part}


_registered: list[Variant] = []


def mutant(
    part: str, law: str, category: Category, dtype: str = "float32", unseen: Mapping[str, str] | None = None
) -> Callable[[Any], Any]:
    """
    Return a decorator that registers a mutant: a `part` of a subject with the fault that its docstring states.

    `law`, without its prefix `test_`, is the law that must reject it in `dtype`. In each other dtype in which that law
    judges, some law must, unless `unseen` has the reason why the fault cannot be seen there.
    """
    return lambda faulty: _register(faulty, part, f"test_{law}", str(category), dtype, unseen or {})


def twin(part: str) -> Callable[[Any], Any]:
    """Return a decorator that registers a twin: a correct `part` of a subject that differs as its docstring states."""
    return lambda correct: _register(correct, part)


def _register(variant: Any, part: str, *rest: str) -> Any:
    spec = f"{variant.__module__}:{variant.__name__}"
    _registered.append(Variant(spec, part, inspect.cleandoc(variant.__doc__), *rest))
    if part == "Net":
        return variant
    return SimpleNamespace(**({"replaces": {part: variant}} if part.startswith("torch.") else {part: variant}))


def all_mutants() -> list[Variant]:
    """Return all mutants, in the order of their kinds."""
    return [variant for kind in KINDS for variant in _variants_of(kind)]


def all_twins() -> list[Variant]:
    """Return all twins. (`twins` is the name of their module.)"""
    return _variants_of("twins")


def _variants_of(module: str) -> list[Variant]:
    name = f"{__name__}.{module}"
    importlib.import_module(name)
    return [variant for variant in _registered if variant.spec.startswith(f"{name}:")]
