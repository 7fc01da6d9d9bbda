"""From a recipe's `model:` entry to a network.

Importing this module, `source_files` and the configs load no tensor library; building does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from compress.errors import ModelError
from compress.models.config import CustomConfig, ModelConfig

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, int, int]


def build_model(model: ModelConfig | Mapping[str, Any], *, image_shape: Shape, classes: int, base: Path) -> nn.Module:
    """Create a network with fresh weights, drawn from torch's global generator.

    A user's callable gets the recipe's kwargs, and of `classes`, `in_channels` and `image_shape` those
    that its signature names and the recipe does not give.

    Args:
        model: the recipe's `model:`, validated or plain.
        image_shape: (channels, height, width).
        classes: number of logits, >= 2.
        base: folder that a user's module starts from.

    Returns:
        The network in training mode: images, (batch, channels, height, width), to logits, (batch, classes).

    Raises:
        ModelError: options are wrong, a module cannot be imported, the callable fails or returns no
            network, or the network does not give finite logits of the right shape.
    """
    config = _validated(model).root
    if isinstance(config, CustomConfig):
        module = _build_custom(config, image_shape, classes, base)
    else:
        from compress.models import networks

        builders: dict[str, Callable[..., nn.Module]] = {
            "resnet": networks.build_resnet,
            "mobilenet": networks.build_mobilenet,
            "mlp": networks.build_mlp,
            "vit": networks.build_vit,
        }
        module = builders[config.name](config, image_shape, classes)
    check_model(module, image_shape, classes, where=config.name)
    return module.train()


def source_files(model: ModelConfig | Mapping[str, Any], base: Path) -> list[Path]:
    """Return the files whose content decides what the network is, besides this package's.

    Args:
        model: the recipe's `model:`.
        base: folder that a user's module starts from.

    Returns:
        For a user's module in its folder: its file and every file of the folder that it imports, sorted.
        For one in an installed package: its file. For a built-in network: nothing.

    Raises:
        ModelError: there is no such module, or it is not Python.
    """
    config = _validated(model).root
    if not isinstance(config, CustomConfig):
        return []
    from compress.models.sources import find_local, local_sources, module_file

    module, folder = config.name.partition(":")[0], _folder(config, base)
    return local_sources(module, folder) if find_local(module, folder) else [module_file(module, folder)]


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable and frozen weights; buffers are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


def check_model(module: nn.Module, image_shape: Shape, classes: int, *, where: str = "") -> None:
    """Run two black images through a network in evaluation mode; its modes are restored.

    Args:
        module: the network.
        image_shape: (channels, height, width).
        classes: expected number of logits.
        where: names the network in messages.

    Raises:
        ModelError: it fails, or does not give finite float logits of shape (2, classes).
    """
    import torch

    modes = {part: part.training for part in module.modules()}
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    try:
        module.eval()
        with torch.no_grad():
            logits = module(torch.zeros(2, *image_shape, device=device))
    except SystemExit as end:
        raise ModelError(
            f"the network called sys.exit({end.code!r}), expected it to return logits",
            where=where,
        ) from end
    except Exception as error:
        raise ModelError(
            f"the network does not take images of shape {image_shape}: {type(error).__name__}: {error}",
            where=where,
            hint="images are float32 (batch, channels, height, width) in [0, 1]",
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training
    _check_logits(logits, classes, where)


def _check_logits(logits: Any, classes: int, where: str) -> None:
    import torch

    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
        got = f"{logits.dtype} values" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(f"the network gives {got}, expected a float tensor of logits", where=where)
    shape = tuple(logits.shape)
    if shape != (2, classes):
        counts = f": it is made for {shape[1]} classes, the data has {classes}" if len(shape) == 2 else ""
        raise ModelError(
            f"the network gives logits of shape {shape} for 2 images, expected (2, {classes}){counts}", where=where
        )
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            "the network gives non-finite logits for a black image, expected finite ones",
            where=where,
            hint="look for a division by zero or damaged weights",
        )


def _validated(model: ModelConfig | Mapping[str, Any]) -> ModelConfig:
    if isinstance(model, ModelConfig):
        return model
    try:
        return ModelConfig.model_validate(dict(model))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, ('model', *e['loc'])))}: {e['msg']}" for e in error.errors()]
        raise ModelError("; ".join(problems)) from error


def _folder(config: CustomConfig, base: Path) -> Path:
    folder = (base / Path(config.folder).expanduser()).resolve()
    if not folder.is_dir():
        raise ModelError(
            f"no module {config.name.partition(':')[0]!r}: its folder {folder} does not exist",
            where=str(folder),
            hint="model.folder is relative to the recipe's folder",
        )
    return folder


def _build_custom(config: CustomConfig, image_shape: Shape, classes: int, base: Path) -> nn.Module:
    from torch import nn

    from compress.models.user_module import importable, load_callable, place_of

    folder = _folder(config, base)
    function = load_callable(config.name, folder)
    kwargs = _arguments(
        function, config, {"classes": classes, "in_channels": image_shape[0], "image_shape": image_shape}
    )
    try:
        with importable(folder):
            module = function(**kwargs)
    except SystemExit as end:  # would end the run as if nothing were wrong
        raise ModelError(
            f"{config.name} called sys.exit({end.code!r}), expected it to return a torch.nn.Module",
            where=place_of(end, folder) or str(folder),
        ) from end
    except Exception as error:
        raise ModelError(
            f"{config.name} failed: {type(error).__name__}: {error}", where=place_of(error, folder) or str(folder)
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{config.name} returned {type(module).__name__}, expected a torch.nn.Module",
            where=str(folder),
            hint="the callable must return the network itself",
        )
    return module


def _arguments(function: Callable[..., Any], config: CustomConfig, known: dict[str, Any]) -> dict[str, Any]:
    try:
        signature = inspect.signature(function)
    except ValueError:  # builtins without a signature take what the recipe gives
        return dict(config.kwargs)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    wanted = {name for name, parameter in signature.parameters.items() if parameter.kind in by_name}
    arguments = {name: value for name, value in known.items() if name in wanted} | dict(config.kwargs)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ModelError(
            f"{config.name}{signature} cannot take {', '.join(arguments) or 'no arguments'}: {error}",
            hint="give its arguments in model.kwargs",
        ) from error
    return arguments
