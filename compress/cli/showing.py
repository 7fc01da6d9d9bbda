"""`compress show`: one artifact or one run, as deep as its kind allows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.artifacts.manifest import Artifact, Engine, Manifest, OnnxModel, QuantizedOnnx, Report, TeacherOutputs
from compress.artifacts.runs import RunRecord
from compress.artifacts.store import Store
from compress.cli.places import shown, store_root
from compress.cli.render import duration_text, metric_text, print_document, print_tables, short_key
from compress.cli.reporting import load_report, report_text, verdicts_of
from compress.report.tables import ABSENT, Table, gate_table, size_text
from compress.stages.precision import latency_text

PRECISION = "precision.json"
ANSWERS = "answers.json"


def show_reference(reference: str, store_option: Path | None, *, as_json: bool) -> None:
    """Print a run record, or a manifest with what its kind has to say.

    Args:
        reference: key prefix, run id, tag or RUN:STEP.
        store_option: what `--store` said.
        as_json: print the same facts as one document.

    Raises:
        UsageError: nothing, or more than one thing, goes by that name.
        ArtifactError: its payload is damaged.
    """
    store = Store(store_root(store_option))
    found = store.resolve(reference)
    if isinstance(found, RunRecord):
        if as_json:
            print_document(found.model_dump(mode="json"))
        else:
            _print_run(found, store.traces(found.id))
        return
    details = describe_payload(store, found)
    if as_json:
        print_document({"path": str(found.path), "manifest": found.manifest.model_dump(mode="json"), **details})
        return
    print_tables([_manifest_table(found), *_manifest_tables(found.manifest)])
    if "precision" in details:
        print()
        print_tables(precision_tables(details["precision"]))
    if "answers" in details:
        print()
        print_tables(document_tables(ANSWERS, details["answers"]))
    for file, summary in details.get("onnx", {}).items():
        print()
        print_tables(document_tables(file, summary))
    for file, sidecar in details.get("engines", {}).items():
        print()
        print_tables(document_tables(file, sidecar))
    if isinstance(found, Report):
        print(f"\n{report_text(load_report(store, found), [])}")


def precision_tables(document: Mapping[str, Any]) -> list[Table]:
    """Which layers are in int8 and which in float, with the reason for each.

    Args:
        document: `precision.json`.
    """
    facts: dict[str, object] = {"mode": document["mode"], "work in int8": f"{100 * document['int8_macs']:.1f} %"}
    if document["goal"] is not None:
        facts |= {
            "goal": document["goal"],
            "reached": _scored(document["reached"]),
            "all in int8": _scored(document["all_int8"]),
            "judged on": f"{document['samples']} samples, which it was chosen on",
            "kept small": document["cost"],
        }
    if "latency" in document:
        facts["latency"] = latency_text(document["latency"])
    rows = tuple(
        (
            layer["name"],
            f"{100 * layer['macs_share']:.1f}",
            _number(layer["alone"]["sqnr_db"], 1),
            _number(layer["alone"]["loss_pp"], 2),
            _number(layer["without"]["sqnr_db"], 1),
            layer["decided"],
            layer["why"],
        )
        for layer in document["layers"]
    )
    header = ("layer", "work %", "alone dB", "alone pp", "without dB", "decided", "why")
    return [_facts("Precision", facts), Table("", header, rows, frozenset({1, 2, 3, 4}))]


def _scored(score: Mapping[str, float | None]) -> str:
    parts = [(score["loss_pp"], "pp of top-1 lost"), (score["sqnr_db"], "dB")]
    return ", ".join(f"{value:.2f} {unit}" for value, unit in parts if value is not None)


def _number(value: float | None, digits: int) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def describe_payload(store: Store, artifact: Artifact) -> dict[str, Any]:
    """Return what lies in an artifact besides its manifest; its hashes are checked first.

    Returns:
        `onnx`: file -> operators, inputs and outputs, Q/DQ coverage, for int8 files the kernels that ONNX Runtime uses
        on this CPU; `precision`: which layers are in int8, and why; `engines`: sidecars by file,
        `engine` the one of a plan for all GPUs; `report`: the document; `answers`: of whom and for which images;
        nothing for a checkpoint.

    Raises:
        ArtifactError: damaged.
    """
    store.verify(artifact)
    if isinstance(artifact, OnnxModel | QuantizedOnnx):
        from compress.onnx_graph.inspect import kernels, summarize
        from compress.onnx_graph.loading import load_onnx

        files = sorted(artifact.path.glob("*.onnx"))
        summaries = {file.name: summarize(load_onnx(file)) for file in files}
        if isinstance(artifact, QuantizedOnnx):
            for file in files:
                summaries[file.name]["onnxruntime_cpu"] = kernels(file)
        details: dict[str, Any] = {"onnx": summaries}
        if PRECISION in artifact.manifest.files:  # older artifacts have none
            details["precision"] = json.loads((artifact.path / PRECISION).read_bytes())
        return details
    if isinstance(artifact, TeacherOutputs):
        return {"answers": json.loads((artifact.path / ANSWERS).read_bytes())}
    if isinstance(artifact, Engine):
        sidecars = {file.name: json.loads(file.read_bytes()) for file in sorted(artifact.path.glob("model*.json"))}
        only = {"engine": sidecars["model.json"]} if "model.json" in sidecars else {}
        return {**only, "engines": sidecars}
    if isinstance(artifact, Report):
        return {"report": load_report(store, artifact).model_dump(mode="json")}
    return {}


def _print_run(run: RunRecord, traces: Path) -> None:
    facts: dict[str, object] = {
        "recipe": f"{run.recipe} ({run.recipe_path})",
        "seed": run.seed,
        "status": run.status,
        "started (UTC)": run.started_at[:19].replace("T", " "),
        "exit code": ABSENT if run.exit_code is None else run.exit_code,
    }
    if traces.is_dir():
        facts["traces of training"] = shown(traces)
    rows = tuple(
        (step.name, step.stage, step.status, short_key(step.key, step.revision), duration_text(step.seconds))
        for step in run.steps
    )
    tables = [_facts(f"Run {run.id}", facts), Table("Steps", ("step", "stage", "status", "key", "time"), rows)]
    gates = gate_table(verdicts_of(run))
    print_tables([*tables, *([gates] if gates.rows else [])])
    for step in run.steps:
        if step.error:
            print(f"\n{step.name} failed: {step.error}")


def _manifest_table(artifact: Artifact) -> Table:
    manifest = artifact.manifest
    facts: dict[str, object] = {
        "stage": f"{manifest.stage}, version {manifest.stage_version}",
        "key": manifest.key,
        "digest": manifest.digest,
        "path": shown(artifact.path),
        "created (UTC)": f"{manifest.created_at[:19].replace('T', ' ')}, in {duration_text(manifest.duration_s)}",
        "source": _source(manifest),
    }
    nested: dict[str, Any] = {"config": manifest.config}
    if manifest.quantization is not None:
        nested["quantization"] = manifest.quantization.model_dump(mode="json")
    facts |= _flat({**nested, "environment": manifest.environment})
    facts |= {f"note {number}": note for number, note in enumerate(manifest.notes, 1)}
    return _facts(f"{manifest.kind.value} {short_key(manifest.key, manifest.revision)}", facts)


def _manifest_tables(manifest: Manifest) -> list[Table]:
    inputs = tuple(
        (role, ref.step, ref.stage, short_key(ref.key, ref.revision), ref.digest[:12])
        for role, refs in manifest.inputs.items()
        for ref in refs
    )
    files = tuple((name, size_text(entry.bytes), entry.sha256) for name, entry in manifest.files.items())
    tensors = tuple(
        (one.name, one.dtype, _shape(one.shape), one.layout or ABSENT, one.preprocessing or ABSENT)
        for one in manifest.tensors
    )
    tables = [
        Table("Inputs", ("role", "step", "stage", "key", "digest"), inputs),
        Table("Files", ("file", "size", "sha256"), files, frozenset({1})),
        Table("Tensors", ("tensor", "dtype", "shape", "layout", "preprocessing"), tensors),
        Table("", ("Metrics",), tuple((metric_text(metric),) for metric in manifest.metrics)),
    ]
    return [table for table in tables if table.rows]


def _source(manifest: Manifest) -> str:
    if manifest.source.commit is None:
        return "not in a git repository"
    return manifest.source.commit[:12] + (", with uncommitted changes" if manifest.source.dirty else "")


def _facts(title: str, facts: Mapping[str, object]) -> Table:
    # A table of two columns needs no header; the title stands above it.
    rows = tuple((f"  {name}", str(value)) for name, value in facts.items())
    return Table("", (title, ""), rows)


def _shape(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def document_tables(title: str, document: Mapping[str, Any]) -> list[Table]:
    """Return a JSON document as tables: one of single values, and one for each list of objects in it.

    Args:
        title: heads the table of single values.
        document: objects may nest; their keys are joined by dots.
    """
    values: dict[str, object] = {}
    tables: list[Table] = []
    for name, value in _flat(document).items():
        if isinstance(value, list):
            header = tuple(value[0])
            rows = tuple(tuple(str(_plain(row.get(column))) for column in header) for row in value)
            tables.append(Table(f"{title}: {name}", header, rows))
        else:
            values[name] = value
    return [_facts(title, values), *tables]


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Flatten nested objects to one plain value a name, e.g. `batch.min`; lists of objects stay."""
    flat: dict[str, object] = {}
    for key, value in document.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat |= _flat(value, name)
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) and one for one in value):
            flat[name] = value
        else:
            flat[name] = _plain(value)
    return flat


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or ABSENT
    return ABSENT if value is None or value == "" else value
