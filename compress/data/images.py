"""PNG and JPEG files to pixels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from compress.errors import DataError
from compress.log import progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("PNG", "JPEG")
KINDS = {"1": "grey", "L": "grey", "LA": "grey", "RGB": "colour", "RGBA": "colour", "P": "colour"}
CHANNELS = {"grey": ("L", 1), "colour": ("RGB", 3)}


def read_images(root: Path, names: Sequence[str], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Read images of one kind, grey or colour, and one shape.

    Args:
        root: folder that the names start from.
        names: at least one file, relative to the root.
        size: (height, width) to resize to, bilinear; None demands one common size.

    Returns:
        (n, channels, height, width), channels 1 or 3.

    Raises:
        DataError: a file is damaged, of another kind or size than the first, or has transparent parts.
    """
    first, kind = "", ""
    pixels: NDArray[np.uint8] | None = None
    with progress("images", len(names), "images") as bar:
        for index, name in enumerate(names):
            image, image_kind = _read(root / name)
            if pixels is None:
                first, kind = name, image_kind
                height, width = size or (image.height, image.width)
                pixels = np.empty((len(names), CHANNELS[kind][1], height, width), dtype=np.uint8)
            if image_kind != kind:
                raise DataError(
                    f"mixed grey and colour: {name} is {image_kind}, expected {kind} like {first}",
                    where=str(root / name),
                    hint="convert the images to one kind",
                )
            height, width = pixels.shape[2:]
            if (image.height, image.width) != (height, width):
                if size is None:
                    raise DataError(
                        f"wrong shape: {name} is {image.height}x{image.width}, expected {height}x{width} like {first}",
                        where=str(root / name),
                        hint=f"--set data.size={height} resizes every image",
                    )
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            pixels[index] = np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)
            bar.advance()
    if pixels is None:
        raise ValueError("no images to read")
    return pixels


def _read(path: Path) -> tuple[Image.Image, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                image.verify()  # decoding alone overlooks a missing end
            with Image.open(path, formats=FORMATS) as image:
                image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"corrupt image: {error}", where=str(path), hint="replace or remove the file") from error
    kind = KINDS.get(image.mode)
    if kind is None:
        raise DataError(
            f"unsupported image: mode {image.mode}, expected 8-bit grey or colour",
            where=str(path),
            hint="convert it to 8-bit PNG",
        )
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A").getextrema()
        if alpha != (255, 255):
            raise DataError(
                "unsupported image: it has transparent parts, whose colour is undefined",
                where=str(path),
                hint="flatten it onto a background",
            )
    return image.convert(CHANNELS[kind][0]), kind
