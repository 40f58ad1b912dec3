"""Subjects are loaded from every kind of spec, and those that cannot be judged give a clear error."""

import importlib
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import lenet
from lenet import subject
from lenet.subject import SubjectError

SOURCE = """
import torch
from torch import nn
from lenet import Net as Reference

class Mine(Reference):
    pass

class Wide(Reference):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(576, 120)
        self.extra = nn.Linear(1, 1)
        del self.fc3

class Broken(Reference):
    def __init__(self):
        raise RuntimeError("two\\nlines")

class Everything:
    Net = Mine
    @staticmethod
    def sgd_update(parameters, lr):
        return "mine"

class Namespace:
    inner = Everything

class NotCallable:
    Net = 3

def train_step(net, images, targets, lr):
    return "stepped"

nothing = object()

def relu(input, inplace=False):
    return input.clamp(min=0)

class Replacing:
    replaces = {"torch.nn.functional.relu": relu}

class Misnaming:
    replaces = {"torch.nn.functional.relo": relu}

class Outside:
    replaces = {"os.path.join": relu}

class Unnamed:
    replaces = {b"torch.nn.functional.relu": relu}

class Gap:
    replaces = {"torch..relu": relu}

class Numbering:
    replaces = {"torch.nn.functional.relu": 3}

class Listing:
    replaces = [relu]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_reference_is_a_subject() -> None:
    reference = subject.load("lenet")

    assert reference.Net is lenet.Net
    assert reference.sgd_update is lenet.sgd_update
    assert reference.train_step is lenet.train_step


def test_module_class_is_used_as_net_and_lenet_provides_the_rest(file: Path) -> None:
    mine = subject.load(f"{file}:Mine")

    assert type(mine.Net()).__name__ == "Mine"
    assert mine.sgd_update is lenet.sgd_update


def test_object_provides_what_it_defines(file: Path) -> None:
    mine = subject.load(f"{file}:Namespace.inner")

    assert type(mine.Net()).__name__ == "Mine"
    assert mine.sgd_update.__module__ == "mine"
    assert isinstance(mine.train_step, partial)
    assert mine.train_step.keywords == {"update": mine.sgd_update}


def test_file_or_module_provides_what_it_defines(file: Path) -> None:
    assert subject.load(str(file)).train_step.__module__ == "mine"
    assert subject.load("lenet.training").sgd_update is lenet.sgd_update


def test_parts_of_pytorch_are_replaced_only_within_the_context(file: Path) -> None:
    mine, theirs = subject.load(f"{file}:Replacing"), F.relu

    with mine.installed():
        assert F.relu.__module__ == "mine"
        assert torch.equal(mine.Net()(torch.zeros(1, 1, 32, 32)).isnan(), torch.zeros(1, 10, dtype=torch.bool))

    assert F.relu is theirs


def test_function_of_the_contract_is_used_under_its_name(file: Path) -> None:
    mine = subject.load(f"{file}:train_step")

    assert mine.train_step.__module__ == "mine"
    assert mine.Net is lenet.Net


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{folder}/none.py:Net", "no such file: .*none.py"),
        ("no.such.module", "no module named 'no.such.module'"),
        ("..", "no module named '..'"),
        ("{file}:Absent", "has no Absent; it defines .*Mine"),
        ("{file}:nothing", "defines none of Net, sgd_update, train_step, replaces and is not an nn.Module class"),
        (
            "{file}:Misnaming",
            "replaces 'torch.nn.functional.relo', which PyTorch does not have",
        ),
        ("{file}:Outside", "replaces 'os.path.join', which PyTorch does not have"),
        (
            "{file}:Unnamed",
            "replaces b'torch.nn.functional.relu', which PyTorch does not have",
        ),
        ("{file}:Gap", "replaces 'torch..relu', which PyTorch does not have"),
        ("{file}:Numbering", "the replacement of torch.nn.functional.relu is not callable"),
        ("{file}:Listing", "replaces is not a mapping"),
        ("{file}:NotCallable", "Net is not callable"),
        ("{file}:Broken", r"Net\(\) raised RuntimeError: two lines"),
        ("{file}:Wide", r"fc3.weight \[10, 84\] is missing"),
        ("{file}:Wide", r"extra.bias \[1\] is not in lenet.Net"),
        ("{file}:Wide", r"fc1.weight is \[120, 576\], not \[120, 400\] as in lenet.Net"),
    ],
)
def test_subject_that_cannot_be_judged_is_a_one_line_error(file: Path, spec: str, message: str) -> None:
    with pytest.raises(SubjectError, match=message) as caught:
        subject.load(spec.format(file=file, folder=file.parent))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "import nonexistent_thing",
        "1 / 0",
        "def broken(:",
        "raise SystemExit('bye')",
        "import pytest\npytest.skip('no', allow_module_level=True)",
        "class Mine(BaseException):\n    def __str__(self):\n        raise KeyError\nraise Mine",
        "def __getattr__(name):\n    raise ValueError(name)",
    ],
)
def test_subject_that_raises_on_import_is_a_one_line_error(tmp_path: Path, source: str) -> None:
    path = tmp_path / "raises.py"
    path.write_text(source)

    with pytest.raises(SubjectError, match=r"import raised [A-Za-z]+: ") as caught:
        subject.load(str(path))

    assert "\n" not in str(caught.value)


def test_missing_import_of_a_module_is_not_reported_as_a_missing_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacking.py").write_text("import lacking_this")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(SubjectError, match=r"import raised ModuleNotFoundError: .*'lacking_this'"):
        subject.load("lacking")
    with pytest.raises(SubjectError, match=r"no module named 'lenet\.nothing'"):
        subject.load("lenet.nothing")


def test_subject_error_raised_on_import_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rejecting.py"
    path.write_text("from lenet.subject import SubjectError\nraise SubjectError('not on this machine')")

    with pytest.raises(SubjectError, match=r"^not on this machine$"):
        subject.load(str(path))


@pytest.mark.parametrize("name", ["secrets", "sklearn"])
def test_file_named_like_a_module_of_python_or_a_package_does_not_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / f"{name}.py").write_text("from dataclasses import dataclass\nfrom lenet import Net")
    monkeypatch.delitem(sys.modules, name, raising=False)

    found = subject.load(f"{tmp_path}/{name}.py")

    assert found.Net is lenet.Net
    assert str(tmp_path) not in str(importlib.import_module(name).__file__)


def test_file_can_import_neighboring_files(tmp_path: Path) -> None:
    (tmp_path / "neighbor.py").write_text("from lenet import Net")
    (tmp_path / "with_a_neighbor.py").write_text("from neighbor import Net")

    assert subject.load(str(tmp_path / "with_a_neighbor.py")).Net is lenet.Net


def test_subject_with_replacements_is_hashable(file: Path) -> None:
    assert len({subject.load(f"{file}:Replacing")}) == 1


def test_net_of_a_subject_loads_the_parameters_of_lenet(file: Path) -> None:
    net = subject.load(f"{file}:Mine").Net()
    net.load_state_dict(lenet.Net().state_dict())

    assert net(torch.zeros(1, 1, 32, 32)).shape == (1, 10)
