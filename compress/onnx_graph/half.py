"""A float32 graph becomes a float16 one, for builders that take every type from the graph.

Inputs and outputs stay float32. Operators that lose digits where it matters stay float32 between two casts.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference

from compress.errors import ModelError
from compress.onnx_graph.canonical import DEQUANTIZE, QUANTIZE
from compress.onnx_graph.graph import (
    GraphIndex,
    attributes,
    copy_model,
    names_of,
    opset_of,
    set_nodes,
    tensor_from,
    tidy,
    unique_name,
)

# Sums over many terms, and functions whose relative error grows with their argument.
SENSITIVE = frozenset(
    {
        *("Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
        *("RMSNormalization", "BatchNormalization", "Pow", "Exp", "Log", "Sqrt", "Reciprocal", "CumSum"),
        *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceProd", "ReduceL1", "ReduceL2"),
        *("ReduceLogSum", "ReduceLogSumExp"),
    }
)
# Between two sensitive operators these stay float32 too, as in the variance of a layer norm: two casts less.
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Max", "Min"})
_LAYERS = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose"})
# What keeps a divisor off zero by a constant, and what passes that on.
_FLOORS = frozenset({"Add", "Clip", "Max", "Where"})
_CARRIERS = frozenset(
    {
        *("Abs", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
        *("Div", "Reciprocal", "Sqrt"),
    }
)
# Their output type is an attribute, which keeps saying float32.
_TYPED_BY_ATTRIBUTE = frozenset({"Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform"})
_QDQ_OPSET = 19  # from here on scales may be float16
_HALF = np.finfo(np.float16)
# Halves below the smallest normal number have fewer than 11 bits, down to none; a scale or an epsilon needs them.
_SMALLEST = float(_HALF.tiny)
_LARGEST = float(_HALF.max)
_FLOAT16 = "tensor(float16)"


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float16; graph inputs and outputs keep float32.

    Operators of `SENSITIVE`, and those that read a constant which float16 cannot hold or makes zero, stay float32
    between casts, and so do divisions that only such a constant keeps from being 0 / 0.
    Q/DQ pairs stay where they are: scales become float16 (rounded to 11 bits) where the tensor beside them does.

    Args:
        model: plain ONNX operators; float, or signed Q/DQ with opset 19 or later.

    Raises:
        ModelError: control flow, or Q/DQ with an older opset.
    """
    result = copy_model(model)
    index = GraphIndex(result)
    quantized = any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in result.graph.node)
    if quantized and opset_of(result) < _QDQ_OPSET:
        raise ModelError(
            f"Float16 beside Q/DQ needs opset {_QDQ_OPSET} or later, got {opset_of(result)}.",
            hint="Export the model again.",
        )
    return _Conversion(result, index).run()


class _Conversion:
    """The work of `to_half`: one walk in the order of nodes; every tensor keeps its name and gets one type."""

    def __init__(self, model: onnx.ModelProto, index: GraphIndex) -> None:
        self.model = model
        self.index = index
        self.opset = opset_of(model)
        self.taken = names_of(model) | {node.name for node in model.graph.node}
        self.floats = _float_tensors(model)
        self.single = self._single_nodes()
        self.halves: set[str] = set()  # float tensors that are float16 now
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> onnx.ModelProto:
        tidy(self.model)  # nodes in the order of computation
        for node in [*self.model.graph.node]:
            self._convert(node)
        self._restore_outputs()
        # A float32 constant that everything read as float16 has no reader left, and `tidy` drops it.
        set_nodes(self.model, self.nodes)
        return tidy(self.model)

    def _single_nodes(self) -> set[str]:
        """Names of the first outputs of nodes that stay float32."""
        single = {
            node.output[0]
            for node in self.index.graph.node
            if node.op_type in SENSITIVE | _TYPED_BY_ATTRIBUTE
            or node.domain not in ("", "ai.onnx")
            or self._needs_float(node)
        } | self._divisions_by_epsilons()
        for node in self.index.graph.node:
            sources = [name for name in node.input if name in self.floats and name not in self.index.constants]
            made_by = [self.index.producer(name) for name in sources]
            readers = self.index.uses(node.output[0])
            if (
                node.op_type in _ELEMENTWISE
                and readers
                and all(maker is not None and maker.output[0] in single for maker in made_by)
                and all(use.node.output[0] in single for use in readers)
            ):
                single.add(node.output[0])
        for node in self.index.graph.node:
            readers = self.index.uses(node.output[0])
            if node.op_type == DEQUANTIZE and readers and all(use.node.output[0] in single for use in readers):
                single.add(node.output[0])
        return single

    def _needs_float(self, node: onnx.NodeProto) -> bool:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            return not _fits_scale(self.index.constant(node.input[1]))
        if node.op_type in _LAYERS:
            # A cast between its DQ and a layer would cost the layer its integers, so the layer follows its scales.
            scales = [maker.input[1] for name in node.input if (maker := self.index.producer(name, DEQUANTIZE))]
            if not all(_fits_scale(self.index.constant(name)) for name in scales):
                return True
        return any(not _fits(self._constant(name), node.op_type) for name in node.input if name in self.floats)

    def _constant(self, name: str) -> np.ndarray | None:
        """The value of an initializer or of a Constant node."""
        maker = self.index.producer(name, "Constant")
        if maker is None:
            return self.index.constant(name)
        found = attributes(maker)
        if "value" in found:
            return numpy_helper.to_array(found["value"])
        value = found.get("value_float", found.get("value_floats"))
        return None if value is None else np.asarray(value, np.float32)

    def _divisions_by_epsilons(self) -> set[str]:
        """Divisions whose divisor only a small constant keeps off zero, and what stands between the two.

        The constant's own node in float32 is not enough: a cast behind it would give zero again.
        """
        found: set[str] = set()
        for node in self.index.graph.node:
            if node.op_type not in ("Div", "Mul"):
                continue
            for name in node.input[1:] if node.op_type == "Div" else node.input:
                bound, between = self._bound(name)
                # The other side of a reciprocal: half has it infinite, and infinity times zero is no number.
                if bound > _LARGEST or (node.op_type == "Div" and bound < _SMALLEST):
                    found.update(between, node.output)
        return found

    def _bound(self, name: str) -> tuple[float, list[str]]:
        """How near to zero (behind a reciprocal: how far up) an epsilon lets a tensor come, and the tensors between.

        (1, []) where no epsilon is behind it.
        """
        maker = self.index.producer(name)
        if maker is None:
            return 1.0, []
        if maker.op_type in _FLOORS:
            constants = [self._constant(source) for source in maker.input if source in self.floats]
            bound = min((_smallest(array) for array in constants if array is not None), default=math.inf)
            return (bound, [maker.output[0]]) if bound < _SMALLEST else (1.0, [])
        divides = maker.op_type == "Div"
        if maker.op_type not in _CARRIERS or (divides and self._constant(maker.input[0]) is None):
            return 1.0, []
        bound, between = self._bound(maker.input[1 if divides else 0])
        if maker.op_type == "Sqrt":
            bound = math.sqrt(bound)
        elif maker.op_type in ("Div", "Reciprocal"):
            bound = 1 / bound
        return bound, [*between, maker.output[0]]

    def _convert(self, node: onnx.NodeProto) -> None:
        if node.op_type == QUANTIZE:
            self._convert_quantize(node)
            return
        half = node.output[0] not in self.single
        sources = {name for name in node.input if name in self.floats}
        if len(sources) == 1 and not any(name in self.floats for name in node.output):
            self.nodes.append(node)  # Shape, or a cast to integers: takes either type
            return
        for position, name in enumerate(node.input):
            if name in self.floats:
                wanted = half and self._allows_half(node, position, "input")
                node.input[position] = self._typed(name, TensorProto.FLOAT16 if wanted else TensorProto.FLOAT)
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if half and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
            sources.add(node.output[0])
        if half and sources:
            self.halves.update(
                name
                for position, name in enumerate(node.output)
                if name in self.floats and self._allows_half(node, position, "output")
            )
        self.nodes.append(node)

    def _convert_quantize(self, node: onnx.NodeProto) -> None:
        """Q takes its input as it comes, so that a graph input is quantized from its float32 values."""
        half = node.input[0] in self.halves and node.output[0] not in self.single
        wanted = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        for position in range(2):
            node.input[position] = self._typed(node.input[position], wanted)
        self.nodes.append(node)

    def _allows_half(self, node: onnx.NodeProto, position: int, side: str) -> bool:
        schema = defs.get_schema(node.op_type, self.opset, "")
        formals = schema.inputs if side == "input" else schema.outputs
        # The last one is repeated where an operator takes any number.
        return _FLOAT16 in formals[min(position, len(formals) - 1)].types

    def _typed(self, name: str, wanted: int) -> str:
        """A tensor of that type with the values of `name`: itself, a converted constant or a cast."""
        now = TensorProto.FLOAT16 if name in self.halves else TensorProto.FLOAT
        if now == wanted:
            return name
        if (name, wanted) not in self.casts:
            suffix = "half" if wanted == TensorProto.FLOAT16 else "single"
            other = unique_name(f"{name}.{suffix}", self.taken)
            array = self.index.constant(name)
            if array is not None:
                self.model.graph.initializer.append(tensor_from(array.astype(np.float16), other))
            else:
                label = unique_name(f"{name}.to_{suffix}", self.taken)
                self.nodes.append(helper.make_node("Cast", [name], [other], name=label, to=wanted))
            self.casts[name, wanted] = other
        return self.casts[name, wanted]

    def _restore_outputs(self) -> None:
        for output in [name for name in self.index.outputs if name in self.halves]:
            inner = unique_name(f"{output}.half", self.taken)
            for node in self.nodes:
                for field in (node.input, node.output):
                    for position, name in enumerate(field):
                        if name == output:
                            field[position] = inner
            label = unique_name(f"{output}.to_single", self.taken)
            self.nodes.append(helper.make_node("Cast", [inner], [output], name=label, to=TensorProto.FLOAT))


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether any activation of the graph is quantized."""
    return any(node.op_type == QUANTIZE for node in model.graph.node)


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the float32 tensors: of inputs, outputs, constants, and of what inference tells."""
    try:
        graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    except (shape_inference.InferenceError, RuntimeError) as error:
        raise ModelError(f"Shape inference fails on the graph: {error}", hint="Export the model again.") from error
    names = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            names.add(value.name)
    return names


def _fits(array: np.ndarray | None, op_type: str) -> bool:
    """Whether float16 holds the constant of such a node; what is computed is taken to fit."""
    if array is None or array.dtype != np.float32 or array.size == 0:
        return True
    largest = float(np.abs(array).max())
    if not largest <= _LARGEST:
        return False
    if op_type in _LAYERS or largest == 0:
        return True  # a layer adds up many products: those of tiny weights are lost in the rest
    # Each divisor counts; elsewhere (a bias, say) a tiny entry beside larger ones loses no more than itself.
    return (_smallest(array) if op_type in ("Div", "Max") else largest) >= _SMALLEST


def _smallest(array: np.ndarray) -> float:
    """The smallest size of an entry other than zero; infinity where there is none."""
    sizes = np.abs(array[array != 0])
    return float(sizes.min()) if sizes.size else math.inf


def _fits_scale(array: np.ndarray | None) -> bool:
    """Whether float16 keeps a scale's 11 leading bits."""
    if array is None or array.dtype != np.float32:
        return True
    return float(array.min()) >= _SMALLEST and float(array.max()) <= _LARGEST
