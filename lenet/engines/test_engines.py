"""The registry of engines: found by name, each as it says, and refused in one line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lenet import Net, engines
from lenet.engines import FAMILIES, PEERS, Engine, EngineError, packed
from lenet.oracle import CLAIMS

pytestmark = pytest.mark.filterwarnings("default")  # PyTorch's compiler imports what it has deprecated itself

OWN = [name for name in engines.names() if name not in PEERS]
OWN_ENGINES = """
from lenet.engines import Engine

def build(net):
    return net

def packed_weights(net):
    return net

packed_weights.claims = {"float32": "bfloat16"}
packed_weights.differentiable = False

engine = Engine("mine", build, devices=("cpu",))
number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_engines.py").write_text(OWN_ENGINES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_engines", raising=False)
    return "own_engines"


@pytest.mark.parametrize("name", OWN)
def test_an_engine_is_found_by_its_name_and_claims_a_precision_for_each_dtype(name: str) -> None:
    engine = engines.load(name)

    assert engine.name == name
    assert set(engine.claims) <= {"float64", "float32", "bfloat16", "float16"}
    assert set(engine.claims.values()) <= CLAIMS.keys()
    assert engine.claims
    assert engine.devices


def test_every_family_has_the_engines_that_it_is_listed_with() -> None:
    for family in ("eager", "compiled", "exported", "cuda_graphs"):
        found = __import__(f"lenet.engines.{family}", fromlist=["ENGINES"]).ENGINES
        assert tuple(engine.name for engine in found) == FAMILIES[family]


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, lenet.engines; print([m for m in sys.modules if m.startswith('lenet.engines.')])"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"


def test_ones_own_engine_is_a_function_with_what_it_says_of_itself_or_an_engine(own: str) -> None:
    plain, said, whole = (engines.load(f"{own}:{name}") for name in ("build", "packed_weights", "engine"))

    assert plain.claims == engines.same()
    assert plain.differentiable
    assert said.claims == {"float32": "bfloat16"}
    assert not said.differentiable
    assert whole.name == "mine"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("warp", "--engine warp: not one of eager, "),
        ("own_engines:nothing", "has no attribute 'nothing'"),
        ("own_engines:number", "is int, neither an Engine nor a function build(net)"),
        ("no_such_module:build", "No module named 'no_such_module'"),
    ],
)
def test_what_is_no_engine_is_one_clear_line(own: str, spec: str, words: str) -> None:
    with pytest.raises(EngineError, match="--engine") as raised:
        engines.load(spec)

    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def layouts() -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "channels_last": lambda images: images.to(memory_format=torch.channels_last).clone(),
        "a view": lambda images: torch.cat([images, images])[: len(images)],
        "every other column": lambda images: images.repeat_interleave(2, dim=-1)[..., ::2],
        "expanded": lambda images: images[:1].expand_as(images),
    }


@pytest.mark.parametrize("layout", layouts())
def test_packed_images_are_the_same_numbers_as_a_new_tensor_has_them(layout: str) -> None:
    images = layouts()[layout](torch.randn(3, 1, 32, 32))

    got = packed(images)

    assert torch.equal(got, images)
    assert got.stride() == torch.empty(3, 1, 32, 32).stride()
    assert got._base is None
    assert packed(got) is got


@pytest.mark.parametrize("name", [name for name in ("vmap", "compiled") if "backward" not in engines.load(name).empty])
def test_an_engine_that_says_it_takes_no_empty_batch_fails_on_one(name: str) -> None:
    """So that it says otherwise once it does."""
    engine = engines.load(name)

    with engine.context():
        run, images = engine.build(Net()), torch.zeros(0, 1, 32, 32)
        if "forward" in engine.empty:
            logits = run(images)
            with pytest.raises(AssertionError, match="convolution_backward"):
                logits.sum().backward()
        else:
            with pytest.raises(IndexError):
                run(images)


def test_exported_graphs_compute_with_the_networks_own_parameters() -> None:
    first, second, images = Net(), Net(), torch.randn(2, 1, 32, 32)
    run = engines.load("exported").build(first)

    run.load(second)  # type: ignore[attr-defined]
    run(images).sum().backward()

    assert torch.equal(run(images), second(images))
    assert all(parameter.grad is None for parameter in first.parameters())
    assert all(parameter.grad is not None for parameter in second.parameters())


def test_no_two_engines_share_what_dynamo_has_compiled() -> None:
    """It counts recompilations by code object, and falls back once there are too many."""
    from lenet.engines.compiled import program

    programs: list[Any] = [program("compiled") for _ in range(3)]

    assert len({id(one._torchdynamo_orig_callable.__code__) for one in programs}) == 3


def test_a_graph_that_breaks_is_refused() -> None:
    class Broken(Net):
        def forward(self, images: Tensor) -> Tensor:
            print(float(images.sum()))
            return super().forward(images)

    engine = engines.load("compiled")

    with engine.context(), pytest.raises(torch._dynamo.exc.Unsupported):
        engine.build(Broken())(torch.zeros(2, 1, 32, 32))


def test_an_engine_takes_what_it_claims_where_it_runs() -> None:
    engine = Engine("some", lambda net: net, claims={"float32": "tf32"}, devices=("cuda",))

    assert engine.takes("cuda", "float32")
    assert not engine.takes("cpu", "float32")
    assert not engine.takes("cuda", "float64")


def test_a_network_of_another_kind_is_compiled_for_itself() -> None:
    class Doubled(Net):
        def forward(self, images: Tensor) -> Tensor:
            return 2 * super().forward(images)

    engine, images = engines.load("compiled"), torch.randn(2, 1, 32, 32)
    plain: nn.Module = Net()
    doubled = Doubled()
    doubled.load_state_dict(plain.state_dict())

    with engine.context(), torch.no_grad():
        once, twice = engine.build(plain)(images), engine.build(doubled)(images)

    assert torch.equal(twice, 2 * once)
