"""The figure of a study."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compress.errors import TryAgainError
from compress.tuning.claims import Outcome
from compress.tuning.plot import draw
from compress.tuning.results import Trial

OBJECTIVES = {"accuracy": (0.5, 0.7, 0.6), "latency": (1.0, 1.2, 0.8), "size": (2048.0, 4096.0, 1024.0)}


def trials(*names: str) -> list[Trial]:
    done = [
        Trial(n, Outcome.DONE, {}, {name: OBJECTIVES[name][n] for name in names}, {}, None, {}, None, "", 1.0)
        for n in range(3)
    ]
    return [*done, Trial(3, Outcome.FAILED, {}, {}, {}, None, {}, None, "", 1.0)]


@pytest.mark.parametrize("names", [("accuracy",), ("size",), ("accuracy", "latency"), tuple(OBJECTIVES)])
def test_the_first_objective_over_each_of_the_others(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = tmp_path / "study.svg"
    given = trials(*names)
    draw(given, given[1], "toy: 4 trials", path)
    text = path.read_text()
    assert "</svg>" in text
    assert len(re.findall(r'<g id="axes_\d+">', text)) == max(1, len(names) - 1)


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    given = trials("accuracy")
    with pytest.raises(TryAgainError):
        draw(given, given[0], "toy", tmp_path / "gone" / "study.svg")
