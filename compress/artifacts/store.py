"""The store: immutable artifact folders, found by key, committed in one step, never overwritten.

<store>/<stage>/<key12>/          payload and manifest.json; later revisions are <key12>.<n>
<store>/runs/<recipe>-<n>.json    run records
<store>/traces/<run>/<step>/      what training left beside its artifact: event files, profiles; nothing reads them here
<store>/tags/<name>.json          names that people gave to runs
<store>/tune/                     studies of `compress tune`, with their figures
<store>/quarantine/               damaged artifacts, each with the reason beside it
<store>/.drafts/  .locks/  .hashes.json
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.artifacts import references, runs, tags
from compress.artifacts.files import fsync_path, store_writes, walk, write_durably
from compress.artifacts.fingerprint import FileHashes, canonical_json, payload_digest, sha256_file
from compress.artifacts.inspection import KEY_DIGITS, MANIFEST, Damage, Verified, inspect_folder, manifest_checksum
from compress.artifacts.manifest import ARTIFACTS, Artifact, FileEntry, Manifest
from compress.artifacts.runs import RunRecord, StepRecord
from compress.errors import ArtifactError, CompressError, TryAgainError

_TRACES = "traces"
_NOT_STAGES = {"runs", "quarantine", "tune", _TRACES, tags.FOLDER}
_FOLDER = re.compile(rf"([0-9a-f]{{{KEY_DIGITS}}})(?:\.([1-9][0-9]*))?")


def default_store(recipe: Path) -> Path:
    """`artifacts/` beside the nearest pyproject.toml at or above the recipe's folder, else in the working directory."""
    for folder in recipe.resolve().parents:
        if (folder / "pyproject.toml").is_file():
            return folder / "artifacts"
    return Path.cwd() / "artifacts"


class Store:
    """Artifacts below `root`; reading creates nothing, and the folder need not exist.

    Args:
        root: the store's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._verified: Verified = {}

    # Finding

    def lookup(
        self, stage: str, key: str, document: Mapping[str, Any] | None = None, *, step: str = ""
    ) -> tuple[Artifact | None, list[Damage]]:
        """Find the newest revision that is whole, by manifest and file sizes.

        Args:
            stage: the stage's name.
            key: 64 hex digits.
            document: the key document; if given, it must equal the stored one whole.
            step: name that the artifact gets.

        Returns:
            The artifact, or None; and the folders of this key that are damaged.
        """
        damaged: list[Damage] = []
        for folder, _ in reversed(self._folders(stage, key[:KEY_DIGITS])):
            found = self.inspect(folder, step=step)
            if isinstance(found, Damage):
                damaged.append(found)
            elif found.manifest.key == key and (
                document is None or canonical_json(found.manifest.key_document) == canonical_json(dict(document))
            ):
                return found, damaged
        return None, damaged

    def find(self, stage: str, key: str, document: Mapping[str, Any] | None = None) -> Artifact | None:
        """Return the newest whole revision, or None; see `lookup`."""
        return self.lookup(stage, key, document)[0]

    def inspect(self, folder: Path, *, step: str = "", full: bool = False) -> Artifact | Damage:
        """Hold an artifact's folder against its manifest.

        Args:
            folder: `<store>/<stage>/<name>`.
            step: name that the artifact gets.
            full: compare the hash of every file too, instead of sizes alone.
        """
        return inspect_folder(folder, step, self._verified if full else None)

    def damage(self, artifact: Artifact) -> Damage | None:
        """Compare every hash; None if the artifact is whole. Files are hashed once per process while unchanged."""
        found = self.inspect(artifact.path, full=True)
        if isinstance(found, Damage):
            return found
        if found.manifest.digest != artifact.manifest.digest:
            return Damage(artifact.manifest.stage, artifact.path, "another artifact took its place")
        return None

    def verify(self, artifact: Artifact) -> Artifact:
        """Compare every hash; to be called before any payload byte is parsed.

        Returns:
            `artifact` itself.

        Raises:
            ArtifactError: a mismatch; the artifact has been moved to `quarantine/`.
        """
        damage = self.damage(artifact)
        if damage is None:
            return artifact
        moved = self.quarantine(damage)
        raise ArtifactError(
            f"the artifact is damaged: {damage.reason}",
            where=f"{damage.path} (moved to {moved})" if moved else str(damage.path),
            hint="run the recipe again: the step that made it is repeated",
        )

    def quarantine(self, damage: Damage) -> Path | None:
        """Move a damaged folder out of the way, with the reason beside it.

        Call it under the lock of the artifact's key where other runs may repair it at the same time.

        Returns:
            Where it lies now; None if the folder is gone or whole by now.

        Raises:
            TryAgainError: the store cannot be written.
        """
        if not damage.path.exists() or not isinstance(self.inspect(damage.path, full=True), Damage):
            return None
        with store_writes(self.root):
            folder = self.root / "quarantine"
            folder.mkdir(exist_ok=True)
            number = 1
            while (target := folder / f"{damage.stage}-{damage.path.name}-{number}").exists():
                number += 1
            damage.path.rename(target)
            fsync_path(damage.path.parent)
            write_durably(target.with_name(target.name + ".reason.txt"), f"{damage.reason}\n".encode())
        return target

    def list(self) -> list[Artifact | Damage]:
        """Every artifact of the store, by stage and name; damaged ones as such."""
        if not self.root.is_dir():
            return []
        return [
            self.inspect(folder)
            for stage in sorted(self.root.iterdir())
            if stage.is_dir() and not stage.name.startswith(".") and stage.name not in _NOT_STAGES
            for folder, _ in self._folders(stage.name)
        ]

    def _folders(self, stage: str, key12: str | None = None) -> list[tuple[Path, int]]:
        """Folders of a stage with their revision numbers (0: no suffix), oldest revision first."""
        parent = self.root / stage
        if not parent.is_dir():
            return []
        found: list[tuple[str, int, Path]] = []
        for folder in parent.iterdir():
            match = _FOLDER.fullmatch(folder.name)
            if match and (key12 is None or match[1] == key12):
                found.append((match[1], int(match[2] or 0), folder))
        return [(folder, revision) for _, revision, folder in sorted(found)]

    # Writing

    def prepare(self) -> None:
        """Create the store's folders and prove that they can be written.

        Raises:
            TryAgainError: they cannot, or the disk is full.
        """
        with store_writes(self.root):
            for name in ("runs", ".drafts", ".locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            probe = self.root / ".drafts" / f"probe-{os.getpid()}"
            probe.write_bytes(b"1")
            probe.unlink()

    @contextmanager
    def lock(
        self, stage: str, key: str, timeout_s: float = 600, on_wait: Callable[[], None] | None = None
    ) -> Generator[None]:
        """Hold the one lock of a key; whoever writes or removes artifacts of the key holds it.

        Args:
            stage: the stage's name.
            key: 64 hex digits.
            timeout_s: how long to wait for another holder, seconds.
            on_wait: called once if the lock is not free at once.

        Raises:
            TryAgainError: another run held it all the time, or the store cannot be written.
        """
        from filelock import FileLock, Timeout

        with store_writes(self.root):
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".locks" / f"{stage}-{key[:KEY_DIGITS]}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if on_wait is not None:
                    on_wait()
                try:
                    lock.acquire(timeout=timeout_s)
                except Timeout as error:
                    raise TryAgainError(
                        f"another run has been making this artifact for more than {timeout_s:g} s",
                        where=f"{stage} {key[:KEY_DIGITS]}, lock {lock.lock_file}",
                        hint="wait for that run and start again, or raise --lock-timeout",
                    ) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def draft(self, stage: str, key: str) -> Generator[Path]:
        """Give an empty folder on the store's file system; it is gone afterwards unless committed.

        The caller holds the key's lock, so a folder left by a killed run is nobody's and is cleared.

        Raises:
            TryAgainError: the store cannot be written.
        """
        folder = self.root / ".drafts" / f"{stage}-{key[:KEY_DIGITS]}"
        with store_writes(self.root):
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            if folder.exists():
                shutil.rmtree(folder)

    def seal(self, draft: Path) -> tuple[dict[str, FileEntry], str]:
        """Force a draft's payload onto the disk and hash it.

        Returns:
            The files by path relative to the draft, and the payload's digest.

        Raises:
            CompressError: the payload is empty, or holds something else than regular files.
            TryAgainError: the disk failed.
        """
        files: dict[str, FileEntry] = {}
        with store_writes(self.root):
            for path in walk(draft):
                name, state = path.relative_to(draft).as_posix(), path.lstat()
                if not stat.S_ISREG(state.st_mode):
                    raise CompressError(
                        f"the stage left something that is not a regular file: {name}", where=str(draft)
                    )
                if name == MANIFEST:
                    raise CompressError(f"the stage wrote {MANIFEST}, which is the store's own", where=str(draft))
                fsync_path(path)
                files[name] = FileEntry(sha256=sha256_file(path), bytes=state.st_size)
            for folder in {(draft / name).parent for name in files}:
                fsync_path(folder)
        if not files:
            raise CompressError("the stage wrote no file", where=str(draft))
        return files, payload_digest({name: entry.sha256 for name, entry in files.items()})

    def commit(self, draft: Path, manifest: Manifest, *, new_revision: bool, step: str = "") -> Artifact:
        """Publish a sealed draft: manifest last, then one rename. Nothing that is there is overwritten.

        Args:
            draft: folder from `draft`, sealed.
            manifest: describes the draft; its `revision` is set here.
            new_revision: always add a revision (measurements). Otherwise the first artifact of a key has no
                suffix, equal bytes made again give the artifact that is there, and other bytes a new revision.
            step: name that the artifact gets.

        Raises:
            TryAgainError: the store cannot be written.
        """
        folders = self._folders(manifest.stage, manifest.key[:KEY_DIGITS])
        if not new_revision:
            there = self.lookup(manifest.stage, manifest.key, manifest.key_document, step=step)[0]
            if there is not None and there.manifest.digest == manifest.digest and self.damage(there) is None:
                return there
        number = folders[-1][1] + 1 if folders else int(new_revision)
        manifest = manifest.model_copy(update={"revision": number or None})
        manifest = manifest.model_copy(update={"checksum": manifest_checksum(manifest)})
        name = manifest.key[:KEY_DIGITS] + (f".{number}" if number else "")
        target = self.root / manifest.stage / name
        with store_writes(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_durably(draft / MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")
            draft.rename(target)
            fsync_path(target.parent)
            fsync_path(self.root)
        return ARTIFACTS[manifest.kind](step=step, path=target, manifest=manifest)

    # Runs

    def create_run(self, record: RunRecord) -> RunRecord:
        """Write a new run's record under the next free number; `record.id` is the recipe's name.

        Raises:
            TryAgainError: the store cannot be written.
        """
        with store_writes(self.root):
            return runs.create(self.root / "runs", record)

    def write_run(self, record: RunRecord) -> None:
        """Replace a run's record in one step.

        Raises:
            TryAgainError: the store cannot be written.
        """
        with store_writes(self.root):
            runs.write(self.root / "runs", record)

    def read_run(self, name: str) -> RunRecord:
        """Read one record, by the run's id or by a tag.

        Raises:
            UsageError: there is no such run; the nearest name is given.
            ArtifactError: the record or the tag is damaged.
        """
        return runs.read(self.root / "runs", tags.run_id(self.root, name))

    def list_runs(self) -> list[RunRecord]:
        """Every run, newest first; damaged records are left out with a warning."""
        return list(runs.records(self.root / "runs"))

    def runs_of(self, recipe: str) -> Iterator[RunRecord]:
        """Runs of the recipe called `recipe`, newest first, read one by one; damaged ones are skipped, warned of."""
        return runs.records(self.root / "runs", recipe)

    def latest_run(self, recipe: str) -> RunRecord | None:
        """The newest run of the recipe called `recipe`, whatever became of it; None if it never ran."""
        return next(self.runs_of(recipe), None)

    def traces(self, run_id: str) -> Path:
        """Folder, one for each step below it, of what training left in a run; missing where it left nothing."""
        return self.root / _TRACES / run_id

    def artifact_of(self, step: StepRecord) -> Artifact:
        """The artifact that a run's step produced or reused.

        Raises:
            ArtifactError: the step produced none, or it is gone, damaged or replaced.
        """
        return references.artifact_of(self, step)

    def resolve(self, ref: str) -> Artifact | RunRecord:
        """What a person's reference names: a key's prefix, `<stage>/<key prefix>`, a run id, a tag or RUN:STEP.

        Raises:
            UsageError: nothing, or more than one thing, has that name.
            ArtifactError: it names a damaged artifact.
        """
        return references.resolve(self, ref)

    def hashes(self, *, rehash: bool = False) -> FileHashes:
        """The memo of hashes of files outside the store; see `FileHashes`."""
        return FileHashes(self.root / ".hashes.json", rehash=rehash)

    def remember(self, hashes: FileHashes) -> None:
        """Save what `hashes` returned, for the next run.

        Raises:
            TryAgainError: the store cannot be written.
        """
        with store_writes(self.root):
            hashes.save()
