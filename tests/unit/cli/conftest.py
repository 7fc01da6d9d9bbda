"""What several commands are tried on."""

from __future__ import annotations

import pytest

TINY_RECIPE = """\
name: tiny
data: {dataset: digits, train_samples: 300}
steps:
  teacher: {stage: train, model: {name: mlp, widths: [16]}, epochs: 3, learning_rate: 0.05}
  float: {stage: export, model: teacher}
  int8: {stage: calibrate, model: float, samples: 100, method: minmax}
  engine: {stage: engine, model: int8}
  report:
    stage: benchmark
    reference: teacher
    float_twin: float
    variants: [float, int8, engine]
    latency: {batches: [1], blocks: 6, slot_iterations: 1, slot_ms: 1, warmup_ms: 1, processes: 2}
gates: {top1_drop_pp: 20.0}
"""


@pytest.fixture(scope="session")
def tiny_recipe() -> str:
    """A whole chain that runs in seconds; its gates are its last line."""
    return TINY_RECIPE
