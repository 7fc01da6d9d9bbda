"""The samples of `compress quantize`: what the data file holds, and what int8 changes on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import DataError, ModelError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from compress.engines.session import TensorSpec

LABELS = ("label", "labels")  # what an array in the data file is called that is no input but the class of each sample
ANY = "any"


@dataclass(frozen=True)
class Samples:
    """What is used of a data file: one array for each input, samples first, and labels if there are any.

    `total` is how many samples the file has.
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    total: int

    @property
    def count(self) -> int:
        """How many samples are used."""
        return len(next(iter(self.inputs.values())))

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """All samples, `size` at a time; the last batch has what is left."""
        for start in range(0, self.count, size):
            yield {name: array[start : start + size] for name, array in self.inputs.items()}


def parse_range(text: str) -> tuple[float, float] | None:
    """Return lowest and highest value from `0,1`; None from `any`.

    Raises:
        UsageError: another text.
    """
    if text.strip() == ANY:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise UsageError(f"--range {text[:40]}: expected LOW,HIGH, e.g. 0,1, or any")
    return low, high


def read_samples(
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    wanted: int | None = None,
    value_range: tuple[float, float] | None = None,
    fixed_batch: int | None = None,
    labels_name: str | None = None,
) -> Samples:
    """Read the arrays that a model's inputs want from an NPZ file.

    Args:
        path: NPZ: an array for each input by its name, or any one array where there is one input; labels if known.
        inputs: of the model.
        wanted: use this many samples, evenly spaced, >= 1; None for all.
        value_range: that floats must be in; None for all finite ones.
        fixed_batch: the only batch size that the model takes, of which a multiple is used; None if it takes any.
        labels_name: of the array with the class of each sample; None looks for `label` and `labels`.

    Raises:
        UsageError: the array named for the labels is not there, or an input.
        DataError: no such file, pickles, arrays missing or of different lengths, or of a wrong type, shape or range.
    """
    import numpy as np

    from compress.measure.bench import read_inputs

    names = [spec.name for spec in inputs]
    arrays = read_inputs(path)
    labels = _labels(arrays, names, labels_name, path)
    chosen = _by_input(arrays, names, path)
    for spec in inputs:
        _require_fitting(chosen[spec.name], spec, path)
        _require_range(chosen[spec.name], spec.name, value_range, path)
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise DataError(
            f"The labels are {labels.dtype} of shape {labels.shape}; expected whole numbers, one for each sample.",
            where=str(path),
        )
    total = _common_length({**chosen, "labels": labels} if labels is not None else chosen, path)
    step = fixed_batch or 1
    used = min(wanted or total, total) // step * step
    if not used:
        raise DataError(f"{total} samples do not fill one batch of {step}, which the model wants.", where=str(path))
    positions = np.linspace(0, total - 1, used).round().astype(int)
    # all of them: no copy of what may be gigabytes
    taken = chosen if used == total else {name: array[positions] for name, array in chosen.items()}
    return Samples(taken, None if labels is None else labels[positions], total)


def _labels(arrays: dict[str, np.ndarray], inputs: Sequence[str], wanted: str | None, path: Path) -> np.ndarray | None:
    """Take the labels out of `arrays`; None where there are none."""
    if wanted is not None and (wanted in inputs or wanted not in arrays):
        problem = "is an input of the model" if wanted in inputs else f"is not in {path}"
        others = ", ".join(name for name in arrays if name not in inputs) or "none"
        raise UsageError(f"--labels {wanted[:40]} {problem}; arrays that are no input: {others}")
    names = [wanted] if wanted is not None else [name for name in LABELS if name in arrays and name not in inputs]
    return arrays.pop(names[0]) if names else None


def _by_input(arrays: Mapping[str, np.ndarray], names: Sequence[str], path: Path) -> dict[str, np.ndarray]:
    if set(names) <= set(arrays):
        return {name: arrays[name] for name in names}
    if len(names) == 1 and len(arrays) == 1:
        return {names[0]: next(iter(arrays.values()))}
    missing = [name for name in names if name not in arrays]
    raise DataError(
        f"The file has {', '.join(arrays) or 'no array'}; the model's input {', '.join(missing)} is missing.",
        where=str(path),
        hint=f"numpy.savez({path.name!r}, {', '.join(f'{name}=...' for name in names)})",
    )


def _require_fitting(array: np.ndarray, spec: TensorSpec, path: Path) -> None:
    if array.dtype != spec.dtype:
        pixels = " / 255 where it holds pixels" if array.dtype.kind == "u" else ""
        raise DataError(
            f"Input {spec.name} is {array.dtype}; expected {spec.dtype}.",
            where=str(path),
            hint=f"Convert it with array.astype('{spec.dtype}'){pixels}.",
        )
    pairs = zip(spec.shape[1:], array.shape[1:], strict=False)
    if array.ndim != len(spec.shape) or any(isinstance(want, int) and want != got for want, got in pairs):
        wanted = ", ".join(["n", *map(str, spec.shape[1:])])
        raise DataError(f"Input {spec.name} has shape {array.shape}; expected ({wanted}).", where=str(path))
    if 0 in array.shape[1:]:
        raise DataError(f"Input {spec.name} has shape {array.shape}: its samples hold no values.", where=str(path))


def _require_range(array: np.ndarray, name: str, value_range: tuple[float, float] | None, path: Path) -> None:
    if array.dtype.kind != "f" or not array.size:
        return
    low, high = float(array.min()), float(array.max())  # NaN if one value is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"Input {name} has NaN or infinite values; expected finite ones.", where=str(path))
    if value_range is not None and not (value_range[0] <= low and high <= value_range[1]):
        raise DataError(
            f"Input {name} has values from {low:g} to {high:g}; expected [{value_range[0]:g}, {value_range[1]:g}].",
            where=str(path),
            hint="Divide pixels by 255; --range any, if the model takes other values, e.g. normalised ones.",
        )


def _common_length(arrays: Mapping[str, np.ndarray], path: Path) -> int:
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"Every array wants the same number of samples, at least one; got {listed}.", where=str(path))
    return next(iter(counts.values()))


@dataclass(frozen=True)
class Change:
    """An int8 model held against the float one, on the calibration samples themselves.

    `top1_before` and `top1_after` need labels, `agreement` outputs of (n, classes); fractions. `sqnr_db` is of the
    first output; None where nothing differs, or the float model answers zeros only.
    """

    output: str
    n: int
    sqnr_db: float | None
    agreement: float | None
    top1_before: float | None
    top1_after: float | None


class Tally:
    """Sums over batches of one output of two models.

    Args:
        output: its name.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        self._n = self._same = self._right_before = self._right_after = 0
        self._signal = self._noise = 0.0
        self._classes = self._labelled = True

    def add(self, want: np.ndarray, got: np.ndarray, labels: np.ndarray | None, count: int) -> None:
        """Count one batch.

        Args:
            want: output of the float model, of any shape; classes where it is (count, classes).
            got: output of the int8 model.
            labels: (count,), whole numbers.
            count: samples of the batch, >= 1.

        Raises:
            ModelError: outputs that are not finite, or of other shapes.
            DataError: labels for outputs that are no classes, or beyond them.
        """
        import numpy as np

        self._require_comparable(want, got, f"calibration samples {self._n} to {self._n + count - 1}")
        exact, other = want.astype(np.float64), got.astype(np.float64)
        self._n += count
        self._signal += float((exact**2).sum())
        self._noise += float(((exact - other) ** 2).sum())
        self._classes = self._classes and want.ndim == 2 and len(want) == count and want.shape[1] > 1
        self._labelled = labels is not None
        if self._classes:
            self._same += int((want.argmax(1) == got.argmax(1)).sum())
        if labels is None:
            return
        if not self._classes or labels.min() < 0 or labels.max() >= want.shape[1]:
            raise DataError(
                f"The labels are from {labels.min()} to {labels.max()}, for an output of shape {want.shape}; "
                "expected classes from 0 and an output of (n, classes).",
                hint="Leave the labels out, or give the class of each sample.",
            )
        self._right_before += int((want.argmax(1) == labels).sum())
        self._right_after += int((got.argmax(1) == labels).sum())

    def _require_comparable(self, want: np.ndarray, got: np.ndarray, where: str) -> None:
        import numpy as np

        if got.shape != want.shape:
            raise ModelError(
                f"Output {self.output} has shape {got.shape} in int8; expected that of the float model, {want.shape}.",
                where=where,
            )
        for model, array in (("float", want), ("int8", got)):
            if not np.isfinite(array).all():
                raise ModelError(
                    f"Output {self.output} of the {model} model is NaN or infinite.",
                    where=where,
                    hint="Calibrate with samples that the network was trained on.",
                )

    def change(self) -> Change:
        """All batches together."""
        comparable = self._signal > 0 and self._noise > 0
        return Change(
            output=self.output,
            n=self._n,
            sqnr_db=10 * math.log10(self._signal / self._noise) if comparable else None,
            agreement=self._same / self._n if self._classes else None,
            top1_before=self._right_before / self._n if self._labelled else None,
            top1_after=self._right_after / self._n if self._labelled else None,
        )
