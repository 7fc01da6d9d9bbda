"""From a torch module to a canonical ONNX file: float, or Q/DQ where the module holds converted fake-quant."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from compress.errors import ModelError
from compress.onnx_graph.canonical import canonicalize
from compress.onnx_graph.graph import shapes_of
from compress.onnx_graph.loading import check_model, require_finite, save_onnx
from compress.onnx_graph.simplify import simplify

OPSET = 20
INPUT, OUTPUT, BATCH = "image", "logits", "batch"


def export_onnx(module: nn.Module, example: torch.Tensor, path: Path | str, *, opset: int = OPSET) -> onnx.ModelProto:
    """Write `module` as a simplified ONNX file whose bytes depend on the module alone.

    Args:
        module: float network, or a fake-quant graph after conversion; exported in evaluation mode and given
            back in the mode that it had.
        example: one input batch, (batch, channels, height, width), float32; only its shape matters, and its
            first axis becomes dynamic.
        path: the file to write.
        opset: version of the ONNX operator set, 19 to 21.

    Returns:
        The model as written: input `image`, output `logits`, first axis of both dynamic and named `batch`;
        BatchNormalization folded, constants folded, no metadata, canonical names.

    Raises:
        ModelError: weights are not finite, the network fixes the batch size or has no single output, operators have
            no ONNX form (all are listed), or the exported graph fails onnx.checker.
    """
    _refuse_bad_module(module, example)
    with _evaluating(module), _quiet_exporter(), torch.no_grad():
        program = _capture(module, example)
        model = _translate(program, opset)
    model = canonicalize(simplify(_with_contract_names(model)))
    # again: removing one node can bring two foldable ones together, and the canonical form must be a fixed point
    model = canonicalize(simplify(model))
    check_model(model, str(path))
    require_finite(model, str(path))
    _require_dynamic_output(model)
    save_onnx(model, path)
    return model


def _refuse_bad_module(module: nn.Module, example: torch.Tensor) -> None:
    if example.dtype != torch.float32 or example.ndim < 2:
        raise ModelError(
            f"The example input is {example.dtype} of shape {tuple(example.shape)}; expected a float32 batch.",
            hint="Pass images / 255 as float32, (batch, channels, height, width).",
        )
    state = module.state_dict()
    bad = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise ModelError(
            f"Weights are NaN or infinite: {', '.join(bad)}.",
            hint="Train again with a lower learning rate, or bring other weights.",
        )


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of the export; every submodule gets its own mode back."""
    modes = [(child, child.training) for child in module.modules()]
    # graphs that torch.export captured refuse .eval(): conversion has fixed their mode already
    if not isinstance(module, torch.fx.GraphModule):
        module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide what torch says about itself: packages that are not installed, its own use of its deprecated names."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _capture(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    # torch.export takes a batch of one for a constant
    batch = torch.zeros((2, *example.shape[1:]), device=device)
    try:
        output = module(batch)
    except Exception as error:  # the user's own code
        raise _explained(error, f"fails on a batch of shape {tuple(batch.shape)}") from error
    try:
        program = torch.export.export(module, (batch,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    except Exception as error:  # torch.export raises a dozen types without a common base
        raise _explained(error, "cannot be captured as a graph") from error
    if not isinstance(output, torch.Tensor) or output.ndim == 0:
        raise ModelError(
            f"The network returns {type(output).__name__}; expected one tensor of logits, (batch, classes).",
            hint="Wrap the network in a module that returns its logits alone.",
        )
    return program


def _explained(error: Exception, what: str) -> ModelError:
    text = str(error)
    fixed = ("Constraints violated", "specialized", "ConstraintViolation", "RelaxedUnspecConstraint")
    if any(word in text for word in fixed) or "is invalid for input of size" in text:
        return ModelError(
            "The network has no dynamic batch axis: it works for one batch size only. "
            f"torch.export says: {_first_lines(text)}",
            hint="Replace fixed batch sizes in view, reshape or expand by -1 or x.shape[0].",
        )
    return ModelError(
        f"The network {what}: {type(error).__name__}: {_first_lines(text)}",
        hint="Check the input shape, and remove branches that depend on values: torch.export cannot follow them.",
    )


def _first_lines(text: str, lines: int = 3, characters: int = 400) -> str:
    return " ".join(line.strip() for line in text.strip().splitlines()[:lines])[:characters]


def _translate(program: torch.export.ExportedProgram, opset: int) -> onnx.ModelProto:
    try:
        exported: Any = torch.onnx.export(
            program, dynamo=True, opset_version=opset, verbose=False, external_data=False, optimize=True
        )
    except torch.onnx.errors.OnnxExporterError as error:
        unsupported = _unsupported_operators(program)
        if unsupported:
            raise ModelError(
                f"No ONNX form for {len(unsupported)} operator(s): {', '.join(unsupported)}.",
                hint="Replace them by operators of the ONNX standard; "
                "https://onnx.ai/onnx/operators lists what there is.",
            ) from error
        raise ModelError(f"The exporter fails: {_first_lines(str(error))}") from error
    model = exported.model_proto
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        raise ModelError(
            f"The graph has {len(model.graph.input)} inputs and {len(model.graph.output)} outputs; "
            "expected one of each.",
            hint="Wrap the network in a module that takes images and returns logits.",
        )
    return model


def _unsupported_operators(program: torch.export.ExportedProgram) -> list[str]:
    """Every operator for which the exporter has no translation; its own error names only the first."""
    from torch.onnx._internal.exporter import _dispatching, _fx_passes, _registration

    registry = _registration.ONNXRegistry.from_torchlib()
    decomposed = _fx_passes.decompose_with_registry(program, registry)
    missing: dict[str, list[str]] = {}
    for node in decomposed.graph.nodes:
        builtin = not isinstance(node.target, torch._ops.OpOverload)
        if node.op == "call_function" and not builtin and _dispatching.dispatch(node, registry)[0] is None:
            missing.setdefault(str(node.target), []).append(node.name)
    return [f"{target} (node {', '.join(names)})" for target, names in sorted(missing.items())]


def _with_contract_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name input, output and the batch axis; inner tensors get canonical names afterwards."""
    graph = model.graph
    old = {graph.input[0].name: INPUT, graph.output[0].name: OUTPUT}
    for node in graph.node:
        for field in (node.input, node.output):
            for position, name in enumerate(field):
                # a tensor that happens to carry a contract name makes way for it
                field[position] = old.get(name, f"{name}.inner" if name in (INPUT, OUTPUT) else name)
    for tensor in graph.initializer:
        tensor.name = old.get(tensor.name, f"{tensor.name}.inner" if tensor.name in (INPUT, OUTPUT) else tensor.name)
    graph.input[0].name, graph.output[0].name = INPUT, OUTPUT
    del graph.value_info[:]
    for value in (graph.input[0], graph.output[0]):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = BATCH
    return model


def _require_dynamic_output(model: onnx.ModelProto) -> None:
    shape = shapes_of(model).get(OUTPUT, ())
    if shape[:1] != (BATCH,) or shapes_of(model)[INPUT][:1] != (BATCH,):
        raise ModelError(
            f"The network has no dynamic batch axis: input {shapes_of(model)[INPUT]}, output {shape}; "
            f"expected the first axis of both to be '{BATCH}'.",
            hint="Keep the batch axis first, and its size out of view, reshape and expand.",
        )
