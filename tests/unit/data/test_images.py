from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.data.images import read_images
from compress.errors import DataError


def noise(mode: str, side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).convert(mode)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("P", 3)])
def test_modes(tmp_path: Path, mode: str, channels: int) -> None:
    noise(mode).save(tmp_path / "x.png")
    assert read_images(tmp_path, ["x.png"], None).shape == (1, channels, 8, 8)


def test_opaque_alpha_is_dropped(tmp_path: Path) -> None:
    noise("RGB").save(tmp_path / "a.png")
    noise("RGBA").save(tmp_path / "b.png")
    plain, opaque = read_images(tmp_path, ["a.png", "b.png"], None)
    assert (plain == opaque).all()


def test_cmyk_and_another_format_under_the_name_are_refused(tmp_path: Path) -> None:
    noise("CMYK").save(tmp_path / "x.jpg")
    noise("RGB").save(tmp_path / "y.png", format="GIF")
    with pytest.raises(DataError, match="mode CMYK, expected 8-bit grey or colour"):
        read_images(tmp_path, ["x.jpg"], None)
    with pytest.raises(DataError, match="corrupt image: cannot identify"):
        read_images(tmp_path, ["y.png"], None)


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_damaged_bytes_never_end_in_another_error(tmp_path: Path, name: str) -> None:
    noise("RGB", 16).save(tmp_path / name)
    content, chance, named = (tmp_path / name).read_bytes(), random.Random(0), []
    for number in range(200):
        damaged = bytearray(content)
        if number % 2:
            damaged = damaged[: chance.randrange(len(content))]
        else:
            damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        (tmp_path / name).write_bytes(damaged)
        try:
            read_images(tmp_path, [name], None)
        except DataError as error:
            named.append(error.where)
    assert set(named) == {str(tmp_path / name)}
    assert len(named) >= 95  # nearly every truncation: a JPEG does without its end mark
