"""Runs a recipe: cache hit, execute, commit, judge; the record tells the truth at every moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from compress.artifacts.fingerprint import document_digest
from compress.artifacts.manifest import Artifact, Kind
from compress.artifacts.runs import RunRecord, StepRecord
from compress.artifacts.store import Damage, Store
from compress.errors import (
    EXIT_BUG,
    EXIT_GATE_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_OK,
    EXIT_SIGINT,
    EXIT_SIGTERM,
    EXIT_UNAVAILABLE,
    ArtifactError,
    CompressError,
    UsageError,
)
from compress.pipeline.execute import execute
from compress.pipeline.keys import Keys
from compress.pipeline.plan import check_steps, why
from compress.pipeline.recipe import Recipe
from compress.pipeline.roles import wants_ancestors
from compress.pipeline.stage import Catalogue, GateVerdict, Watch
from compress.pipeline.steps import Step

MAX_REPAIRS = 2


@dataclass(frozen=True)
class StepEvent:
    """Something happened to a step.

    `start` carries the reason, `waiting` means that another run holds the step's lock, `repair` that the
    step's artifact was damaged and is made again, `hit`, `done` and `failed` end the step.
    """

    run: str  # id of the run's record
    kind: Literal["start", "waiting", "repair", "hit", "done", "failed"]
    step: str
    stage: str
    index: int  # from 1
    total: int
    message: str = ""  # reason or error
    artifact: Artifact | None = None
    seconds: float | None = None


def _silent(event: StepEvent) -> None:
    pass


def _unheard(step: str, record: Mapping[str, Any]) -> None:
    pass


def run(
    recipe: Recipe,
    store: Store,
    catalogue: Catalogue,
    *,
    until: str | None = None,
    only: str | None = None,
    force: Sequence[str] = (),
    lock_timeout_s: float = 600,
    rehash: bool = False,
    profile: bool = False,
    on_event: Callable[[StepEvent], None] = _silent,
    on_epoch: Callable[[str, Mapping[str, Any]], None] = _unheard,
) -> RunRecord:
    """Make every artifact that is not there yet, then judge the gates.

    Args:
        recipe: the recipe.
        store: where artifacts are and go.
        catalogue: data digests and the judge of gates.
        until: run this step and what it needs, nothing else.
        only: run this step alone; what it needs must be there.
        force: steps to repeat although their artifacts are there.
        lock_timeout_s: how long to wait for another run that makes the same artifact, seconds.
        rehash: ignore remembered hashes of files outside the store.
        profile: leave a profile of every training that runs, see `Watch`; a hit is not trained again for it.
        on_event: told what happens.
        on_epoch: told of every epoch of training, with the step's name; what it raises ends the run.

    Returns:
        The record as stored; its `exit_code` is 0, or what the gates' verdicts demand.

    Raises:
        UsageError: unknown steps, or options that contradict each other.
        TryAgainError: the store is locked, full or cannot be written.
        ArtifactError: an artifact is damaged or missing, and `only` forbids making it.
        CompressError: a step failed; the record says which. KeyboardInterrupt and the like pass
            through too, after the draft was removed and the record written.
    """
    names = _select(recipe, until, only, force)
    store.prepare()
    record = store.create_run(_new_record(recipe, names))
    hashes = store.hashes(rehash=rehash)
    keys = Keys(recipe, catalogue, hashes, store)
    runnable = frozenset([only] if only else names)
    going = _Run(
        recipe, store, catalogue, keys, names, runnable, set(force), lock_timeout_s, profile, on_event, on_epoch, record
    )
    try:
        going.make_all()
        store.remember(hashes)
        return going.close(going.judge())
    except BaseException as error:
        going.fail(error)
        raise


def _new_record(recipe: Recipe, names: Sequence[str]) -> RunRecord:
    return RunRecord(
        id=recipe.name,
        recipe=recipe.name,
        recipe_path=str(recipe.path),
        seed=recipe.seed,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        steps=tuple(StepRecord(name=name, stage=recipe.step(name).stage.name) for name in names),
    )


def _select(recipe: Recipe, until: str | None, only: str | None, force: Sequence[str]) -> list[str]:
    if until is not None and only is not None:
        raise UsageError("--until and --only contradict each other", hint="give one of them")
    check_steps(recipe, [until] if until else [], "--until")
    check_steps(recipe, [only] if only else [], "--only")
    check_steps(recipe, force, "--force")
    target = until or only
    names = [step.name for step in recipe.steps]
    if target is not None:
        needed = {*recipe.upstream(target), target}
        names = [name for name in names if name in needed]
    idle = [name for name in force if name not in ([only] if only else names)]
    if idle:
        option = "--only" if only else "--until"
        raise UsageError(f"--force {idle[0]}: {option} {target} does not run this step", hint="leave one of them out")
    return names


@dataclass
class _Run:
    recipe: Recipe
    store: Store
    catalogue: Catalogue
    keys: Keys
    names: list[str]  # in order of execution
    runnable: frozenset[str]
    forced: set[str]
    lock_timeout_s: float
    profile: bool
    on_event: Callable[[StepEvent], None]
    on_epoch: Callable[[str, Mapping[str, Any]], None]
    record: RunRecord
    artifacts: dict[str, Artifact] = field(default_factory=dict[str, Artifact])
    repairs: dict[str, int] = field(default_factory=dict[str, int])

    # The record

    def note(self, name: str, *, write: bool = True, **changes: Any) -> None:
        steps = tuple(step.model_copy(update=changes) if step.name == name else step for step in self.record.steps)
        self.record = self.record.model_copy(update={"steps": steps})
        if write:
            self.store.write_run(self.record)

    def tell(self, kind: Any, step: Step, message: str = "", **facts: Any) -> None:
        index = self.names.index(step.name) + 1
        event = StepEvent(self.record.id, kind, step.name, step.stage.name, index, len(self.names), message, **facts)
        self.on_event(event)

    def close(self, verdicts: Sequence[GateVerdict]) -> RunRecord:
        gates = tuple(verdict.model_dump(mode="json") for verdict in verdicts)
        changes = {"status": "done", "gates": gates, "exit_code": exit_code(verdicts)}
        self.record = self.record.model_copy(update=changes)
        self.store.write_run(self.record)
        return self.record

    def fail(self, error: BaseException) -> None:
        self.record = failed_record(self.record, error)
        try:
            self.store.write_run(self.record)
        except CompressError as second:
            error.add_note(f"the run record {self.record.id} could not be updated: {second.message}")

    # The steps

    def make_all(self) -> None:
        while waiting := [name for name in self.names if name not in self.artifacts]:
            step = self.recipe.step(waiting[0])
            started = time.monotonic()
            before = self.record.step(step.name)
            made_before = before is not None and before.status == "done"
            try:
                self.note(step.name, status="running", write=False)  # a hit is over before a disk has written that
                broken = self.make(step, made_before, started)
            except BaseException as error:
                said = error.message if isinstance(error, CompressError) else repr(error)
                self.tell("failed", step, said, seconds=time.monotonic() - started)
                raise
            if broken is not None:
                self.repair(self.recipe.step(broken))

    def make(self, step: Step, made_before: bool, started: float) -> str | None:
        """Provide the step's artifact; the name of an input that turned out to be damaged, or None."""
        document, config = self.keys.document(step, self.artifacts)
        key = document_digest(document)
        self.note(step.name, key=key, write=False)
        artifact, damaged = self.lookup(step, key, document)
        made = False
        if artifact is None:
            self.check_may_run(step, damaged)
            with self.store.lock(step.stage.name, key, self.lock_timeout_s, lambda: self.tell("waiting", step)):
                artifact, damaged = self.lookup(step, key, document)  # another run may have made it meanwhile
                for damage in damaged:
                    self.store.quarantine(damage)
                if artifact is None:
                    needed = [*step.inputs, *(self.upstream(step) if wants_ancestors(step.stage) else ())]
                    broken = next((name for name in needed if self.store.damage(self.artifacts[name])), None)
                    if broken is not None:
                        return broken
                    forced = step.name in self.forced
                    reason = why(self.recipe.name, step.name, document, key, damaged, self.store)
                    self.note(step.name, status="running")
                    self.tell("start", step, "forced" if forced else reason)
                    artifact = execute(
                        step, config, document, self.artifacts, self.recipe, self.store, self.watch(step)
                    )
                    made = True
                    self.forced.discard(step.name)
        self.artifacts[step.name] = artifact
        seconds = time.monotonic() - started
        status = "done" if made or made_before else "hit"
        manifest = artifact.manifest
        path = artifact.path.relative_to(self.store.root).as_posix()
        self.note(
            step.name,
            status=status,
            revision=manifest.revision,
            digest=manifest.digest,
            path=path,
            seconds=round(seconds, 3),
        )
        self.tell(status, step, artifact=artifact, seconds=seconds)
        return None

    def watch(self, step: Step) -> Watch:
        folder = self.store.traces(self.record.id) / step.name
        return Watch(folder, self.profile, partial(self.on_epoch, step.name))

    def lookup(self, step: Step, key: str, document: Mapping[str, Any]) -> tuple[Artifact | None, list[Damage]]:
        artifact, damaged = self.store.lookup(step.stage.name, key, document, step=step.name)
        return (None if step.name in self.forced else artifact), damaged

    def upstream(self, step: Step) -> tuple[str, ...]:
        return self.recipe.upstream(*step.inputs)

    def check_may_run(self, step: Step, damaged: Sequence[Damage]) -> None:
        if step.name in self.runnable:
            return
        what = f"damaged: {damaged[0].reason}" if damaged else "missing"
        raise ArtifactError(
            f"the artifact of step {step.name!r} is {what}, and --only runs {', '.join(self.runnable)} alone",
            where=str(damaged[0].path if damaged else self.store.root),
            hint=f"compress run {self.recipe.path} --until {step.name}",
        )

    def repair(self, step: Step) -> None:
        """Put a damaged artifact aside; it and everything made from it is provided anew."""
        artifact = self.artifacts[step.name]
        self.repairs[step.name] = self.repairs.get(step.name, 0) + 1
        if self.repairs[step.name] > MAX_REPAIRS:
            raise ArtifactError(
                f"the artifact was damaged again after {MAX_REPAIRS} repairs",
                where=f"step {step.name}, {artifact.path}",
                hint="check the disk, or pass --store with a folder on another one",
            )
        with self.store.lock(step.stage.name, artifact.manifest.key, self.lock_timeout_s):
            damage = self.store.damage(artifact)
            if damage is not None:
                self.store.quarantine(damage)
                self.check_may_run(step, [damage])
                self.tell("repair", step, damage.reason)
        for name in self.names:
            if name == step.name or step.name in self.recipe.upstream(name):
                self.artifacts.pop(name, None)

    # The gates

    def judge(self) -> list[GateVerdict]:
        """Judge every report of the run, made now or reused."""
        while True:
            reports = [name for name in self.names if self.artifacts[name].kind == Kind.REPORT]
            broken = next((name for name in reports if self.store.damage(self.artifacts[name])), None)
            if broken is None:
                break
            self.repair(self.recipe.step(broken))
            self.make_all()
        return [
            verdict for name in reports for verdict in self.catalogue.judge(self.recipe.gates, self.artifacts[name])
        ]


def failed_record(record: RunRecord, error: BaseException) -> RunRecord:
    """What an error makes of a run's record: the step that was running failed, or the run was interrupted."""
    status, code = "failed", error.exit_code if isinstance(error, CompressError) else EXIT_BUG
    if not isinstance(error, Exception):
        status, code = "interrupted", EXIT_SIGINT if isinstance(error, KeyboardInterrupt) else EXIT_SIGTERM
    said = error.message if isinstance(error, CompressError) else f"{type(error).__name__}: {error}".rstrip(": ")
    steps = tuple(
        step.model_copy(update={"status": "failed", "error": said}) if step.status == "running" else step
        for step in record.steps
    )
    return record.model_copy(update={"status": status, "exit_code": code, "steps": steps})


def exit_code(verdicts: Sequence[GateVerdict]) -> int:
    """What verdicts make of a run: 3 failed, 7 a required variant did not run, 4 inconclusive, 0, in this order."""
    if any(verdict.verdict == "fail" for verdict in verdicts):
        return EXIT_GATE_FAILED
    if any(verdict.verdict == "not run" and verdict.gate == "require" for verdict in verdicts):
        return EXIT_UNAVAILABLE
    if any(verdict.verdict == "inconclusive" for verdict in verdicts):
        return EXIT_INCONCLUSIVE
    return EXIT_OK
