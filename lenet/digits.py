"""
Handwritten digits as images (N, 1, 32, 32) in [0, 1], with a fixed split into training and test images.

`load()` returns the 1,797 digits of scikit-learn (8x8 pixels, gray levels 0 to 16; UCI "Optical Recognition of
Handwritten Digits", Alpaydin & Kaynak 1998). `load(folder)` reads MNIST's four IDX files, plain or gzip, in the format
that http://yann.lecun.com/exdb/mnist/ describes.
"""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TEST_DIGITS = 360  # a fifth of scikit-learn's 1,797

MAX_IMAGES = 1_000_000
"""The most images of an IDX file: EMNIST, the largest data set of this format that is widely used, has 814,255."""

MAX_BYTES = 16 + MAX_IMAGES * 28 * 28
"""The largest IDX file, which a small gzip file can claim to hold many times over."""


class DigitsError(ValueError):
    """A data set that cannot be read; the message is one line that names the file and the problem."""


@dataclass(frozen=True)
class Digits:
    """Training and test images (N,1,32,32), float32 in [0,1], and their labels (N,), int64 from 0 to 9."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def one_hot(labels: Tensor) -> Tensor:
    """Return labels (N,) as targets (N,10) for the mean squared error: 1 at the label, 0 elsewhere."""
    return F.one_hot(labels, 10).to(torch.get_default_dtype())


def load(mnist: Path | None = None) -> Digits:
    """Return MNIST from a folder of IDX files, or scikit-learn's digits; raises DigitsError for a malformed file."""
    return _scikit_learn() if mnist is None else _mnist(mnist)


@cache
def _scikit_learn() -> Digits:
    table = _table()
    pixels = torch.tensor(table[:, :-1].reshape(-1, 1, 8, 8), dtype=torch.float32) / 16  # N,1,8,8
    images = F.interpolate(pixels, size=(32, 32), mode="bilinear", align_corners=False)  # N,1,32,32
    labels = torch.tensor(table[:, -1], dtype=torch.int64)
    # NumPy's policy freezes the streams of RandomState, so the split is the same everywhere.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(images)))
    train, test = order[TEST_DIGITS:], order[:TEST_DIGITS]
    return Digits("scikit-learn's digits", images[train], labels[train], images[test], labels[test])


def _table() -> np.ndarray[Any, np.dtype[np.float64]]:
    """
    Return rows of 64 pixels and a label (1797,65) from the file that `sklearn.datasets.load_digits` reads.

    Importing scikit-learn instead would cost every process a second.
    """
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DigitsError("scikit-learn, which provides the digits, is not installed: pip install scikit-learn")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise DigitsError(f"{path}: not in this version of scikit-learn; install the version in constraints.txt")
    try:
        table = np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DigitsError(f"{path}: cannot be read ({error}); install scikit-learn again") from error
    if not (table.shape == (1797, 65) and table.min() >= 0 and table.max() <= 16 and table[:, -1].max() <= 9):
        raise DigitsError(f"{path}: not scikit-learn's 1,797 digits; install scikit-learn again")
    return table


def _mnist(folder: Path) -> Digits:
    if not folder.is_dir():
        raise DigitsError(f"--mnist {folder}: no such folder")
    train_images, train_labels = _mnist_part(folder, "train")
    test_images, test_labels = _mnist_part(folder, "t10k")
    return Digits("MNIST", train_images, train_labels, test_images, test_labels)


def _mnist_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images_file, pixels = _idx(folder, f"{part}-images-idx3-ubyte", dimensions=3)
    labels_file, labels = _idx(folder, f"{part}-labels-idx1-ubyte", dimensions=1)
    if len(pixels) != len(labels):
        raise DigitsError(f"{images_file} has {len(pixels)} images, {labels_file} has {len(labels)} labels")
    if len(labels) == 0:
        raise DigitsError(f"{labels_file}: no labels")
    if labels.max() > 9:
        raise DigitsError(f"{labels_file}: label {labels.max()} at index {labels.argmax()}, expected 0 to 9")
    images = torch.tensor(pixels, dtype=torch.float32)[:, None] / 255  # N,1,28,28
    return F.pad(images, (2, 2, 2, 2)), torch.tensor(labels, dtype=torch.int64)


def _idx(folder: Path, name: str, dimensions: int) -> tuple[Path, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """
    Read an IDX file of unsigned bytes: the magic number 0 0 8 `dimensions`, big-endian sizes, then the bytes.

    Returns the path that was found, `name` or `name.gz`, and the array.
    """
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise DigitsError(f"--mnist {folder}: has neither {name} nor {name}.gz")
    content = _content(path)
    magic, header = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    if content[:4] != magic:
        raise DigitsError(f"{path}: magic number 0x{content[:4].hex()}, expected 0x{magic.hex()}")
    if len(content) < header:
        raise DigitsError(f"{path}: truncated: {len(content)} bytes, header of {header} expected")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", count=dimensions, offset=4))
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "too long"
        sizes = "x".join(map(str, shape))
        raise DigitsError(f"{path}: {fault}: {len(content)} bytes, expected {expected} for {sizes}")
    if dimensions == 3 and shape[1:] != (28, 28):
        raise DigitsError(f"{path}: images of {shape[1]}x{shape[2]} pixels, expected 28x28")
    return path, np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _content(path: Path) -> bytes:
    """Return the bytes of a file, decompressed if it is gzip, as far as a data set of MAX_IMAGES needs them."""
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MAX_BYTES else b""
        if path.suffix == ".gz":
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MAX_BYTES + 1)
            size = max(size, len(content))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DigitsError(f"{path}: not a complete gzip file: {error}") from error
    except OSError as error:
        raise DigitsError(f"{path}: cannot be read: {error.strerror}") from error
    if size > MAX_BYTES:
        raise DigitsError(f"{path}: larger than {MAX_IMAGES:,} images of 28x28 pixels")
    return content
