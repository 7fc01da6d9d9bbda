from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.errors import ModelError
from compress.models.catalogue import build_model, check_model, source_files

HEADER = "import torch\nfrom torch import nn\n"
LINEAR = HEADER + (
    "def build(classes, in_channels, width=2):\n"
    "    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 16, width), nn.Linear(width, classes))\n"
)


def build(folder: Path, text: str, **model: Any) -> nn.Module:
    (folder / "net.py").write_text(text)
    return build_model({"name": "net:build", **model}, image_shape=(1, 4, 4), classes=3, base=folder)


def build_error(folder: Path, text: str, **model: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        build(folder, text, **model)
    assert caught.value.exit_code == 5
    return caught.value


def test_a_users_network_gets_the_kwargs_and_what_the_data_say(tmp_path: Path) -> None:
    net = build(tmp_path, LINEAR, kwargs={"width": 5})
    assert [p.shape for p in net.parameters()] == [(5, 16), (5,), (3, 5), (3,)]
    assert net.training


def test_a_class_and_the_image_shape(tmp_path: Path) -> None:
    text = HEADER + (
        "class build(nn.Module):\n"
        "    def __init__(self, image_shape, *, classes):\n"
        "        super().__init__()\n"
        "        c, h, w = image_shape\n"
        "        self.fc = nn.Linear(c * h * w, classes)\n"
        "    def forward(self, x):\n"
        "        import helper\n"
        "        return self.fc(x.flatten(1))\n"
    )
    (tmp_path / "helper.py").touch()
    with pytest.raises(ModelError, match="No module named 'helper'"):  # the path is there while building only
        build(tmp_path, text)
    assert build(tmp_path, text.replace("        import helper\n", ""))(torch.rand(6, 1, 4, 4)).shape == (6, 3)


def test_kwargs_win_over_the_data(tmp_path: Path) -> None:
    error = build_error(tmp_path, LINEAR, kwargs={"classes": 7})
    assert error.message == (
        "the network gives logits of shape (2, 7) for 2 images, expected (2, 3):"
        " it is made for 7 classes, the data has 3"
    )
    assert error.where == "net:build"


@pytest.mark.parametrize(
    ("text", "kwargs", "message"),
    [
        (LINEAR, {"depth": 2}, "cannot take classes, in_channels, depth: got an unexpected keyword argument 'depth'"),
        (
            "def build(need): pass",
            {},
            r"net:build\(need\) cannot take no arguments: missing a required argument: 'need'",
        ),
        ("def build(): raise KeyError('x')", {}, "net:build failed: KeyError: 'x'"),
        ("def build(): return 3", {}, "net:build returned int, expected a torch.nn.Module"),
        (
            HEADER + "def build(): return nn.Linear(9, 3)",
            {},
            r"does not take images of shape \(1, 4, 4\): RuntimeError",
        ),
        (
            HEADER + "def build(): return nn.Identity()",
            {},
            r"logits of shape \(2, 1, 4, 4\) for 2 images, expected \(2, 3\)\n  where",
        ),
        (
            HEADER + "class build(nn.Module):\n    def forward(self, x): return [x]",
            {},
            "the network gives list, expected a float tensor",
        ),
        (
            HEADER + "class build(nn.Module):\n    def forward(self, x): return torch.zeros(2, 3).long()",
            {},
            "the network gives torch.int64 values, expected a float tensor",
        ),
        (
            HEADER + "class build(nn.Module):\n    def forward(self, x): return x.flatten(1)[:, :3] / 0",
            {},
            "non-finite logits for a black image",
        ),
    ],
)
def test_what_a_users_callable_can_do_wrong(tmp_path: Path, text: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(tmp_path, text, kwargs=kwargs)


@pytest.mark.parametrize("code", ["", "0", "'done'"])
def test_a_callable_that_exits_does_not_end_the_run_as_if_nothing_were_wrong(tmp_path: Path, code: str) -> None:
    error = build_error(tmp_path, f"import sys\ndef build():\n    sys.exit({code})\n")
    assert error.message == f"net:build called sys.exit({code or None}), expected it to return a torch.nn.Module"
    assert error.where == f"{tmp_path / 'net.py'}:3"


def test_a_network_that_exits_is_refused(tmp_path: Path) -> None:
    error = build_error(tmp_path, HEADER + "class build(nn.Module):\n    def forward(self, x): raise SystemExit(0)\n")
    assert error.message == "the network called sys.exit(0), expected it to return logits"
    assert error.where == "net:build"


def test_the_line_that_failed_is_named(tmp_path: Path) -> None:
    error = build_error(tmp_path, "def build():\n    x = 1\n    raise ValueError(x)\n")
    assert error.where == f"{tmp_path / 'net.py'}:3"


def test_a_folder_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "net.py").write_text(LINEAR)
    (tmp_path / "recipes").mkdir()
    model = {"name": "net:build", "folder": "../mine"}
    build_model(model, image_shape=(1, 4, 4), classes=3, base=tmp_path / "recipes")
    assert source_files(model, tmp_path / "recipes") == [tmp_path / "mine" / "net.py"]
    with pytest.raises(ModelError, match=r"its folder .*nowhere does not exist") as caught:
        source_files({**model, "folder": "nowhere"}, tmp_path)
    assert caught.value.exit_code == 5


def test_source_files_of_built_in_and_installed_networks(tmp_path: Path) -> None:
    assert source_files({"name": "mlp"}, tmp_path) == []
    (file,) = source_files({"name": "torch.nn:Identity"}, tmp_path)
    assert file.as_posix().endswith("torch/nn/__init__.py")


def test_a_wrong_entry_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.resnet\.widht: unknown key 'widht'; nearest: 'widths'"):
        build_model({"name": "resnet", "widht": [3]}, image_shape=(1, 4, 4), classes=3, base=tmp_path)


def test_checking_leaves_the_network_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4).eval(), nn.Dropout(), nn.Flatten(), nn.Linear(16, 3))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    check_model(net, (1, 4, 4), 3)
    assert [part.training for part in net] == [True, False, True, True, True]
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_class_count_is_checked_by_name() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    with pytest.raises(ModelError, match="made for 10 classes, the data has 3") as caught:
        check_model(net, (1, 4, 4), 3, where="teacher")
    assert (caught.value.exit_code, caught.value.where) == (5, "teacher")
