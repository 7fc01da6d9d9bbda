import pytest

from compress.artifacts import tags
from compress.artifacts.runs import RunRecord
from compress.errors import ArtifactError, TryAgainError, UsageError


@pytest.fixture
def run(store) -> RunRecord:
    store.prepare()
    return store.create_run(
        RunRecord(id="digits", recipe="digits", recipe_path="r", seed=0, started_at="2024", steps=())
    )


def test_a_tag_stands_wherever_a_run_id_does(store, run):
    written = tags.write(store.root, "main", run.id)
    assert tags.read(store.root, "main") == written
    assert store.read_run("main") == run
    assert store.resolve("main") == run
    assert tags.names(store.root) == ["main"]
    assert [tag.run for tag in tags.records(store.root)] == [run.id]
    assert store.list() == [], "tags are no artifacts"


def test_a_tag_moves(store, run):
    second = store.create_run(run.model_copy(update={"id": "digits"}))
    tags.write(store.root, "v1.0", run.id)
    tags.write(store.root, "v1.0", second.id)
    assert store.read_run("v1.0") == second
    assert [path.name for path in (store.root / "tags").iterdir()] == ["v1.0.json"], "no draft is left"


@pytest.mark.parametrize("name", ["", "1", "-a", "a b", "a/b", "../a", "a:b", "ä", "a" * 65, ".a", "a\n"])
def test_malformed_names(store, run, name):
    with pytest.raises(UsageError, match="a tag is a letter") as caught:
        tags.write(store.root, name, run.id)
    assert caught.value.exit_code == 2
    assert not (store.root / "tags").exists()


@pytest.mark.parametrize("name", ["digits-0001", "x-7", "beef", "cafe12"])
def test_names_that_mean_something_else(store, run, name):
    with pytest.raises(UsageError, match="would read as a run id or as a key") as caught:
        tags.write(store.root, name, run.id)
    assert caught.value.exit_code == 2


def test_a_tag_that_does_not_exist(store, run):
    tags.write(store.root, "main", run.id)
    for ask in (store.read_run, lambda name: tags.read(store.root, name)):
        with pytest.raises(UsageError, match=r"'mian'.*; nearest: main") as caught:
            ask("mian")
        assert caught.value.exit_code == 2
    with pytest.raises(
        UsageError, match="there is no run 'digits-0002', and no tag of that name; nearest: digits-0001"
    ):
        store.read_run("digits-0002")


def test_a_tag_whose_run_is_gone(store, run):
    tags.write(store.root, "main", run.id)
    (store.root / "runs" / f"{run.id}.json").unlink()
    with pytest.raises(UsageError, match="the tag 'main' names the run 'digits-0001', which is gone") as caught:
        store.read_run("main")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", ["", "{}", "[", '{"name": "main", "run": "r", "created_at": "", "more": 1}'])
def test_a_damaged_tag(store, run, content):
    tags.write(store.root, "main", run.id)
    tags.write(store.root, "other", run.id)
    (store.root / "tags" / "main.json").write_text(content)
    with pytest.raises(ArtifactError, match="the tag is damaged") as caught:
        store.read_run("main")
    assert caught.value.exit_code == 6
    assert [tag.name for tag in tags.records(store.root)] == ["other"]


def test_a_store_that_cannot_be_written(store, run):
    (store.root / "tags").write_text("a file in the way")
    with pytest.raises(TryAgainError) as caught:
        tags.write(store.root, "main", run.id)
    assert caught.value.exit_code == 75
