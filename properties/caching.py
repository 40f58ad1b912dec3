"""The oracle's answers, cached for runs in which many subjects are judged on the same examples."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from types import FunctionType, NoneType
from typing import Any

import numpy as np

from lenet import oracle

CACHE_SIZE = 400
"""Number of oracle answers that each process caches, about 1 MB each: more than the examples of one law need."""


def cache_oracle() -> None:
    """Have the oracle cache its answers in this process from now on."""
    for name in ("solve", "accumulated_gradients"):
        setattr(oracle, name, cached(getattr(oracle, name)))


def cached(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a cache of its last `CACHE_SIZE` answers, keyed by a digest of the arguments' values."""
    answers: OrderedDict[bytes, Any] = OrderedDict()

    @functools.wraps(function)
    def answer(*args: Any, **options: Any) -> Any:
        key = digest_of((args, options))
        if key not in answers:
            answers[key] = function(*args, **options)
        answers.move_to_end(key)
        if len(answers) > CACHE_SIZE:
            answers.popitem(last=False)
        return answers[key]

    return answer


def digest_of(arguments: Any) -> bytes:
    """Return a digest of the values of a function's arguments."""
    digest = hashlib.blake2b(digest_size=16)

    def update(value: Any) -> None:
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, dict):
            update(list(value.items()))
        elif isinstance(value, (list, tuple)):
            digest.update(f"{type(value)}{len(value)}".encode())
            for part in value:
                update(part)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            digest.update(type(value).__qualname__.encode())
            update(vars(value))
        elif isinstance(value, FunctionType):
            digest.update(value.__qualname__.encode())
            update([cell.cell_contents for cell in value.__closure__ or ()])
        elif isinstance(value, (str, int, float, NoneType)):
            digest.update(f"{type(value)}{value!r}".encode())
        else:
            raise TypeError(f"cannot digest {value!r}: the oracle's arguments are arrays, plain numbers and functions")

    update(arguments)
    return digest.digest()
