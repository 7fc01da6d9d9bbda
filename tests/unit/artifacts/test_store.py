import json
import shutil
from pathlib import Path

import pytest

from compress.artifacts.manifest import Artifact, Checkpoint
from compress.artifacts.store import Damage, Store, default_store
from compress.errors import ArtifactError, CompressError, TryAgainError


def test_what_was_committed_is_found_whole(store, make):
    made = make({"weights": "abc", "sub/history": "{}"}, seed=1)
    assert isinstance(made, Checkpoint)
    found = Store(store.root).find("train", made.manifest.key, {"stage": "train", "seed": 1})
    assert found is not None
    assert found.manifest == made.manifest
    assert found.path == store.root / "train" / made.manifest.key[:12]
    assert sorted(found.manifest.files) == ["sub/history", "weights"]
    assert store.verify(found) is found
    assert store.find("train", "0" * 64) is None
    assert store.find("other", made.manifest.key) is None
    assert store.find("train", made.manifest.key, {"stage": "train", "seed": 2}) is None
    assert list((store.root / ".drafts").iterdir()) == []


def test_reading_creates_nothing(store):
    assert store.find("train", "0" * 64) is None
    assert store.list() == []
    assert store.list_runs() == []
    assert store.latest_run("toy") is None
    assert not store.root.exists()


def test_measurements_add_revisions(store, make):
    first = make({"r": "1"}, stage="benchmark", measured=True)
    second = make({"r": "1"}, stage="benchmark", measured=True)
    assert [one.manifest.revision for one in (first, second)] == [1, 2]
    assert first.path.is_dir()
    found = store.find("benchmark", first.manifest.key)
    assert found is not None
    assert found.path == second.path
    (second.path / "r").unlink()  # the newest that is whole
    artifact, damaged = store.lookup("benchmark", first.manifest.key)
    assert artifact is not None
    assert artifact.path == first.path
    assert [one.path for one in damaged] == [second.path]


def test_tenth_revisions_come_after_ninth(store, make):
    for _ in range(11):
        last = make({"r": "1"}, stage="benchmark", measured=True)
    found = store.find("benchmark", last.manifest.key)
    assert found is not None
    assert found.manifest.revision == 11


def test_equal_bytes_are_not_stored_twice_and_other_bytes_overwrite_nothing(store, make):
    first = make({"w": "1"})
    assert make({"w": "1"}).path == first.path
    other = make({"w": "2"})
    assert (other.path.name, other.manifest.revision) == (first.path.name + ".1", 1)
    assert (first.path / "w").read_text() == "1"


def test_every_flipped_byte_is_noticed(store, make):
    made = make({"weights": "abcdef"})
    for name in ("weights", "manifest.json"):
        path = made.path / name
        content = path.read_bytes()
        step = max(1, len(content) // 150)
        for position in range(0, len(content), step):
            flipped = bytearray(content)
            flipped[position] ^= 0x11
            path.write_bytes(flipped)
            found = Store(store.root).inspect(made.path, full=True)
            if isinstance(found, Artifact):  # white space and the like: the bytes differ, what they say does not
                assert found.manifest == made.manifest, position
        path.write_bytes(content)
    assert isinstance(store.inspect(made.path, full=True), Artifact)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: (path / "weights").write_text("abd"), "weights has another SHA-256 than its manifest"),
        (lambda path: (path / "weights").write_text("ab"), "weights has 2 bytes, expected 3"),
        (lambda path: (path / "weights").unlink(), "missing: weights"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: (path / "manifest.json").write_text(""), "manifest.json is malformed"),
        (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json is malformed: kind: Field required"),
    ],
)
def test_damage_moves_the_artifact_aside_and_ends_with_6(store, make, spoil, reason):
    made = make({"weights": "abc"})
    spoil(made.path)
    with pytest.raises(ArtifactError, match=reason) as caught:
        Store(store.root).verify(made)
    assert caught.value.exit_code == 6
    assert not made.path.exists()
    moved = store.root / "quarantine" / f"train-{made.path.name}-1"
    assert moved.is_dir()
    assert reason in moved.with_name(moved.name + ".reason.txt").read_text()
    assert str(moved) in caught.value.where
    assert store.list() == []


def test_a_linked_payload_is_damage(store, make, tmp_path):
    made = make({"weights": "abc"})
    (tmp_path / "elsewhere").write_text("abc")
    (made.path / "weights").unlink()
    (made.path / "weights").symlink_to(tmp_path / "elsewhere")
    found = store.inspect(made.path)
    assert isinstance(found, Damage)
    assert found.reason == "weights is not a regular file"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema_version": 99}, "schema version 99, expected 1"),
        ({"stage": "other"}, "belongs to other/"),
        ({"digest": "0" * 64}, "a digest that its files do not give"),
        ({"key_document": {"stage": "train", "seed": 7}}, "a key that its key document does not give"),
        ({"notes": ["all is well"]}, "was changed after it was written"),
    ],
)
def test_a_manifest_must_agree_with_itself(store, make, change, reason):
    made = make({"weights": "abc"})
    path = made.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    found = store.inspect(made.path)
    assert isinstance(found, Damage)
    assert reason in found.reason


def test_files_beside_the_payload_are_no_damage(store, make):
    made = make({"weights": "abc"})
    (made.path / ".DS_Store").touch()
    assert isinstance(store.inspect(made.path, full=True), Artifact)


def test_hashes_are_compared_once_per_process_while_files_stay(store, make):
    made = make({"weights": "abc"})
    store.verify(made)
    state = (made.path / "weights").stat()
    (made.path / "weights").write_text("abd")
    assert store.damage(made) is not None or (made.path / "weights").stat().st_mtime_ns == state.st_mtime_ns


def test_quarantine_leaves_whole_artifacts_alone(store, make):
    made = make({"weights": "abc"})
    assert store.quarantine(Damage("train", made.path, "a rumour")) is None
    assert made.path.is_dir()
    shutil.rmtree(made.path)
    assert store.quarantine(Damage("train", made.path, "gone")) is None


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda draft: None, "wrote no file"),
        (lambda draft: (draft / "empty").mkdir(), "wrote no file"),
        (lambda draft: (draft / "link").symlink_to("/etc/hostname"), "not a regular file: link"),
        (lambda draft: (draft / "folder").symlink_to("/etc"), "not a regular file: folder"),
        (lambda draft: (draft / "manifest.json").touch(), "the store's own"),
    ],
)
def test_payloads_are_regular_files(store, prepare, said):
    with store.lock("train", "0" * 64), store.draft("train", "0" * 64) as draft:
        prepare(draft)
        with pytest.raises(CompressError, match=said) as caught:
            store.seal(draft)
    assert caught.value.exit_code == 1
    assert not draft.exists()


def test_a_draft_is_empty_and_on_the_file_system_of_the_store(store):
    with store.draft("train", "0" * 64) as draft:
        (draft / "left").touch()
        shutil.copytree(draft, store.root / "copy")
    (store.root / "copy").rename(draft)  # as a killed run leaves it
    with store.draft("train", "0" * 64) as again:
        assert again == draft
        assert list(again.iterdir()) == []
        assert again.stat().st_dev == store.root.stat().st_dev


def test_one_lock_per_key(store):
    waited = []
    with store.lock("train", "a" * 64), store.lock("train", "b" * 64), store.lock("qat", "a" * 64):
        with (
            pytest.raises(TryAgainError, match="another run") as caught,
            Store(store.root).lock("train", "a" * 64, 0.05, lambda: waited.append(1)),
        ):
            pass
    assert caught.value.exit_code == 75
    assert waited == [1]
    with store.lock("train", "a" * 64, 0):
        pass


def test_a_store_that_is_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TryAgainError, match="the store cannot be written") as caught:
        Store(tmp_path / "file").prepare()
    assert caught.value.exit_code == 75


def test_list_names_damaged_artifacts_and_ignores_the_rest(store, make):
    good, bad = make({"w": "1"}, seed=1), make({"w": "2"}, seed=2)
    (bad.path / "w").unlink()
    (store.root / "README.md").touch()
    (store.root / "train" / "notes.txt").touch()
    store.prepare()
    found = store.list()
    assert {one.path: type(one) for one in found} == {good.path: Checkpoint, bad.path: Damage}


def test_traces_of_a_run_are_no_artifacts(store, make):
    made = make({"w": "1"})
    for run in ("toy-0001", made.path.name):  # a run may be called like a key
        (store.traces(run) / "teacher").mkdir(parents=True)
        (store.traces(run) / "teacher" / "events.out.tfevents.1").touch()
    assert [one.path for one in store.list()] == [made.path]
    assert store.resolve(made.path.name).path == made.path


def test_the_store_lies_beside_the_nearest_project(tmp_path, monkeypatch):
    recipe = tmp_path / "project" / "pipelines" / "r.yaml"
    recipe.parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert default_store(recipe) == Path.cwd() / "artifacts"
    (tmp_path / "project" / "pyproject.toml").touch()
    assert default_store(recipe) == tmp_path / "project" / "artifacts"
