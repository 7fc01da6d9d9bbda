"""What is in an ONNX graph, as plain values for people and for reports."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from compress.errors import ModelError
from compress.onnx_graph.canonical import DEQUANTIZE, QUANTIZE
from compress.onnx_graph.graph import GraphIndex, opset_of
from compress.onnx_graph.lint import LAYERS

_PLURALS = {"Conv": "convs", "Gemm": "gemms", "MatMul": "matmuls"}
# Names of convolutions, matrix products and attention after the optimizations of ONNX Runtime.
INTEGER_KERNELS = frozenset(
    "QLinearConv QLinearMatMul QGemm ConvInteger MatMulInteger MatMulIntegerToFloat DynamicQuantizeMatMul "
    "QAttention".split()
)
FLOAT_KERNELS = frozenset(
    "Conv FusedConv NhwcFusedConv ConvTranspose Gemm FusedGemm MatMul FusedMatMul FusedMatMulActivation "
    "TransposeMatMul Attention MultiHeadAttention".split()
)


def summarize(model: onnx.ModelProto) -> dict[str, Any]:
    """Count what a graph holds.

    Returns:
        A JSON document: `opset`; `operators` {operator: count}; `inputs` and `outputs` [{name, dtype, shape}], a
        string in a shape naming a dynamic axis; `parameters`, numbers in weights and biases (scales, zero points and
        shapes not counted); `size_bytes` of the serialized model; `qdq`: {convs, convs_quantized, gemms,
        gemms_quantized, matmuls, matmuls_quantized, quantize_nodes, dequantize_nodes, activation_dtypes, float_layers},
        where a layer is quantized when both its operands are dequantized integers.
    """
    index = GraphIndex(model)
    operators = Counter(node.op_type for node in model.graph.node)
    return {
        "opset": opset_of(model),
        "operators": dict(sorted(operators.items())),
        "inputs": [_value(v) for v in model.graph.input if v.name in index.inputs],
        "outputs": [_value(v) for v in model.graph.output],
        "parameters": _count_parameters(index),
        "size_bytes": model.ByteSize(),
        "qdq": _coverage(index, operators),
    }


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return {"name": value.name, "dtype": dtype, "shape": dims}


def _count_parameters(index: GraphIndex) -> int:
    total = 0
    for name, tensor in index.constants.items():
        uses = index.uses(name)
        data = any(use.position == 0 or use.node.op_type not in (QUANTIZE, DEQUANTIZE) for use in uses)
        if data and tensor.data_type != onnx.TensorProto.INT64:  # int64 holds shapes and axes
            size = 1
            for dim in tensor.dims:
                size *= dim
            total += size
    return total


def _coverage(index: GraphIndex, operators: Counter[str]) -> dict[str, Any]:
    layers = [node for node in index.graph.node if node.op_type in LAYERS]
    quantized = [node for node in layers if all(index.producer(name, DEQUANTIZE) for name in node.input[:2])]
    counts: dict[str, Any] = {}
    for op_type, plural in _PLURALS.items():
        counts[plural] = operators[op_type]
        counts[f"{plural}_quantized"] = sum(node.op_type == op_type for node in quantized)
    done = {node.output[0] for node in quantized}
    dtypes = {
        index.constants[node.input[2]].data_type
        for node in index.graph.node
        if node.op_type == QUANTIZE and len(node.input) > 2 and node.input[2] in index.constants
    }
    return {
        **counts,
        "quantize_nodes": operators[QUANTIZE],
        "dequantize_nodes": operators[DEQUANTIZE],
        "activation_dtypes": sorted(helper.tensor_dtype_to_np_dtype(dtype).name for dtype in dtypes),
        "float_layers": [node.name or node.output[0] for node in layers if node.output[0] not in done],
    }


def kernels(path: Path | str) -> dict[str, Any]:
    """Load a file into ONNX Runtime's CPU provider and list what is left after all its optimizations, on this machine.

    Args:
        path: an ONNX file, float or int8.

    Returns:
        A JSON document: `operators` {operator: count}, the operators that run (QLinearConv, QGemm... are the integer
        kernels; what folding left as constants is not among them); `integer_layers`, how many convolutions and
        matrix products run on integers; `float_layers`, the names of those that do not.

    Raises:
        ModelError: ONNX Runtime refuses the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the optimized file depends on this machine
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(target)
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no base of their own
            raise ModelError(
                f"ONNX Runtime refuses the file: {str(error).strip().splitlines()[0]}",
                where=str(path),
                hint="`compress lint` names what is wrong with it.",
            ) from error
        nodes = list(onnx.load(target).graph.node)
    operators = Counter(node.op_type for node in nodes)
    return {
        "operators": dict(sorted(operators.items())),
        "integer_layers": sum(operators[name] for name in INTEGER_KERNELS),
        "float_layers": [node.name or node.output[0] for node in nodes if node.op_type in FLOAT_KERNELS],
    }
