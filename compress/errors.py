"""Every error a user can meet, with the exit code of the process that it ends.

    CompressError                 1
    ├── UsageError                2   the command line
    │   └── RecipeError           2   the recipe
    ├── NotComparableError        4   the question has no answer from these numbers
    ├── InputError                5
    │   ├── DataError             5   images, labels, calibration samples
    │   └── ModelError            5   networks, weights, ONNX graphs
    ├── ArtifactError             6   corrupt, missing or untrusted artifacts
    ├── UnavailableError          7   this machine lacks a GPU, a library or a driver
    └── TryAgainError            75   locked, disk full, store not writable

A failed gate (3), SIGINT (130) and SIGTERM (143) end a run without being errors.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_BUG = 1
EXIT_GATE_FAILED = 3
EXIT_INCONCLUSIVE = 4
EXIT_UNAVAILABLE = 7
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class CompressError(Exception):
    """A failure that is explained to the user instead of shown as a traceback.

    Args:
        message: what went wrong, got against expected, in one or two sentences.
        where: step, path, sample or graph node; empty where the message says it.
        hint: the next command or edit that helps; empty if there is none.
    """

    exit_code = EXIT_BUG

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """Join message, place and hint, one line each."""
        lines = [self.message]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  next:  {self.hint}")
        return "\n".join(lines)

    def at(self, where: str) -> CompressError:
        """Prefix the place, e.g. the step whose stage raised this; returns self for `raise`."""
        self.where = f"{where}, {self.where}" if self.where else where
        return self


class UsageError(CompressError):
    """The command line asks for something that does not exist or contradicts itself."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe is malformed; the message lists every problem found."""


class NotComparableError(CompressError):
    """Two measurements were made under different conditions, or are too few to decide."""

    exit_code = EXIT_INCONCLUSIVE


class InputError(CompressError):
    """Data or a model that the user brought cannot be used."""

    exit_code = 5


class DataError(InputError):
    """Images, labels or calibration samples are missing, malformed or too few."""


class ModelError(InputError):
    """A network, its weights or an ONNX graph is malformed, non-finite or unsupported."""


class ArtifactError(CompressError):
    """A stored artifact is missing, corrupt or not what its manifest says."""

    exit_code = 6


class UnavailableError(CompressError):
    """This machine lacks what was required: a GPU, a driver, a library."""

    exit_code = EXIT_UNAVAILABLE


class TryAgainError(CompressError):
    """A passing condition: the store is locked, full or not writable."""

    exit_code = 75
