"""The engines of other libraries, and the error message when their packages are missing."""

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

REQUIRED_PACKAGES = {
    "onnxruntime": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "openvino-f32": ("onnx", "onnxscript", "openvino"),
    "jax": ("jax", "jaxlib"),
}
COPYING_PARAMETERS = [name for name in PEERS if name != "jax"]

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")


def load(name: str) -> Engine:
    for package in REQUIRED_PACKAGES[name]:
        pytest.importorskip(package)
    return engines.load(name)


def images(dtype: torch.dtype = torch.float32, count: int = 3) -> Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("name", PEERS)
def test_logits_have_the_dtype_and_device_of_the_images(name: str) -> None:
    engine = load(name)

    for dtype in (getattr(torch, dtype) for dtype in engine.claims):
        logits = engine.build(lenet.Net().to(dtype))(images(dtype))

        assert (logits.shape, logits.dtype, logits.device.type) == ((3, 10), dtype, "cpu")


@pytest.mark.parametrize("name", PEERS)
def test_every_parameter_affects_the_logits(name: str) -> None:
    net, engine = lenet.Net(), load(name)
    run = engine.build(net)
    before = run(images())

    for parameter in net.parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(0.5)
            changed = reloaded(run, net)(images())
            parameter.copy_(kept)

        assert not torch.equal(changed, before)
    assert torch.equal(reloaded(run, net)(images()), before)


def reloaded(run: Run, net: nn.Module) -> Run:
    """Return the run with the network's current parameters, reloaded if it copies them."""
    if hasattr(run, "load"):
        run.load(net)
    return run


class Transposed(nn.Module):
    """A linear layer with a transposed weight; a graph optimizer would fold the transpose into a new constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1024, 10))
        self.unused = nn.Parameter(torch.randn(10))

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(images.flatten(1), self.weight.T)


@pytest.mark.parametrize("name", COPYING_PARAMETERS)
def test_load_replaces_a_transposed_parameter(name: str) -> None:
    net, other = Transposed(), Transposed()
    run: Reloadable = load(name).build(net)  # type: ignore[assignment]

    run.load(other)

    assert torch.equal(run(images()), load(name).build(other)(images()))
    assert not torch.equal(run(images()), load(name).build(net)(images()))


@pytest.mark.parametrize("name", COPYING_PARAMETERS)
def test_in_place_parameter_changes_have_no_effect_before_a_reload(name: str) -> None:
    net = lenet.Net()
    run = load(name).build(net)
    before = run(images())

    with torch.no_grad():
        net.fc3.bias.add_(1)

    assert torch.equal(run(images()), before)


@pytest.mark.parametrize("name", ["openvino", "openvino-f32"])
def test_openvino_raises_for_an_empty_batch_and_remains_usable(name: str) -> None:
    engine = load(name)
    run = engine.build(lenet.Net())
    before = run(images())

    with pytest.raises(ValueError, match="no empty batch"):
        run(images(count=0))

    assert not engine.empty_batch
    assert torch.equal(run(images()), before)


def test_openvino_claims_the_default_precision_of_its_plugin() -> None:
    engine = load("openvino")
    import openvino

    default = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()

    assert engine.claims["float32"] == {"bf16": "bfloat16", "f32": "float32"}[default]
    assert load("openvino-f32").claims["float32"] == "float32"


@pytest.mark.parametrize("shape", [(2, 1, 33, 33), (2, 3, 32, 32), (2, 1024), (0, 1, 36, 36)])
def test_jax_raises_for_other_image_shapes(shape: tuple[int, ...]) -> None:
    run = load("jax").build(lenet.Net())

    with pytest.raises(ValueError, match=r"images must be \(N, 1, 32, 32\), not"):
        run(torch.ones(shape))


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float16"])
def test_jax_gradients_have_the_dtype_of_parameters_and_images(name: str) -> None:
    dtype = getattr(torch, name)
    net, pixels = lenet.Net().to(dtype), images(dtype).requires_grad_()

    load("jax").build(net)(pixels).sum().backward()

    assert all(p.grad is not None and (p.grad.dtype, p.grad.shape) == (dtype, p.shape) for p in net.parameters())
    assert pixels.grad is not None
    assert pixels.grad.dtype is dtype
    assert net.fc3.bias.grad is not None
    assert net.fc3.bias.grad.tolist() == [3.0] * 10


LOAD_WITHOUT_PACKAGE = """
import sys
sys.modules[{package!r}] = None
from lenet import engines
try:
    engines.load({name!r})
except engines.EngineError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("name", "package"), [(name, package) for name in PEERS for package in REQUIRED_PACKAGES[name]]
)
def test_missing_package_is_reported_in_one_line(name: str, package: str) -> None:
    for other in REQUIRED_PACKAGES[name]:
        pytest.importorskip(other)

    output = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_PACKAGE.format(name=name, package=package)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert output == (
        f"--engine {name}: the package {package} is missing; pip install 'lenet-properties[peers]' installs it\n"
    )


def test_loading_a_pytorch_engine_imports_no_peer_package() -> None:
    packages = {package for required in REQUIRED_PACKAGES.values() for package in required}
    code = f"import sys; from lenet import engines; engines.load('eager'); print({packages!r} & set(sys.modules))"

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert output == "set()\n"


@pytest.mark.parametrize("name", PEERS)
def test_loading_a_peer_without_its_packages_raises(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in REQUIRED_PACKAGES[name]:
        monkeypatch.setitem(sys.modules, package, None)
    for module in [module for module in sys.modules if module.startswith("lenet.engines.")]:
        monkeypatch.delitem(sys.modules, module)

    with pytest.raises(EngineError, match=rf"--engine {name}: the package \w+ is missing; pip install"):
        engines.load(name)
