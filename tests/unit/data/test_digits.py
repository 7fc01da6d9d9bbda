from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from compress.data import digits
from compress.data.config import DataConfig
from compress.data.datasets import load_dataset
from compress.errors import DataError, UnavailableError

CONFIG = DataConfig(dataset="digits")


def test_split_is_stratified_and_disjoint_by_content() -> None:
    data = load_dataset(CONFIG, Path())
    assert (len(data.test), len(data.train) + len(data.validation)) == (450, 1347)
    assert 0.10 <= len(data.validation) / 1347 <= 0.15
    for split in (data.train, data.validation, data.test):
        shares = np.bincount(split.labels, minlength=10) / len(split)
        assert shares.min() > 0.09
        assert shares.max() < 0.11
    contents = [set(split.digests()) for split in (data.train, data.validation, data.test)]
    assert not contents[0] & contents[1]
    assert not contents[0] & contents[2]
    assert not contents[1] & contents[2]
    assert (data.image_shape, data.classes) == ((1, 8, 8), tuple("0123456789"))


def test_pixels_and_labels_are_those_of_scikit_learn() -> None:
    values, labels = load_digits(return_X_y=True)
    data = load_dataset(CONFIG, Path())
    for split in (data.train, data.validation, data.test):
        rows = [int(sample.removeprefix("digits/")) for sample in split.ids]
        expected = np.rint(np.asarray(values)[rows] * 255 / 16)
        assert np.abs(split.images.reshape(len(rows), 64) - expected).max() <= 1  # halves round either way
        assert (split.labels == np.asarray(labels)[rows]).all()
    assert data.train.images.max() == 255


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "cannot read the digits data"),
        (gzip.compress(b"1,2,x\n", mtime=0), "cannot read the digits data"),
        (gzip.compress(b"1,2,3\n4,5,6\n", mtime=0), r"got \(2, 3\), expected \(1797, 65\)"),
    ],
    ids=["no-gzip", "no-number", "no-digits"],
)
def test_a_damaged_installation_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    path = tmp_path / "sklearn" / "datasets" / "data" / "digits.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    (tmp_path / "sklearn" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(CONFIG, Path())
    assert (caught.value.exit_code, caught.value.where) == (5, str(path))


def test_without_scikit_learn_the_machine_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for name in [n for n in sys.modules if n.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UnavailableError, match="scikit-learn, which is not installed") as caught:
        digits.packaged_file()
    assert caught.value.exit_code == 7
