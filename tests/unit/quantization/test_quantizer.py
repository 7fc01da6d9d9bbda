from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from compress.errors import ModelError
from compress.models.catalogue import build_model
from compress.models.normalized import Normalized
from compress.quantization.quantizer import (
    FakeQuantNetwork,
    QuantizedNetwork,
    calibrate_ranges,
    convert_qat,
    prepare_qat,
    scheme_description,
)
from compress.quantization.scheme import QUANTIZER_VERSION, Scheme

ATEN = torch.ops.aten
EXAMPLE = torch.zeros(2, 1, 8, 8)


def images(count: int, seed: int = 0, size: int = 8) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def built(model: dict[str, object], size: int = 8) -> nn.Module:
    torch.manual_seed(0)
    net = build_model(model, image_shape=(1, size, size), classes=10, base=Path())
    module = Normalized(net, [0.4], [0.3]).train()
    for seed in range(5):
        module(images(32, seed, size))  # gives batch-norm its statistics
    return module.eval()


def prepared(module: nn.Module, scheme: Scheme | None = None, size: int = 8) -> FakeQuantNetwork:
    network = prepare_qat(module, torch.zeros(2, 1, size, size), scheme)
    calibrate_ranges(network, [images(64, seed, size) for seed in range(3)])
    return network


def answers(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(x)


def sqnr_db(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (got - expected).square().sum()))


def quantized_inputs(network: FakeQuantNetwork) -> list[tuple[str, int]]:
    """Operator and position of every argument that comes straight from a fake-quant node."""
    return [
        (str(node.target).removeprefix("aten.").partition(".")[0], position)
        for node in network.network.graph.nodes
        for position, argument in enumerate(node.args)
        if isinstance(argument, fx.Node) and argument.op == "call_module"
    ]


def activation_and_weight(network: FakeQuantNetwork) -> tuple[Any, Any]:
    """The fake-quant modules of a network with one layer."""
    one, other = network.fake_quants()
    return (other, one) if one.is_per_channel else (one, other)


def calls(module: FakeQuantNetwork | QuantizedNetwork, name: str) -> list[fx.Node]:
    return [node for node in module.network.graph.nodes if str(node.target).removeprefix("aten.").startswith(name)]


# Where fake-quant goes


@pytest.mark.parametrize("size", [8, 28])
def test_placement_in_a_residual_network(size: int):
    network = prepared(built({"name": "resnet", "widths": [4, 8]}, size), size=size)
    inputs = quantized_inputs(network)
    assert inputs.count(("conv2d", 0)) == inputs.count(("conv2d", 1)) == len(calls(network, "conv2d")) == 6
    assert inputs.count(("add", 0)) == inputs.count(("add", 1)) == 2
    assert inputs.count(("adaptive_avg_pool2d", 0)) == 1
    assert inputs.count(("linear", 0)) == inputs.count(("linear", 1)) == 1
    assert len(inputs) == 2 * 6 + 2 * 2 + 1 + 2
    # the normalisation and the logits stay float
    assert not {"sub", "mul", "output"} & {operator for operator, _ in inputs}


def test_a_tensor_read_twice_is_quantized_once():
    network = prepared(built({"name": "resnet", "widths": [4, 8]}))
    sources = [node.args[0] for node in network.network.graph.nodes if node.op == "call_module"]
    assert len(sources) == len(set(sources))


def test_depthwise_convolutions_are_quantized():
    network = prepared(built({"name": "mobilenet"}))
    depthwise = [node for node in calls(network, "conv2d") if node.args[6:] and node.args[6] != 1]
    assert depthwise
    assert all(getattr(node.args[i], "op", "") == "call_module" for node in depthwise for i in (0, 1))


def test_linear_layers_are_quantized():
    network = prepared(built({"name": "mlp"}))
    layers = len(calls(network, "linear"))
    assert layers > 1
    assert sorted(quantized_inputs(network)) == sorted([("linear", 0), ("linear", 1)] * layers)


class Attention(nn.Module):
    """Positions, a mask and a number are added, and none of them is a residual."""

    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.positions = nn.Parameter(torch.zeros(8, 8))
        self.mix = nn.Parameter(torch.rand(8, 6))
        self.register_buffer("mask", torch.triu(torch.full((8, 8), -1e9), 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(image[:, 0]) + self.positions
        scores = torch.matmul(x, x.transpose(1, 2)) + self.mask
        x = x + torch.matmul(torch.softmax(scores, 2), x)
        return (x.mean(1) @ self.mix) + 1


def test_only_residual_sums_are_quantized():
    module = Attention()
    network = prepared(module)
    inputs = quantized_inputs(network)
    assert inputs.count(("add", 0)) == inputs.count(("add", 1)) == 1
    assert sorted(inputs) == sorted(
        [("linear", 0), ("linear", 1), ("add", 0), ("add", 1)] + [("matmul", 0), ("matmul", 1)] * 3
    )
    assert max(fake_quant.scale.max().item() for fake_quant in network.fake_quants()) < 1
    assert sqnr_db(answers(convert_qat(network), images(8)), answers(module, images(8))) > 25


def test_a_constant_factor_has_a_range_per_column():
    network = prepared(Attention())
    shapes = {tuple(fake_quant.scale.shape) for fake_quant in network.fake_quants()}
    assert shapes == {(1,), (8,), (6,)}


def test_sums_of_other_shapes_or_integers_are_no_residuals():
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = self.linear(image.flatten(1))
            x = x + x.mean(1, keepdim=True)
            return x + (x.argmax(1, keepdim=True) + x.argmin(1, keepdim=True))

    assert sorted(quantized_inputs(prepared(Sums()))) == [("linear", 0), ("linear", 1)]


# What the numbers are


def test_without_fake_quant_it_is_the_float_network():
    module = built({"name": "resnet", "widths": [4, 8]})
    network = prepared(module)
    for fake_quant in network.fake_quants():
        fake_quant.disable_fake_quant()
    assert torch.allclose(answers(network, images(16)), answers(module, images(16)), atol=1e-5)


def test_the_float_network_is_left_alone():
    module = built({"name": "resnet", "widths": [4]})
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = prepared(module).train()
    network(images(8)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not module.training


def test_activation_ranges_are_the_mean_over_batches():
    network = prepare_qat(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), EXAMPLE)
    calibrate_ranges(network, [0.5 * torch.ones(4, 1, 8, 8), torch.ones(4, 1, 8, 8), 1.5 * torch.ones(2, 1, 8, 8)])
    activation, _ = activation_and_weight(network)
    assert activation.scale.item() == pytest.approx(1.0 / 127.5)
    assert activation.activation_post_process.averaging_constant == 0.01


def test_weight_ranges_follow_the_weight_at_once():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    network = prepare_qat(module, EXAMPLE).train()
    weight = network.network.get_parameter("1.weight")
    with torch.no_grad():
        weight.copy_(torch.linspace(-1, 1, 128).reshape(2, 64) * 5)
        network(EXAMPLE)
    _, quantized = activation_and_weight(network)
    assert torch.allclose(quantized.scale, weight.abs().amax(1) / 63)  # the image may be negative


@pytest.mark.parametrize("bits", [7, 8])
def test_integer_weights_fill_the_range_of_the_scheme(bits: int):
    scheme = Scheme(weight_bits=bits, full_range_weight_bits=5)
    network = convert_qat(prepared(built({"name": "resnet", "widths": [4, 8]}), scheme))
    weights = [value for value in network.network.state_dict().values() if value.dtype == torch.int8]
    # The stem reads the normalised image, which may be negative; the others are behind a ReLU.
    assert sorted(int(value.abs().max()) for value in weights) == [15, *[2 ** (bits - 1) - 1] * 6]


def test_rounding_is_within_half_a_step():
    network = prepare_qat(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), EXAMPLE)
    calibrate_ranges(network, [images(64)])
    activation, _ = activation_and_weight(network)
    x = torch.linspace(-0.99, 0.99, 1001)[:, None]
    assert (activation(x) - x).abs().max() <= activation.scale.item() / 2 + 1e-6


def test_a_dead_channel_keeps_its_bias_in_range():
    layer = nn.Linear(64, 2)
    with torch.no_grad():
        layer.weight[0] = 0
    module = nn.Sequential(nn.Flatten(), layer)
    _, weight = activation_and_weight(prepare_qat(module, EXAMPLE))
    assert weight.scale[0].item() == 2.0**-16


# Training and evaluation


def test_evaluation_moves_nothing():
    network = prepared(built({"name": "resnet", "widths": [4, 8]})).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    answers(network, 5 * images(8))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ["ranges", "batch_norm"])
def test_freezing_stops_what_it_names(kind: str):
    network = prepared(built({"name": "resnet", "widths": [4, 8]})).train()
    network.freeze(**{kind: True})

    def moved() -> set[str]:
        before = {name: value.clone() for name, value in network.state_dict().items()}
        answers(network, 5 * images(8))
        changed = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
        return {"batch_norm" if "running" in name else "ranges" for name in changed}

    assert moved() == {"ranges", "batch_norm"} - {kind}
    network.eval()
    network.train()
    assert moved() == {"ranges", "batch_norm"} - {kind}  # for good
    network.freeze(ranges=True, batch_norm=True)
    assert moved() == set()


def test_dropout_drops_only_in_training():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4))
    network = prepared(module)
    assert torch.equal(answers(network, images(4)), answers(network, images(4)))
    network.train()
    assert not torch.equal(answers(network, images(4)), answers(network, images(4)))
    network.eval()
    assert torch.equal(answers(network, images(4)), answers(network, images(4)))


def test_every_weight_gets_a_gradient():
    network = prepared(built({"name": "mobilenet"})).train()
    F.cross_entropy(network(images(16)), torch.arange(16) % 10).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_a_state_dict_resumes_exactly():
    module = built({"name": "resnet", "widths": [4, 8]})
    network = prepared(module)
    copy = prepare_qat(module, EXAMPLE)
    assert not torch.equal(answers(copy, images(8)), answers(network, images(8)))
    assert {k: v.shape for k, v in copy.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    copy.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(answers(copy, images(8)), answers(network, images(8)))


# Conversion


@pytest.mark.parametrize("model", [{"name": "resnet", "widths": [4, 8]}, {"name": "mobilenet"}, {"name": "mlp"}])
def test_conversion_keeps_the_answers(model: dict[str, object]):
    module = built(model)
    network = prepared(module)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    converted = convert_qat(network)
    expected, got = answers(network, images(64, 9)), answers(converted, images(64, 9))
    assert sqnr_db(got, expected) > 35
    assert sqnr_db(got, answers(module, images(64, 9))) > 15
    assert (got.argmax(1) == expected.argmax(1)).float().mean() > 0.95
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_conversion_folds_every_batch_norm():
    converted = convert_qat(prepared(built({"name": "resnet", "widths": [4, 8]})))
    assert not calls(converted, "batch_norm")
    assert not any("running" in name for name in converted.state_dict())
    assert all(node.args[2] is not None for node in calls(converted, "conv2d"))


def test_a_converted_network_only_infers():
    converted = convert_qat(prepared(built({"name": "mlp"})))
    assert not converted.train().training
    assert converted.eval() is converted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.onnx uses what torch has deprecated
def test_a_converted_network_exports_with_a_dynamic_batch(tmp_path: Path):
    import onnxruntime

    network = convert_qat(prepared(built({"name": "resnet", "widths": [4, 8]})))
    path = tmp_path / "model.onnx"
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        network, (EXAMPLE,), path, dynamo=True, opset_version=20, dynamic_shapes=({0: batch},), verbose=False
    )
    options = onnxruntime.SessionOptions()
    # Without optimisation Q/DQ run in float: no integer kernel of this processor is in the comparison.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (logits,) = session.run(None, {session.get_inputs()[0].name: images(count).numpy()})
        assert sqnr_db(torch.from_numpy(logits), answers(network, images(count))) > 35


# What is refused


def test_control_flow_on_values_is_refused():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.flatten(1)) if x.sum() > 0 else x

    with pytest.raises(ModelError, match=r"torch\.export refused Branching with a dynamic batch") as caught:
        prepare_qat(Branching(), EXAMPLE)
    assert caught.value.exit_code == 5
    assert "control flow" in caught.value.hint


def test_a_fixed_batch_is_refused():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.reshape(2, 64))

    with pytest.raises(ModelError, match=r"torch\.export refused Fixed") as caught:
        prepare_qat(Fixed(), EXAMPLE)
    assert caught.value.exit_code == 5


def test_nothing_to_quantize_is_refused():
    with pytest.raises(ModelError, match="Flatten has no convolution, linear layer or matrix product") as caught:
        prepare_qat(nn.Flatten(), EXAMPLE)
    assert caught.value.exit_code == 5


# Side effects


def test_the_description_names_versions():
    description = scheme_description(Scheme(weight_bits=7))
    assert description["name"] == "int8-symmetric"
    assert description["weight_bits"] == 7
    assert description["quantizer_version"] == QUANTIZER_VERSION
    assert description["torch"].startswith(torch.__version__.partition("+")[0])
    assert description["torchao"]


@pytest.mark.slow
def test_preparing_and_converting_print_nothing():
    code = (
        "import torch; from torch import nn; from compress.quantization.quantizer import prepare_qat, convert_qat;"
        "convert_qat(prepare_qat(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), torch.zeros(2, 1, 8, 8)))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_importing_leaves_torchao_alone():
    code = "import sys, compress.quantization.quantizer; print('torchao' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
