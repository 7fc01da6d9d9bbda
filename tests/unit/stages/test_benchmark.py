from __future__ import annotations

from pathlib import Path

import pytest

from compress.artifacts.manifest import Kind
from compress.stages.benchmark import _gpu_state
from compress.stages.variants import Runnable


class Silent:
    """A session on a processor."""


class Telling:
    """A session on a GPU that NVML knows, or does not."""

    def __init__(self, state):
        self.state = state

    def telemetry(self):
        return self.state


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ([], None),
        ([None, Silent()], None),
        ([Silent(), Telling({"power_w": 71.5}), None], {"power_w": 71.5}),
        ([Telling(None)], None),
    ],
)
def test_the_state_of_the_gpu_is_what_an_engine_tells(make, sessions, expected):
    runnables = [Runnable(make("engine", Kind.ENGINE), Path(), "x", session) for session in sessions]
    assert _gpu_state(runnables) == expected
