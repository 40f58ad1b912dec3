"""
Load a subject, the implementation that is judged, from the text of the option `--subject`.

A subject is a module, a file, or an object in one of them: `package.module`, `package.module:Name`, `path/to/file.py`
or `path/to/file.py:Name`. It defines `Net`, `sgd_update`, `train_step` or `replaces`, and `lenet` provides the rest. An
object may also be a subclass of `nn.Module`, which is used as `Net`, or a function named `sgd_update` or `train_step`.
`replaces` maps full names of parts of PyTorch to implementations that replace them while the subject is judged.

What the laws demand of a subject:

- `Net` maps images (N,1,32,32) of any N, 0 included, to logits (N,10) in the dtype and on the device of its parameters,
  in every dtype that is judged. Each row depends on its own image alone. Images in a memory layout for which it raises
  are not drawn, and the run says so: `Tensor.view` raises for channels_last maps, `torch.flatten` and `reshape` do not.
- It raises an error for input that `nn.Conv2d(1, 6, 5)` rejects: another number of channels; fewer than three or more
  than four dimensions; one or more images of another dtype than the parameters', or on another device, `meta` included;
  anything but a tensor.
- For images of another size, or one image (1,32,32) without a batch dimension, it raises an error or gives one row of
  logits for each image.
- Afterwards it gives the same logits for valid images as before.
- Its `state_dict` has the ten entries of `lenet.Net`, and `load_state_dict` raises the errors of `nn.Module`.
- It may recompute layers by `torch.utils.checkpoint.checkpoint` with `use_reentrant=False`. PyTorch documents that the
  gradients may then be wrong if weights change between the forward pass and the backward pass, so no law judges them.
- `train_step` raises or warns, as `F.mse_loss` does, if the targets are not (N,10). If it raises, no parameter changes.
- A replacement of a part of PyTorch raises an error where that part raises one.
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
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor, nn

import lenet

CONTRACT = ("Net", "sgd_update", "train_step")
"""What a subject may define; `lenet` defines all of them."""

REPLACES = "replaces"
"""The attribute that maps full names of parts of PyTorch to the subject's implementations."""


class SubjectError(ValueError):
    """A subject that cannot be judged; the message is one line that names the option and the problem."""


@dataclass(frozen=True)
class Subject:
    """
    An implementation to judge: `Net()`, `sgd_update(parameters, lr)` and `train_step(net, images, targets, lr)`.

    `replaces` maps full names of PyTorch's functions and classes to replacements, as in `{"torch.optim.SGD": MySGD}`.
    They are replaced where they are looked up by name; names that were imported before keep PyTorch's own.
    """

    spec: str
    Net: Callable[[], nn.Module]
    sgd_update: Callable[[Iterable[nn.Parameter], float], None]
    train_step: Callable[[nn.Module, Tensor, Tensor, float], Tensor]
    replaces: Mapping[str, Callable[..., Any]] = field(default_factory=dict, hash=False)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within this context, replace the parts of PyTorch in `replaces`, wherever they are looked up by name."""
        with ExitStack() as replaced:
            for name, part in self.replaces.items():
                replaced.enter_context(mock.patch(name, part))
            yield


def load(spec: str) -> Subject:
    """Return the subject that `spec` names; raises SubjectError if it does not exist or cannot be judged."""
    with _one_line_error(spec, "import"):
        return _load(spec)


def _load(spec: str) -> Subject:
    place, _, name = spec.partition(":")
    found: Any = _file(spec, Path(place)) if place.endswith(".py") else _module(spec, place)
    if name:
        try:
            found = reduce(getattr, name.split("."), found)
        except AttributeError:
            public = ", ".join(n for n in dir(found) if not n.startswith("_")) or "nothing"
            raise SubjectError(f"--subject {spec}: {place} has no {name}; it defines {public}") from None
    parts = _parts(spec, found)
    if "sgd_update" in parts:  # lenet's training step, with the update of the subject
        parts.setdefault("train_step", partial(lenet.train_step, update=parts["sgd_update"]))
    subject = Subject(spec, **{part: getattr(lenet, part) for part in CONTRACT} | parts)
    _check_replaces(subject)
    with subject.installed():
        _check(subject)
    return subject


def _file(spec: str, path: Path) -> Any:
    if not path.is_file():
        raise SubjectError(f"--subject {spec}: no such file: {path}")
    description = importlib.util.spec_from_file_location(_module_name(path), path)
    assert description is not None, "a path that ends in .py has a spec"
    assert description.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(description)
    sys.modules.setdefault(description.name, module)  # where dataclasses and pickle look up their module
    folder = str(path.parent.resolve())
    sys.path.append(folder)  # so that it can import neighboring files
    _folders.add(folder)
    description.loader.exec_module(module)
    return module


_folders: set[str] = set()
"""The folders of subjects, which are on the import path."""


def _module_name(path: Path) -> str:
    """Return the file's name, or another one if a module of Python or of an installed package has that name."""
    path_without_subjects = [folder for folder in sys.path if folder not in _folders]
    found = PathFinder.find_spec(path.stem, path_without_subjects)
    is_other = found is not None and (found.origin is None or Path(found.origin).resolve() != path.resolve())
    return f"subject_{path.stem}" if is_other or path.stem in sys.builtin_module_names else path.stem


def _module(spec: str, name: str) -> Any:
    absent = SubjectError(f"--subject {spec}: no module named {name!r}; name a file as path/to/file.py")
    if not all(part.isidentifier() for part in name.split(".")):
        raise absent
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if f"{name}.".startswith(f"{error.name}."):
            raise absent from None
        raise


@contextmanager
def _one_line_error(spec: str, what: str) -> Iterator[None]:
    """Turn whatever the subject's code raises in this block into a SubjectError; only the user can interrupt it."""
    try:
        yield
    except (SubjectError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise SubjectError(f"--subject {spec}: {what} raised {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an exception's type and message in one line."""
    try:
        message = str(error)
    except Exception:
        message = "(its message raises an exception)"
    return " ".join(f"{type(error).__name__}: {message}".split())


def _parts(spec: str, found: Any) -> dict[str, Any]:
    """Return the parts of a subject that `found` defines, by name."""
    if isinstance(found, type) and issubclass(found, nn.Module):
        return {"Net": found}
    if getattr(found, "__name__", None) in CONTRACT and callable(found):
        return {found.__name__: found}
    if parts := {name: getattr(found, name) for name in (*CONTRACT, REPLACES) if hasattr(found, name)}:
        return parts
    wanted = ", ".join((*CONTRACT, REPLACES))
    raise SubjectError(
        f"--subject {spec}: defines none of {wanted} and is not an nn.Module class; name a class as "
        "in --subject file.py:MyNet"
    )


def _check_replaces(subject: Subject) -> None:
    """Raise SubjectError unless `replaces` maps names that PyTorch has to callables."""
    if not isinstance(subject.replaces, Mapping):
        raise SubjectError(f"--subject {subject.spec}: replaces is not a mapping from names to implementations")
    for name, part in subject.replaces.items():
        try:
            if not name.startswith("torch."):
                raise ValueError(name)
            pkgutil.resolve_name(name)
        except (AttributeError, ImportError, ValueError, TypeError):
            example = "torch.nn.functional.relu"
            raise SubjectError(
                f"--subject {subject.spec}: replaces {name!r}, which PyTorch does not have; "
                f"write a full name such as {example}"
            ) from None
        if not callable(part):
            raise SubjectError(f"--subject {subject.spec}: the replacement of {name} is not callable")


def _check(subject: Subject) -> None:
    """Raise SubjectError if a part is not callable, or if `Net` cannot load the parameters of `lenet.Net`."""
    for part in CONTRACT:
        if not callable(getattr(subject, part)):
            raise SubjectError(f"--subject {subject.spec}: {part} is not callable")
    wanted = {name: tuple(value.shape) for name, value in lenet.Net().state_dict().items()}
    with _one_line_error(subject.spec, "Net()"):
        got = {name: tuple(value.shape) for name, value in subject.Net().state_dict().items()}
    differences = [f"{name} {list(shape)} is missing" for name, shape in wanted.items() if name not in got]
    differences += [f"{name} {list(shape)} is not in lenet.Net" for name, shape in got.items() if name not in wanted]
    differences += [
        f"{name} is {list(got[name])}, not {list(shape)} as in lenet.Net"
        for name, shape in wanted.items()
        if name in got and got[name] != shape
    ]
    if differences:
        raise SubjectError(
            f"--subject {subject.spec}: Net cannot load the state of lenet.Net: {'; '.join(differences)}"
        )
