from __future__ import annotations

import pytest
from pydantic import ValidationError

from compress.data.config import DataConfig


@pytest.mark.parametrize(
    ("size", "expected"), [(None, None), (28, (28, 28)), ([32, 16], (32, 16))], ids=["kept", "square", "height-width"]
)
def test_size_is_height_and_width(size: object, expected: object) -> None:
    config = DataConfig.model_validate({"dataset": "imagefolder", "path": "images", "size": size})
    assert config.size_hw == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dataset": "imagenet"}, "digits"),
        ({"dataset": "imagefolder"}, "needs `path`"),
        ({"dataset": "cifar10"}, "cifar10 needs `path`: .* with data_batch_1.bin and test_batch.bin"),
        ({"dataset": "cifar100"}, "cifar100 needs `path`: .* with train.bin and test.bin"),
        ({"dataset": "cifar100", "path": "x", "size": 16}, "cifar100 takes no `size`"),
        ({"dataset": "digits", "path": "x"}, "takes no `path`"),
        ({"dataset": "fashion-mnist", "size": 14}, "takes no `size`"),
        ({"dataset": "digits", "train_samples": 0}, "greater than or equal to 1"),
        ({"dataset": "digits", "validation_fraction": 0.9}, "less than or equal to 0.5"),
        ({"dataset": "digits", "batch": 3}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_options_are_refused(entry: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(entry)
