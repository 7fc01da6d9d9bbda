"""How long does calibration take, and how much memory: ours against ONNX Runtime's entropy calibrator.

    python benchmarks/calibration.py [--output benchmarks/results/calibration.json]

One residual network with random weights, Fashion-MNIST images, the same graph, tensors and samples for both, batches of
32. Times are of whole calibrations, from the file to the scales, taken in turns in one process; each ratio is of two
that followed each other. Peak memory is that of child processes that do nothing else. The two do not do equal work: of
each tensor and sample ours counts about 2,048 values, on up to 4 workers, and the largest |x| of all; ONNX Runtime
counts every value. Takes minutes; exits 3 if a promise is not met.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from promises import RESULTS, promise, write_result

FEW, MANY, BATCH = 512, 8192, 32
REPEATS = {FEW: 7, MANY: 3}
MEMORY_REPEATS = 3
NETWORK = {"name": "resnet", "widths": [16, 32, 64]}
FINE_BINS = 2048  # what TensorRT uses; onnxruntime's default is 128


def prepare(folder: Path) -> tuple[Path, Path]:
    """Write the float graph and 512 images, (512, 1, 28, 28), float32 in [0, 1]."""
    import torch

    from compress.data.config import DataConfig
    from compress.data.datasets import load_dataset
    from compress.models.catalogue import build_model
    from compress.onnx_graph.export import export_onnx
    from compress.stages.contract import network_input

    torch.manual_seed(0)
    module = build_model(NETWORK, image_shape=(1, 28, 28), classes=10, base=folder)
    export_onnx(module.eval(), torch.zeros(2, 1, 28, 28), folder / "float.onnx")
    split = load_dataset(DataConfig(dataset="fashion-mnist", train_samples=2 * FEW), folder).train
    np.save(folder / "images.npy", network_input(split.images[:FEW]))
    return folder / "float.onnx", folder / "images.npy"


def batches(images: np.ndarray, samples: int) -> Iterator[np.ndarray]:
    """`samples` images in batches; those beyond the given ones are darker copies, so that memory holds no more data."""
    for start in range(0, samples, BATCH):
        first = start % len(images)
        yield images[first : first + BATCH] * np.float32(1 / (1 + start // len(images)))


def ours(graph: Path, images: np.ndarray, samples: int) -> int:
    """Calibrate with this package; returns the number of tensors."""
    from compress.onnx_graph.loading import load_onnx
    from compress.onnx_graph.placement import quantizable_tensors
    from compress.quantization.calibration import calibrate

    model = load_onnx(graph)
    return len(calibrate(model, quantizable_tensors(model), batches(images, samples), "entropy").scales)


def onnxruntimes(graph: Path, images: np.ndarray, samples: int, bins: int = 128) -> int:
    """Calibrate the same tensors with `onnxruntime.quantization`; returns their number."""
    from onnxruntime.quantization.calibrate import CalibrationDataReader, EntropyCalibrater

    from compress.onnx_graph.loading import load_onnx
    from compress.onnx_graph.placement import quantizable_tensors

    tensors = quantizable_tensors(load_onnx(graph))

    class SameTensors(EntropyCalibrater):
        def select_tensors_to_calibrate(self, model: Any) -> tuple[set[str], dict[str, Any]]:
            return set(tensors), super().select_tensors_to_calibrate(model)[1]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.source = batches(images, samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.source, None)
            return None if batch is None else {"image": batch}

    augmented = str(graph.with_name("augmented.onnx"))
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress with print
        calibrater = SameTensors(graph, augmented_model_path=augmented, num_bins=bins)
        calibrater.augment_graph()
        calibrater.create_inference_session()
        calibrater.collect_data(Reader())
        return len(calibrater.compute_data().data)


CALIBRATORS: dict[str, Callable[[Path, np.ndarray, int], int]] = {"ours": ours, "onnxruntime": onnxruntimes}


def child(name: str, graph: Path, images: Path, samples: int) -> int:
    """Calibrate once and print the peak memory of this process."""
    tensors = CALIBRATORS[name](graph, np.load(images), samples)
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    # not ru_maxrss, which a child takes over from its parent
    print(json.dumps({"tensors": tensors, "peak_bytes": int(fields["VmHWM"].split()[0]) * 1024}))
    return 0


def peaks(name: str, graph: Path, images: Path, samples: int) -> list[int]:
    """Peak memory of fresh processes, bytes."""
    command = [sys.executable, __file__, "--child", name, str(graph), str(images), str(samples)]
    done = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(MEMORY_REPEATS)]
    return [json.loads(one.stdout)["peak_bytes"] for one in done]


def timed(action: Callable[[], int]) -> tuple[float, int]:
    """Seconds, and what the action returned."""
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def measure(graph: Path, paths: Path) -> dict[str, Any]:
    """All figures, times in seconds and memory in bytes."""
    images = np.load(paths)
    counts = {calibrator(graph, images, BATCH) for calibrator in CALIBRATORS.values()}  # pays for imports
    assert len(counts) == 1, f"not the same tensors: {counts}"
    seconds = {
        str(samples): [
            {name: round(timed(partial(run, graph, images, samples))[0], 4) for name, run in CALIBRATORS.items()}
            for _ in range(repeats)
        ]
        for samples, repeats in REPEATS.items()
    }
    fine, _ = timed(partial(onnxruntimes, graph, images, FEW, FINE_BINS))
    return {
        "tensors": counts.pop(),
        "seconds": seconds,
        f"seconds_onnxruntime_{FINE_BINS}_bins": round(fine, 3),
        "peak_bytes": {
            f"ours_{FEW}": peaks("ours", graph, paths, FEW),
            f"ours_{MANY}": peaks("ours", graph, paths, MANY),
            f"onnxruntime_{FEW}": peaks("onnxruntime", graph, paths, FEW),
        },
    }


def counting() -> dict[str, str]:
    """How many values each calibrator counts, for the reader of the result."""
    from compress.quantization.calibration import MOST_WORKERS
    from compress.quantization.histogram import COUNTED_PER_SAMPLE

    return {
        "ours": f"about {COUNTED_PER_SAMPLE:,} values of each tensor and sample, the largest |x| of all of them, "
        f"on up to {MOST_WORKERS} workers, one thread each",
        "onnxruntime": "every value, one batch after the other; its session has its default threads",
    }


def promises(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """What is promised of the figures."""
    memory = figures["peak_bytes"]
    mine = {samples: statistics.median(one["ours"] for one in rounds) for samples, rounds in figures["seconds"].items()}
    times = {
        samples: statistics.median(one["onnxruntime"] / one["ours"] for one in rounds)
        for samples, rounds in figures["seconds"].items()
    }
    what = "samples: time of onnxruntime's entropy calibrator over ours, median of"
    return [
        promise(
            f"peak memory at {MANY:,} samples over that at {FEW}, medians of {MEMORY_REPEATS}",
            statistics.median(memory[f"ours_{MANY}"]) / statistics.median(memory[f"ours_{FEW}"]),
            "<=",
            1.05,
        ),
        promise(f"{MANY:,} {what} {REPEATS[MANY]}", times[str(MANY)], ">=", 5),
        promise(f"{FEW} {what} {REPEATS[FEW]}", times[str(FEW)], "reported", None),
        promise(
            f"the same with its histograms at {FINE_BINS:,} bins, once",
            figures[f"seconds_onnxruntime_{FINE_BINS}_bins"] / mine[str(FEW)],
            "reported",
            None,
        ),
        promise(f"{FEW} samples: seconds", mine[str(FEW)], "reported", None),
        promise(
            f"{FEW} samples: peak memory of onnxruntime's calibrator over ours",
            statistics.median(memory[f"onnxruntime_{FEW}"]) / statistics.median(memory[f"ours_{FEW}"]),
            "reported",
            None,
        ),
    ]


def main() -> int:
    """Measure, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "calibration.json")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, graph, images, samples = options.child
        return child(name, Path(graph), Path(images), int(samples))

    from compress.pipeline.machine import FACTS, library_version, machine_state

    with tempfile.TemporaryDirectory() as folder:
        figures = measure(*prepare(Path(folder)))
    result = {
        "environment": {
            **{name: FACTS[name]() for name in ("cpu", "threads")},
            **machine_state(),
            "libraries": {name: library_version(name) for name in ("onnxruntime", "numpy")},
        },
        "network": NETWORK,
        "counted": counting(),
        "promises": promises(figures),
        **figures,
    }
    return write_result(options.output, result)


if __name__ == "__main__":
    sys.exit(main())
