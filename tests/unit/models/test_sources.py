from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from compress.errors import ModelError
from compress.models.sources import find_local, local_sources, module_file


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(folder: Path, module: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in local_sources(module, folder)]


def test_imports_of_the_folder_are_followed_wherever_they_stand(tmp_path: Path) -> None:
    write(
        tmp_path,
        net="import torch, helper\ndef build():\n    from blocks.conv import Conv\n",
        helper="import net\nimport numpy as np\n",
        blocks__conv="from . import norm\nfrom .norm import Norm\n",
        blocks__norm="from .. import deep\n",
        blocks__unused="",
        other="",
    )
    assert names(tmp_path, "net") == ["blocks/conv.py", "blocks/norm.py", "helper.py", "net.py"]
    assert names(tmp_path, "other") == ["other.py"]


def test_packages_above_a_module_count(tmp_path: Path) -> None:
    write(tmp_path, pkg__sub__net="from ..util import x\n", pkg__util="", pkg__rest="")
    for place in ("pkg", "pkg/sub"):
        (tmp_path / place / "__init__.py").touch()
    assert names(tmp_path, "pkg.sub.net") == ["pkg/__init__.py", "pkg/sub/__init__.py", "pkg/sub/net.py", "pkg/util.py"]


def test_the_folder_goes_before_installed_packages(tmp_path: Path) -> None:
    assert module_file("torch.nn", tmp_path).as_posix().endswith("torch/nn/__init__.py")
    assert find_local("torch", tmp_path) is None
    write(tmp_path, torch="")
    assert module_file("torch", tmp_path) == find_local("torch", tmp_path) == tmp_path / "torch.py"


@pytest.mark.parametrize("module", ["nowhere", "torch.nowhere", "specless"])
def test_a_missing_module_is_named_with_its_folder(
    tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "specless", types.ModuleType("specless"))
    with pytest.raises(ModelError, match=f"no module '{module}' in {tmp_path}") as caught:
        module_file(module, tmp_path)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("text", ["def build(:\n", "x = '\0'"])
def test_a_file_that_is_not_python(tmp_path: Path, text: str) -> None:
    write(tmp_path, net=text)
    with pytest.raises(ModelError, match="not valid Python") as caught:
        local_sources("net", tmp_path)
    assert caught.value.where == str(tmp_path / "net.py")
