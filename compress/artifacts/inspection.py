"""Holds an artifact's folder against its manifest."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from compress.artifacts.files import walk
from compress.artifacts.fingerprint import document_digest, payload_digest, sha256_file
from compress.artifacts.manifest import ARTIFACTS, SCHEMA_VERSION, Artifact, Manifest

MANIFEST = "manifest.json"
KEY_DIGITS = 12
Verified = dict[Path, tuple[int, int, int, str]]  # file -> size, mtime_ns, inode, SHA-256 of what was hashed


@dataclass(frozen=True)
class Damage:
    """An artifact's folder that is not what its manifest says."""

    stage: str
    path: Path
    reason: str


def inspect_folder(folder: Path, step: str, verified: Verified | None) -> Artifact | Damage:
    """Check manifest, file names and sizes.

    Args:
        folder: `<store>/<stage>/<name>`.
        step: name that the artifact gets.
        verified: if given, hashes are compared too, except those of files that are in it and unchanged;
            files found right are added.
    """
    stage = folder.parent.name
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return Damage(stage, folder, f"{MANIFEST} is missing")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return Damage(stage, folder, f"{MANIFEST} is malformed: {place + ': ' if place else ''}{first['msg']}")
    except OSError as error:
        return Damage(stage, folder, f"{MANIFEST} cannot be read: {error.strerror}")
    reason = _manifest_problem(manifest, folder) or _payload_problem(manifest, folder, verified)
    if reason:
        return Damage(stage, folder, reason)
    return ARTIFACTS[manifest.kind](step=step, path=folder, manifest=manifest)


def manifest_checksum(manifest: Manifest) -> str:
    """SHA-256 over every field but the checksum itself."""
    return document_digest(manifest.model_dump(mode="json", exclude={"checksum"}))


def _manifest_problem(manifest: Manifest, folder: Path) -> str:
    if manifest.schema_version != SCHEMA_VERSION:
        return f"{MANIFEST} has schema version {manifest.schema_version}, expected {SCHEMA_VERSION}"
    if manifest.stage != folder.parent.name or not folder.name.startswith(manifest.key[:KEY_DIGITS]):
        return f"{MANIFEST} belongs to {manifest.stage}/{manifest.key[:KEY_DIGITS]}"
    if document_digest(manifest.key_document) != manifest.key:
        return f"{MANIFEST} has a key that its key document does not give"
    if payload_digest({name: entry.sha256 for name, entry in manifest.files.items()}) != manifest.digest:
        return f"{MANIFEST} has a digest that its files do not give"
    if manifest_checksum(manifest) != manifest.checksum:
        return f"{MANIFEST} was changed after it was written"
    if not manifest.files:
        return f"{MANIFEST} lists no file"
    return ""


def _payload_problem(manifest: Manifest, folder: Path, verified: Verified | None) -> str:
    # Files that the manifest does not list are no damage: nobody reads them.
    found = {path.relative_to(folder).as_posix(): path for path in walk(folder)}
    missing = sorted(set(manifest.files) - set(found))
    if missing:
        return f"missing: {', '.join(missing)}"
    for name, entry in manifest.files.items():
        path = found[name]
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode):
            return f"{name} is not a regular file"
        if state.st_size != entry.bytes:
            return f"{name} has {state.st_size} bytes, expected {entry.bytes}"
        if verified is None:
            continue
        proof = (state.st_size, state.st_mtime_ns, state.st_ino, entry.sha256)
        if verified.get(path) != proof:
            if sha256_file(path) != entry.sha256:
                return f"{name} has another SHA-256 than its manifest"
            verified[path] = proof
    return ""
