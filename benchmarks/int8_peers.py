"""Quantize the same float networks with `compress` and with its peers, and hold the int8 files side by side.

    python benchmarks/int8_peers.py [--models resnet,vit] [--seeds 0,1,2] [--samples 10000] [--quick]
                                    [--work DIR] [--output FILE]

Networks are trained on Fashion-MNIST by the project's own loop. Every quantizer runs in an environment of its own, made
from the pinned requirements in `peers/`, on the same ONNX file and the same calibration images; all files of a network
are then run in one process, their latencies interleaved. Whatever is done lies in --work: the same command goes on
where it was stopped, and does again only what its code or its inputs have changed. Exits 3 if a promise is not met.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers.environments import HERE, ROOT, ChildFailed, python_of, run_child
from peers.judging import FLOAT, OURS, completeness, engine_share, figures, rewritten, row
from promises import RESULTS, promise, write_result
from remembering import digest_of, remembered, versions

from compress.data.config import DataConfig
from compress.data.datasets import split_digests
from compress.data.split import file_sha256
from compress.pipeline.machine import FACTS, machine_state, resolve_precision, threads

if TYPE_CHECKING:
    from peers.networks import Recipe

LIBRARIES = ("torch", "onnx", "onnxruntime", "tensorrt-rtx-cu13")
OUR_LIBRARIES = ("onnx", "onnxruntime", "numpy")  # that `compress` quantizes with
SMALL, LARGE = 512, 8192  # calibration images
TEST_SAMPLES = 10_000
QUICK = {"epochs": 1, "samples": 1000}
QUICK_TEST_SAMPLES = 1000
# A slot of a large batch needs no more calls to be long enough.
HARNESS: dict[str, dict[str, Any]] = {
    "1": {"budget_s": 20, "warmup_ms": 300, "warmup_iterations": 20},
    "32": {"budget_s": 25, "warmup_ms": 500, "warmup_iterations": 5, "rounds": 5, "slot_iterations": 10},
}
QUICK_BUDGET_S = 4


@dataclass(frozen=True)
class Tool:
    """A quantizer: its environment (None: this one) and its adapter in `peers/`."""

    environment: str | None
    adapter: str


TOOLS = {
    OURS: Tool(None, "ours.py"),
    "ort_tensorrt": Tool("ort", "ort_tensorrt.py"),
    "ort_unsigned": Tool("ort", "ort_unsigned.py"),
    "nncf": Tool("nncf", "nncf_onnx.py"),
    "modelopt": Tool("modelopt", "modelopt_onnx.py"),
    "openvino": Tool("openvino", "openvino_int8.py"),
}


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    models: tuple[str, ...]
    seeds: tuple[int, ...]
    samples: int
    quick: bool
    work: Path


@cache
def image_digests() -> Any:
    """Of the files that all images come from, by split."""
    return split_digests(DataConfig(dataset="fashion-mnist"), Path())


def data_key() -> dict[str, Any]:
    """What calibration and test images are made by."""
    return {"code": digest_of(HERE / "networks.py", ROOT / "compress/data"), "images": image_digests()}


def float_key(recipe: Recipe, seed: int) -> dict[str, Any]:
    """What a trained float network depends on."""
    parts = [ROOT / "compress" / part for part in ("data", "models", "onnx_graph", "training")]
    return {
        "recipe": asdict(recipe),
        "seed": seed,
        "images": image_digests(),
        "threads": threads(),
        "precision": resolve_precision("auto"),
        "code": digest_of(HERE / "networks.py", *parts),
        "libraries": versions("torch", "lightning-fabric", "numpy", "onnx", "onnxscript"),
    }


def calibration_key(tool: str, model: Path, data: Path) -> dict[str, Any]:
    """What a quantizer's files depend on; the versions of a peer are those that its requirements pin."""
    chosen = TOOLS[tool]
    sources, libraries = [ROOT / "compress/quantization", ROOT / "compress/onnx_graph"], OUR_LIBRARIES
    if chosen.environment is not None:
        sources, libraries = [HERE / f"requirements-{chosen.environment}.txt"], ()
    return {
        "model": file_sha256(model),
        "data": file_sha256(data),
        "code": digest_of(*(HERE / name for name in (chosen.adapter, "adapter.py", "ort_static.py")), *sources),
        "libraries": versions(*libraries),
    }


def engine_key(model: Path) -> dict[str, Any]:
    """What TensorRT-RTX's answer to a file depends on."""
    read = [ROOT / "compress/engines/rtx_program.py", ROOT / "compress/engines/onnx_check.py"]
    code = digest_of(HERE / "rtx.py", *read)
    return {"file": file_sha256(model), "code": code, "libraries": versions("tensorrt-rtx-cu13", "onnx")}


def measuring_key(request: Mapping[str, Any]) -> dict[str, Any]:
    """What accuracy, kernels and latency depend on, but for the machine."""
    scripts = [HERE / name for name in ("measuring.py", "judging.py", "requirements-measuring.txt")]
    parts = [ROOT / "compress" / part for part in ("measure", "engines", "onnx_graph/inspect.py")]
    # the weights of an OpenVINO model lie beside its graph
    named = [Path(path) for kind in ("files", "sources") for path in request[kind].values()]
    files = [path for file in named for path in (file, file.with_suffix(".bin")) if path.is_file()]
    return {
        "request": request,
        "digests": {str(path): file_sha256(path) for path in files},
        "test": file_sha256(Path(request["test"])),
        "code": digest_of(*scripts, *parts),
    }


class Bench:
    """One run: its plan, its data files, and everything that went wrong."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.work = plan.work / ("quick" if plan.quick else "full")
        self.failures: list[dict[str, Any]] = []
        self.versions: dict[str, dict[str, str]] = {}
        self.start = time.monotonic()

    def say(self, text: str) -> None:
        """One line of progress with the time that has passed."""
        print(f"{time.monotonic() - self.start:7.0f} s  {text}", flush=True)

    def failed(self, where: dict[str, Any], error: Exception) -> None:
        """Note what could not be done; the figure stays empty."""
        self.failures.append({**where, "message": str(error)})
        self.say(f"FAILED {where}: {error}")

    def data_file(self, kind: str, samples: int) -> Path:
        """Calibration or test images, written at first use."""
        from peers import networks

        path = self.work / "data" / f"{kind}_{samples}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)

        def write() -> str:
            part = path.with_name("part.npz")
            (networks.write_test if kind == "test" else networks.write_calibration)(samples, part)
            part.replace(path)
            return file_sha256(path)

        if not path.is_file():
            path.with_suffix(".json").unlink(missing_ok=True)
        remembered(path.with_suffix(".json"), data_key(), write)
        return path

    def float_file(self, model: str, seed: int) -> tuple[Path, dict[str, Any]]:
        """The trained float network and what is known of it."""
        from peers import networks

        recipe = networks.RECIPES[model]
        if self.plan.quick:
            recipe = replace(recipe, **QUICK)
        path = self.work / f"{model}_{seed}" / FLOAT / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        key = float_key(recipe, seed)
        known = remembered(path.with_name("known.json"), key, lambda: networks.train_float(recipe, seed, path))
        self.say(f"{model} seed {seed}: {known['parameters']:,} parameters, top-1 {known['validation_top1']:.4f}")
        return path, known

    def calibrated(self, tool: str, model: Path, samples: int) -> tuple[Path, dict[str, Any]]:
        """Run one quantizer; returns its folder and what its adapter says.

        Raises:
            ChildFailed: its environment cannot be made, or it fails.
        """
        adapter = HERE / TOOLS[tool].adapter
        environment = TOOLS[tool].environment
        data = self.data_file("calibration", samples)
        folder = model.parent.with_name(f"{tool}_{samples}")

        def run() -> dict[str, Any]:
            python = python_of(environment, self.plan.work)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            shutil.copy(model, folder / "float.onnx")  # some write beside what they read
            run_child([str(python), str(adapter), str(folder / "float.onnx"), str(data), str(folder)])
            return json.loads((folder / "result.json").read_text())

        known = remembered(folder.with_suffix(".json"), calibration_key(tool, model, data), run)
        self.versions[tool] = known["versions"]
        return folder, known

    def measured(self, folder: Path, files: dict[str, Path], sources: dict[str, Path]) -> dict[str, Any]:
        """Accuracy, kernels and interleaved latency of all files of one network; accuracy of those they came from."""
        harness = {
            batch: {**settings, "budget_s": QUICK_BUDGET_S if self.plan.quick else settings["budget_s"]}
            for batch, settings in HARNESS.items()
        }
        request = {
            "files": {tool: str(path) for tool, path in files.items()},
            "sources": {tool: str(path) for tool, path in sources.items()},
            "test": str(self.data_file("test", self.plan.samples)),
            "threads": threads(),
            "harness": harness,
        }
        asked, answered = folder / "request.json", folder / "answer.json"

        def run() -> dict[str, Any]:
            asked.write_text(json.dumps(request))
            python = python_of("measuring", self.plan.work)
            run_child([str(python), str(HERE / "measuring.py"), str(asked), str(answered)])
            return json.loads(answered.read_text())

        found = remembered(folder / "measured.json", measuring_key(request), run)
        self.versions["measuring"] = found["versions"]
        return found

    def engine(self, path: Path) -> dict[str, Any]:
        """Whether TensorRT-RTX builds a file, and how many of its layers have int8 operands; see `peers/rtx.py`."""
        answered = path.with_suffix(".rtx.json")

        def run() -> dict[str, Any]:
            try:
                run_child([sys.executable, str(HERE / "rtx.py"), str(path), str(answered)])
            except ChildFailed as error:  # a crash of the builder is an answer too
                return {"builds": False, "messages": [str(error)]}
            return json.loads(answered.read_text())

        return remembered(path.with_suffix(".engine.json"), engine_key(path), run)

    def needs_large(self, model: str, seed: int, tool: str) -> bool:
        """Memory does not depend on the weights, so one seed is enough; of the slow peers, one network too."""
        first = seed == self.plan.seeds[0] and (tool == OURS or model == self.plan.models[0])
        return first and not self.plan.quick

    def network(self, model: str, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Every tool on one float network: the rows, and what lies behind them."""
        path, known = self.float_file(model, seed)
        small: dict[str, dict[str, Any]] = {}
        large: dict[str, dict[str, Any]] = {}
        files, sources, engines = {FLOAT: path}, {}, {}
        for tool in TOOLS:
            where = {"model": model, "seed": seed, "tool": tool}
            try:
                folder, small[tool] = self.calibrated(tool, path, SMALL)
                files[tool] = folder / small[tool]["files"]["run"]
                if "engine" in small[tool]["files"]:
                    engines[tool] = self.engine(folder / small[tool]["files"]["engine"])
                if tool == OURS:
                    sources[tool] = folder / small[tool]["files"]["engine"]
                if self.needs_large(model, seed, tool):
                    large[tool] = self.calibrated(tool, path, LARGE)[1]
            except ChildFailed as error:
                self.failed(where, error)
            else:
                self.say(f"{model} seed {seed}: {tool} calibrated in {small[tool]['calib_s']:.1f} s")
        found = self.measured(path.parents[1], files, sources)
        rows = [
            row(model, seed, tool, found, small.get(tool), large.get(tool), engines.get(tool, {}).get("builds"))
            for tool in (FLOAT, *TOOLS)
        ]
        for one in rows:
            self.say(" ".join(f"{key} {_short(value)}" for key, value in one.items() if key not in ("n", "seed")))
        return rows, {"model": model, "seed": seed, **known, "engines": engines, **found}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def promises(
    plan: Plan,
    rows: Sequence[dict[str, Any]],
    details: Sequence[dict[str, Any]],
    failures: Iterable[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Everything that is promised, model by model."""
    found: list[dict[str, Any]] = []
    broken = [failure["model"] for failure in failures if failure["tool"] == OURS]
    for model in dict.fromkeys(plan.models):
        own = [one for one in rows if one["model"] == model]
        mine = [detail for detail in details if detail["model"] == model]
        correct = {
            detail["seed"]: {tool: known["correct"] for tool, known in detail["tools"].items()} for detail in mine
        }
        lines = [
            *completeness(model, own, plan.seeds, broken.count(model)),
            *figures(model, own, correct),
            *rewritten(model, mine),
            engine_share(model, [detail["engines"].get(OURS, {}) for detail in mine]),
        ]
        found += [promise(*line) for line in lines]
    return found


def evidence(detail: dict[str, Any]) -> dict[str, Any]:
    """What lies behind a network's rows, without the bits of single answers."""
    kernels = {tool: known["kernels"] for tool, known in detail["tools"].items()}
    kept = ("model", "seed", "parameters", "validation_top1", "engines", "latency")
    return {**{key: detail[key] for key in kept}, "kernels": kernels}


def parse() -> tuple[Plan, Path]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet,mobilenet,vit", help="names, separated by commas")
    parser.add_argument("--seeds", default="0,1,2", help="numbers, separated by commas")
    parser.add_argument("--samples", type=int, default=None, help="test images, 10,000 if left out")
    parser.add_argument("--quick", action="store_true", help="hardly any training and short latencies: does it work?")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "int8_peers", help="environments and models")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    plan = Plan(
        models=tuple(options.models.split(",")),
        seeds=tuple(map(int, options.seeds.split(","))),
        samples=options.samples or (QUICK_TEST_SAMPLES if options.quick else TEST_SAMPLES),
        quick=options.quick,
        work=options.work.resolve(),
    )
    beside = plan.work / "quick.json" if plan.quick else RESULTS / "int8_peers.json"
    return plan, options.output or beside


def main() -> int:
    """Train, quantize, measure, judge, write."""
    plan, output = parse()
    bench = Bench(plan)
    state = machine_state()
    rows: list[dict[str, Any]] = []
    details: list[dict[str, Any]] = []
    for model in plan.models:
        for seed in plan.seeds:
            found, detail = bench.network(model, seed)
            rows += found
            details.append(detail)
    result = {
        "environment": {
            **{name: FACTS[name]() for name in ("cpu", "threads")},
            **state,
            "libraries": versions(*LIBRARIES),
            "tools": bench.versions,
            "calibration_samples": SMALL,
            "quick": plan.quick,
            "wall_s": round(time.monotonic() - bench.start, 1),
        },
        "promises": promises(plan, rows, details, bench.failures),
        "rows": rows,
        "failures": bench.failures,
        "evidence": [evidence(detail) for detail in details],
    }
    return write_result(output, result)


if __name__ == "__main__":
    sys.exit(main())
