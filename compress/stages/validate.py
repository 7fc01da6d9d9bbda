"""`compress validate`: a finished run's engine or int8 model measured again on this machine, as the run recorded it.

What is measured, and all that led to it, is found by the digests in the run's record and verified. No key upstream is
computed: another machine has other libraries, and so other keys, while the artifacts are the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from pydantic import ValidationError

from compress.artifacts.fingerprint import document_digest
from compress.artifacts.manifest import Artifact, Engine, InputRef, QuantizedOnnx, Report
from compress.artifacts.runs import RunRecord, StepRecord
from compress.artifacts.store import Store
from compress.errors import (
    EXIT_GATE_FAILED,
    EXIT_UNAVAILABLE,
    ArtifactError,
    DataError,
    UnavailableError,
    UsageError,
)
from compress.pipeline.execute import execute
from compress.pipeline.keys import Keys
from compress.pipeline.machine import threads
from compress.pipeline.recipe import Recipe
from compress.pipeline.roles import ANCESTORS
from compress.pipeline.runner import exit_code, failed_record
from compress.pipeline.stage import GateVerdict, StageConfig
from compress.pipeline.steps import Step
from compress.stages import CATALOGUE, STAGES
from compress.stages.benchmark import BENCHMARK, BenchmarkConfig

Device = Literal["cuda", "cpu"]
Roles = dict[str, tuple[str, ...]]

_MEASURED: Mapping[Device, type[Artifact]] = {"cuda": Engine, "cpu": QuantizedOnnx}
_SAID: Mapping[Device, str] = {"cuda": "engine", "cpu": "int8 ONNX"}


@dataclass(frozen=True)
class Validation:
    """What came of it: the record of a run of its own, which names the report, and the report's artifact."""

    record: RunRecord
    report: Report
    measured: tuple[str, ...]  # variants that were to run


def validate_run(run: RunRecord, report: Report, recipe: Recipe, store: Store, device: Device) -> Validation:
    """Measure the engines (`cuda`) or the int8 ONNX files (`cpu`) of a run against its reference, and judge the gates.

    Args:
        run: the run's record.
        report: of one of its benchmarks: names the variants, the reference and how long is measured.
        recipe: gives the data, the folder of the user's modules, and the gates; nothing else of it counts.
        store: where the run's artifacts are; the new report and a record `<recipe>-validate-<n>` go there.
        device: where the measured variants run; torch takes a GPU for `cuda` if it can use one.

    Returns:
        The new record and report. The exit code is what the gates deserve; 7 where a variant could not run here.

    Raises:
        UsageError: the benchmark measured nothing that runs on this device.
        UnavailableError: this machine cannot run any of it.
        ArtifactError: an artifact is missing, damaged or not what the run recorded.
        DataError: the data are not those of the run.
        TryAgainError: the store cannot be written.
    """
    roles = _roles(run, report, device)
    _check_machine(run, roles["variants"], store, device)
    artifacts, graph = _follow(run, roles, store)
    step = Step(report.step, BENCHMARK, _config(report, device), roles)
    known = [one for one in run.steps if one.name in graph]
    steps = [Step(one.name, STAGES[one.stage], StageConfig(), graph[one.name]) for one in known]
    recorded = replace(recipe, name=run.recipe, seed=run.seed, steps=(*steps, step))
    store.prepare()
    hashes = store.hashes()
    document, config = Keys(recorded, CATALOGUE, hashes, store).document(step, artifacts)
    _check_data(document["data"], report, recipe)
    key = document_digest(document)
    record = _start(run, step, key, artifacts, store)
    try:
        with store.lock(step.stage.name, key):
            made = execute(step, config, document, artifacts, recorded, store)
        store.remember(hashes)
        verdicts = CATALOGUE.judge(recipe.gates, made)
    except BaseException as error:
        store.write_run(failed_record(record, error))
        raise
    assert isinstance(made, Report)
    record = _done(record, made, verdicts, _missing(made, roles["variants"]), store)
    store.write_run(record)
    return Validation(record, made, roles["variants"])


def _roles(run: RunRecord, report: Report, device: Device) -> Roles:
    """The roles of the recorded benchmark, its variants cut to those that run on the device."""
    inputs = report.manifest.inputs
    roles = {role: _names(refs, run) for role, refs in inputs.items() if role != ANCESTORS}
    kinds = {step.name: STAGES[step.stage].output for step in run.steps if step.stage in STAGES}
    measured = tuple(name for name in roles["variants"] if kinds[name] is _MEASURED[device])
    if not measured:
        needed = "an engine" if device == "cuda" else "a calibrate"
        raise UsageError(
            f"step {report.step!r} of run {run.id} measured no {_SAID[device]}, only {', '.join(roles['variants'])}",
            hint=f"add the output of {needed} step to its variants and run the recipe again",
        )
    return {**roles, "variants": measured}


def _names(refs: Sequence[InputRef], run: RunRecord) -> tuple[str, ...]:
    """The steps of the run that hold what an artifact was made from; contents decide, as in `stages.ladder`."""
    found: list[str] = []
    for ref in refs:
        same = [step.name for step in run.steps if (step.stage, step.digest) == (ref.stage, ref.digest)]
        if same:
            found.append(ref.step if ref.step in same else same[0])
    return tuple(found)


def _check_machine(run: RunRecord, engines: Sequence[str], store: Store, device: Device) -> None:
    """Refuse at once where no engine can run: everything else would be measured for nothing."""
    if device != "cuda":
        return
    from compress.engines.availability import obstacle

    backends = {name: str(_recorded(run, name, store).manifest.config["backend"]) for name in engines}
    obstacles = {name: obstacle(backend) for name, backend in backends.items()}
    if not all(obstacles.values()):
        return
    name, missing = next(iter(obstacles.items()))
    assert missing is not None
    raise UnavailableError(
        f"{name} of run {run.id} cannot run here: {missing.explanation}",
        hint=f"{missing.install_hint or 'compress doctor'}; --device cpu validates the int8 ONNX instead",
    )


def _recorded(run: RunRecord, name: str, store: Store) -> Artifact:
    step = run.step(name)
    assert step is not None, "names come from the record"
    return store.artifact_of(step)


def _follow(run: RunRecord, roles: Roles, store: Store) -> tuple[dict[str, Artifact], dict[str, Roles]]:
    """Every artifact that the measured ones were made from, hashes verified, and which fills which role of which."""
    artifacts: dict[str, Artifact] = {}
    graph: dict[str, Roles] = {}
    waiting = [name for names in roles.values() for name in names]
    while waiting:
        name = waiting.pop()
        if name in artifacts:
            continue
        artifacts[name] = store.verify(_recorded(run, name, store))
        found = {role: _names(refs, run) for role, refs in artifacts[name].manifest.inputs.items()}
        graph[name] = {role: names for role, names in found.items() if names}
        waiting += [one for names in graph[name].values() for one in names]
    return artifacts, graph


def _config(report: Report, device: Device) -> BenchmarkConfig:
    """The settings of the recorded benchmark, with the device forced and no more threads than there are here."""
    try:
        recorded = BenchmarkConfig.model_validate(report.manifest.config)
    except ValidationError as error:
        raise ArtifactError(
            f"the benchmark has settings that this version does not know: {error.errors(include_url=False)[0]['msg']}",
            where=str(report.path),
            hint=f"validate it with the version that made it (stage version {report.manifest.stage_version})",
        ) from error
    assert isinstance(recorded.threads, int), "manifests hold resolved settings"
    # A GPU host may carry a torch without CUDA: the reference then runs on the processor, and its label says so.
    return recorded.model_copy(
        update={"device": "auto" if device == "cuda" else "cpu", "threads": min(recorded.threads, threads())}
    )


def _check_data(now: Mapping[str, str], report: Report, recipe: Recipe) -> None:
    recorded: Mapping[str, str] = report.manifest.key_document["data"]
    for split, digest in recorded.items():
        if now.get(split) != digest:
            raise DataError(
                f"the {split} data are not those of the run: got SHA-256 {str(now.get(split))[:12]}, "
                f"expected {digest[:12]}",
                where=f"{recipe.path}, data",
                hint="--recipe FILE or --set data.path=FOLDER names those that the run was made with",
            )


def _start(run: RunRecord, step: Step, key: str, artifacts: Mapping[str, Artifact], store: Store) -> RunRecord:
    """Record a run of its own; its name keeps it apart from what `compress plan` looks back on."""
    found = [one.model_copy(update={"status": "hit", "seconds": None}) for one in run.steps if one.name in artifacts]
    measuring = StepRecord(name=step.name, stage=step.stage.name, status="running", key=key)
    return store.create_run(
        RunRecord(
            id=f"{run.recipe}-validate",
            recipe=run.recipe,
            recipe_path=run.recipe_path,
            seed=run.seed,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            steps=(*found, measuring),
        )
    )


def _missing(report: Report, measured: Sequence[str]) -> bool:
    """Whether a variant that was to be validated did not run, e.g. an engine built for another GPU."""
    from compress.report.document import report_from_json

    path = report.path / "report.json"
    document = report_from_json(path.read_bytes(), str(path))
    return any(document.variant(name).status == "not run" for name in measured)


def _done(record: RunRecord, report: Report, verdicts: Sequence[GateVerdict], missing: bool, store: Store) -> RunRecord:
    manifest, code = report.manifest, exit_code(verdicts)
    last = record.steps[-1].model_copy(
        update={
            "status": "done",
            "revision": manifest.revision,
            "digest": manifest.digest,
            "path": report.path.relative_to(store.root).as_posix(),
            "seconds": manifest.duration_s,
        }
    )
    return record.model_copy(
        update={
            "status": "done",
            "steps": (*record.steps[:-1], last),
            "gates": tuple(verdict.model_dump(mode="json") for verdict in verdicts),
            "exit_code": EXIT_UNAVAILABLE if missing and code != EXIT_GATE_FAILED else code,
        }
    )
