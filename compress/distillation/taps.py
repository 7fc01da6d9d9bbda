"""Feature taps: what named modules of a network put out during its last forward pass."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UsageError


class Taps:
    """Keeps the outputs of some modules; gradients flow through them.

    A module that runs several times in one pass leaves its last output; where the next one works in place, it leaves
    what that made of it.

    Args:
        module: a network.
        names: of its modules, as `named_modules` has them.

    Attributes:
        features: by name, of the last forward pass.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self.features: dict[str, Tensor] = {}
        self._handles = [
            module.get_submodule(name).register_forward_hook(self._keeper(name)) for name in dict.fromkeys(names)
        ]

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise UsageError(
                    f"Module {name} ({type(module).__name__}) puts out a {type(output).__name__}; expected a tensor.",
                    hint="Tap a module inside it.",
                )
            self.features[name] = output

        return keep

    def close(self) -> None:
        """Take the hooks off and forget the features."""
        for handle in self._handles:
            handle.remove()
        self.features.clear()


def modules_named(module: nn.Module, pattern: str, who: str) -> list[str]:
    """Names of the modules that a name or a pattern of shells (`blocks.*`) means, in the order of the network.

    Args:
        module: the network.
        pattern: a name, or a pattern in which * stands for anything but a dot.
        who: whose network this is, for messages.

    Raises:
        UsageError: there is no such module; the nearest names are given.
    """
    names = [name for name, _ in module.named_modules() if name]
    depth = pattern.count(".")
    found = [name for name in names if name == pattern or (name.count(".") == depth and fnmatchcase(name, pattern))]
    if not found:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0)
        raise UsageError(
            f"{who} has no module {pattern!r}; nearest: {', '.join(near) or 'it has none'}.",
            hint=f"Its modules are {', '.join(names[:40])}{', ...' if len(names) > 40 else ''}.",
        )
    return found


def pairs_named(
    student: nn.Module, teacher: nn.Module, taps: Mapping[str, str], who: str = "teacher"
) -> list[tuple[str, str]]:
    """Modules of the student with those of the teacher that they imitate.

    Args:
        student: a network.
        teacher: another one.
        taps: name or pattern in the student -> in the teacher; patterns are paired in the order of the networks.
        who: what messages call the other network.

    Raises:
        UsageError: an unknown name, or a pattern that means another number of modules on the other side.
    """
    found: list[tuple[str, str]] = []
    for ours, theirs in taps.items():
        left, right = modules_named(student, ours, "The student"), modules_named(teacher, theirs, f"The {who}")
        if len(left) != len(right):
            raise UsageError(
                f"{ours!r} means {len(left)} modules of the student ({', '.join(left)}) and {theirs!r} {len(right)} of "
                f"the {who} ({', '.join(right)}); expected as many.",
                hint="Name the pairs one by one.",
            )
        found += zip(left, right, strict=True)
    return found


def features_of(module: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Run a network once, in evaluation mode and without gradients, as it will be when it is trained.

    Args:
        module: a network on any device; its training mode is kept.
        names: of its modules.
        images: a few, (batch, channels, height, width).

    Returns:
        The outputs of the modules by name, on the CPU.

    Raises:
        UsageError: a module was not run, or puts out no tensor.
    """
    taps, training = Taps(module, names), module.training
    try:
        with torch.no_grad():
            module.eval()(images.to(next(module.parameters(), images).device))
        missing = [name for name in names if name not in taps.features]
        if missing:
            raise UsageError(
                f"Module {missing[0]} is not run when the network answers; its output cannot be tapped.",
                hint="Tap another module.",
            )
        return {name: output.cpu() for name, output in taps.features.items()}
    finally:
        taps.close()
        module.train(training)


class Adapter(nn.Module):
    """Brings a student's features to the shape of a teacher's: a learned 1x1 regressor, and pooling where sizes differ.

    FitNets' regressor (Romero et al., 2015, arXiv:1412.6550) with the 1x1 convolution that later work uses; of tokens
    and vectors a linear layer. It is trained along, and belongs to the loss, never to the network.
    """

    def __init__(self, student: Tensor, teacher: Tensor, what: str) -> None:
        """Fit an adapter to examples of both features.

        Args:
            student: (batch, channels, height, width), (batch, tokens, channels) or (batch, channels).
            teacher: of as many axes.
            what: the pair of taps, for messages.

        Raises:
            UsageError: no adapter can bring the one shape to the other.
        """
        super().__init__()
        self.size: tuple[int, int] | None = None
        maps = student.ndim == 4
        if (
            student.ndim != teacher.ndim
            or student.ndim not in (2, 3, 4)
            or (student.ndim == 3 and student.shape[1] != teacher.shape[1])
        ):
            raise UsageError(
                f"Taps {what}: the student's features are {_shape(student)}, the teacher's {_shape(teacher)}; no "
                "adapter brings the one to the other.",
                hint="Tap maps with maps, (channels, height, width), and tokens with as many tokens.",
            )
        if maps and student.shape[2:] != teacher.shape[2:]:
            self.size = teacher.shape[2], teacher.shape[3]
        axis = 1 if maps else -1
        channels = student.shape[axis], teacher.shape[axis]
        self.regressor: nn.Module = nn.Conv2d(*channels, 1) if maps else nn.Linear(*channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map the student's features to the teacher's shape."""
        adapted = self.regressor(features)
        return adapted if self.size is None else nn.functional.adaptive_avg_pool2d(adapted, self.size)


def _shape(features: Tensor) -> tuple[int, ...]:
    return tuple(features.shape[1:])
