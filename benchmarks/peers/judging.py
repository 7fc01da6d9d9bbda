"""What the measurements mean: one row a model, seed and tool, and what is promised of ours against the best peer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compress.measure.comparison import paired_counts
from compress.measure.statistics import tango_noninferiority
from compress.onnx_graph.inspect import FLOAT_KERNELS, INTEGER_KERNELS

FLOAT, OURS = "float", "ours"
MARGIN = 0.002  # of top-1, a fraction
SPEED_SHARE = 0.98  # of the best peer's speed
SPEEDUPS = {"1": 1.6, "32": 2.2}  # of the residual net, by batch
MEMORY_GROWTH = 1.05
REWRITE_PP = 0.05

_COMPARED = ("top1", *(f"speedup_b{batch}" for batch in SPEEDUPS))
_FIGURES = (*_COMPARED, "calib_s", "peak_bytes_512")

# What OpenVINO calls the layers that count, and what it says of those in integers; ONNX Runtime has a name for each.
_OPENVINO = {"Convolution", "FullyConnected", "MatMul", "ScaledDotProductAttention"}
_INTEGERS = {"i8", "u8"}


def int8_share(kernels: Mapping[str, int]) -> float | None:
    """Share of the convolutions and matrix products that a runtime computes with int8 operands.

    Args:
        kernels: operator -> count; OpenVINO's as `layer:precision`.

    Returns:
        Within [0, 1]; None without any such layer.
    """
    integer = floating = 0
    for name, count in kernels.items():
        layer, _, precision = name.partition(":")
        if layer in INTEGER_KERNELS or (layer in _OPENVINO and precision in _INTEGERS):
            integer += count
        elif layer in FLOAT_KERNELS or (precision and layer in _OPENVINO):
            floating += count
    return integer / (integer + floating) if integer + floating else None


def row(
    model: str,
    seed: int,
    tool: str,
    measured: Mapping[str, Any],
    small: Mapping[str, Any] | None,
    large: Mapping[str, Any] | None,
    rtx_builds: bool | None,
) -> dict[str, Any]:
    """One row of the result; what was not measured, or failed, is None.

    Args:
        model: the network's name.
        seed: of its training.
        tool: who quantized it, or "float".
        measured: answer of the measuring process for that network and seed.
        small: the adapter's result with 512 calibration images.
        large: the same with 8,192.
        rtx_builds: whether TensorRT-RTX builds the tool's file.
    """
    found = measured["tools"].get(tool)
    speedup = {batch: 1 / tools[tool]["ratio"] for batch, tools in measured["latency"].items() if tool in tools}
    return {
        "model": model,
        "seed": seed,
        "tool": tool,
        "n": measured["n"],
        "top1": found and found["top1"],
        "drop_pp": found and 100 * (measured["tools"][FLOAT]["top1"] - found["top1"]),
        "speedup_b1": speedup.get("1"),
        "speedup_b32": speedup.get("32"),
        "calib_s": small and small["calib_s"],
        "peak_bytes_512": small and small["peak_bytes"],
        "peak_bytes_8192": large and large["peak_bytes"],
        "rtx_builds": rtx_builds,
        "int8_share": found and found["int8_share"],
    }


def completeness(
    model: str, rows: Sequence[Mapping[str, Any]], seeds: Iterable[int], failures: int
) -> list[tuple[str, float, str, float | None]]:
    """Whether ours did all its work: a comparison that was never made must not pass for one that was won.

    Args:
        model: the network's name.
        rows: of that model, all seeds and tools.
        seeds: that were asked for.
        failures: of ours on that model.

    Returns:
        Description, value, sign and limit of each line.
    """
    wanted = set(seeds)
    ours = [one for one in rows if one["tool"] == OURS]
    whole = {one["seed"] for one in ours if all(one[field] is not None for field in _FIGURES)}
    built = {one["seed"] for one in ours if one["rtx_builds"]}
    peers = min(len(complete_peers(rows, field)) for field in _COMPARED)
    return [
        (f"{model}: seeds of ours with every figure", len(whole & wanted), ">=", len(wanted)),
        (f"{model}: seeds whose file of ours TensorRT-RTX builds, share", len(built & wanted) / len(wanted), ">=", 1),
        (f"{model}: failures of ours", failures, "<=", 0),
        (f"{model}: peers with figures for the same seeds", peers, ">=", 1),
    ]


def engine_share(model: str, engines: Iterable[Mapping[str, Any]]) -> tuple[str, float, str, float | None]:
    """The share of convolutions and matrix products that our engines provably compute with int8 operands.

    Args:
        model: the network's name.
        engines: answers of `rtx.py`, one a seed; one that was not built has no counts. An `unseen` layer, which went
            into a constant or is fused beyond recognition, may be int8 or not, and counts as one that is not.

    Returns:
        Description, value, sign and limit.
    """
    known = list(engines)
    int8 = sum(one.get("int8", 0) for one in known)
    rest = sum(one.get(kind, 0) for one in known for kind in ("float", "unseen"))
    what = f"{model}: layers of our engine seen to take int8 operands, share of all, unseen ones included"
    return what, int8 / (int8 + rest) if int8 + rest else 0.0, ">=", 1


def rewritten(model: str, details: Iterable[Mapping[str, Any]]) -> list[tuple[str, float, str, float | None]]:
    """How far our file for ONNX Runtime answers other than the Q/DQ file that it was rewritten from.

    Args:
        model: the network's name.
        details: answers of the measuring process, one a seed; those that ours failed on are left out.

    Returns:
        One line: the absolute change of top-1, in percentage points, of the seed with the largest one.
    """
    changes = [
        100 * abs(gained - lost) / one["n"]
        for one in details
        if OURS in one["sources"]
        for gained, lost in [paired_counts(one["sources"][OURS]["correct"], one["tools"][OURS]["correct"], one["n"])]
    ]
    what = f"{model}: largest change of one seed's top-1 by the unsigned rewrite, pp"
    return [(what, max(changes), "<=", REWRITE_PP)] if changes else []


def complete_peers(rows: Iterable[Mapping[str, Any]], field: str) -> list[str]:
    """Peers of one model that have a figure for every seed that ours has, in the order of rows."""
    known: dict[str, set[int]] = {}
    for one in rows:
        if one[field] is not None:
            known.setdefault(one["tool"], set()).add(one["seed"])
    ours = known.get(OURS, set())
    return [tool for tool, seeds in known.items() if tool not in (FLOAT, OURS) and ours and seeds >= ours]


def geometric_mean(rows: Iterable[Mapping[str, Any]], tool: str, field: str) -> float:
    """Of one tool's figure over the seeds."""
    values = [one[field] for one in rows if one["tool"] == tool and one[field] is not None]
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def best_peer(rows: Sequence[Mapping[str, Any]], field: str) -> str | None:
    """The peer with the largest figure over the seeds; None where no peer has all of them."""
    return max(complete_peers(rows, field), key=lambda tool: geometric_mean(rows, tool, field), default=None)


def pooled(correct: Mapping[int, Mapping[str, str]], n: int, reference: str) -> tuple[int, int, int]:
    """Samples that only ours has right, those that only the reference has right, and all, over the seeds.

    Args:
        correct: seed -> tool -> bits of right answers.
        n: samples of one seed.
        reference: the tool to hold ours against.
    """
    counts = [paired_counts(tools[reference], tools[OURS], n) for tools in correct.values() if OURS in tools]
    return sum(gained for gained, _ in counts), sum(lost for _, lost in counts), n * len(counts)


def figures(
    model: str, rows: Sequence[Mapping[str, Any]], correct: Mapping[int, Mapping[str, str]]
) -> list[tuple[str, float, str, float | None]]:
    """What is promised of one model: description, value, sign and limit.

    Args:
        model: the network's name.
        rows: of that model, all seeds and tools.
        correct: seed -> tool -> bits of right answers.
    """
    found: list[tuple[str, float, str, float | None]] = []
    peer = best_peer(rows, "top1")
    if peer is not None and correct:
        gained, lost, n = pooled(correct, rows[0]["n"], peer)
        p = tango_noninferiority(gained, lost, n, MARGIN).p
        what = f"{model}, n {n}: p of losing {100 * MARGIN:g} pp or more against {peer} (Tango)"
        found += [(what, p, "<=", 0.05), (f"{model}: top-1 minus {peer}'s, pp", 100 * (gained - lost) / n, ">=", None)]
    for batch in SPEEDUPS:
        field = f"speedup_b{batch}"
        peer = best_peer(rows, field)
        if peer is None:
            continue
        ours = geometric_mean(rows, OURS, field)
        share = ours / geometric_mean(rows, peer, field)
        found.append((f"{model}, batch {batch}: speed over {peer}'s", share, ">=", SPEED_SHARE))
        limit = SPEEDUPS[batch] if model == "resnet" else None
        found.append((f"{model}, batch {batch}: speed-up over float", ours, ">=", limit))
    for one in rows:
        if one["tool"] == OURS and one["peak_bytes_512"] and one["peak_bytes_8192"]:
            growth = one["peak_bytes_8192"] / one["peak_bytes_512"]
            what = f"{model}, seed {one['seed']}: peak memory with 8,192 calibration images over that with 512"
            found.append((what, growth, "<=", MEMORY_GROWTH))
    return found
