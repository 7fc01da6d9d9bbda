"""What the adapters of all quantizers share: their arguments, the images, and how a calibration is measured.

An adapter is a script that runs alone in its quantizer's environment, `ADAPTER float.onnx calibration.npz FOLDER`, and
needs nothing but numpy and that quantizer. It writes its files and `result.json` into the folder.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO

import numpy as np

BATCH = 64
INPUT = "image"
ADDRESS_SPACE = 18 * 2**30  # a quantizer that keeps every activation must not take the machine down

Quantize = Callable[[Path, "Images", Path], Mapping[str, str]]


class Images:
    """Calibration images, read from the file batch by batch, so that a quantizer's own memory is what is measured.

    Args:
        path: an uncompressed NPZ file with the array `image`, (n, channels, height, width), float32.
        batch: samples at a time, >= 1.
    """

    def __init__(self, path: Path, batch: int = BATCH) -> None:
        self.path, self.batch = path, batch
        with zipfile.ZipFile(path) as archive, archive.open(f"{INPUT}.npy") as file:
            self.shape = _header(file)[0]

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(self.shape[0] / self.batch)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the batches from the first on; the last one may be smaller."""
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{INPUT}.npy") as file:
            (samples, *image), dtype = _header(file)
            size = math.prod(image) * dtype.itemsize
            for start in range(0, samples, self.batch):
                count = min(self.batch, samples - start)
                yield np.frombuffer(bytearray(file.read(count * size)), dtype).reshape(count, *image)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"expected an array of format 1.0, got {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or dtype != np.float32:
        raise ValueError(f"expected float32 in C order, got {dtype}")
    return shape, dtype


class Reader:
    """The same images as ONNX Runtime's quantizer and ModelOpt ask for them: one dict a call, None at the end."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.rewind()

    def rewind(self) -> None:
        """Start again from the first batch."""
        self.batches = iter(self.images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch."""
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}

    def get_first(self) -> dict[str, np.ndarray]:
        """The first batch, without advancing."""
        return {INPUT: next(iter(self.images))}


def peak_bytes() -> int:
    """Largest resident memory of this process so far; unlike getrusage's it counts nothing of the parent's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def main(quantize: Quantize, distributions: tuple[str, ...], *, batch: int = BATCH) -> None:
    """Run one quantizer and write down what it took.

    Args:
        quantize: takes the float file, the images and the folder; returns {"run": name of the file to measure,
            "engine": name of the file for TensorRT, where there is one}.
        distributions: packages whose versions are recorded.
        batch: samples that the quantizer is given at a time.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    images = Images(options.calibration, batch)
    start = time.perf_counter()
    files = quantize(options.model, images, options.folder)
    seconds = time.perf_counter() - start
    result = {
        "files": dict(files),
        "samples": images.shape[0],
        "calib_s": seconds,
        "peak_bytes": peak_bytes(),
        "versions": {name: metadata.version(name) for name in distributions},
    }
    (options.folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
