"""From an option's text to a subject, and every way in which that can fail."""

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


def test_the_reference_is_a_subject() -> None:
    reference = subject.load("lenet")

    assert reference.Net is lenet.Net
    assert reference.sgd_update is lenet.sgd_update
    assert reference.train_step is lenet.train_step


def test_a_module_class_stands_for_net_and_the_rest_is_the_references(file: Path) -> None:
    mine = subject.load(f"{file}:Mine")

    assert type(mine.Net()).__name__ == "Mine"
    assert mine.sgd_update is lenet.sgd_update


def test_an_object_brings_what_it_defines(file: Path) -> None:
    mine = subject.load(f"{file}:Namespace.inner")

    assert type(mine.Net()).__name__ == "Mine"
    assert mine.sgd_update.__module__ == "mine"
    assert isinstance(mine.train_step, partial)
    assert mine.train_step.keywords == {"update": mine.sgd_update}


def test_a_file_or_a_module_alone_brings_what_it_defines(file: Path) -> None:
    assert subject.load(str(file)).train_step.__module__ == "mine"
    assert subject.load("lenet.training").sgd_update is lenet.sgd_update


def test_what_a_subject_replaces_is_replaced_while_it_is_judged(file: Path) -> None:
    mine, theirs = subject.load(f"{file}:Replacing"), F.relu

    with mine.installed():
        assert F.relu.__module__ == "mine"
        assert torch.equal(mine.Net()(torch.zeros(1, 1, 32, 32)).isnan(), torch.zeros(1, 10, dtype=torch.bool))

    assert F.relu is theirs


def test_a_function_of_the_contract_stands_for_itself(file: Path) -> None:
    mine = subject.load(f"{file}:train_step")

    assert mine.train_step.__module__ == "mine"
    assert mine.Net is lenet.Net


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{folder}/none.py:Net", "there is no file .*none.py"),
        ("no.such.module", "there is no module 'no.such.module'"),
        ("..", "there is no module '..'"),
        ("{file}:Absent", "has no Absent; it defines .*Mine"),
        ("{file}:nothing", "defines none of Net, sgd_update, train_step, replaces, and is no nn.Module class"),
        ("{file}:Misnaming", "replaces 'torch.nn.functional.relo', which is no name like torch.nn.functional.relu"),
        ("{file}:Outside", "replaces 'os.path.join', which is no name like torch.nn.functional.relu"),
        ("{file}:Unnamed", "replaces b'torch.nn.functional.relu', which is no name like torch.nn.functional.relu"),
        ("{file}:Gap", "replaces 'torch..relu', which is no name like torch.nn.functional.relu"),
        ("{file}:Numbering", "what it replaces torch.nn.functional.relu by is not callable"),
        ("{file}:Listing", "its replaces is no mapping"),
        ("{file}:NotCallable", "its Net is not callable"),
        ("{file}:Broken", r"its Net\(\) raised RuntimeError: two lines"),
        ("{file}:Wide", r"fc3.weight \[10, 84\] is missing"),
        ("{file}:Wide", r"extra.bias \[1\] is not in lenet.Net"),
        ("{file}:Wide", r"fc1.weight is \[120, 576\] where lenet.Net has \[120, 400\]"),
    ],
)
def test_what_cannot_be_judged_is_one_clear_line(file: Path, spec: str, message: str) -> None:
    with pytest.raises(SubjectError, match=message) as caught:
        subject.load(spec.format(file=file, folder=file.parent))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["import nonexistent_thing", "1 / 0", "def broken(:", "raise SystemExit('bye')"])
def test_a_subject_that_raises_while_it_is_imported_is_one_clear_line(tmp_path: Path, source: str) -> None:
    path = tmp_path / "raises.py"
    path.write_text(source)

    with pytest.raises(SubjectError, match=r"raised while it was imported: [A-Za-z]+: ") as caught:
        subject.load(str(path))

    assert "\n" not in str(caught.value)


def test_a_module_that_lacks_what_it_imports_is_not_absent_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacking.py").write_text("import lacking_this")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(SubjectError, match=r"raised while it was imported: ModuleNotFoundError: .*'lacking_this'"):
        subject.load("lacking")
    with pytest.raises(SubjectError, match=r"there is no module 'lenet\.nothing'"):
        subject.load("lenet.nothing")


def test_a_subject_may_refuse_itself(tmp_path: Path) -> None:
    path = tmp_path / "refusing.py"
    path.write_text("from lenet.subject import SubjectError\nraise SubjectError('not on this machine')")

    with pytest.raises(SubjectError, match=r"^not on this machine$"):
        subject.load(str(path))


def test_a_file_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("from lenet import Net")
    (tmp_path / "with_a_neighbour.py").write_text("from beside_it import Net")

    assert subject.load(str(tmp_path / "with_a_neighbour.py")).Net is lenet.Net


def test_a_subject_that_replaces_something_can_be_hashed(file: Path) -> None:
    assert len({subject.load(f"{file}:Replacing")}) == 1


def test_a_subject_loads_the_references_parameters(file: Path) -> None:
    net = subject.load(f"{file}:Mine").Net()
    net.load_state_dict(lenet.Net().state_dict())

    assert net(torch.zeros(1, 1, 32, 32)).shape == (1, 10)
