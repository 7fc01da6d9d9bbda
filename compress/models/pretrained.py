"""Weights that the user brings."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from compress.errors import ModelError

SHOWN = 20


def load_weights(module: nn.Module, path: Path) -> None:
    """Copy weights from a file into a network; on an error the network is unchanged.

    Keys must be exactly the network's. Floating types are converted to the network's; other types
    must agree.

    Args:
        module: the network.
        path: `.safetensors`, or `.pt`/`.pth` with a state dict, or with one under the key `state_dict`;
            those are read with `weights_only=True`, so that no code in them is run.

    Raises:
        ModelError: the file is missing, damaged or of another type; keys are missing or unexpected;
            shapes or types differ; a weight is NaN or infinite. Every key concerned is listed.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise ModelError(
            f"cannot read weights from {path.name}: expected a file named {' or '.join(READERS)}", where=str(path)
        )
    if not path.is_file():
        raise ModelError(f"no weights file {path}", where=str(path), hint="the path is relative to the recipe's folder")
    weights = read(path)
    expected = module.state_dict()
    _check_keys(weights, expected, path)
    _check_shapes(weights, expected, path)
    _check_finite(weights, path)
    module.load_state_dict(weights, strict=True)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise ModelError(f"damaged weights file: {error}", where=str(path), hint="fetch or save it again") from error


def _read_pt(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about old formats, which load or are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot read weights only from {path.name}: {reason}",
            where=str(path),
            hint="save the tensors alone, with safetensors.torch.save_file(module.state_dict(), 'weights.safetensors')",
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, torch.Tensor) for v in content.values())
    ):
        got = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise ModelError(
            f"{path.name} holds no state dict: got {got or 'an empty mapping'}, expected names with tensors",
            where=str(path),
            hint="torch.save(module.state_dict(), path)",
        )
    return {str(name): value for name, value in content.items()}


READERS: dict[str, Callable[[Path], dict[str, torch.Tensor]]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_pt,
    ".pth": _read_pt,
}


def _check_keys(weights: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    if not missing and not unexpected:
        return
    parts = [f"{title} {_listed(keys)}" for title, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    hint = "check that model: describes the network that the weights were saved from"
    for prefix in ("module.", "_orig_mod."):  # DataParallel and torch.compile wrap a network
        if weights and all(key.startswith(prefix) for key in weights):
            hint = f"every key starts with {prefix!r}: save the state dict of the wrapped network instead"
    raise ModelError(f"weight keys differ: {'; '.join(parts)}", where=str(path), hint=hint)


def _check_shapes(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], path: Path) -> None:
    wrong = [key for key in expected if not _fits(weights[key], expected[key])]
    if not wrong:
        return
    listed = _listed([f"{key}: got {_form(weights[key])}, expected {_form(expected[key])}" for key in wrong], "; ")
    counts = {(weights[key].shape[:1], expected[key].shape[:1]) for key in wrong}
    last = [key for key, tensor in expected.items() if tensor.ndim > 0][-len(wrong) :]
    same_rest = all(weights[key].shape[1:] == expected[key].shape[1:] for key in wrong)
    if sorted(last) == sorted(wrong) and same_rest and len(counts) == 1:
        # Only the classifier differs, in its number of rows alone.
        (got, want) = counts.pop()
        raise ModelError(
            f"class count differs: the weights are for {got[0]} classes, the data has {want[0]} ({listed})",
            where=str(path),
            hint="bring weights that were trained for the classes of data:",
        )
    raise ModelError(f"weight shapes or types differ: {listed}", where=str(path))


def _fits(got: torch.Tensor, expected: torch.Tensor) -> bool:
    same_type = got.dtype == expected.dtype or (got.is_floating_point() and expected.is_floating_point())
    return got.shape == expected.shape and same_type


def _form(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _check_finite(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    wrong = [key for key, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        raise ModelError(
            f"NaN or infinite weights in {_listed(wrong)}", where=str(path), hint="train or fetch them again"
        )


def _listed(items: list[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return separator.join(items[:SHOWN]) + more
