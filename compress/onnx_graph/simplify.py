"""Exact rewrites that make a graph smaller and friendlier to integer kernels, without changing what it computes."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, shape_inference
from onnx.reference import ReferenceEvaluator

from compress.errors import ModelError
from compress.onnx_graph.canonical import DEQUANTIZE
from compress.onnx_graph.graph import (
    GraphIndex,
    attributes,
    copy_model,
    names_of,
    opset_of,
    rename_inputs,
    set_nodes,
    shapes_of,
    tensor_from,
    tidy,
    unique_name,
)

FOLD_LIMIT_ELEMENTS = 1 << 26  # of one constant that is computed, and of what folding adds to a graph in all
SHAPE_LIMIT_ELEMENTS = 1 << 10  # an input beyond this is no shape
RANDOM_OPERATORS = frozenset({"RandomNormal", "RandomUniform", "Bernoulli", "Multinomial"})
SELECTING_OPERATORS = frozenset({"NonZero", "Compress", "Unique"})  # make no more than the indices of all elements


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """A simplified copy: constants folded, identities and dead nodes gone, BatchNormalization in its conv or Gemm.

    Also: a weight's Q is folded into an int8 initializer, a Transpose between an int8 weight and its reader is
    folded into the initializer, and a mean over height and width becomes GlobalAveragePool, for which both
    TensorRT and ONNX Runtime have int8 kernels. A Gemm whose bias is one row or one number gets one number for each
    channel, as integer kernels want it. A Reshape whose shape is computed from the batch axis alone gets a
    stored one. Names of surviving tensors stay.

    Raises:
        ModelError: control flow, shapes that contradict each other, or constants beyond `FOLD_LIMIT_ELEMENTS`.
    """
    result = tidy(copy_model(model))
    _fold_constants(result)
    _remove_identities(result)
    _fold_weight_transposes(result)
    _broadcast_gemm_biases(result)
    _fold_batch_norms(result)
    _pool_from_mean(result)
    _constant_reshapes(result)
    return tidy(result)


def _fold_constants(model: onnx.ModelProto) -> None:
    index = GraphIndex(model)
    opset = opset_of(model)
    kept, added = [], 0
    for node in model.graph.node:
        names = list(dict.fromkeys(filter(None, node.input)))
        random = node.op_type in RANDOM_OPERATORS
        # a DequantizeLinear of a constant is how int8 weights are stored: folding it would undo the quantization
        if random or node.op_type == DEQUANTIZE or any(name not in index.constants for name in names):
            kept.append(node)
            continue
        alone = _alone(node, [index.constants[name] for name in names], opset)
        values = {name: index.required(name, "operand") for name in names}
        sizes = _result_sizes(alone, values)
        if sizes is None:
            kept.append(node)
            continue
        added += max(0, sum(sizes) - sum(array.size for array in values.values()))
        elements = max([added, *sizes])
        if elements > FOLD_LIMIT_ELEMENTS:
            raise ModelError(
                f"Constants of {elements} elements are computed in the graph; the limit is {FOLD_LIMIT_ELEMENTS}.",
                where=f"node {node.name or node.output[0]}",
                hint="Store them as parameters or compute them from the input.",
            )
        for name, array in _evaluate(alone, values).items():
            model.graph.initializer.append(tensor_from(array, name))
            index.constants[name] = model.graph.initializer[-1]
    set_nodes(model, kept)


def _alone(node: onnx.NodeProto, tensors: list[onnx.TensorProto], opset: int) -> onnx.ModelProto:
    """The node as a model of its own; what may be a shape is stored in it, so that shape inference can read it."""
    inputs = [helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in tensors]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    shapes = [tensor for tensor in tensors if math.prod(tensor.dims) <= SHAPE_LIMIT_ELEMENTS]
    graph = helper.make_graph([node], "fold", inputs, outputs, shapes)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, opset)])


def _result_sizes(alone: onnx.ModelProto, values: dict[str, np.ndarray]) -> list[int] | None:
    """How many elements the one node's results have at most, before they take memory; None where nothing tells."""
    (node,) = alone.graph.node
    if node.domain:
        return None  # nobody but its own runtime can compute it
    if node.op_type == "Constant" and not any(attribute.HasField("sparse_tensor") for attribute in node.attribute):
        return []  # stored in the file already
    if node.op_type in SELECTING_OPERATORS:
        return [sum(array.ndim * array.size for array in values.values())]
    if node.op_type == "Range":  # shape inference subtracts in the type of the operands, and wraps
        start, end, step = (float(values[name].item()) for name in node.input)
        steps = (end - start) / step if step else math.inf
        return [max(0, math.ceil(steps))] if math.isfinite(steps) else None
    inferred = shape_inference.infer_shapes(alone).graph
    shapes = {value.name: value.type.tensor_type for value in (*inferred.output, *inferred.value_info)}
    sizes = []
    for output in alone.graph.output:
        kind = shapes[output.name]
        dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
        if not kind.HasField("shape") or min(dims, default=0) < 0:
            return None
        sizes.append(math.prod(max(dim, 1) for dim in dims))  # a product that wraps may leave a 0 behind
    return sizes


def _evaluate(alone: onnx.ModelProto, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with np.errstate(all="ignore"):  # a non-finite result is caught by the checks on weights
        results = ReferenceEvaluator(alone).run(None, values)
    return {output.name: np.asarray(array) for output, array in zip(alone.graph.output, results, strict=True)}


def _is_identity(node: onnx.NodeProto, index: GraphIndex) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":  # inference mode unless its third input says training
        training = index.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        mask_read = len(node.output) > 1 and (index.uses(node.output[1]) or node.output[1] in index.outputs)
        return not mask_read and (len(node.input) < 3 or (training is not None and not bool(training)))
    return False


def _remove_identities(model: onnx.ModelProto) -> None:
    index = GraphIndex(model)
    renames: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        if not _is_identity(node, index):
            kept.append(node)
            continue
        source, target = node.input[0], node.output[0]
        while source in renames:
            source = renames[source]
        if target not in index.outputs:
            renames[target] = source
        elif source in index.producers and source not in index.outputs:
            # the graph output keeps its name, so the producer takes it over
            for position, name in enumerate(index.producers[source].output):
                if name == source:
                    index.producers[source].output[position] = target
            renames[source] = target
        else:
            kept.append(node)  # an input or a constant handed straight to an output
    rename_inputs(kept, renames)
    set_nodes(model, kept)


def _fold_weight_transposes(model: onnx.ModelProto) -> None:
    """Move the Transpose of a stored int8 weight into its initializer: integer kernels take no other form."""
    index, taken = GraphIndex(model), names_of(model)
    for node in model.graph.node:
        source = index.producer(node.input[0], DEQUANTIZE) if node.op_type == "Transpose" else None
        weight = index.constant(source.input[0]) if source is not None else None
        if source is None or weight is None:
            continue
        order = list(attributes(node).get("perm", range(weight.ndim)[::-1]))
        scale = index.constant(source.input[1])
        name = unique_name(f"{source.input[0]}.transposed", taken)
        model.graph.initializer.append(tensor_from(weight.transpose(order), name))
        fresh = helper.make_node(DEQUANTIZE, [name, *source.input[1:]], list(node.output), name=node.name)
        if scale is not None and scale.ndim:
            axis = attributes(source).get("axis", 1) % weight.ndim
            fresh.attribute.append(helper.make_attribute("axis", order.index(axis)))
        node.CopyFrom(fresh)
    tidy(model)


def _broadcast_gemm_biases(model: onnx.ModelProto) -> None:
    """Store one number per channel where a Gemm's bias is one row or one number: integer kernels take no other form."""
    index, taken = GraphIndex(model), names_of(model)
    for node in model.graph.node:
        bias = index.constant(node.input[2]) if node.op_type == "Gemm" and len(node.input) > 2 else None
        if bias is None or attributes(node).get("beta", 1.0) != 1.0:
            continue
        source = index.producer(node.input[1], DEQUANTIZE)
        weight = index.constants.get(source.input[0] if source is not None else node.input[1])
        if weight is None or len(weight.dims) != 2:
            continue
        channels = weight.dims[0 if attributes(node).get("transB", 0) else 1]
        if bias.shape == (channels,) or bias.shape not in ((1, channels), (1, 1), (1,), ()):
            continue
        name = unique_name(f"{node.input[2]}.row", taken)
        model.graph.initializer.append(tensor_from(np.broadcast_to(bias.reshape(-1), (channels,)), name))
        node.input[2] = name


def _fold_batch_norms(model: onnx.ModelProto) -> None:
    index, taken = GraphIndex(model), names_of(model)
    folded: dict[str, str] = {}
    for norm in model.graph.node:
        layer = index.producers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if layer is None or index.only_reader(norm.input[0]) is None or not _foldable(layer, norm, index):
            continue
        gamma, beta, mean, variance = (np.float64(index.constant(name)) for name in norm.input[1:5])
        factor = gamma / np.sqrt(variance + attributes(norm).get("epsilon", 1e-5))
        weight = index.required(layer.input[1], "weight")
        bias = index.required(layer.input[2], "bias") if len(layer.input) > 2 and layer.input[2] else np.zeros(1)
        axis = 1 if layer.op_type == "Gemm" and not attributes(layer).get("transB", 0) else 0
        shape = [-1 if position == axis else 1 for position in range(weight.ndim)]
        parts = {
            unique_name(f"{layer.input[1]}.folded", taken): np.float64(weight) * factor.reshape(shape),
            unique_name(f"{layer.output[0]}.folded_bias", taken): (np.float64(bias) - mean) * factor + beta,
        }
        model.graph.initializer.extend(tensor_from(np.float32(a), name) for name, a in parts.items())
        inputs = [layer.input[0], *parts]
        del layer.input[:]
        layer.input.extend(inputs)
        folded[norm.output[0]] = layer.output[0]
        layer.output[0] = norm.output[0]
    set_nodes(model, [n for n in model.graph.node if n.op_type != "BatchNormalization" or n.output[0] not in folded])


def _foldable(layer: onnx.NodeProto, norm: onnx.NodeProto, index: GraphIndex) -> bool:
    options = attributes(layer)
    plain_gemm = layer.op_type == "Gemm" and options.get("alpha", 1.0) == 1.0 and options.get("beta", 1.0) == 1.0
    if layer.op_type != "Conv" and not plain_gemm:
        return False
    constants = [*layer.input[1:], *norm.input[1:5]]
    return not attributes(norm).get("training_mode", 0) and all(
        index.constant(name) is not None for name in constants if name
    )


def _pool_from_mean(model: onnx.ModelProto) -> None:
    """ReduceMean over the last two of four axes computes what GlobalAveragePool does."""
    if not any(node.op_type == "ReduceMean" for node in model.graph.node):
        return
    index, shapes, taken = GraphIndex(model), shapes_of(model), names_of(model)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        shape = shapes.get(node.input[0]) if node.op_type == "ReduceMean" else None
        options = attributes(node)
        axes = options.get("axes")
        if len(node.input) > 1 and node.op_type == "ReduceMean":
            constant = index.constant(node.input[1])
            axes = None if constant is None else constant.tolist()
        if shape is None or len(shape) != 4 or axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        if options.get("keepdims", 1):
            nodes[-1] = helper.make_node("GlobalAveragePool", node.input[:1], node.output, name=node.name)
            continue
        pooled, where = unique_name(f"{node.output[0]}.pooled", taken), unique_name(f"{node.output[0]}.axes", taken)
        model.graph.initializer.append(tensor_from(np.array([2, 3], np.int64), where))
        nodes[-1] = helper.make_node("GlobalAveragePool", node.input[:1], [pooled], name=pooled)
        nodes.append(helper.make_node("Squeeze", [pooled, where], node.output, name=node.name))
    set_nodes(model, nodes)


def _constant_reshapes(model: onnx.ModelProto) -> None:
    """Store the shape of every Reshape that is computed from the batch axis alone, and keep that axis by name.

    A 0 says "as in the input", so that shape inference still knows the axis behind the Reshape; behind a -1 it does
    not. Each round may tell more about the Reshapes behind those of the round before.
    """
    while found := _reshapes_to_store(model):
        taken = names_of(model)
        for node, sizes in found:
            name = unique_name(f"{node.output[0]}.shape", taken)
            model.graph.initializer.append(tensor_from(np.array(sizes, np.int64), name))
            del node.attribute[:]  # allowzero would take the 0 literally
            node.input[1] = name


def _reshapes_to_store(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, list[int]]]:
    index = GraphIndex(model)
    stored = {n.output[0]: index.constant(n.input[1]) for n in model.graph.node if n.op_type == "Reshape"}
    # of two axes only the flattening in front of a Gemm is left: nothing behind it asks for the batch
    open_ends = [n for n, sizes in stored.items() if sizes is None or (sizes[:1] == -1 and sizes.size > 2)]
    if not open_ends:
        return []
    shapes, kept, computed = shapes_of(model), [], []
    for name in open_ends:
        node, sizes = index.producers[name], stored[name]
        source, result = shapes.get(node.input[0], ()), shapes.get(name, ())
        wanted = [size if isinstance(size, int) else -1 for size in result] if sizes is None else sizes.tolist()
        before = [size for size in source[1:] if isinstance(size, int)]
        named = bool(source) and isinstance(source[0], str) and len(before) == len(source) - 1
        rest = wanted[1:]
        if wanted[:1] == [-1] and named and rest and min(rest) > 0 and math.prod(rest) == math.prod(before):
            kept.append((node, [0, *rest]))
        elif sizes is None and wanted and wanted.count(-1) <= 1 and 0 not in wanted:
            computed.append((node, wanted))
    return kept or computed
