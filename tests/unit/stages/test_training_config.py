from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from compress.stages.fitting import settings_from_config
from compress.stages.train import TrainConfig
from compress.training.loop import learning_rate_at


def train(**options: Any) -> TrainConfig:
    return TrainConfig.model_validate({"model": {"name": "mlp"}, "epochs": 10, "threads": 1, **options})


def test_milestones_reach_the_loop() -> None:
    settings = settings_from_config(train(schedule="step", milestones=[4, 9], learning_rate=0.5), seed=0)
    assert [learning_rate_at(epoch, 10, settings) for epoch in (3, 4, 8, 9)] == pytest.approx([0.5, 0.05, 0.05, 0.005])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "step"}, "schedule step needs `milestones`"),
        ({"schedule": "cosine", "milestones": [3]}, "schedule cosine takes no `milestones`"),
        ({"milestones": [3]}, "schedule one_cycle takes no `milestones`"),
        ({"schedule": "step", "milestones": [5, 3]}, r"milestones are \[5, 3\], expected epochs in ascending order"),
        ({"schedule": "step", "milestones": [3, 3]}, r"milestones are \[3, 3\], expected"),
        ({"schedule": "step", "milestones": [0, 3]}, "from 1 to below 10"),
        ({"schedule": "step", "milestones": [3, 10]}, "from 1 to below 10"),
        ({"schedule": "steps"}, "Input should be 'one_cycle', 'cosine' or 'step'"),
    ],
)
def test_milestones_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        train(**options)
