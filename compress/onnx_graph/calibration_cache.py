"""The scale table as the calibration cache of TensorRT 10, for builds that quantize a float graph implicitly.

The format is not documented; it is what TensorRT 7 to 10 have been seen to write. A first line
`TRT-<version>-<calibrator>`, where 10.3.0 is written as 100300, then a line `<tensor>: <hexadecimal>` for each
activation: the bytes of its scale (largest |x| / 127) as an IEEE 754 float32, most significant first and without
leading zeros. Weights are not in it, because TensorRT quantizes them itself. A cache whose version is not that of
TensorRT is skipped without an error: write it for the version that reads it.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from compress.errors import ModelError, UsageError
from compress.onnx_graph.scales import Scale

Calibrator = Literal["EntropyCalibration2", "MinMaxCalibration"]
Version = tuple[int, int, int]
FILE_NAME = "calibration.cache"


@dataclass(frozen=True)
class CalibrationCache:
    """What a cache says: which TensorRT and calibrator wrote it, and the scale of each activation."""

    version: Version
    calibrator: Calibrator
    scales: dict[str, float]


def calibration_cache(
    table: Mapping[str, Scale],
    activations: Iterable[str],
    version: str,
    *,
    calibrator: Calibrator = "EntropyCalibration2",
) -> str:
    """Write scales as TensorRT reads them.

    Args:
        table: the scale table.
        activations: names of the tensors of the float graph that the cache is for; the rest of the table is weights.
        version: of the TensorRT that will read it, e.g. "10.3.0".
        calibrator: that TensorRT is given; trtexec gives "EntropyCalibration2" whatever chose the scales.

    Returns:
        The text of the file, activations in the order of names.

    Raises:
        UsageError: see `version_from_text`.
        ModelError: an activation without a scale, or with several, or whose name would break the lines.
    """
    lines = [f"TRT-{_encoded(version_from_text(version))}-{calibrator}"]
    for name in sorted(set(activations)):
        scale = table[name].scale if name in table else None
        if scale is None or isinstance(scale, tuple):
            got = "no scale" if scale is None else f"{len(scale)} scales"
            raise ModelError(f"Activation {name} has {got}; a calibration cache wants one.")
        if "\n" in name or "\r" in name:
            raise ModelError(f"The name {name!r} does not fit a line of a calibration cache.")
        lines.append(f"{name}: {struct.pack('>f', scale).hex().lstrip('0')}")
    return "\n".join(lines) + "\n"


def version_from_text(text: str) -> Version:
    """Read the version of a TensorRT that has calibrators, e.g. `10.3.0`.

    Raises:
        UsageError: another text, or a version that has none.
    """
    if re.fullmatch(r"\d{1,2}\.\d{1,2}\.\d{1,2}", text) is None:
        raise UsageError(f"Expected a version of TensorRT such as 10.3.0, got {text!r}.")
    major, minor, patch = map(int, text.split("."))
    if not 7 <= major <= 10:
        raise UsageError(
            f"A calibration cache is for TensorRT 7 to 10, not {text}.",
            hint="Build from the Q/DQ file (model.onnx): every version takes it.",
        )
    return major, minor, patch


def _encoded(version: Version) -> int:
    major, minor, patch = version
    # 7103 is 7.1.3; from 10 on two digits each
    return major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch


def _decoded(number: int) -> Version:
    major, rest = divmod(number, 10000 if number >= 100000 else 1000)
    return (major, *divmod(rest, 100))


def read_calibration_cache(text: str) -> CalibrationCache:
    """Read a cache that `calibration_cache` or TensorRT wrote.

    A scale of 0 is how TensorRT marks a tensor that it could not calibrate.

    Raises:
        ModelError: not a calibration cache, a malformed line, a tensor twice, or a scale that is negative, NaN or
            infinite; with the number of the line.
    """
    lines = text.split("\n")  # not splitlines(): names may hold what it takes for the end of a line
    head = re.fullmatch(r"TRT-(\d{4}|\d{6})-(\w+)", lines[0].strip())
    if head is None or head[2] not in get_args(Calibrator):
        raise _malformed(1, lines[0], f"TRT-100300-<{' or '.join(get_args(Calibrator))}>")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        found = re.fullmatch(r"(.+): ([0-9a-fA-F]{1,8})", line.rstrip())
        if found is None:
            raise _malformed(number, line, "NAME: HEXADECIMAL, at most 8 digits")
        (value,) = struct.unpack(">f", bytes.fromhex(found[2].rjust(8, "0")))
        if not (math.isfinite(value) and value >= 0):
            raise _malformed(number, line, f"a scale, got {value}")
        if found[1] in scales:
            raise _malformed(number, line, "each tensor once")
        scales[found[1]] = value
    return CalibrationCache(_decoded(int(head[1])), cast(Calibrator, head[2]), scales)


def _malformed(number: int, line: str, expected: str) -> ModelError:
    shown = line if len(line) <= 60 else line[:57] + "..."
    return ModelError(
        f"The calibration cache is malformed: {shown!r}; expected {expected}.",
        where=f"line {number}",
        hint="Run the `calibrate` step again.",
    )
