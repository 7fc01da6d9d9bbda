from __future__ import annotations

import inspect
import os
import sys
import types
from pathlib import Path

import pytest

from compress.errors import ModelError
from compress.models.user_module import importable, load_callable


def make(folder: Path, text: str = "VALUE = 1\ndef build():\n    return VALUE\n", name: str = "net") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    return folder


def test_namesakes_in_two_folders_stay_apart(tmp_path: Path) -> None:
    text = "import helper\ndef build():\n    return helper.VALUE\n"
    folders = [make(tmp_path / name, text) for name in ("one", "two")]
    for value, folder in enumerate(folders):
        make(folder, f"VALUE = {value}", "helper")
    assert [load_callable("net:build", folder)() for folder in (*folders, folders[0])] == [0, 1, 0]


def test_the_interpreter_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "one", "import helper\nprint('hello')\ndef build():\n    return 1\n")
    make(folder, "", "helper")
    paths, modules = list(sys.path), set(sys.modules)
    load_callable("net:build", folder)
    assert sys.path == paths
    assert not {"net", "helper"} & (set(sys.modules) - modules)
    assert sorted(os.listdir(folder)) == ["helper.py", "net.py"]  # no byte code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_a_loaded_namesake_from_elsewhere_is_set_aside_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = types.ModuleType("helper")
    monkeypatch.setitem(sys.modules, "helper", stranger)
    folder = make(tmp_path / "one", "import helper\ndef build():\n    return helper.VALUE\n")
    make(folder, "VALUE = 7", "helper")
    assert load_callable("net:build", folder)() == 7
    assert sys.modules["helper"] is stranger


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    folder = make(tmp_path / "one")
    assert load_callable("net:build", folder)() == 1
    make(folder, "VALUE = 2\ndef build():\n    return VALUE\n")
    assert load_callable("net:build", folder)() == 2


def test_packages_and_relative_imports(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    make(
        package,
        "from .util import VALUE\nfrom pkg.util import VALUE as again\ndef build():\n    return VALUE + again\n",
    )
    make(package, "VALUE = 3", "util")
    (package / "__init__.py").touch()
    assert load_callable("pkg.net:build", tmp_path)() == 6


def test_classes_keep_a_module_that_inspect_finds(tmp_path: Path) -> None:
    folder = make(tmp_path / "one", "class Net:\n    pass\n")
    assert inspect.getsource(load_callable("net:Net", folder)) == "class Net:\n    pass\n"


def test_installed_packages_can_be_named(tmp_path: Path) -> None:
    assert load_callable("collections:OrderedDict", tmp_path)() == {}


def test_a_folder_that_holds_an_environment_does_not_lose_it(tmp_path: Path) -> None:
    inner = make(tmp_path / "env", "VALUE = 5", "installed_thing")
    folder = make(tmp_path, "import installed_thing\ndef build():\n    return installed_thing.VALUE\n")
    sys.path.append(str(inner))
    try:
        assert load_callable("net:build", folder)() == 5
        assert "installed_thing" in sys.modules
    finally:
        sys.path.remove(str(inner))
        sys.modules.pop("installed_thing", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = 1\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_module_that_fails_to_import(tmp_path: Path, text: str, message: str) -> None:
    folder = make(tmp_path / "one", text)
    paths, modules = list(sys.path), set(sys.modules)
    with pytest.raises(ModelError) as caught:
        load_callable("net:build", folder)
    assert caught.value.exit_code == 5
    assert caught.value.message == f"cannot import module 'net' from {folder}: {message}"
    line = len(text.splitlines())
    assert caught.value.where == f"{folder / 'net.py'}:{line}"
    assert sys.path == paths
    assert not [name for name in set(sys.modules) - modules if name.endswith(".net")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net:biuld", "gives no callable 'biuld': it has no such name"),
        ("net:VALUE", "gives no callable 'VALUE': it is not callable"),
        ("nett:build", "no module 'nett' in"),
    ],
)
def test_a_callable_that_is_not_there(tmp_path: Path, name: str, message: str) -> None:
    folder = make(tmp_path / "one")
    with pytest.raises(ModelError, match=message) as caught:
        load_callable(name, folder)
    assert caught.value.exit_code == 5
    assert str(folder) in caught.value.message
    assert "build" in caught.value.hint or "model.name" in caught.value.hint


def test_a_module_may_take_its_folder_off_the_path(tmp_path: Path) -> None:
    with importable(tmp_path):
        sys.path.remove(str(tmp_path))
    assert str(tmp_path) not in sys.path
