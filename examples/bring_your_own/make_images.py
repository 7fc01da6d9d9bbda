"""Write the images of this example: four of scikit-learn's digits as 8x8 PNG files, by class folder."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = ("0", "1", "2", "3")
TRAIN, TEST = 45, 15  # images per class


def main(folder: Path) -> None:
    """Write `train/<class>/*.png` and `test/<class>/*.png` below the folder."""
    values, labels = load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(values).reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    for name in CLASSES:
        rows = np.flatnonzero(np.asarray(labels) == int(name))[: TRAIN + TEST]
        for count, row in enumerate(rows.tolist()):
            path = folder / ("train" if count < TRAIN else "test") / name / f"{row:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row]).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
