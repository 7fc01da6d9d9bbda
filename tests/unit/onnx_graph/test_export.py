from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.errors import ModelError
from compress.onnx_graph.export import export_onnx
from compress.onnx_graph.graph import shapes_of
from compress.onnx_graph.inspect import summarize
from compress.onnx_graph.lint import lint
from compress.onnx_graph.qdq import insert_qdq, quantizable_tensors, scales_of, strip_qdq
from compress.quantization.quantizer import calibrate_ranges, convert_qat, prepare_qat

EXAMPLE = torch.zeros(2, 1, 8, 8)


class Block(nn.Module):
    """Two convs with batch norm, and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride) if stride != 1 or before != after else nn.Identity()

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Residual(nn.Module):
    """A normalisation, a stem, two blocks, a pool, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.blocks(self.stem((x - 0.3) / 0.35))
        return self.head(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class Depthwise(nn.Module):
    """Pointwise, depthwise, pointwise, with ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        layers = []
        for before, after, kernel, groups in ((1, 16, 1, 1), (16, 16, 3, 16), (16, 10, 1, 1)):
            layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.ReLU6()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x).mean((2, 3))


class Head(nn.Module):
    """One linear layer; what the faulty networks below derive their fault from."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(x.flatten(1))


class FixedBatch(Head):
    def forward(self, x):
        return self.linear(x.view(2, 64))


class OtherFixedBatch(Head):
    def forward(self, x):
        return self.linear(x.view(7, 64))


class NoBatch(Head):
    def forward(self, x):
        return super().forward(x).sum(0)


class Unsupported(Head):
    def forward(self, x):
        y = super().forward(x)
        return torch.special.bessel_j0(y) + torch.special.i1e(y) + torch.special.bessel_j0(y * 2)


class ValueBranch(Head):
    def forward(self, x):
        return super().forward(x) * (2 if x.sum() > 0 else 3)


class TwoOutputs(Head):
    def forward(self, x):
        return super().forward(x), x


def trained(module):
    """Batch norm statistics and weights that differ from their initial values."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.rand(16, 1, 8, 8))
    return module.eval()


@pytest.fixture(scope="module")
def residual_net():
    torch.manual_seed(0)
    return trained(Residual())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def float_graph(residual_net, folder):
    return export_onnx(residual_net, EXAMPLE, folder / "float.onnx")


@pytest.fixture(scope="module")
def qat_net(residual_net):
    torch.manual_seed(1)
    prepared = prepare_qat(residual_net, EXAMPLE)
    calibrate_ranges(prepared, [torch.rand(32, 1, 8, 8)])
    return convert_qat(prepared)


@pytest.fixture(scope="module")
def qat_graph(qat_net, folder):
    return export_onnx(qat_net, EXAMPLE, folder / "qat.onnx")


def logits_of(module, images):
    with torch.no_grad():
        return module(torch.from_numpy(images)).numpy()


def test_the_float_graph_is_simple(float_graph):
    assert summarize(float_graph)["operators"] == {
        "Add": 2, "Conv": 6, "Div": 1, "Gemm": 1, "GlobalAveragePool": 1, "Relu": 5, "Reshape": 1, "Sub": 1,
    }  # fmt: skip
    assert float_graph.opset_import[0].version == 20
    assert [finding.rule for finding in lint(float_graph)] == ["not-quantized"]


def test_input_output_and_batch_axis(float_graph):
    shapes = shapes_of(float_graph)
    assert shapes["image"] == ("batch", 1, 8, 8)
    assert shapes["logits"] == ("batch", 10)


def test_the_file_is_what_is_returned(float_graph, folder):
    assert onnx.load(folder / "float.onnx") == float_graph


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_logits_are_torchs_at_every_batch_size(residual_net, float_graph, images, infer, batch):
    got = infer(float_graph, images[:batch])
    np.testing.assert_allclose(got, logits_of(residual_net, images[:batch]), atol=1e-5)


def test_nothing_of_this_machine_is_in_the_file(float_graph, qat_graph, folder):
    for name in ("float.onnx", "qat.onnx"):
        content = (folder / name).read_bytes()
        for leak in (b"/home", b"/root", b".py", b"pytorch", b"stack_trace", str(Path.cwd()).encode()):
            assert leak not in content
    assert not float_graph.producer_name
    assert not float_graph.metadata_props


def test_exporting_again_gives_the_same_bytes(residual_net, float_graph, folder, tmp_path):
    export_onnx(residual_net, torch.rand(5, 1, 8, 8), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (folder / "float.onnx").read_bytes()


def test_the_qat_graph_has_the_placement_of_the_rule(float_graph, qat_graph):
    assert quantizable_tensors(qat_graph) == quantizable_tensors(float_graph)
    activations = {name for name, scale in scales_of(qat_graph).items() if scale.axis is None}
    assert activations == set(quantizable_tensors(float_graph))
    coverage = summarize(qat_graph)["qdq"]
    assert (coverage["convs_quantized"], coverage["gemms_quantized"]) == (6, 1)
    assert lint(qat_graph) == []


def test_qat_and_ptq_write_the_same_nodes(float_graph, qat_graph):
    assert strip_qdq(qat_graph).graph.node == float_graph.graph.node
    assert insert_qdq(float_graph, scales_of(qat_graph)).graph.node == qat_graph.graph.node


def test_logits_of_the_qat_graph_are_torchs(qat_net, qat_graph, images, infer):
    got, expected = infer(qat_graph, images, optimize=False), logits_of(qat_net, images)
    # a value halfway between two codes may fall either way, which moves a logit by a fraction of a step
    assert 10 * np.log10((expected**2).sum() / ((got - expected) ** 2).sum()) > 35


def test_a_depthwise_net(folder, images, infer):
    net = trained(Depthwise())
    graph = export_onnx(net, EXAMPLE, folder / "depthwise.onnx")
    assert summarize(graph)["operators"] == {"Clip": 3, "Conv": 3, "GlobalAveragePool": 1, "Squeeze": 1}
    np.testing.assert_allclose(infer(graph, images), logits_of(net, images), atol=1e-5)


def test_modes_are_given_back(tmp_path):
    net = Head()
    net.train()
    net.linear.eval()
    export_onnx(net, EXAMPLE, tmp_path / "a.onnx")
    assert (net.training, net.linear.training) == (True, False)


def test_a_batch_of_one_is_enough_of_an_example(tmp_path, images, infer):
    graph = export_onnx(Head(), EXAMPLE[:1], tmp_path / "a.onnx")
    assert infer(graph, images).shape == (64, 10)


@pytest.mark.parametrize("fault", [FixedBatch, OtherFixedBatch, NoBatch])
def test_a_network_without_a_dynamic_batch(fault, tmp_path):
    with pytest.raises(ModelError, match="The network has no dynamic batch axis") as caught:
        export_onnx(fault(), EXAMPLE, tmp_path / "a.onnx")
    assert caught.value.exit_code == 5
    assert caught.value.hint
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.slow
def test_every_unsupported_operator_is_listed(tmp_path):
    with pytest.raises(ModelError, match=r"No ONNX form for 2 operator\(s\)") as caught:
        export_onnx(Unsupported(), EXAMPLE, tmp_path / "a.onnx")
    assert caught.value.exit_code == 5
    assert "bessel_i1e" in caught.value.message
    assert "bessel_j0" in caught.value.message
    assert "onnx.ai" in caught.value.hint


def test_a_branch_on_values(tmp_path):
    with pytest.raises(ModelError, match="cannot be captured as a graph"):
        export_onnx(ValueBranch(), EXAMPLE, tmp_path / "a.onnx")


def test_two_outputs(tmp_path):
    with pytest.raises(ModelError, match="returns tuple; expected one tensor of logits"):
        export_onnx(TwoOutputs(), EXAMPLE, tmp_path / "a.onnx")


def test_an_input_that_does_not_fit(tmp_path):
    with pytest.raises(ModelError, match=r"fails on a batch of shape \(2, 3, 8, 8\)"):
        export_onnx(Head(), torch.zeros(2, 3, 8, 8), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=r"example input is torch\.uint8"):
        export_onnx(Head(), EXAMPLE.to(torch.uint8), tmp_path / "a.onnx")


def test_weights_that_are_not_finite(tmp_path):
    net = Head()
    net.linear.bias.data[3] = float("nan")
    with pytest.raises(ModelError, match=r"Weights are NaN or infinite: linear\.bias") as caught:
        export_onnx(net, EXAMPLE, tmp_path / "a.onnx")
    assert caught.value.exit_code == 5


NETWORK = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)
    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
"""
SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from network import Net
from compress.onnx_graph.export import export_onnx
torch.manual_seed(0)
export_onnx(Net().eval(), torch.zeros(2, 1, 8, 8), sys.argv[1] + "/model.onnx")
"""


@pytest.mark.slow
def test_other_folder_and_process_give_the_same_bytes(tmp_path, root):
    digests = set()
    for name in ("one", "some/where/else"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "network.py").write_text(NETWORK)
        command = [sys.executable, "-c", SCRIPT, str(folder)]
        environment = {"PYTHONPATH": str(root), "PYTHONHASHSEED": str(len(name)), "OMP_WAIT_POLICY": "PASSIVE"}
        subprocess.run(command, check=True, cwd=folder, env=environment, timeout=300, capture_output=True)
        digests.add(hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest())
    assert len(digests) == 1
