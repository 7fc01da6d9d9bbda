"""What a step's artifact depends on, as one document; and what differs between two of them, in words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from compress.artifacts.fingerprint import FileHashes
from compress.artifacts.manifest import Artifact
from compress.artifacts.store import Store
from compress.errors import CompressError, DataError, InputError
from compress.pipeline.machine import FACTS, library_version
from compress.pipeline.recipe import Recipe
from compress.pipeline.roles import wants_ancestors
from compress.pipeline.stage import Catalogue, StageConfig
from compress.pipeline.steps import Step

KEY_SCHEMA = 1
EARLIER = "earlier"  # beside the roles
_ABSENT = object()


class Keys:
    """Makes key documents for the steps of one recipe.

    Args:
        recipe: the recipe.
        catalogue: gives the digests of the data.
        hashes: of source files.
        store: where steps that stand for artifacts of earlier runs look for these.
    """

    def __init__(self, recipe: Recipe, catalogue: Catalogue, hashes: FileHashes, store: Store) -> None:
        self._recipe = recipe
        self._catalogue = catalogue
        self._hashes = hashes
        self._store = store
        self._data: Mapping[str, str] | None = None

    def document(self, step: Step, artifacts: Mapping[str, Artifact]) -> tuple[dict[str, Any], StageConfig]:
        """Describe all that shapes the step's artifact.

        Args:
            step: the step.
            artifacts: at least every artifact upstream of it, by step name.

        Returns:
            The key document, free of absolute paths below the recipe's project, and the resolved config.

        Raises:
            CompressError: whatever resolving the config or hashing data and sources met, with the step named.
        """
        try:
            return self._document(step, artifacts)
        except CompressError as error:
            error.at(f"step {step.name}")
            raise

    def _document(self, step: Step, artifacts: Mapping[str, Artifact]) -> tuple[dict[str, Any], StageConfig]:
        stage, base = step.stage, self._recipe.base
        config = stage.resolve(step.config)
        sources = name_sources(stage.sources(config, base), base)
        document: dict[str, Any] = {
            "schema": KEY_SCHEMA,
            "stage": stage.name,
            "version": stage.version,
            "config": portable(config.model_dump(mode="json"), base, sources),
            "inputs": {role: [artifacts[name].manifest.digest for name in names] for role, names in step.roles.items()},
            "data": {split: self._split(split) for split in stage.splits},
            "libraries": {name: library_version(name) for name in stage.libraries},
            "sources": {name: self._source(path) for name, path in sources.items()},
            "facts": {name: FACTS[name]() for name in stage.facts} if stage.needs_facts(config) else {},
        }
        if stage.earlier is not None:
            document["inputs"][EARLIER] = [stage.earlier(config, self._store).manifest.digest]
        if stage.seeded:
            document["seed"] = self._recipe.seed
        if wants_ancestors(stage):
            # Such a stage tells steps apart by their names, and writes them down.
            document["names"] = {role: list(names) for role, names in step.roles.items()}
            upstream = self._recipe.upstream(*step.inputs)
            document["ancestors"] = {name: artifacts[name].manifest.digest for name in upstream}
        return document, config

    def _split(self, split: str) -> str:
        if self._data is None:
            self._data = self._catalogue.data_digests(self._recipe.data, self._recipe.base, self._hashes.sha256)
        if split not in self._data:
            raise DataError(f"the data have no split {split!r}; they have: {', '.join(self._data)}")
        return self._data[split]

    def _source(self, path: Path) -> str:
        try:
            return self._hashes.sha256(path)
        except OSError as error:
            raise InputError(
                f"a source file cannot be read: {error.strerror}",
                where=str(path),
                hint="check `weights` and `model` of the step; paths start at the recipe's folder",
            ) from error


def name_sources(paths: Sequence[Path], base: Path) -> dict[str, Path]:
    """Name files so that the names do not depend on where the project lies.

    Args:
        paths: files, absolute or relative to `base`.
        base: the recipe's folder.

    Returns:
        Names -> absolute paths: relative to `base` inside its project, `external/<file name>` outside.
    """
    project, named = _project(base), dict[str, Path]()
    for path in paths:
        absolute = Path(os.path.abspath(base / path))
        if absolute.is_relative_to(project):
            named[Path(os.path.relpath(absolute, base)).as_posix()] = absolute
            continue
        name, number = f"external/{absolute.name}", 2
        while named.get(name, absolute) != absolute:
            name, number = f"external/{absolute.name}#{number}", number + 1
        named[name] = absolute
    return named


def _project(base: Path) -> Path:
    return next((folder for folder in (base, *base.parents) if (folder / "pyproject.toml").is_file()), base)


def portable(value: Any, base: Path, sources: Mapping[str, Path]) -> Any:
    """Replace absolute paths of source files, and of anything inside the recipe's project, by portable names.

    Args:
        value: JSON.
        base: the recipe's folder.
        sources: from `name_sources`.
    """
    if isinstance(value, dict):
        return {key: portable(item, base, sources) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [portable(item, base, sources) for item in cast("list[Any]", value)]
    if isinstance(value, str) and os.path.isabs(value):
        for name, path in sources.items():
            if path == Path(os.path.abspath(value)):
                return name
        if Path(value).is_relative_to(_project(base)):
            return Path(os.path.relpath(value, base)).as_posix()
    return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say what changed from one key document to another, e.g. `config changed: temperature 2.0 -> 4.0`."""
    if old.get("stage") != new.get("stage"):
        return [f"stage changed: {old.get('stage')} -> {new.get('stage')}"]
    found: list[str] = []
    if old.get("version") != new.get("version"):
        found.append(f"stage version changed: {old.get('version')} -> {new.get('version')}")
    for part, word in (("config", "config"), ("libraries", "library"), ("facts", "machine")):
        changed = [
            f"{name} {before} -> {after}" for name, before, after in changes(old.get(part, {}), new.get(part, {}))
        ]
        if changed:
            found.append(f"{word} changed: {', '.join(changed)}")
    if old.get("seed") != new.get("seed"):
        found.append(f"seed changed: {old.get('seed')} -> {new.get('seed')}")
    for part, word in (("inputs", "input"), ("ancestors", "input"), ("data", "data"), ("sources", "source")):
        changed = [name for name, _, _ in changes(old.get(part, {}), new.get(part, {}))]
        if changed:
            found.append(f"{word} changed: {', '.join(changed)}")
    if old.get("names") != new.get("names"):
        found.append("input renamed")
    return found or ["key schema changed"]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What differs between two documents: (dotted key, before, after), `(absent)` where one has no such key."""
    before, after = _flat(old), _flat(new)
    names = [*before, *(name for name in after if name not in before)]
    return [
        (name, _shown(before.get(name, _ABSENT)), _shown(after.get(name, _ABSENT)))
        for name in names
        if before.get(name, _ABSENT) != after.get(name, _ABSENT)
    ]


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(cast("dict[str, Any]", value), f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _shown(value: Any) -> str:
    return "(absent)" if value is _ABSENT else str(value)
