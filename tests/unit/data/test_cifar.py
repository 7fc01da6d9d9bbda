from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compress.data.config import DataConfig
from compress.data.datasets import Dataset, load_dataset, split_digests
from compress.errors import DataError

Tiny = Callable[..., Path]
RECORD_BYTES = {"cifar10": 3073, "cifar100": 3074}


def config(dataset: str = "cifar100", **options: object) -> DataConfig:
    return DataConfig.model_validate({"dataset": dataset, "path": "data", **options})


def refusal(base: Path, dataset: str = "cifar100") -> DataError:
    with pytest.raises(DataError) as caught:
        load_dataset(config(dataset), base)
    assert caught.value.exit_code == 5
    return caught.value


def change(path: Path, offset: int, *values: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(values)] = bytes(values)
    path.write_bytes(content)


@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_a_tenth_of_the_training_images_is_validation(
    tiny_cifar: Tiny, tmp_path: Path, dataset: str, classes: int
) -> None:
    tiny_cifar(tmp_path / "data", dataset, train=20, test=2)
    data = load_dataset(config(dataset), tmp_path)
    assert (data.name, data.image_shape) == (dataset, (3, 32, 32))
    assert data.classes == tuple(f"kind_{label}" for label in range(classes))
    for split, each in ((data.train, 18), (data.validation, 2), (data.test, 2)):
        assert np.bincount(split.labels).tolist() == [each] * classes
    digests = [set(split.digests()) for split in (data.train, data.validation, data.test)]
    assert len(set.union(*digests)) == sum(map(len, digests)), "an image is in two splits"
    assert data.notes == (f"got {20 * classes} training and {2 * classes} test images, published are 50000 and 10000",)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_a_record_is_labels_and_three_planes_of_rows(tiny_cifar: Tiny, tmp_path: Path, dataset: str) -> None:
    name = {"cifar10": "test_batch", "cifar100": "test"}[dataset]
    folder = tiny_cifar(tmp_path / "data", dataset)
    record = (folder / f"{name}.bin").read_bytes()[2 * RECORD_BYTES[dataset] : 3 * RECORD_BYTES[dataset]]
    test = load_dataset(config(dataset), tmp_path).test
    labels, pixels = record[:-3072], record[-3072:]
    assert test.ids[2] == f"{name}/00002"
    assert test.labels[2] == labels[-1] == 2
    assert test.images[2, 0, 0, 1] == pixels[1]  # red, second column
    assert test.images[2, 1, 1, 0] == pixels[1024 + 32]  # green, second row
    assert test.images[2].tobytes() == pixels


def test_the_class_is_the_fine_label(tiny_cifar: Tiny, tmp_path: Path) -> None:
    folder = tiny_cifar(tmp_path / "data", "cifar100")
    before = load_dataset(config(), tmp_path)
    change(folder / "train.bin", 0, 19)  # another coarse label
    assert load_dataset(config(), tmp_path).train.labels.tolist() == before.train.labels.tolist()


def test_samples_keep_the_name_of_their_file(tiny_cifar: Tiny, tmp_path: Path) -> None:
    tiny_cifar(tmp_path / "data", "cifar10", train=4)
    data = load_dataset(config("cifar10"), tmp_path)
    expected = {f"data_batch_{number}/{index:05d}" for number in range(1, 6) for index in range(8)}
    assert {*data.train.ids, *data.validation.ids} == expected


def test_images_of_the_test_set_leave_training(tiny_cifar: Tiny, tmp_path: Path) -> None:
    folder = tiny_cifar(tmp_path / "data", "cifar100")
    before = split_digests(config(), tmp_path)
    pixels = (folder / "train.bin").read_bytes()[2:3074]
    change(folder / "test.bin", 5 * 3074 + 2, *pixels)  # under another label
    data = load_dataset(config(), tmp_path)
    assert (len(data.train) + len(data.validation), len(data.test)) == (299, 100)
    assert data.notes[-1] == "1 training images that are in the test set too were left out"
    after = split_digests(config(), tmp_path)
    assert all(after[split] != before[split] for split in before)


def test_digests_change_with_what_shapes_the_split(tiny_cifar: Tiny, tmp_path: Path) -> None:
    def changed(dataset: DataConfig) -> set[str]:
        digests = split_digests(dataset, tmp_path)
        return {split for split, digest in before.items() if digests[split] != digest}

    folder = tiny_cifar(tmp_path / "data", "cifar100")
    before = split_digests(config(), tmp_path)
    assert len(set(before.values())) == 3
    assert changed(config()) == set()
    assert changed(config(validation_fraction=0.2, test_samples=100)) == {"train", "validation", "test"}
    assert changed(config(train_samples=100)) == {"train", "validation"}
    change(folder / "test.bin", 2, *bytes(9))
    assert changed(config()) == {"test"}
    before = split_digests(config(), tmp_path)
    names = folder / "fine_label_names.txt"
    names.write_text(names.read_text().replace("kind_7\n", "cattle\n"))
    assert changed(config()) == {"train", "validation", "test"}


def test_planning_loads_no_array_library(tiny_cifar: Tiny, tmp_path: Path) -> None:
    folder = tiny_cifar(tmp_path / "data", "cifar100")
    code = (
        "import sys; from pathlib import Path; from compress.data.config import DataConfig;"
        "from compress.data.datasets import split_digests;"
        f"split_digests(DataConfig(dataset='cifar100', path={str(folder)!r}), Path());"
        "print(sorted({'numpy', 'torch', 'pickle'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("dataset", "names", "binary"),
    [
        ("cifar10", [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"], "cifar-10-b"),
        ("cifar100", ["train", "test", "meta"], "cifar-100-b"),
    ],
)
def test_the_python_version_is_named_and_never_opened(
    tmp_path: Path, dataset: str, names: list[str], binary: str
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return pytest.fail, ("a pickle was opened",)

    (tmp_path / "data").mkdir()
    for name in names:
        (tmp_path / "data" / name).write_bytes(pickle.dumps(Bomb()))
    error = refusal(tmp_path, dataset)
    assert "only the Python version, pickles that are never opened: missing" in error.message
    assert f"curl -L https://www.cs.toronto.edu/~kriz/{binary}inary.tar.gz | tar -xz" in error.hint


def test_a_missing_file_is_named(tiny_cifar: Tiny, tmp_path: Path) -> None:
    folder = tiny_cifar(tmp_path / "data", "cifar10")
    (folder / "data_batch_3.bin").unlink()
    (folder / "batches.meta.txt").unlink()
    for use in (load_dataset, split_digests):
        with pytest.raises(DataError, match=r": missing data_batch_3\.bin, batches\.meta\.txt\n") as caught:
            use(config("cifar10"), tmp_path)
        assert caught.value.where == str(folder)
        assert "Python version" not in caught.value.message


@pytest.mark.parametrize("size", [0, 3073, 300 * 3074 - 1, 300 * 3074 + 1])
def test_a_file_of_another_size_is_damaged(tiny_cifar: Tiny, tmp_path: Path, size: int) -> None:
    path = tiny_cifar(tmp_path / "data", "cifar100") / "train.bin"
    path.write_bytes((path.read_bytes() + b"\0")[:size])
    for use in (load_dataset, split_digests):
        with pytest.raises(DataError, match=f"got {size} bytes, expected .* records of 3074 bytes") as caught:
            use(config(), tmp_path)
        assert caught.value.exit_code == 5
        assert caught.value.where == str(path)


def test_a_file_that_lost_whole_records_is_told(tiny_cifar: Tiny, tmp_path: Path) -> None:
    path = tiny_cifar(tmp_path / "data", "cifar100") / "train.bin"
    path.write_bytes(path.read_bytes()[: 250 * 3074])
    assert load_dataset(config(), tmp_path).notes == (
        "got 250 training and 100 test images, published are 50000 and 10000",
    )


@pytest.mark.parametrize(
    ("dataset", "file", "column", "value", "message"),
    [
        ("cifar10", "data_batch_2.bin", 0, 10, "label out of range: got 10 at index 4, expected 0..9"),
        ("cifar100", "train.bin", 0, 20, "coarse label out of range: got 20 at index 4, expected 0..19"),
        ("cifar100", "test.bin", 1, 100, "fine label out of range: got 100 at index 4, expected 0..99"),
    ],
)
def test_a_label_out_of_range_is_named_with_its_place(
    tiny_cifar: Tiny, tmp_path: Path, dataset: str, file: str, column: int, value: int, message: str
) -> None:
    path = tiny_cifar(tmp_path / "data", dataset) / file
    change(path, 4 * RECORD_BYTES[dataset] + column, value)
    error = refusal(tmp_path, dataset)
    assert error.message == message
    assert error.where == str(path)


def test_a_class_without_images_is_named(tiny_cifar: Tiny, tmp_path: Path) -> None:
    path = tiny_cifar(tmp_path / "data", "cifar100") / "test.bin"
    change(path, 17 * 3074 + 1, 18)
    assert refusal(tmp_path).message == "too few samples: test has none of class kind_17"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"kind_{label}" for label in range(99)], "got 99 class names, 99 of them distinct, expected 100"),
        (["kind"] * 100, "got 100 class names, 1 of them distinct, expected 100"),
    ],
)
def test_wrong_names_are_refused(tiny_cifar: Tiny, tmp_path: Path, names: list[str], message: str) -> None:
    path = tiny_cifar(tmp_path / "data", "cifar100") / "fine_label_names.txt"
    path.write_text("\n".join(names))
    error = refusal(tmp_path)
    assert (error.message, error.where) == (message, str(path))


def test_subsets_keep_every_class(tiny_cifar: Tiny, tmp_path: Path) -> None:
    tiny_cifar(tmp_path / "data", "cifar10", train=30)
    data: Dataset = load_dataset(config("cifar10", train_samples=100), tmp_path)
    assert np.bincount(data.train.labels).tolist() == [10] * 10
