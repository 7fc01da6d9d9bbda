"""Fake-quant for training: where TensorRT wants integers, how a network gets them, how they become Q/DQ.

`prepare_qat` exports a float network and puts fake-quant nodes where `TensorRTQuantizer` says; `calibrate_ranges`
gives them their first ranges; training moves them; `FakeQuantNetwork.freeze` stops ranges and batch-norm
statistics near the end; `convert_qat` folds batch-norm and writes integers. torchao's PT2E does the graph surgery.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.errors import ModelError
from compress.quantization.attention import write_out_attention
from compress.quantization.batch_norm import (
    BATCH_NORM,
    BATCH_NORM_TRAINING,
    WEIGHTED,
    drop_batch_counters,
    fold_batch_norm,
    scale_weights_by_batch_norm,
)
from compress.quantization.scheme import ACTIVATION_RANGE, QUANTIZER_VERSION, Scheme
from compress.quantization.signs import within_half_range

_ATEN = torch.ops.aten
_PRODUCTS = {_ATEN.matmul.default, _ATEN.bmm.default}
_SUMS = {_ATEN.add.Tensor, _ATEN.add_.Tensor}
_AVERAGE_POOLS = {_ATEN.adaptive_avg_pool2d.default, _ATEN.avg_pool2d.default}
_LAYOUT = {
    _ATEN.flatten.using_ints,
    _ATEN.unflatten.int,
    _ATEN.view.default,
    _ATEN.reshape.default,
    _ATEN.transpose.int,
    _ATEN.permute.default,
    _ATEN.squeeze.dim,
    _ATEN.unsqueeze.default,
    _ATEN.contiguous.default,
}
# Batch-norm, with what `scale_weights_by_batch_norm` puts in front of it, is gone at inference.
_BETWEEN_CONVOLUTION_AND_SUM = {*_LAYOUT, _ATEN.relu.default, _ATEN.relu6.default, BATCH_NORM, _ATEN.div.Tensor}
_SPATIAL_MEAN = _ATEN.mean.dim
_FLOAT_READERS = {_ATEN.layer_norm.default, _ATEN.softmax.int}
_DROPOUTS = {_ATEN.dropout.default, _ATEN.dropout_.default}

# Smallest scales. A dead channel would otherwise get a scale so small that its bias, expressed in
# (input scale x weight scale) units as ONNX Runtime does, leaves int32.
_SMALLEST_ACTIVATION_SCALE = 2.0**-12
_SMALLEST_WEIGHT_SCALE = 2.0**-16


@cache
def _torchao() -> SimpleNamespace:
    """Import torchao without its log lines about CUDA kernels and enum registration that a CPU never needs."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        from torchao.quantization import pt2e
        from torchao.quantization.pt2e import quantizer
        from torchao.quantization.pt2e.prepare import prepare
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    return SimpleNamespace(pt2e=pt2e, quantizer=quantizer, convert=convert_pt2e, prepare=prepare)


class TensorRTQuantizer:
    """Says which tensors TensorRT wants as int8.

    Quantized are the input and the weight of every convolution (depthwise too) and linear layer, both operands of a
    matrix product (a constant one as a weight), both operands of a residual sum, the input of an average pool, and the
    patches that a convolution made where positions are added to them. A
    residual sum adds two activations of one shape that descend from a common float activation, and nothing that needs
    floats (layer normalisation, softmax) reads it; a bias, a position table or an attention mask is none. Everything
    else, the input normalisation and the logits included, stays float. Max pools, resizes and concatenations get
    their pairs when the exported graph is completed: they move the codes that their reader asks for.

    Args:
        scheme: the integer ranges.
    """

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.activation = _torchao().quantizer.QuantizationSpec(
            dtype=torch.int8,
            quant_min=ACTIVATION_RANGE[0],
            quant_max=ACTIVATION_RANGE[1],
            qscheme=torch.per_tensor_symmetric,
            # The fused fake-quant is faster but rounds with another scale (largest / 127) than the one that
            # conversion writes (largest / 127.5), and refuses bfloat16.
            observer_or_fake_quant_ctr=_torchao().pt2e.FakeQuantize.with_args(
                observer=_torchao().pt2e.MovingAverageMinMaxObserver, eps=_SMALLEST_ACTIVATION_SCALE
            ),
        )

    def _weight(self, axis: int, *, half_range: bool) -> Any:
        low, high = self.scheme.weight_range(half_range=half_range)
        return _torchao().quantizer.QuantizationSpec(
            dtype=torch.int8,
            quant_min=low,
            quant_max=high,
            qscheme=torch.per_channel_symmetric,
            ch_axis=axis,
            # averaging_constant=1: a weight's range is its range now; a moving average would lag behind and clip it.
            observer_or_fake_quant_ctr=_torchao().pt2e.FakeQuantize.with_args(
                observer=_torchao().pt2e.MovingAveragePerChannelMinMaxObserver,
                ch_axis=axis,  # torchao hands on the one above only to classes with PerChannel in their name
                eps=_SMALLEST_WEIGHT_SCALE,
                averaging_constant=1.0,
            ),
        )

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Attach to each node of `model` the specification of its quantized inputs."""
        ancestry, half_range = _float_ancestors(model.graph), within_half_range(model.graph)
        for node in model.graph.nodes:
            inputs = self._quantized_inputs(node, ancestry, half_range)
            if inputs:
                node.meta["quantization_annotation"] = _torchao().quantizer.QuantizationAnnotation(
                    input_qspec_map=inputs, _annotated=True
                )
        return model

    def _quantized_inputs(
        self, node: fx.Node, ancestry: dict[fx.Node, int], half_range: set[fx.Node]
    ) -> dict[fx.Node, Any]:
        operands = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
        if node.target in WEIGHTED:
            return {operands[0]: self.activation, operands[1]: self._weight(0, half_range=operands[0] in half_range)}
        if node.target in _PRODUCTS:
            left, right = operands
            if ancestry[left] and ancestry[right]:
                return dict.fromkeys(operands, self.activation)
            if ancestry[left] and right.meta["val"].ndim == 2:
                return {left: self.activation, right: self._weight(1, half_range=left in half_range)}
        if node.target in _SUMS and _is_residual_sum(node, operands, ancestry):
            return dict.fromkeys(operands, self.activation)
        if node.target in _SUMS and (patches := _adds_positions_to_patches(node, ancestry)) is not None:
            return {patches: self.activation}
        if node.target in _AVERAGE_POOLS or _is_global_average(node):
            return {operands[0]: self.activation}
        return {}


def _float_ancestors(graph: fx.Graph) -> dict[fx.Node, int]:
    """Map each node to a bit set of the float activations it descends from, itself included; constants have none."""
    ancestry: dict[fx.Node, int] = {}
    live: set[fx.Node] = set()  # depends on an input of the network
    for position, node in enumerate(graph.nodes):
        bits = 0
        for parent in node.all_input_nodes:
            bits |= ancestry[parent]
        if node.op == "placeholder" or any(parent in live for parent in node.all_input_nodes):
            live.add(node)
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.is_floating_point():
                bits |= 1 << position
        ancestry[node] = bits
    return ancestry


def _is_residual_sum(node: fx.Node, operands: list[fx.Node], ancestry: dict[fx.Node, int]) -> bool:
    if len(operands) != 2 or not ancestry[operands[0]] & ancestry[operands[1]]:
        return False
    values = [operand.meta["val"] for operand in operands]
    if not all(value.is_floating_point() for value in values):
        return False
    # As text: comparing symbolic sizes directly would add guards to the exported program.
    first, second = ([str(size) for size in value.shape] for value in values)
    return first == second and not any(reader.target in _FLOAT_READERS for reader in _readers(node))


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what reads a node at inference, when dropout is gone."""
    for user in node.users:
        if user.target in _DROPOUTS:
            yield from _readers(user)
        else:
            yield user


def _adds_positions_to_patches(node: fx.Node, ancestry: dict[fx.Node, int]) -> fx.Node | None:
    """The patches that a sum puts a table of positions on, if a convolution made them; None for another sum."""
    operands = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
    live = [operand for operand in operands if ancestry[operand]]
    if len(operands) != 2 or len(live) != 1:
        return None
    source, moved = live[0], False
    while source.target in _BETWEEN_CONVOLUTION_AND_SUM and isinstance(source.args[0], fx.Node):
        moved |= source.target in _LAYOUT
        source = source.args[0]
    return live[0] if moved and source.target in WEIGHTED - {_ATEN.linear.default} else None


def _is_global_average(node: fx.Node) -> bool:
    """Whether a mean is the one over height and width, an average pool by another name."""
    if node.target is not _SPATIAL_MEAN or not isinstance(node.args[0], fx.Node):
        return False
    rank, axes = node.args[0].meta["val"].ndim, node.args[1]
    # set arithmetic instead of a modulus: the arguments of a node have no type of their own
    return rank == 4 and isinstance(axes, list) and set(axes) in ({2, 3}, {-1, -2}, {2, -1}, {3, -2})


class FakeQuantNetwork(nn.Module):
    """A network with fake-quant nodes, trainable like any other: `train()`, `eval()`, `state_dict()`.

    In `train()` mode batch-norm uses the batch, dropout drops and ranges follow the data, unless frozen; in `eval()`
    mode nothing moves. The exported graph holds these modes as literals, which `train` rewrites.

    Args:
        network: what torchao prepared.
        scheme: the integer ranges in it.
    """

    def __init__(self, network: fx.GraphModule, scheme: Scheme) -> None:
        super().__init__()
        self.network = network
        self.scheme = scheme
        self.ranges_frozen = False
        self.batch_norm_frozen = False

    def forward(self, image: Tensor) -> Tensor:
        """Map images, (batch, channels, height, width), to logits, (batch, classes), through simulated int8."""
        return self.network(image)

    def train(self, mode: bool = True) -> FakeQuantNetwork:
        """Switch batch-norm, dropout and observers; the submodules of an exported graph have no mode of their own."""
        self.training = mode
        batch_norm, changed = mode and not self.batch_norm_frozen, False
        for node in self.network.graph.nodes:
            if node.target is BATCH_NORM and node.args[4] is not None:  # else it always uses the batch
                changed |= _set_argument(node, BATCH_NORM_TRAINING, batch_norm)
            elif node.target in _DROPOUTS:
                changed |= _set_argument(node, 2, mode)
        if changed:
            self.network.recompile()
        for fake_quant in self.fake_quants():
            fake_quant.enable_observer(mode and not self.ranges_frozen)
        return self

    def freeze(self, *, ranges: bool = False, batch_norm: bool = False) -> None:
        """Keep ranges or batch-norm statistics as they are from now on; what is not named does not change.

        Late in training both would keep shifting the grid on which the weights settle (Krishnamoorthi, 2018,
        arXiv:1806.08342).
        """
        frozen = (ranges or self.ranges_frozen, batch_norm or self.batch_norm_frozen)
        if frozen != (self.ranges_frozen, self.batch_norm_frozen):
            self.ranges_frozen, self.batch_norm_frozen = frozen
            self.train(self.training)

    def fake_quants(self) -> Iterator[Any]:
        """Yield the fake-quant modules, of activations and of weights."""
        kind = _torchao().pt2e.FakeQuantizeBase
        return (module for module in self.network.modules() if isinstance(module, kind))


class QuantizedNetwork(nn.Module):
    """A converted network: int8 weights, Q/DQ around float operators, batch-norm folded; inference only."""

    def __init__(self, network: fx.GraphModule, scheme: Scheme) -> None:
        super().__init__()
        self.network = network
        self.scheme = scheme
        self.training = False

    def forward(self, image: Tensor) -> Tensor:
        """Map images, (batch, channels, height, width), to logits, (batch, classes)."""
        return self.network(image)

    def train(self, mode: bool = True) -> QuantizedNetwork:
        """Stay in inference mode: there is nothing left to train."""
        return self


def _set_argument(node: fx.Node, index: int, value: Any) -> bool:
    if node.args[index] == value:
        return False
    node.update_arg(index, value)
    return True


def scheme_description(scheme: Scheme | None = None) -> dict[str, Any]:
    """Return what a checkpoint must remember to rebuild a fake-quant network, as JSON values.

    Args:
        scheme: the integer ranges; 8 bits if left out.
    """
    versions = {library: version(library) for library in ("torch", "torchao")}
    return {**(scheme or Scheme()).to_dict(), "quantizer_version": QUANTIZER_VERSION, **versions}


def prepare_qat(module: nn.Module, example: Tensor, scheme: Scheme | None = None) -> FakeQuantNetwork:
    """Copy a float network and put fake-quant nodes into the copy.

    The network is taken un-folded; batch-norm after a convolution or linear layer is folded by `convert_qat`. Weight
    ranges are valid at once, activation ranges only after `calibrate_ranges` or `load_state_dict`.

    Args:
        module: float network, images in [0, 1] to logits; left unchanged.
        example: images, (batch >= 2, channels, height, width), float32; only the shape matters.
        scheme: the integer ranges; 8 bits if left out.

    Returns:
        The network in eval mode, with parameters named `network.<name in module>`.

    Raises:
        ModelError: torch cannot export it with a dynamic batch, or nothing in it can be quantized.
    """
    scheme = scheme or Scheme()
    graph = _exported(copy.deepcopy(module).train(), example)
    drop_batch_counters(graph)
    write_out_attention(graph)
    scale_weights_by_batch_norm(graph)
    # What prepare_qat_pt2e does, without its own conv + batch-norm rewrite, which costs seconds even where idle.
    graph = _torchao().prepare(TensorRTQuantizer(scheme).annotate(graph), {}, is_qat=True)
    network = FakeQuantNetwork(graph, scheme)
    if not any(True for _ in network.fake_quants()):
        raise ModelError(
            f"{type(module).__name__} has no convolution, linear layer or matrix product to quantize",
            hint="leave the qat step out of the recipe, or write such layers as torch operators",
        )
    calibrate_ranges(network, [example])  # gives every range buffer its final shape
    return network


def _exported(module: nn.Module, example: Tensor) -> fx.GraphModule:
    batch = torch.export.Dim("batch", min=1)
    try:
        return torch.export.export(module, (example,), dynamic_shapes=({0: batch},)).module(check_guards=False)
    except Exception as error:  # torch.export documents no common base of what it raises
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ModelError(
            f"torch.export refused {type(module).__name__} with a dynamic batch: {reason}",
            hint="avoid Python control flow on tensor values and shapes fixed to one batch size",
        ) from error


def calibrate_ranges(network: FakeQuantNetwork, images: Iterable[Tensor]) -> None:
    """Set every range from data: activations to the mean over batches of the batch minimum and maximum.

    Fake-quant is off meanwhile, so that one layer's rounding does not widen the next one's range.

    Args:
        network: from `prepare_qat`; ends in eval mode.
        images: batches, (batch, channels, height, width), float32 in [0, 1], unaugmented; a few hundred images.
    """
    network.eval()
    fake_quants = list(network.fake_quants())
    constants = [fake_quant.activation_post_process.averaging_constant for fake_quant in fake_quants]
    for fake_quant in fake_quants:
        fake_quant.enable_observer()
        fake_quant.disable_fake_quant()
    with torch.no_grad():
        for seen, batch in enumerate(images):
            for fake_quant, constant in zip(fake_quants, constants, strict=True):
                fake_quant.activation_post_process.averaging_constant = max(constant, 1 / (seen + 1))
            network(batch)
    for fake_quant, constant in zip(fake_quants, constants, strict=True):
        fake_quant.activation_post_process.averaging_constant = constant
        fake_quant.enable_fake_quant()
        fake_quant.disable_observer()


def convert_qat(network: FakeQuantNetwork) -> QuantizedNetwork:
    """Turn simulated integers into real ones: int8 weights, Q/DQ nodes, batch-norm folded, biases float.

    Args:
        network: trained; left unchanged.

    Returns:
        The network for inference, on the same device.
    """
    with warnings.catch_warnings():
        # Copying an exported graph makes torch build a class that it has deprecated.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        graph = copy.deepcopy(network).eval().network
    fold_batch_norm(graph)
    return QuantizedNetwork(_torchao().convert(graph), network.scheme)
