import pytest

from compress.artifacts.fingerprint import document_digest
from compress.artifacts.manifest import Artifact
from compress.artifacts.runs import RunRecord, StepRecord
from compress.errors import ArtifactError, UsageError


@pytest.fixture
def run(store, make):
    """A run whose teacher is an artifact, and whose student failed."""
    made = make({"weights": "abc"}, seed=1)
    teacher = StepRecord(
        name="teacher",
        stage="train",
        status="done",
        key=made.manifest.key,
        digest=made.manifest.digest,
        path=f"train/{made.path.name}",
    )
    student = StepRecord(name="student", stage="distill", status="failed")
    store.prepare()
    return store.create_run(
        RunRecord(id="digits", recipe="digits", recipe_path="r", seed=0, started_at="2024", steps=(teacher, student))
    )


def test_a_reference_is_a_run_a_step_or_a_key(store, run):
    assert store.resolve("digits-0001") == run
    artifact = store.resolve("digits-0001:teacher")
    assert isinstance(artifact, Artifact)
    assert artifact.step == "teacher"
    key = artifact.manifest.key
    for ref in (key, key[:12], key[:4], f"train/{key[:6]}"):
        found = store.resolve(ref)
        assert isinstance(found, Artifact)
        assert found.path == artifact.path


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("digits-0002", "nothing is called 'digits-0002'; nearest: digits-0001"),
        ("nothing at all", "nothing is called 'nothing at all'"),
        ("digits-0001:techer", "has no step 'techer'; it has: teacher, student"),
        ("digits-0009:teacher", "there is no run 'digits-0009'"),
        ("0000000000", "no artifact has the key"),
        ("abc", "nothing is called 'abc'"),  # three digits are too few
        ("", "nothing is called ''"),
    ],
)
def test_references_that_name_nothing(store, run, ref, said):
    with pytest.raises(UsageError, match=said) as caught:
        store.resolve(ref)
    assert caught.value.exit_code == 2


def test_a_step_without_an_artifact(store, run):
    with pytest.raises(ArtifactError, match="step 'student' of this run is failed and has no artifact") as caught:
        store.resolve("digits-0001:student")
    assert caught.value.exit_code == 6


def test_revisions_of_a_key(store, make):
    first = make({"r": "1"}, stage="benchmark", measured=True)
    second = make({"r": "2"}, stage="benchmark", measured=True)
    key = first.manifest.key[:12]
    assert store.resolve(key).path == second.path
    assert store.resolve(f"{key}.1").path == first.path
    with pytest.raises(UsageError, match="no artifact has the key"):
        store.resolve(f"{key}.3")


def test_a_prefix_of_several_artifacts_lists_them(store, make):
    seen: dict[str, int] = {}
    for seed in range(2000):  # keys are pseudo-random: four digits repeat after a few hundred
        prefix = document_digest({"stage": "train", "seed": seed})[:4]
        if prefix in seen:
            break
        seen[prefix] = seed
    keys = [make({"w": "1"}, seed=one).manifest.key[:12] for one in (seen[prefix], seed)]
    with pytest.raises(UsageError, match="names more than one artifact: ") as caught:
        store.resolve(prefix)
    assert all(key in caught.value.message for key in keys)
    assert "give more digits" in caught.value.hint


def test_damaged_artifacts_are_named(store, run, make):
    artifact = store.resolve("digits-0001:teacher")
    (artifact.path / "weights").write_text("abcd")
    for ref in ("digits-0001:teacher", artifact.manifest.key[:8]):
        with pytest.raises(ArtifactError, match="damaged") as caught:
            store.resolve(ref)
        assert caught.value.exit_code == 6


def test_an_artifact_that_took_the_place_of_another_is_not_passed_off_as_it(store, run):
    teacher = run.step("teacher")
    with pytest.raises(ArtifactError, match="took the place"):
        store.artifact_of(teacher.model_copy(update={"digest": "0" * 64}))
