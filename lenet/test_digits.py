"""The digits are those of scikit-learn or MNIST, and every malformed MNIST file gives a clear error."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lenet import digits
from lenet.digits import DigitsError

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(magic: int, sizes: tuple[int, ...], content: bytes) -> bytes:
    return struct.pack(f">{1 + len(sizes)}I", magic, *sizes) + content


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A complete folder: 3 training images, plain, and 2 test images, gzip."""
    pixels = bytes(i % 256 for i in range(3 * 784))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(2051, (3, 28, 28), pixels))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(2049, (3,), bytes([7, 0, 9])))
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(idx(2051, (2, 28, 28), pixels[: 2 * 784])))
    (tmp_path / f"{LABELS}.gz").write_bytes(gzip.compress(idx(2049, (2,), bytes([1, 2]))))
    return tmp_path


def test_digits_are_1797_with_a_fixed_split() -> None:
    data = digits.load()

    assert data.train_images.shape == (1437, 1, 32, 32)
    assert data.test_images.shape == (360, 1, 32, 32)
    assert data.train_images.dtype == torch.float32
    assert data.train_images.min() == 0
    assert data.train_images.max() == 1
    assert data.test_labels[:12].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5, 2, 8]
    assert sorted(set(data.test_labels.tolist())) == list(range(10))


def test_digits_are_enlarged_by_bilinear_interpolation() -> None:
    """Beyond the centers of the outermost pixels, a pixel and a half from the border, the values are constant."""
    images = digits.load().test_images

    assert torch.equal(images[:, :, 0], images[:, :, 1])
    assert torch.equal(images[..., -1], images[..., -2])
    assert not torch.equal(images[:, :, 1], images[:, :, 2])
    assert images[:, :, 0, 0].mul(16).unique().tolist() == sorted(
        {*images[:, :, 0, 0].mul(16).int().flatten().tolist()}
    )
    assert len(images[:, :, ::31].mul(16).round().unique()) == 17


def test_targets_are_one_at_the_label_and_zero_elsewhere() -> None:
    targets = digits.one_hot(torch.tensor([3, 0]))

    assert targets.shape == (2, 10)
    assert targets.argmax(dim=1).tolist() == [3, 0]
    assert targets.sum() == 2


def test_mnist_is_read_plain_or_gzip_and_padded_to_32(mnist: Path) -> None:
    data = digits.load(mnist)

    assert data.train_images.shape == (3, 1, 32, 32)
    assert data.test_images.shape == (2, 1, 32, 32)
    assert data.train_labels.tolist() == [7, 0, 9]
    assert data.test_labels.tolist() == [1, 2]
    assert data.train_images[0, 0, 2, 2:6].tolist() == [i / 255 for i in torch.arange(4, dtype=torch.float32)]
    assert not data.train_images[:, :, :2].any()
    assert not data.train_images[:, :, :, -2:].any()


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing folder": (lambda f: f.rename(f.with_name("elsewhere")), "no such folder"),
    "missing file": (lambda f: (f / f"{LABELS}.gz").unlink(), f"has neither {LABELS} nor {LABELS}.gz"),
    "truncated gzip": (lambda f: cut(f / f"{IMAGES}.gz", 20), "not a complete gzip file"),
    "not gzip": (lambda f: (f / f"{IMAGES}.gz").write_bytes(b"hello"), "not a complete gzip file"),
    "wrong magic": (lambda f: (f / IMAGES).write_bytes(idx(2049, (2,), b"ab")), "magic number 0x00000801"),
    "empty": (lambda f: (f / IMAGES).write_bytes(b""), "magic number 0x, expected 0x00000803"),
    "truncated header": (
        lambda f: (f / IMAGES).write_bytes(idx(2051, (2,), b"")),
        "8 bytes, header of 16 expected",
    ),
    "truncated": (lambda f: (f / IMAGES).write_bytes(idx(2051, (2, 28, 28), bytes(99))), "truncated: 115 bytes"),
    "too long": (lambda f: (f / LABELS).write_bytes(idx(2049, (2,), b"abc")), "too long: 11 bytes, expected 10"),
    "wrong size": (lambda f: (f / IMAGES).write_bytes(idx(2051, (2, 8, 8), bytes(128))), "images of 8x8 pixels"),
    "counts disagree": (lambda f: (f / LABELS).write_bytes(idx(2049, (3,), bytes(3))), "has 2 images.*has 3 labels"),
    "label 10": (lambda f: (f / LABELS).write_bytes(idx(2049, (2,), bytes([1, 10]))), "label 10 at index 1"),
    "no labels": (lambda f: empty(f), "t10k-labels-idx1-ubyte: no labels"),
    "corrupt gzip": (lambda f: corrupt_middle(f / f"{IMAGES}.gz"), "not a complete gzip file"),
    "gzip bomb": (lambda f: bomb(f / f"{IMAGES}.gz"), "larger than 1,000,000 images of 28x28 pixels"),
    "larger than any data set": (lambda f: sparse(f / IMAGES), "larger than 1,000,000 images of 28x28 pixels"),
    "huge sizes of no images": (
        lambda f: (f / IMAGES).write_bytes(idx(2051, (0, 2**32 - 1, 2**32 - 1), b"")),
        "images of 4294967295x4294967295 pixels",
    ),
    "huge sizes": (lambda f: (f / IMAGES).write_bytes(idx(2051, (2**32 - 1,) * 3, b"")), "truncated: 16 bytes"),
}


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def empty(folder: Path) -> None:
    (folder / IMAGES).write_bytes(idx(2051, (0, 28, 28), b""))
    (folder / LABELS).write_bytes(idx(2049, (0,), b""))


def bomb(path: Path) -> None:
    """A megabyte that claims to hold a gigabyte of images."""
    part = gzip.compress(bytes(2**26), compresslevel=1)
    path.write_bytes(gzip.compress(idx(2051, (2**30 // 784, 28, 28), b"")) + 16 * part)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def corrupt_middle(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:10] + b"\xff" * 20 + content[30:])


def test_damaged_digits_of_scikit_learn_are_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "loadtxt", lambda *_, **__: np.full((1797, 65), 11.0))
    with pytest.raises(
        DigitsError, match=r"digits.csv.gz: not scikit-learn's 1,797 digits; install scikit-learn again"
    ):
        digits._table()

    def fail(*arguments: object, **options: object) -> None:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")

    monkeypatch.setattr(np, "loadtxt", fail)
    with pytest.raises(
        DigitsError, match=r"digits.csv.gz: cannot be read \(Compressed file ended .*\); install scikit"
    ):
        digits._table()


def test_unreadable_file_is_a_one_line_error(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)

    with pytest.raises(DigitsError, match=r"train-images-idx3-ubyte: cannot be read: Permission denied$"):
        digits.load(mnist)


@pytest.mark.parametrize("fault", FAULTS)
def test_malformed_mnist_is_a_one_line_error(mnist: Path, fault: str) -> None:
    make, message = FAULTS[fault]
    make(mnist)

    with pytest.raises(DigitsError, match=message) as caught:
        digits.load(mnist)

    assert "\n" not in str(caught.value)


def test_digits_are_those_that_scikit_learn_reads() -> None:
    known = load_digits()

    table = digits._table()

    assert np.array_equal(table[:, :-1].reshape(-1, 8, 8), known.images)
    assert np.array_equal(table[:, -1], known.target)
