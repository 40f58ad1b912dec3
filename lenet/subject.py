"""
What is judged: from an option's text to a `Subject`, and a clear refusal of what cannot be judged.

A subject is a module, a file or any object in one of them, `package.module`, `package.module:Name`, `path/to/file.py`
or `path/to/file.py:Name`. What it does not define is taken from `lenet`. A class derived from `nn.Module` stands for
`Net`, a function named `sgd_update` or `train_step` for itself. Parts of PyTorch are judged through `replaces`, the
subject's own implementations by the full names of those whose place they take while it is judged.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor, nn

import lenet

CONTRACT = ("Net", "sgd_update", "train_step")
REPLACES = "replaces"


class SubjectError(ValueError):
    """A subject that cannot be judged; the message is one line that says what was asked for and what was found."""


@dataclass(frozen=True)
class Subject:
    """
    What is judged: `Net()`, `sgd_update(parameters, lr)` and `train_step(net, images, targets, lr)`.

    With what it puts in PyTorch's place, such as `{"torch.optim.SGD": MySGD}`.
    """

    spec: str
    Net: Callable[[], nn.Module]
    sgd_update: Callable[[Iterable[nn.Parameter], float], None]
    train_step: Callable[[nn.Module, Tensor, Tensor, float], Tensor]
    replaces: Mapping[str, Callable[..., Any]] = field(default_factory=dict, hash=False)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While this lasts, what the subject replaces of PyTorch is replaced, wherever it is looked up by its name."""
        with ExitStack() as replaced:
            for name, part in self.replaces.items():
                replaced.enter_context(mock.patch(name, part))
            yield


def load(spec: str) -> Subject:
    """The subject that `spec` names; raises SubjectError where there is none, or none that can be judged."""
    place, _, name = spec.partition(":")
    found: Any = _file(spec, Path(place)) if place.endswith(".py") else _module(spec, place)
    if name:
        try:
            found = reduce(getattr, name.split("."), found)
        except AttributeError:
            public = ", ".join(n for n in dir(found) if not n.startswith("_")) or "nothing"
            raise SubjectError(f"--subject {spec}: {place} has no {name}; it defines {public}") from None
    parts = _parts(spec, found)
    if "sgd_update" in parts:  # the reference's step, taken with the subject's own update
        parts.setdefault("train_step", partial(lenet.train_step, update=parts["sgd_update"]))
    subject = Subject(spec, **{part: getattr(lenet, part) for part in CONTRACT} | parts)
    _check_replaces(subject)
    with subject.installed():
        _check(subject)
    return subject


def _file(spec: str, path: Path) -> Any:
    if not path.is_file():
        raise SubjectError(f"--subject {spec}: there is no file {path}")
    description = importlib.util.spec_from_file_location(path.stem, path)
    assert description is not None, "a path that ends in .py has a loader"
    assert description.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(description)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickle look their module up there
    sys.path.append(str(path.parent.resolve()))  # for what lies beside it
    with _importing(spec):
        description.loader.exec_module(module)
    return module


def _module(spec: str, name: str) -> Any:
    absent = SubjectError(f"--subject {spec}: there is no module {name!r}; a file is given as path/to/file.py")
    if not all(part.isidentifier() for part in name.split(".")):
        raise absent
    with _importing(spec):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if f"{name}.".startswith(f"{error.name}."):
                raise absent from None
            raise


@contextmanager
def _importing(spec: str) -> Iterator[None]:
    """Turn whatever a subject raises while it is imported into a SubjectError."""
    try:
        yield
    except SubjectError:
        raise
    except (Exception, SystemExit) as error:
        raise SubjectError(f"--subject {spec}: raised while it was imported: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _parts(spec: str, found: Any) -> dict[str, Any]:
    """What `found` defines of the contract, by name."""
    if isinstance(found, type) and issubclass(found, nn.Module):
        return {"Net": found}
    if getattr(found, "__name__", None) in CONTRACT and callable(found):
        return {found.__name__: found}
    if parts := {name: getattr(found, name) for name in (*CONTRACT, REPLACES) if hasattr(found, name)}:
        return parts
    wanted = ", ".join((*CONTRACT, REPLACES))
    raise SubjectError(f"--subject {spec}: defines none of {wanted}, and is no nn.Module class")


def _check_replaces(subject: Subject) -> None:
    """Refuse to replace what PyTorch does not have, or by what cannot be called."""
    if not isinstance(subject.replaces, Mapping):
        raise SubjectError(f"--subject {subject.spec}: its replaces is no mapping from a name to an implementation")
    for name, part in subject.replaces.items():
        try:
            if not name.startswith("torch."):
                raise ValueError(name)
            pkgutil.resolve_name(name)
        except (AttributeError, ImportError, ValueError, TypeError):
            example = "torch.nn.functional.relu"
            raise SubjectError(
                f"--subject {subject.spec}: replaces {name!r}, which is no name like {example}"
            ) from None
        if not callable(part):
            raise SubjectError(f"--subject {subject.spec}: what it replaces {name} by is not callable")


def _check(subject: Subject) -> None:
    """Refuse a subject that is not callable, or whose Net cannot load the reference's parameters."""
    for part in CONTRACT:
        if not callable(getattr(subject, part)):
            raise SubjectError(f"--subject {subject.spec}: its {part} is not callable")
    wanted = {name: tuple(value.shape) for name, value in lenet.Net().state_dict().items()}
    try:
        got = {name: tuple(value.shape) for name, value in subject.Net().state_dict().items()}
    except Exception as error:
        raise SubjectError(f"--subject {subject.spec}: its Net() raised {_line(error)}") from error
    differences = [f"{name} {list(shape)} is missing" for name, shape in wanted.items() if name not in got]
    differences += [f"{name} {list(shape)} is not in lenet.Net" for name, shape in got.items() if name not in wanted]
    differences += [
        f"{name} is {list(got[name])} where lenet.Net has {list(shape)}"
        for name, shape in wanted.items()
        if name in got and got[name] != shape
    ]
    if differences:
        raise SubjectError(f"--subject {subject.spec}: its Net cannot load lenet.Net's state: {'; '.join(differences)}")
