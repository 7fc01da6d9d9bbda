"""Tags: names that people give to runs, e.g. to the one that every later run is compared with."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from compress.artifacts import runs
from compress.artifacts.files import store_writes, write_durably
from compress.artifacts.manifest import Record
from compress.errors import ArtifactError, UsageError
from compress.log import get_logger

TAG_SCHEMA_VERSION = 1
FOLDER = "tags"
_NAME = re.compile(r"[A-Za-z][\w.-]{0,63}", re.ASCII)
# A tag must not be taken for a run id or for the first digits of a key.
_TAKEN = re.compile(r".*-[0-9]+|[0-9a-f]{4,64}(\.[0-9]+)?")


class Tag(Record):
    """`tags/<name>.json`."""

    schema_version: int = TAG_SCHEMA_VERSION
    name: str
    run: str  # its id
    created_at: str  # ISO 8601, UTC; for the record only


def write(root: Path, name: str, run: str) -> Tag:
    """Give a run a name; a name that is there moves to it, in one step.

    Args:
        root: of the store.
        name: letters, digits, `.`, `_` and `-`, after a letter.
        run: id of a run that exists.

    Raises:
        UsageError: the name is malformed, or reads as a run id or a key.
        TryAgainError: the store cannot be written.
    """
    check_name(name)
    tag = Tag(name=name, run=run, created_at=datetime.now(UTC).isoformat(timespec="seconds"))
    with store_writes(root):
        (root / FOLDER).mkdir(parents=True, exist_ok=True)
        write_durably(_path(root, name), tag.model_dump_json(indent=1).encode() + b"\n")
    return tag


def check_name(name: str) -> None:
    """Refuse what cannot be a tag.

    Raises:
        UsageError: the name is malformed, or reads as a run id or a key.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a tag is a letter, then at most 63 letters, digits, '.', '_' or '-'; got {name!r}",
            hint="for example: compress tag main RUN",
        )
    if _TAKEN.fullmatch(name):
        raise UsageError(
            f"the tag {name!r} would read as a run id or as a key", hint="for example: compress tag main RUN"
        )


def names(root: Path) -> list[str]:
    """Names of all tags of a store, sorted; none if there is no such folder."""
    folder = root / FOLDER
    if not folder.is_dir():
        return []
    return sorted(path.stem for path in folder.glob("*.json") if _NAME.fullmatch(path.stem))


def read(root: Path, name: str) -> Tag:
    """Read one tag.

    Raises:
        UsageError: there is no such tag; the nearest is named.
        ArtifactError: its file is damaged.
    """
    known = names(root)
    if name not in known:
        raise UsageError(
            f"there is no tag {name!r}{nearest(name, known)}", where=str(root), hint="compress ls lists the tags"
        )
    path = _path(root, name)
    try:
        tag = Tag.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(
            f"the tag is damaged: {error.errors(include_url=False)[0]['msg']}",
            where=str(path),
            hint=f"give it again: compress tag {name} RUN",
        ) from error
    return tag


def records(root: Path) -> Iterator[Tag]:
    """Read every tag, sorted by name; damaged ones only warn."""
    for name in names(root):
        try:
            yield read(root, name)
        except ArtifactError as error:
            get_logger(__name__).warning("%s", error)


def run_id(root: Path, name: str) -> str:
    """Return the id of the run that is called so: its own id, or a tag.

    Raises:
        UsageError: neither a run nor a tag has that name, the nearest is named; or the tag's run is gone.
        ArtifactError: the tag is damaged.
    """
    ids, tags = runs.ids(root / "runs"), names(root)
    if name in ids:
        return name
    if name not in tags:
        raise UsageError(
            f"there is no run {name!r}, and no tag of that name{nearest(name, [*tags, *ids])}",
            where=str(root),
            hint="compress ls lists runs and tags",
        )
    run = read(root, name).run
    if run not in ids:
        raise UsageError(
            f"the tag {name!r} names the run {run!r}, which is gone",
            where=str(_path(root, name)),
            hint=f"name another one: compress tag {name} RUN",
        )
    return run


def nearest(name: str, known: list[str]) -> str:
    """Return `; nearest: x` if a known name resembles `name`, else nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; nearest: {near[0]}" if near else ""


def _path(root: Path, name: str) -> Path:
    return root / FOLDER / f"{name}.json"
