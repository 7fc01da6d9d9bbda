"""Does TensorRT-RTX itself build a file? No check of ours comes before it; it needs no GPU.

    python rtx.py model.onnx answer.json

The answer has `builds` (None where TensorRT-RTX is not installed); how many of the graph's convolutions and matrix
products have `int8` and how many have `float` operands in the engine, and how many are `unseen`, because they went into
a fused attention or a constant; and the first of the builder's `messages`, errors first.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx

from compress.engines.onnx_check import compute_nodes
from compress.engines.rtx_program import count_int8, operand_types

MESSAGES = 5
BATCHES = (1, 8, 64)  # smallest, typical, largest


def build(trt: Any, path: Path, messages: list[tuple[int, str]]) -> bytes | None:
    """The plan's bytes; None where parser or builder refuse."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.WARNING):
                messages.append((int(severity), msg.strip()))

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)  # TensorRT-RTX has no other networks than strongly typed ones
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        messages += [(0, parser.get_error(i).desc()) for i in range(parser.num_errors)]
        return None
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        profile.set_shape(tensor.name, *[(batch, *tuple(tensor.shape)[1:]) for batch in BATCHES])
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return None if plan is None else bytes(plan)


def judge(path: Path) -> dict[str, Any]:
    """Build one file and say what its engine multiplies."""
    if find_spec("tensorrt_rtx") is None:
        return {"builds": None, "messages": ["tensorrt_rtx is not installed"]}
    messages: list[tuple[int, str]] = []
    plan = build(import_module("tensorrt_rtx"), path, messages)
    said = [text for _, text in sorted(messages, key=lambda message: message[0])]
    if plan is None:
        return {"builds": False, "messages": said[:MESSAGES], "message_count": len(said)}
    counts = count_int8(operand_types(plan), compute_nodes(onnx.load(path)))
    return {
        "builds": True,
        "int8": counts.convolutions_int8 + counts.gemms_int8,
        "float": len(counts.float_nodes),
        "unseen": len(counts.unseen_nodes),
        "messages": said[:MESSAGES],
        "message_count": len(said),
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(judge(Path(sys.argv[1])), indent=2) + "\n")
