"""Which distribution carries a library here, from package metadata; nothing is imported."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

# The same library under another name, for another CUDA release or kind of processor.
ALTERNATIVES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx-cu13": ("tensorrt-rtx-cu12", "tensorrt-rtx"),
}


def find_distribution(name: str) -> tuple[str, str] | None:
    """Find a distribution, or the first of its alternatives that is installed.

    Args:
        name: as package indexes call it, e.g. `tensorrt-rtx-cu13`.

    Returns:
        The name and the version of what is installed; None if nothing is.
    """
    for candidate in (name, *ALTERNATIVES.get(name, ())):
        try:
            return candidate, metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return None
