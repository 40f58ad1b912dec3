"""The engines that are not PyTorch's; where their packages are missing, what asking for them says."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lenet
from lenet import engines
from lenet.engines import PEERS, Engine, EngineError, Reloadable, Run

NEEDS = {
    "onnxruntime": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "openvino-f32": ("onnx", "onnxscript", "openvino"),
    "jax": ("jax", "jaxlib"),
}
HOLDING_COPIES = [name for name in PEERS if name != "jax"]

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")


def load(name: str) -> Engine:
    for package in NEEDS[name]:
        pytest.importorskip(package)
    return engines.load(name)


def images(dtype: torch.dtype = torch.float32, count: int = 3) -> Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("name", PEERS)
def test_scores_come_back_in_the_dtype_and_on_the_device_of_the_images(name: str) -> None:
    engine = load(name)

    for dtype in (getattr(torch, dtype) for dtype in engine.claims):
        logits = engine.build(lenet.Net().to(dtype))(images(dtype))

        assert (logits.shape, logits.dtype, logits.device.type) == ((3, 10), dtype, "cpu")


@pytest.mark.parametrize("name", PEERS)
def test_every_parameter_counts(name: str) -> None:
    net, engine = lenet.Net(), load(name)
    run = engine.build(net)
    before = run(images())

    for parameter in net.parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(0.5)
            changed = anew(run, net)(images())
            parameter.copy_(kept)

        assert not torch.equal(changed, before)
    assert torch.equal(anew(run, net)(images()), before)


def anew(run: Run, net: nn.Module) -> Run:
    """The Run with the network's parameters as they are now, loaded where it holds copies of them."""
    if hasattr(run, "load"):
        run.load(net)
    return run


class Transposed(nn.Module):
    """A linear layer whose weight lies the other way round, which an optimizer of graphs would fold into another."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1024, 10))
        self.unused = nn.Parameter(torch.randn(10))

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(images.flatten(1), self.weight.T)


@pytest.mark.parametrize("name", HOLDING_COPIES)
def test_a_parameter_that_is_used_transposed_is_replaced_too(name: str) -> None:
    net, other = Transposed(), Transposed()
    run: Reloadable = load(name).build(net)  # type: ignore[assignment]

    run.load(other)

    assert torch.equal(run(images()), load(name).build(other)(images()))
    assert not torch.equal(run(images()), load(name).build(net)(images()))


@pytest.mark.parametrize("name", HOLDING_COPIES)
def test_what_has_been_built_keeps_its_parameters_until_others_are_loaded(name: str) -> None:
    net = lenet.Net()
    run = load(name).build(net)
    before = run(images())

    with torch.no_grad():
        net.fc3.bias.add_(1)

    assert torch.equal(run(images()), before)


@pytest.mark.parametrize("name", ["openvino", "openvino-f32"])
def test_openvino_refuses_an_empty_batch_and_stays_as_it_was(name: str) -> None:
    engine = load(name)
    run = engine.build(lenet.Net())
    before = run(images())

    with pytest.raises(ValueError, match="no empty batch"):
        run(images(count=0))

    assert not engine.empty
    assert torch.equal(run(images()), before)


def test_openvino_claims_what_its_plugin_chooses() -> None:
    engine = load("openvino")
    import openvino

    chosen = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()

    assert engine.claims["float32"] == {"bf16": "bfloat16", "f32": "float32"}[chosen]
    assert load("openvino-f32").claims["float32"] == "float32"


@pytest.mark.parametrize("shape", [(2, 1, 33, 33), (2, 3, 32, 32), (2, 1024), (0, 1, 36, 36)])
def test_jax_refuses_other_shapes_by_name(shape: tuple[int, ...]) -> None:
    run = load("jax").build(lenet.Net())

    with pytest.raises(ValueError, match=r"images are \(N, 1, 32, 32\), not"):
        run(torch.ones(shape))


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float16"])
def test_jax_gives_gradients_in_the_dtype_of_what_they_are_by(name: str) -> None:
    dtype = getattr(torch, name)
    net, pixels = lenet.Net().to(dtype), images(dtype).requires_grad_()

    load("jax").build(net)(pixels).sum().backward()

    assert all(p.grad is not None and (p.grad.dtype, p.grad.shape) == (dtype, p.shape) for p in net.parameters())
    assert pixels.grad is not None
    assert pixels.grad.dtype is dtype
    assert net.fc3.bias.grad is not None
    assert net.fc3.bias.grad.tolist() == [3.0] * 10


WITHOUT = """
import sys
sys.modules[{package!r}] = None
from lenet import engines
try:
    engines.load({name!r})
except engines.EngineError as error:
    print(error)
"""


@pytest.mark.parametrize(("name", "package"), [(name, package) for name in PEERS for package in NEEDS[name]])
def test_a_missing_package_is_said_in_one_line(name: str, package: str) -> None:
    for other in NEEDS[name]:
        pytest.importorskip(other)

    said = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(name=name, package=package)], capture_output=True, text=True, check=True
    ).stdout

    assert said == (
        f"--engine {name}: the package {package} is missing; pip install 'lenet-properties[peers]' installs it\n"
    )


def test_asking_for_no_peer_imports_none() -> None:
    packages = {package for needed in NEEDS.values() for package in needed}
    code = f"import sys; from lenet import engines; engines.load('eager'); print({packages!r} & set(sys.modules))"

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said == "set()\n"


@pytest.mark.parametrize("name", PEERS)
def test_without_its_packages_a_peer_cannot_be_had(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDS[name]:
        monkeypatch.setitem(sys.modules, package, None)
    for module in [module for module in sys.modules if module.startswith("lenet.engines.")]:
        monkeypatch.delitem(sys.modules, module)

    with pytest.raises(EngineError, match=rf"--engine {name}: the package \w+ is missing; pip install"):
        engines.load(name)
