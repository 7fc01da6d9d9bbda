from __future__ import annotations

from pathlib import Path

import pytest

from compress.cli.places import shown, store_root
from compress.errors import UsageError


def test_the_option_wins(tmp_path: Path) -> None:
    assert store_root(tmp_path / "else", tmp_path / "recipe.yaml") == tmp_path / "else"


def test_beside_the_nearest_project_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inner = tmp_path / "project" / "inner"
    (inner / "recipes").mkdir(parents=True)
    (tmp_path / "project" / "pyproject.toml").touch()
    recipe = inner / "recipes" / "r.yaml"
    assert store_root(None, recipe) == tmp_path / "project" / "artifacts"
    (inner / "pyproject.toml").touch()
    assert store_root(None, recipe) == inner / "artifacts"
    assert store_root(None, recipe.relative_to(tmp_path)) == inner / "artifacts"


def test_else_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if any((folder / "pyproject.toml").exists() for folder in tmp_path.parents):
        pytest.skip("a project lies above the temporary folder")
    assert store_root(None) == tmp_path / "artifacts"
    assert store_root(None, tmp_path / "recipe.yaml") == tmp_path / "artifacts"


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="must be a folder, got the file") as caught:
        store_root(tmp_path / "file")
    assert caught.value.exit_code == 2


def test_paths_are_shown_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "artifacts" / "x") == "artifacts/x"
    assert shown(Path("artifacts")) == "artifacts"
    assert shown("/") == "/"
