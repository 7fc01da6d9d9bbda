from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.data.config import DataConfig
from compress.data.datasets import load_dataset, split_digests
from compress.data.labels import hide_labels
from compress.errors import DataError

CONFIG = DataConfig(dataset="imagefolder", path="images")


def write_image(path: Path, seed: int, *, shape: tuple[int, ...] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, (split, count) in enumerate((("train", 10), ("test", 4))):
        for label, name in enumerate(("cat", "dog")):
            for index in range(count):
                write_image(tmp_path / "images" / split / name / f"{index}.png", 1000 * number + 100 * label + index)
    return tmp_path / "images"


def load_error(images: Path, config: DataConfig = CONFIG) -> DataError:
    with pytest.raises(DataError) as caught:
        load_dataset(config, images.parent)
    assert caught.value.exit_code == 5
    return caught.value


def test_classes_splits_and_ids(images: Path) -> None:
    data = load_dataset(CONFIG, images.parent)
    assert (data.classes, data.image_shape) == (("cat", "dog"), (1, 6, 6))
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 8)
    assert data.test.ids[:2] == ("test/cat/0.png", "test/cat/1.png")
    assert data.test.labels.tolist() == [0] * 4 + [1] * 4
    expected = np.asarray(Image.open(images / "test" / "dog" / "3.png"))
    assert (data.test.images[7, 0] == expected).all()


def test_a_validation_folder_is_used_as_it_is(images: Path) -> None:
    for index, name in enumerate(("cat", "dog")):
        write_image(images / "validation" / name / "v.png", 5000 + index)
    before = split_digests(CONFIG, images.parent)
    data = load_dataset(CONFIG, images.parent)
    assert (len(data.train), data.validation.ids) == (20, ("validation/cat/v.png", "validation/dog/v.png"))
    write_image(images / "validation" / "cat" / "w.png", 5002)
    after = split_digests(CONFIG, images.parent)
    assert {split for split in before if before[split] != after[split]} == {"validation"}


def test_colour_jpeg_and_resizing(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "test")):
        for label, name in enumerate(("a", "b")):
            for index in range(3):
                shape = (10 + index, 12, 3)
                write_image(
                    tmp_path / "images" / split / name / f"{index}.JPG", 90 * number + 9 * label + index, shape=shape
                )
    config = CONFIG.model_copy(update={"size": (8, 4)})
    assert load_dataset(config, tmp_path).image_shape == (3, 8, 4)
    assert split_digests(config, tmp_path) != split_digests(config.model_copy(update={"size": 8}), tmp_path)
    error = load_error(tmp_path / "images")
    assert error.message == "wrong shape: train/a/1.JPG is 11x12, expected 10x12 like train/a/0.JPG"
    assert "--set data.size=10" in error.hint


def test_the_order_of_the_directory_does_not_matter(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, digests = load_dataset(CONFIG, images.parent), split_digests(CONFIG, images.parent)
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(listing(path), reverse=True)))
    second = load_dataset(CONFIG, images.parent)
    assert first.train.ids == second.train.ids
    assert (first.train.images == second.train.images).all()
    assert split_digests(CONFIG, images.parent) == digests


def test_digests_do_not_name_the_folder(images: Path) -> None:
    shutil.copytree(images, images.parent / "elsewhere" / "images")
    assert split_digests(CONFIG, images.parent) == split_digests(CONFIG, images.parent / "elsewhere")


def test_the_training_digest_changes_with_training_images_alone(images: Path) -> None:
    before = split_digests(CONFIG, images.parent)
    write_image(images / "test" / "cat" / "new.png", 7777)
    tested = split_digests(CONFIG, images.parent)
    write_image(images / "train" / "cat" / "new.png", 7778)
    trained = split_digests(CONFIG, images.parent)
    assert {split for split in before if before[split] != tested[split]} == {"test"}
    assert {split for split in before if tested[split] != trained[split]} == {"train", "validation"}


def test_hidden_files_are_passed_over(images: Path) -> None:
    before = split_digests(CONFIG, images.parent)
    for place in (images / "train", images / "train" / "cat"):
        (place / ".DS_Store").write_bytes(b"x")
    assert split_digests(CONFIG, images.parent) == before


def test_missing_folder(images: Path) -> None:
    shutil.rmtree(images / "test")
    error = load_error(images)
    assert error.message == f"missing folder {images / 'test'}"
    assert "train/<class>/" in error.hint


def test_corrupt_image(images: Path) -> None:
    path = images / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:-20])
    error = load_error(images)
    assert error.message.startswith("corrupt image: ")
    assert error.where == str(path)


def test_mixed_grey_and_colour(images: Path) -> None:
    write_image(images / "test" / "dog" / "9.png", 1, shape=(6, 6, 3))
    error = load_error(images)
    assert error.message == "mixed grey and colour: test/dog/9.png is colour, expected grey like train/cat/0.png"


def test_wrong_shape_in_test(images: Path) -> None:
    write_image(images / "test" / "dog" / "9.png", 1, shape=(7, 6))
    assert "wrong shape: test/dog/9.png is 7x6, expected 6x6" in load_error(images).message


def test_transparent_and_deep_images(images: Path) -> None:
    path = images / "train" / "cat" / "0.png"
    Image.fromarray(np.zeros((6, 6, 4), dtype=np.uint8)).save(path)
    assert "transparent parts" in load_error(images).message
    Image.fromarray(np.zeros((6, 6), dtype=np.uint16)).save(path)
    assert "mode I;16, expected 8-bit grey or colour" in load_error(images).message


def test_empty_class_folder(images: Path) -> None:
    (images / "train" / "bird").mkdir()
    error = load_error(images)
    assert (error.message, error.where) == ("empty class folder train/bird", str(images / "train" / "bird"))


def test_one_class_only(images: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(images / split / "dog")
    assert "one class only" in load_error(images).message


def test_class_sets_that_differ(images: Path) -> None:
    (images / "test" / "dog").rename(images / "test" / "wolf")
    assert load_error(images).message == (
        "classes of test differ from those of train: missing ['dog'], unknown ['wolf']"
    )


def test_too_few_samples(images: Path) -> None:
    for path in list((images / "train" / "dog").iterdir())[1:]:
        path.unlink()
    assert "too few samples: class 'dog' has 1 distinct image" in load_error(images).message


def test_one_image_in_train_and_test_is_found_by_file_and_by_pixels(images: Path) -> None:
    shutil.copy(images / "test" / "cat" / "2.png", images / "train" / "dog" / "copy.png")
    expected = "same image in train and test: train/dog/copy.png and test/cat/2.png"
    with pytest.raises(DataError, match=expected):
        split_digests(CONFIG, images.parent)
    Image.open(images / "test" / "cat" / "2.png").save(images / "train" / "dog" / "copy.png", compress_level=0)
    split_digests(CONFIG, images.parent)
    assert load_error(images).message == expected


def test_links_inside_are_followed_and_out_of_the_folder_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    write_image(tmp_path / "outside" / "x.png", 4242)
    link = images / "train" / "cat" / "link.png"
    link.symlink_to(tmp_path / "outside" / "x.png")
    assert "train/cat/link.png is a link out of the data folder" in load_error(images).message
    link.unlink()
    (images / "pool").mkdir()
    write_image(images / "pool" / "x.png", 4242)
    os.symlink("../../pool/x.png", link)
    assert len(load_dataset(CONFIG, images.parent).train) == 19
    link.unlink()
    (images / "train" / "bird").symlink_to(tmp_path / "outside")
    assert "train/bird is a link out of the data folder" in load_error(images).message


def test_a_link_that_leads_nowhere(images: Path) -> None:
    link = images / "train" / "cat" / "loop.png"
    link.symlink_to(link)
    assert "not an image: train/cat/loop.png" in load_error(images).message


@pytest.mark.parametrize("name", ["train/cat/readme.txt", "train/cat/a.webp", "train/list.csv"])
def test_files_that_would_be_lost_are_refused(images: Path, name: str) -> None:
    (images / name).write_bytes(b"x")
    assert load_error(images).where == str(images / name)


def add_unlabelled(images: Path, count: int = 3) -> None:
    for index in range(count):
        write_image(images / "unlabelled" / f"u{index}.png", 6000 + index)


def test_unlabelled_images_stay_apart_until_somebody_teaches(images: Path) -> None:
    before = split_digests(CONFIG, images.parent)
    add_unlabelled(images)
    data, after = load_dataset(CONFIG, images.parent), split_digests(CONFIG, images.parent)
    assert {split for split in after if after[split] != before.get(split)} == {"unlabelled"}
    assert data.notes == ("3 unlabelled images, for steps with a teacher",)
    assert data.unlabelled is not None
    assert data.unlabelled.ids == ("unlabelled/u0.png", "unlabelled/u1.png", "unlabelled/u2.png")
    assert hide_labels(data, "all", "labels").train is data.train
    pooled = hide_labels(data, "all", "labels", unlabelled=True).train
    assert pooled.ids == data.train.ids + data.unlabelled.ids
    assert pooled.labels.tolist() == [*data.train.labels.tolist(), -1, -1, -1]
    assert (pooled.images[-3:] == data.unlabelled.images).all()


def test_an_empty_unlabelled_folder_is_refused(images: Path) -> None:
    (images / "unlabelled").mkdir()
    error = load_error(images)
    assert error.message == "empty folder unlabelled: expected images, without class folders"
    assert error.where == str(images / "unlabelled")


def test_class_folders_among_unlabelled_images_are_refused(images: Path) -> None:
    write_image(images / "unlabelled" / "cat" / "0.png", 6000)
    assert load_error(images).message.startswith("not an image: unlabelled/cat, expected")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_unlabelled_image_that_is_in_a_split_too_is_refused(images: Path, split: str) -> None:
    add_unlabelled(images)
    shutil.copy(images / split / "cat" / "1.png", images / "unlabelled" / "copy.png")
    expected = f"same image in unlabelled and {split}: unlabelled/copy.png and {split}/cat/1.png"
    assert load_error(images).message == expected
    with pytest.raises(DataError, match=expected):
        split_digests(CONFIG, images.parent)
