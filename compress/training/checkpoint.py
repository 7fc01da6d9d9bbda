"""Checkpoints: weights, the description that rebuilds their network, and a probe that proves the rebuilding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compress.errors import ModelError
from compress.models.catalogue import build_model
from compress.models.normalized import Normalized
from compress.models.pretrained import load_weights
from compress.quantization.quantizer import FakeQuantNetwork, prepare_qat, scheme_description
from compress.quantization.scheme import Scheme
from compress.training.runtime import cpu_threads

WEIGHTS, DESCRIPTION, PROBE, HISTORY = "weights.safetensors", "checkpoint.json", "probe.safetensors", "history.json"
FORMAT = 1
FLOAT_TOLERANCE = 1e-4  # absolute and relative; summing in another order moves logits by about 1e-6
# With fake-quant a difference of 1e-7 before a rounding becomes a whole step after it. Over 8-image probes of three
# networks, other kernels, another layout or weights changed by 1e-6 left 43.5 dB in the worst case and no difference in
# most; switching fake-quant off left 17 to 37 dB, another eps in one batch-norm 33 to 39 dB.
FAKE_QUANT_SQNR_DB = 38.0


@dataclass(frozen=True)
class CheckpointDescription:
    """What rebuilds a network around its weights.

    Attributes:
        model: the recipe's `model:` entry as JSON values.
        image_shape: (channels, height, width).
        classes: names in the order of the logits.
        mean: per channel, of pixel / 255; subtracted inside the network.
        std: per channel, of pixel / 255, > 0; divides inside the network.
        scheme: None for a float network, else what `scheme_description` gave.
        sources: SHA-256 of the user's code files by name, so that a checkpoint changes with the code that rebuilds it.
    """

    model: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scheme: Mapping[str, Any] | None = None
    sources: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Loaded:
    """A rebuilt network in evaluation mode, images in [0, 1] to logits, and what it is."""

    module: nn.Module
    description: CheckpointDescription


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    description: CheckpointDescription,
    probe_images: NDArray[np.uint8],
    history: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a checkpoint; the same inputs give the same bytes.

    Args:
        folder: exists; gets weights.safetensors, checkpoint.json, probe.safetensors and history.json.
        module: `Normalized`, or `FakeQuantNetwork` where the description has a scheme; ends on the CPU in
            evaluation mode, contiguous.
        description: of the module.
        probe_images: about 8 pixel images, (n, channels, height, width), uint8, kept with their logits.
        history: per-epoch records of training.

    Raises:
        ModelError: a weight or a logit is not finite.
        ValueError: module and scheme do not belong together.
    """
    if isinstance(module, FakeQuantNetwork) != (description.scheme is not None):
        raise ValueError(f"{type(module).__name__} does not go with scheme {description.scheme}")
    module.eval().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    weights = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    images = torch.from_numpy(np.ascontiguousarray(probe_images))
    logits = _probe_logits(module, images)
    if broken or not torch.isfinite(logits).all():
        raise ModelError(
            f"NaN or infinite values in {', '.join(broken[:5]) or 'the logits of the probe'}",
            hint="lower the learning rate",
        )
    save_file(weights, folder / WEIGHTS)
    save_file({"images": images, "logits": logits}, folder / PROBE)
    versions = {library: version(library) for library in ("torch", "torchao")}
    _write_json(folder / DESCRIPTION, {"format": FORMAT, **asdict(description), "versions": versions})
    _write_json(folder / HISTORY, list(history))


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def _probe_logits(module: nn.Module, images: Tensor) -> Tensor:
    # One thread: the probe's bytes must not depend on how many the process happens to have.
    with cpu_threads(1), torch.no_grad():
        return module(images.float() / 255).contiguous()


def load_checkpoint(folder: Path, base: Path) -> Loaded:
    """Rebuild a checkpoint's network and prove that it is the one that was saved.

    Keys, shapes and types must be exact and values finite, and the probe's logits must come back: a float network's
    within 1e-4 (absolute and relative), a fake-quant network's with at least 38 dB, because a difference in the last
    bit before a rounding becomes a whole step after it.

    Args:
        folder: what `save_checkpoint` wrote.
        base: folder that a user's `module:callable` starts from.

    Returns:
        The module on the CPU in evaluation mode, and its description.

    Raises:
        ModelError: a file is missing or malformed, the network cannot be rebuilt, its weights do not fit, or the
            probe is not reproduced; the versions then and now are named.
    """
    document = _read_description(folder / DESCRIPTION)
    versions = document.pop("versions")
    description = _description_from(document, folder / DESCRIPTION)
    try:
        module = _rebuilt(description, base)
        load_weights(module, folder / WEIGHTS)
        _check_probe(module.eval(), description, folder / PROBE)
    except ModelError as error:
        error.hint = "; ".join(filter(None, [error.hint, _versions_sentence(description, versions)]))
        raise
    return Loaded(module, description)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError("no checkpoint here: checkpoint.json is missing", where=str(path)) from error
    except ValueError as error:
        raise ModelError(f"checkpoint.json is not JSON: {error}", where=str(path)) from error
    expected = {"format", "versions", *(f.name for f in fields(CheckpointDescription))}
    got = set(document) if isinstance(document, dict) else set()
    if got != expected:
        differing = ", ".join(sorted(got ^ expected))
        raise ModelError(f"checkpoint.json has missing or unexpected fields: {differing}", where=str(path))
    if document.pop("format") != FORMAT:
        raise ModelError(f"checkpoint.json has another format than {FORMAT}", where=str(path))
    return document


def _description_from(document: dict[str, Any], path: Path) -> CheckpointDescription:
    try:
        as_tuples = {name: tuple(document[name]) for name in ("image_shape", "classes", "mean", "std")}
        description = CheckpointDescription(**{**document, **as_tuples})
        scheme = None if description.scheme is None else _scheme_from(description.scheme)
    except (TypeError, KeyError) as error:
        raise ModelError(f"checkpoint.json is malformed: {type(error).__name__}: {error}", where=str(path)) from error
    if scheme is not None and scheme.name != Scheme.name:
        raise ModelError(f"unknown quantization scheme {scheme.name!r}, expected {Scheme.name!r}", where=str(path))
    shape, means, deviations = description.image_shape, len(description.mean), len(description.std)
    if len(shape) != 3 or not means == deviations == shape[0] or len(description.classes) < 2:
        raise ModelError(
            f"checkpoint.json contradicts itself: image shape {shape}, {means} means, {deviations} deviations, "
            f"{len(description.classes)} classes",
            where=str(path),
        )
    return description


def _scheme_from(document: Mapping[str, Any]) -> Scheme:
    return Scheme(**{field.name: document[field.name] for field in fields(Scheme)})


def _rebuilt(description: CheckpointDescription, base: Path) -> nn.Module:
    # The random first weights of the rebuilt network are overwritten; the caller's generator stays as it was.
    with torch.random.fork_rng(devices=[]):
        net = build_model(
            description.model, image_shape=description.image_shape, classes=len(description.classes), base=base
        )
    module = Normalized(net, description.mean, description.std)
    if description.scheme is None:
        return module
    return prepare_qat(module, torch.zeros(2, *description.image_shape), _scheme_from(description.scheme))


def _check_probe(module: nn.Module, description: CheckpointDescription, path: Path) -> None:
    try:
        probe = load_file(path)
        images, expected = probe["images"], probe["logits"]
    except (SafetensorError, KeyError, OSError) as error:
        raise ModelError(f"damaged or missing probe: {error}", where=str(path)) from error
    got = _probe_logits(module, images)
    if got.shape != expected.shape:
        raise ModelError(f"the probe's logits are {tuple(expected.shape)}, got {tuple(got.shape)}", where=str(path))
    if description.scheme is None:
        if not torch.allclose(got, expected, rtol=FLOAT_TOLERANCE, atol=FLOAT_TOLERANCE):
            worst = float((got - expected).abs().max())
            raise ModelError(
                f"the rebuilt network answers the probe differently: largest difference {worst:.3g}, "
                f"expected at most {FLOAT_TOLERANCE:g}",
                where=str(path),
            )
    elif (sqnr_db := _sqnr_db(got, expected)) < FAKE_QUANT_SQNR_DB:
        raise ModelError(
            f"the rebuilt fake-quant network answers the probe differently: {sqnr_db:.1f} dB, "
            f"expected at least {FAKE_QUANT_SQNR_DB:g} dB",
            where=str(path),
        )


def _sqnr_db(got: Tensor, expected: Tensor) -> float:
    noise = (got.double() - expected.double()).square().sum()
    return float(10 * torch.log10(expected.double().square().sum() / noise)) if noise > 0 else float("inf")


def _versions_sentence(description: CheckpointDescription, then: Mapping[str, str]) -> str:
    now = scheme_description()
    written = ", ".join(f"{library} {number}" for library, number in then.items())
    here = ", ".join(f"{library} {now[library]}" for library in then)
    if description.scheme is not None:
        written += f", quantizer {description.scheme.get('quantizer_version')}"
        here += f", quantizer {now['quantizer_version']}"
    return f"written with {written}; here are {here}"
