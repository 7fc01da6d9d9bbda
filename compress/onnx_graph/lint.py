"""What a builder would refuse, or silently run in float: found before the file reaches it."""

from __future__ import annotations

import onnx

from compress.errors import ModelError
from compress.onnx_graph import lint_files, lint_layers, lint_pairs
from compress.onnx_graph.findings import BOTH, LAYERS, ONNXRUNTIME, TENSORRT, Finding, Rule, Severity, Target
from compress.onnx_graph.graph import GraphIndex
from compress.onnx_graph.loading import check_model

__all__ = ["LAYERS", "RULES", "Finding", "Rule", "Severity", "Target", "lint", "lint_foreign", "raise_on_errors"]

_PLACE = "Quantize with `compress quantize`, or the `calibrate` step of a recipe, which place Q/DQ in pairs."
_FLOAT = "Nothing, where float is wanted; if a quantizer wrote this file, read its log, or use `compress quantize`."
_SYMMETRIC = "Calibrate symmetrically: int8, zero point 0."
_INT8 = "Quantize the float model to int8 with `compress quantize`."
_CHANNELS = "Give each output channel one scale, or the whole weight one; `compress quantize` does."
_STANDARD = "Replace the layers behind them by standard ones, then export again."
_PLAIN = "Rewrite data-dependent branches of the model as tensor expressions, then export again."
_UNSIGNED = "Run the unsigned file (model.ort.onnx)."
_FLOAT_FUNCTION = "Place Q on the inputs of layers, not on those of Softmax, normalization or GELU."
_ATTENTION = "Write attention as matmul, softmax, matmul instead of one fused operator, then quantize again."
_MASK = "Leave the sum of scores and mask in float; quantize residual adds only."
_OPSET = "Export with opset 20."
_INLINE = "Nothing, if the file builds; `onnx.inliner.inline_local_functions` writes them out."
_STRIP = "`compress quantize` and the `export` step write files without metadata."
_WEIGHTS = "Store int8 weights in front of a DQ; `compress quantize` does."
_STATIC = "Export with a dynamic batch axis, or use the one batch size only."

RULES: tuple[Rule, ...] = (
    Rule("custom-operator", "error", TENSORRT, lint_files.custom_operators, _STANDARD),
    Rule("custom-operator", "error", ONNXRUNTIME, lint_files.runtime_operators, _STANDARD),
    Rule("non-finite-weight", "error", BOTH, lint_files.bad_weights, "Train again with a lower learning rate."),
    Rule("opset", "error", BOTH, lint_files.opset, _OPSET),
    Rule("integer-operator", "error", TENSORRT, lint_files.integer_operators, _INT8),
    Rule("nonzero-zero-point", "error", TENSORRT, lint_pairs.nonzero_zero_points, _SYMMETRIC),
    Rule("unsigned-codes", "error", TENSORRT, lint_pairs.unsigned_codes, "Build from the signed file (model.onnx)."),
    Rule("wide-codes", "error", TENSORRT, lint_pairs.wide_codes, _INT8),
    Rule("int32-bias", "error", TENSORRT, lint_pairs.int32_biases, "Keep biases float."),
    Rule("quantized-bias", "error", TENSORRT, lint_pairs.quantized_biases, "Keep biases float."),
    Rule("per-channel-activation", "error", BOTH, lint_pairs.per_channel_activations, "Give the activation one scale."),
    Rule("weight-scales", "error", BOTH, lint_layers.misplaced_weight_scales, _CHANNELS),
    Rule("int8-conv-transpose", "error", TENSORRT, lint_layers.transposed_convs, "Leave ConvTranspose in float."),
    Rule("missing-dq", "error", TENSORRT, lint_pairs.missing_dequantizers, _PLACE),
    Rule("bad-scale", "error", BOTH, lint_pairs.bad_scales, "Calibrate again, on real samples."),
    Rule("control-flow", "warning", BOTH, lint_files.control_flow, _PLAIN),
    Rule("sparse-weight", "warning", BOTH, lint_files.sparse_weights, "Store weights as dense tensors."),
    Rule("duplicate-name", "warning", TENSORRT, lint_files.duplicate_names, "Give every node a name of its own."),
    Rule("local-function", "warning", BOTH, lint_files.local_functions, _INLINE),
    Rule("rare-opset", "warning", TENSORRT, lint_files.rare_opset, _OPSET),
    Rule("static-batch", "warning", BOTH, lint_files.static_batch, _STATIC),
    Rule("leaked-path", "warning", BOTH, lint_files.leaked_paths, _STRIP),
    Rule("other-codes", "warning", BOTH, lint_pairs.other_codes, _INT8),
    Rule("huge-scale", "warning", BOTH, lint_pairs.huge_scales, "Leave a mask in float; mend an overflow."),
    Rule("quantized-mask", "warning", BOTH, lint_layers.quantized_masks, _MASK),
    Rule("conflicting-scales", "warning", BOTH, lint_pairs.conflicting_scales, "Share one Q and its scale."),
    Rule("repeated-quantizer", "warning", ONNXRUNTIME, lint_pairs.repeated_quantizers, "Share one Q and its scale."),
    Rule("unfolded-weight", "warning", BOTH, lint_pairs.unfolded_weights, _WEIGHTS),
    Rule("transposed-weight", "warning", ONNXRUNTIME, lint_pairs.transposed_weights, _WEIGHTS),
    Rule("unfolded-batch-norm", "warning", BOTH, lint_layers.unfolded_batch_norms, "Fold it before quantizing."),
    Rule("q-before-activation", "warning", BOTH, lint_layers.late_activations, "Move Q behind the activation."),
    Rule("clip-before-q", "warning", ONNXRUNTIME, lint_layers.clips_before_quantizers, _UNSIGNED),
    Rule("scale-shape", "warning", ONNXRUNTIME, lint_pairs.shaped_scales, "Store activation scales as 0-d tensors."),
    Rule("signed-activation", "warning", ONNXRUNTIME, lint_pairs.signed_activations, _UNSIGNED),
    Rule("saturating-weight", "warning", ONNXRUNTIME, lint_pairs.saturating_weights, _INT8),
    Rule("hard-swish", "warning", ONNXRUNTIME, lint_layers.hard_swish, "Prefer ReLU or ReLU6 in models for CPUs."),
    Rule("not-quantized", "warning", BOTH, lint_layers.unquantized, _FLOAT),
    Rule("float-layer", "warning", TENSORRT, lint_layers.float_layers, _PLACE),
    Rule("float-layer", "warning", ONNXRUNTIME, lint_layers.runtime_float_layers, _PLACE),
    Rule("float-attention", "warning", BOTH, lint_layers.float_attention, _ATTENTION),
    Rule("half-quantized-add", "warning", BOTH, lint_layers.half_quantized_adds, "Quantize both inputs of the Add."),
    Rule("float-pool", "warning", BOTH, lint_layers.float_pools, _PLACE),
    Rule("quantized-function", "warning", BOTH, lint_layers.quantized_functions, _FLOAT_FUNCTION),
)
INVALID = "invalid-graph"  # what `lint_foreign` calls a graph that onnx.checker refuses
_WITHOUT_INDEX = frozenset({"control-flow", "custom-operator", "opset"})  # hold for such a graph too
_REFUSED_UNLESS_ALLOWED = "static-batch"
_LISTED = 3  # nodes of one rule in an error's message


def lint(model: onnx.ModelProto, target: Target = "tensorrt") -> list[Finding]:
    """Hold a graph against everything that `target` is known to refuse or to run in float.

    Args:
        model: a float or Q/DQ graph from any source, which onnx.checker accepts.
        target: "tensorrt" for the signed file, "onnxruntime" for the unsigned one.

    Returns:
        Errors first, then warnings, each in the order of rules and nodes; empty for a clean graph.
    """
    index = GraphIndex(lint_files.flattened(model))
    return _apply([rule for rule in RULES if target in rule.targets], model, index)


def lint_foreign(model: onnx.ModelProto, target: Target = "tensorrt") -> list[Finding]:
    """The same for a graph that nobody has checked: what onnx.checker says becomes the first finding.

    Args:
        model: as `read_onnx` returns it.
        target: see `lint`.

    Returns:
        As `lint`; for a graph that onnx.checker refuses, that and what can be said about its operators alone.
    """
    try:
        check_model(model)
    except ModelError as error:
        first = Finding(INVALID, "error", "", error.message, "Export the model again.")
        rules = [rule for rule in RULES if target in rule.targets and rule.name in _WITHOUT_INDEX]
        # These rules read the model alone; an index of a broken graph would mean nothing.
        return [first, *_apply(rules, model, GraphIndex(onnx.ModelProto()))]
    return lint(model, target)


def _apply(rules: list[Rule], model: onnx.ModelProto, index: GraphIndex) -> list[Finding]:
    findings = [
        Finding(rule.name, rule.severity, problem.node, problem.message, rule.cure)
        for rule in rules
        for problem in rule.check(model, index)
    ]
    return sorted(findings, key=lambda finding: finding.severity != "error")


def raise_on_errors(
    model: onnx.ModelProto, target: Target = "tensorrt", *, static_batch: bool = False
) -> list[Finding]:
    """Lint, and stop at errors.

    Args:
        model: see `lint`.
        target: see `lint`.
        static_batch: whether a model of one batch size may pass; what is calibrated or built with a range of
            batch sizes needs a dynamic axis.

    Returns:
        The warnings.

    Raises:
        ModelError: naming every error with its cure.
    """
    findings = lint(model, target)
    errors = [f for f in findings if f.severity == "error" or (f.rule == _REFUSED_UNLESS_ALLOWED and not static_batch)]
    if errors:
        raise ModelError(
            f"The graph is not fit for {target}, {len(errors)} error(s): {'; '.join(_listed(errors))}",
            hint=" ".join(dict.fromkeys(error.cure for error in errors)),
        )
    return findings


def _listed(errors: list[Finding]) -> list[str]:
    """Every rule with the first few nodes that it found."""
    lines = []
    for rule in dict.fromkeys(error.rule for error in errors):
        found = [error for error in errors if error.rule == rule]
        lines += [f"{rule} at {error.node or 'graph'}: {error.message}" for error in found[:_LISTED]]
        if len(found) > _LISTED:
            lines.append(f"and {len(found) - _LISTED} more of {rule}")
    return lines
