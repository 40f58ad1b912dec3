"""The registry of engines: loading by name, custom engines, error messages, and what each engine declares."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lenet import Net, engines
from lenet.engines import ENGINES_BY_MODULE, PEERS, Engine, EngineError, to_standard_layout
from lenet.oracle import CLAIMS

pytestmark = pytest.mark.filterwarnings("default")  # PyTorch's compiler imports modules that PyTorch deprecates

PYTORCH_ENGINES = [name for name in engines.names() if name not in PEERS]
CUSTOM_ENGINES = """
from lenet.engines import Engine

def build(net):
    return net

def bfloat16_weights(net):
    return net

bfloat16_weights.claims = {"float32": "bfloat16"}
bfloat16_weights.differentiable = False

engine = Engine("mine", build, devices=("cpu",))
number = 3

wide = Engine("wide", build, claims={"float128": "float32"})
unknown = Engine("unknown", build, claims={"float32": "float128"})
numbered = Engine("numbered", build, claims=3)
claimless = Engine("claimless", build, claims={})
nameless = Engine(None, build)
texts = Engine("texts", build, devices="cpu")
listed = Engine("listed", build, devices=["cpu"])
passing = Engine("passing", build, empty_batch=("forth",))
truthy = Engine("truthy", build, differentiable="no")
contextless = Engine("contextless", build, context=None)
"""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "custom_engines.py").write_text(CUSTOM_ENGINES)
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)")
    (tmp_path / "without_package.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "custom_engines", raising=False)
    return "custom_engines"


@pytest.mark.parametrize("name", PYTORCH_ENGINES)
def test_engine_is_loaded_by_name_and_claims_a_precision_for_each_dtype(name: str) -> None:
    engine = engines.load(name)

    assert engine.name == name
    assert set(engine.claims) <= {"float64", "float32", "bfloat16", "float16"}
    assert set(engine.claims.values()) <= CLAIMS.keys()
    assert engine.claims
    assert engine.devices


def test_modules_define_the_engines_that_are_listed_for_them() -> None:
    for module in ("eager", "compiled", "exported", "cuda_graphs"):
        found = __import__(f"lenet.engines.{module}", fromlist=["ENGINES"]).ENGINES
        assert tuple(engine.name for engine in found) == ENGINES_BY_MODULE[module]


def test_engine_modules_are_imported_lazily() -> None:
    code = "import sys, lenet.engines; print([m for m in sys.modules if m.startswith('lenet.engines.')])"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"


def test_custom_engine_is_an_engine_or_a_function_with_attributes(custom: str) -> None:
    plain, with_attributes, engine = (
        engines.load(f"{custom}:{name}") for name in ("build", "bfloat16_weights", "engine")
    )

    assert plain.claims == engines.dtype_claims()
    assert plain.differentiable
    assert with_attributes.claims == {"float32": "bfloat16"}
    assert not with_attributes.differentiable
    assert engine.name == "mine"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("warp", "--engine warp: not one of eager, "),
        ("custom_engines:nothing", "has no attribute 'nothing'"),
        ("custom_engines:number", "is int, neither an Engine nor a function build(net)"),
        (
            "custom_engines:wide",
            "claims is {'float128': 'float32'}, expected a mapping from some of the dtypes float64, ",
        ),
        ("custom_engines:unknown", "claims is {'float32': 'float128'}, expected a mapping "),
        ("custom_engines:numbered", "claims is 3, expected a mapping "),
        ("custom_engines:claimless", "claims is {}, expected a mapping "),
        ("custom_engines:nameless", "name is None, expected a text"),
        ("custom_engines:texts", "devices is 'cpu', expected a tuple of device types"),
        ("custom_engines:listed", "devices is ['cpu'], expected a tuple of device types"),
        ("custom_engines:passing", "empty_batch is ('forth',), expected a tuple of some of forward, backward"),
        ("custom_engines:truthy", "differentiable is 'no', expected True or False"),
        ("custom_engines:contextless", "context is None, expected a function that returns a context manager"),
        ("leaving:build", "SystemExit: 0"),
        ("no_such_module:build", "no module named 'no_such_module'; put its folder on PYTHONPATH"),
        ("lenet.no_such_module:build", "no module named 'lenet.no_such_module'; put its folder on PYTHONPATH"),
        ("without_package:build", "ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_invalid_engine_raises_with_a_one_line_message(custom: str, spec: str, message: str) -> None:
    with pytest.raises(EngineError, match="--engine") as raised:
        engines.load(spec)

    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def layouts() -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "channels_last": lambda images: images.to(memory_format=torch.channels_last).clone(),
        "a view": lambda images: torch.cat([images, images])[: len(images)],
        "every other column": lambda images: images.repeat_interleave(2, dim=-1)[..., ::2],
        "expanded": lambda images: images[:1].expand_as(images),
    }


@pytest.mark.parametrize("layout", layouts())
def test_standard_layout_preserves_values_and_has_strides_of_a_new_tensor(layout: str) -> None:
    images = layouts()[layout](torch.randn(3, 1, 32, 32))

    got = to_standard_layout(images)

    assert torch.equal(got, images)
    assert got.stride() == torch.empty(3, 1, 32, 32).stride()
    assert got._base is None
    assert to_standard_layout(got) is got


WITHOUT_EMPTY_BATCH = [name for name in ("vmap", "compiled") if "backward" not in engines.load(name).empty_batch]


@pytest.mark.parametrize("name", WITHOUT_EMPTY_BATCH)
def test_engine_without_empty_batch_support_raises_for_an_empty_batch(name: str) -> None:
    """If this fails, the engine supports empty batches now, and its `empty_batch` must say so."""
    engine = engines.load(name)

    with engine.context():
        run, images = engine.build(Net()), torch.zeros(0, 1, 32, 32)
        if "forward" in engine.empty_batch:
            logits = run(images)
            with pytest.raises(AssertionError, match="convolution_backward"):
                logits.sum().backward()
        else:
            with pytest.raises(IndexError):
                run(images)


def test_exported_graph_computes_with_the_networks_own_parameters() -> None:
    first, second, images = Net(), Net(), torch.randn(2, 1, 32, 32)
    run = engines.load("exported").build(first)

    run.load(second)  # type: ignore[attr-defined]
    run(images).sum().backward()

    assert torch.equal(run(images), second(images))
    assert all(parameter.grad is None for parameter in first.parameters())
    assert all(parameter.grad is not None for parameter in second.parameters())


def test_compiled_functions_have_separate_dynamo_caches() -> None:
    """Dynamo counts recompilations by code object, and falls back to eager at its limit."""
    from lenet.engines.compiled import compile_forward

    forwards: list[Any] = [compile_forward("compiled") for _ in range(3)]

    assert len({id(forward._torchdynamo_orig_callable.__code__) for forward in forwards}) == 3


def test_graph_break_raises() -> None:
    class GraphBreak(Net):
        def forward(self, images: Tensor) -> Tensor:
            print(float(images.sum()))
            return super().forward(images)

    engine = engines.load("compiled")

    with engine.context(), pytest.raises(torch._dynamo.exc.Unsupported):
        engine.build(GraphBreak())(torch.zeros(2, 1, 32, 32))


def test_engine_supports_its_claimed_dtypes_on_its_devices() -> None:
    engine = Engine("some", lambda net: net, claims={"float32": "tf32"}, devices=("cuda",))

    assert engine.supports("cuda", "float32")
    assert not engine.supports("cpu", "float32")
    assert not engine.supports("cuda", "float64")


def test_each_class_of_network_is_compiled_separately() -> None:
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
