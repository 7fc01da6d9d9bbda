from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compress.data.config import DataConfig
from compress.data.datasets import DATASETS, load_dataset, split_digests
from compress.data.split import file_sha256
from compress.errors import DataError


def test_every_dataset_of_the_schema_is_known() -> None:
    assert set(DATASETS) == set(DataConfig.model_json_schema()["properties"]["dataset"]["enum"])


def test_digests_import_no_array_library() -> None:
    code = (
        "import sys; from pathlib import Path; from compress.data.config import DataConfig;"
        "from compress.data.datasets import split_digests;"
        "print(len(split_digests(DataConfig(dataset='digits'), Path())));"
        "print(sorted({'numpy', 'torch', 'sklearn', 'PIL', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["3", "[]"]


def test_options_change_the_digests_of_the_splits_they_shape() -> None:
    def changed(**options: object) -> set[str]:
        digests = split_digests(DataConfig.model_validate({"dataset": "digits", **options}), Path())
        return {split for split, digest in plain.items() if digests[split] != digest}

    plain = split_digests(DataConfig(dataset="digits"), Path())
    assert len(set(plain.values())) == 3
    assert changed() == set()
    assert changed(test_samples=100) == {"test"}
    assert changed(train_samples=200) == {"train", "validation"}
    assert changed(validation_fraction=0.2) == {"train", "validation"}


def test_the_callers_hash_is_used() -> None:
    seen: list[Path] = []

    def remember(path: Path) -> str:
        seen.append(path)
        return file_sha256(path)

    config = DataConfig(dataset="digits")
    assert split_digests(config, Path(), remember) == split_digests(config, Path())
    assert [path.name for path in seen] == ["digits.csv.gz"]


def test_subsets_shrink_train_and_validation_alike() -> None:
    whole = load_dataset(DataConfig(dataset="digits"), Path())
    data = load_dataset(DataConfig(dataset="digits", train_samples=300, test_samples=100), Path())
    assert np.bincount(data.train.labels).tolist() == [30] * 10
    assert np.bincount(data.test.labels).tolist() == [10] * 10
    assert len(data.validation) == round(162 * 300 / 1185)
    for split in ("train", "validation", "test"):
        assert set(getattr(data, split).ids) <= set(getattr(whole, split).ids)


@pytest.mark.parametrize("option", ["train_samples", "test_samples"])
def test_subsets_that_are_too_small_or_too_large(option: str) -> None:
    for samples, message in ((9, f"too few samples: data.{option} is 9"), (5000, f"data.{option} is 5000, but")):
        with pytest.raises(DataError, match=message) as caught:
            load_dataset(DataConfig.model_validate({"dataset": "digits", option: samples}), Path())
        assert caught.value.exit_code == 5


def test_a_file_that_cannot_be_read_is_named() -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(DataError, match="cannot read the data: Permission denied") as caught:
        split_digests(DataConfig(dataset="digits"), Path(), refuse)
    assert caught.value.where.endswith("digits.csv.gz")
