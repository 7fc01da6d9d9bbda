"""`compress quantize`: an ONNX file from anywhere becomes the two int8 files, without a recipe and without PyTorch."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from compress.artifacts.files import disk_is_full, write_durably
from compress.artifacts.fingerprint import sha256_file
from compress.cli.choosing import NO_CHOICE, ChoiceOptions, Chosen, choose_layers, require_labels
from compress.cli.linting import MIB, finding_lines
from compress.cli.render import print_document, table_lines
from compress.cli.sampling import Change, Samples, Tally, parse_range, read_samples
from compress.errors import DataError, ModelError, TryAgainError, UsageError
from compress.log import progress
from compress.pipeline.machine import resolve_threads
from compress.quantization.settings import QuantizeSettings
from compress.report.tables import Table

if TYPE_CHECKING:
    from onnx import ModelProto

    from compress.engines.onnxruntime_session import OnnxRuntimeSession
    from compress.onnx_graph.findings import Finding, Target
    from compress.quantization.foreign import Layer
    from compress.quantization.quantize import Quantized

BATCH_SIZE = 64
ENDS = (".ort.onnx", ".scales.json", ".calibration.cache", ".quantize.json")


@dataclass(frozen=True)
class QuantizeOptions:
    """What the command line said; see `compress quantize --help`."""

    data: Path
    output: Path | None
    samples: int | None
    value_range: str
    cache_version: str
    max_mib: int
    as_json: bool
    labels: str | None = None
    choice: ChoiceOptions = NO_CHOICE


@dataclass(frozen=True)
class Places:
    """Where each file goes."""

    signed: Path
    unsigned: Path
    scales: Path
    cache: Path
    record: Path


@dataclass(frozen=True)
class _Outcome:
    """What all that is printed is made of."""

    model: Path
    settings: QuantizeSettings
    options: QuantizeOptions
    samples: Samples
    quantized: Quantized
    chosen: Chosen | None
    change: Change
    prepared: list[str]  # notes on what was changed before
    places: Places

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every file that was read."""
        other = {"judge": self.options.choice.judge} if self.options.choice.judge else {}
        return {
            name: sha256_file(file) for name, file in {"model": self.model, "data": self.options.data, **other}.items()
        }

    @cached_property
    def layers(self) -> list[Layer]:
        """Every layer that multiplies, and why it is float where it is."""
        from compress.quantization.foreign import layers_of

        return layers_of(self.quantized.signed, self.settings.float_layers)

    @cached_property
    def floats(self) -> list[Layer]:
        """Those in float; what was chosen may also be a residual add or a pool."""
        return self.chosen.why_float(self.layers) if self.chosen else [layer for layer in self.layers if layer.why]

    @cached_property
    def findings(self) -> dict[Target, list[Finding]]:
        """What the linter says of each file, apart from layers that are float on purpose."""
        from compress.onnx_graph.lint import lint
        from compress.quantization.foreign import ASKED_FOR

        on_purpose = {layer.node for layer in self.layers if layer.why == ASKED_FOR}
        on_purpose |= self.chosen.nodes if self.chosen else set()
        graphs: dict[Target, ModelProto] = {"tensorrt": self.quantized.signed, "onnxruntime": self.quantized.unsigned}
        return {
            target: [
                one for one in lint(graph, target) if not (one.rule.startswith("float-") and one.node in on_purpose)
            ]
            for target, graph in graphs.items()
        }

    @cached_property
    def notes(self) -> list[str]:
        """Sentences for people."""
        known = {f"{finding} ({target})" for target, found in self.findings.items() for finding in found}
        used = f"{self.samples.count} of {self.samples.total} samples were used, evenly spaced"
        few = [used] if self.samples.count < self.samples.total else []
        return [*self.prepared, *few, *(note for note in self.quantized.notes if note not in known)]


def quantize_file(path: Path, settings: QuantizeSettings, options: QuantizeOptions) -> None:
    """Quantize an ONNX file, write the results and say what became of it.

    Args:
        path: float ONNX file; it is left alone.
        settings: how scales are chosen, and which layers stay float.
        options: of the command line.

    Raises:
        UsageError: an option makes no sense, or the results would overwrite the model.
        DataError: the calibration data does not fit.
        ModelError: the model cannot be read, run or quantized.
        TryAgainError: the disk is full.
    """
    from compress.engines.onnxruntime_session import OnnxRuntimeSession
    from compress.measure.bench import fixed_batch
    from compress.onnx_graph.calibration_cache import version_from_text
    from compress.onnx_graph.canonical import QUANTIZE
    from compress.onnx_graph.loading import load_onnx
    from compress.quantization.foreign import prepare_foreign
    from compress.quantization.quantize import quantize_onnx

    value_range, places = parse_range(options.value_range), output_places(path, options.output)
    goal, judged_on = options.choice.goal(settings.float_layers), options.choice.judge or options.data
    apart = judged_on.resolve() != options.data.resolve()
    version_from_text(options.cache_version)  # refused before there is work to lose
    with _naming(path, options.data):
        model, notes = prepare_foreign(load_onnx(path, limit_bytes=options.max_mib * MIB))
        # a graph that has Q/DQ already is taken at its word: fused int8 kernels may saturate, see the session's `load`
        plain = all(node.op_type != QUANTIZE for node in model.graph.node)
        before = OnnxRuntimeSession.load(path, threads=resolve_threads("auto"), optimized=plain)
        size = fixed_batch(before.inputs)
        read = partial(read_samples, inputs=before.inputs, value_range=value_range, fixed_batch=size)
        samples = judged = read(options.data, wanted=options.samples, labels_name=None if apart else options.labels)
    with _naming(path, judged_on):
        if apart:
            judged = read(judged_on, labels_name=options.labels)
        if goal:
            require_labels(judged, goal, before.outputs, path, options.data, judged_on)
    with _naming(path, options.data):
        quantized = quantize_onnx(model, _counted(samples), settings, value_range=None, static_batch=True)
    chosen = None
    if goal:
        with _naming(path, judged_on):
            chosen = choose_layers(model, quantized, settings, goal, options.choice, judged, options.data, size)
            quantized = chosen.decision.choice.quantized
    with _naming(path, options.data):
        change = _change(before, quantized, samples, size or BATCH_SIZE)
    before.close()
    outcome = _Outcome(path, settings, options, samples, quantized, chosen, change, notes, places)
    _write(outcome)
    if options.as_json:
        print_document(_document(outcome))
        return
    for line in _lines(outcome):
        print(line)


@contextmanager
def _naming(model: Path, data: Path) -> Generator[None]:
    """Say of every complaint which of the two files it is about."""
    try:
        yield
    except (ModelError, DataError) as error:
        file = model if isinstance(error, ModelError) else data
        if file.name not in error.where:
            error.at(str(file))
        raise


def output_places(model: Path, output: Path | None) -> Places:
    """Where the results go: into a folder, or beside a named .onnx file.

    Raises:
        UsageError: the model itself would be overwritten, or the folder is a file.
    """
    if output is not None and output.suffix == ".onnx":
        beside = [output.with_name(output.stem + end) for end in ENDS]
        places = Places(output, *beside)
    else:
        folder = Path(f"{model.stem}-int8") if output is None else output
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"-o {folder} is a file, expected a folder or a name that ends in .onnx")
        places = Places(*(folder / name for name in ("model.onnx", "model.ort.onnx", *(end[1:] for end in ENDS[1:]))))
    if model.resolve() in {places.signed.resolve(), places.unsigned.resolve()}:
        raise UsageError(f"the results would overwrite {model}", hint="name another folder with -o")
    return places


def _counted(samples: Samples) -> Iterator[dict[str, Any]]:
    with progress("calibration", samples.count, "samples") as bar:
        for batch in samples.batches(BATCH_SIZE):
            yield batch
            bar.advance(len(next(iter(batch.values()))))


def _change(before: OnnxRuntimeSession, quantized: Quantized, samples: Samples, size: int) -> Change:
    """Run both files, as they will be run, on the samples."""
    from compress.engines.onnxruntime_session import OnnxRuntimeSession
    from compress.onnx_graph.loading import checked_bytes

    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.ort.onnx"
        file.write_bytes(checked_bytes(quantized.unsigned))
        after = OnnxRuntimeSession.load(file, threads=resolve_threads("auto"))
    tally = Tally(before.outputs[0].name)
    start = 0
    with progress("comparison", samples.count, "samples") as bar:
        for batch in samples.batches(size):
            count = len(next(iter(batch.values())))
            labels = None if samples.labels is None else samples.labels[start : start + count]
            tally.add(before.run(batch)[tally.output], after.run(batch)[tally.output], labels, count)
            start += count
            bar.advance(count)
    after.close()
    return tally.change()


def _write(outcome: _Outcome) -> None:
    from compress.onnx_graph.calibration_cache import calibration_cache
    from compress.onnx_graph.loading import checked_bytes

    quantized, places = outcome.quantized, outcome.places
    contents = {
        places.signed: checked_bytes(quantized.signed),
        places.unsigned: checked_bytes(quantized.unsigned),
        places.scales: quantized.scales.to_json().encode(),
        places.cache: calibration_cache(
            quantized.scales, quantized.activations, outcome.options.cache_version
        ).encode(),
        places.record: _record(outcome),
    }
    for place, content in contents.items():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_durably(place, content)
        except OSError as error:
            if disk_is_full(error):
                raise TryAgainError("the disk is full", where=str(place), hint="free some space, run again") from error
            raise UsageError(f"cannot write {place}: {error.strerror}", hint="name another place with -o") from error


def _next_command(outcome: _Outcome) -> str:
    return shlex.join(["compress", "bench", str(outcome.model), str(outcome.places.unsigned)])


def _document(outcome: _Outcome) -> dict[str, Any]:
    return {
        "model": str(outcome.model),
        "sha256": outcome.digests,
        "samples": outcome.samples.count,
        "range": outcome.options.value_range,
        "settings": {**asdict(outcome.settings), "float_layers": list(outcome.settings.float_layers)},
        "layers": {
            "int8": sum(not layer.why for layer in outcome.layers),
            "total": len(outcome.layers),
            "float": [asdict(layer) for layer in outcome.floats],
        },
        "precision": outcome.chosen.document() if outcome.chosen else None,
        "scales": {"calibrated": outcome.quantized.calibrated, "kept": outcome.quantized.kept},
        "on_calibration_samples": asdict(outcome.change),
        "notes": outcome.notes,
        "findings": {target: [one.as_json() for one in found] for target, found in outcome.findings.items()},
        "files": {name: str(place) for name, place in asdict(outcome.places).items()},
        "next": _next_command(outcome),
    }


def _record(outcome: _Outcome) -> bytes:
    """What was made from what, without places: the same work gives the same bytes."""
    document = {**_document(outcome), "model": outcome.model.name}
    kept = {key: value for key, value in document.items() if key not in ("files", "next")}
    return (json.dumps(kept, indent=1, allow_nan=False) + "\n").encode()


def _lines(outcome: _Outcome) -> Iterator[str]:
    kinds = Counter(layer.operator for layer in outcome.layers if not layer.why)
    listed = ", ".join(f"{count} {operator}" for operator, count in kinds.items())
    share = f"{sum(kinds.values())} of {len(outcome.layers)} layers in int8"
    yield f"{outcome.model}: {share} ({listed})" if kinds else f"{outcome.model}: {share}"
    yield (
        f"{outcome.quantized.calibrated} tensors calibrated with {outcome.samples.count} samples "
        f"({outcome.settings.method}), {outcome.quantized.kept} scales kept"
    )
    yield _change_text(outcome.change)
    if outcome.chosen:
        yield from outcome.chosen.lines()
    if outcome.floats:
        rows = tuple((layer.node, layer.operator, layer.why) for layer in outcome.floats)
        yield ""
        yield from table_lines(Table("Left in float", ("node", "operator", "why"), rows))
    if outcome.notes:
        yield ""
        yield from (f"note: {note}" for note in outcome.notes)
    for target, found in outcome.findings.items():
        if found:
            yield f"\nfor {target}:"
            yield from finding_lines(found)
    places = outcome.places
    yield "\nwrote"
    yield from table_lines(
        Table(
            "",
            ("file", "for"),
            (
                (str(places.signed), "TensorRT: signed codes"),
                (str(places.unsigned), "ONNX Runtime on CPUs: unsigned codes"),
                (str(places.scales), "people and programs: the scale table"),
                (str(places.cache), "TensorRT 10, should it calibrate a float graph itself"),
            ),
        )
    )
    yield f"\nnext: {_next_command(outcome)}"


def _change_text(change: Change) -> str:
    parts = []
    if change.top1_before is not None and change.top1_after is not None:
        parts.append(f"top-1 {100 * change.top1_before:.2f} % -> {100 * change.top1_after:.2f} %")
    if change.agreement is not None:
        parts.append(f"agreement {100 * change.agreement:.2f} %")
    parts.append("no noise" if change.sqnr_db is None else f"SQNR {change.sqnr_db:.1f} dB")
    return f"float -> int8 on the {change.n} calibration samples, which are no test set: {', '.join(parts)}"
