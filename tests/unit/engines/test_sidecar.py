from __future__ import annotations

import json
import shutil

import pytest

from compress.engines.sidecar import read_plan, read_sidecar, sidecar_path, write_sidecar
from compress.errors import ArtifactError


@pytest.fixture
def engine(int8_engine, tmp_path):
    shutil.copy(int8_engine, tmp_path / "model.plan")
    shutil.copy(sidecar_path(int8_engine), tmp_path / "model.json")
    return tmp_path / "model.plan"


def test_round_trip_keeps_the_bytes(engine, tmp_path):
    write_sidecar(read_sidecar(sidecar_path(engine)), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == sidecar_path(engine).read_bytes()


def test_the_recorded_plan_is_read(engine):
    assert read_plan(engine, read_sidecar(sidecar_path(engine))) == engine.read_bytes()


@pytest.mark.parametrize("damage", ["flip", "cut", "append"])
def test_any_other_plan_is_refused(engine, damage):
    plan = bytearray(engine.read_bytes())
    if damage == "flip":
        plan[len(plan) // 2] ^= 1
    elif damage == "cut":
        del plan[-1]
    else:
        plan.append(0)
    engine.write_bytes(plan)
    with pytest.raises(ArtifactError, match="not the one that was built: SHA-256") as caught:
        read_plan(engine, read_sidecar(sidecar_path(engine)))
    assert caught.value.exit_code == 6


def test_missing_files_are_artifact_errors(engine):
    sidecar = read_sidecar(sidecar_path(engine))
    engine.unlink()
    with pytest.raises(ArtifactError, match=r"model\.plan is missing"):
        read_plan(engine, sidecar)
    sidecar_path(engine).unlink()
    with pytest.raises(ArtifactError, match=r"model\.json is missing") as caught:
        read_sidecar(sidecar_path(engine))
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema_version": 2}, "schema_version"), ({"surprise": 1}, "surprise"), ({"plan_sha256": None}, "plan_sha256")],
)
def test_another_schema_is_refused(engine, change, message):
    path = sidecar_path(engine)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ArtifactError, match=f"malformed: {message}"):
        read_sidecar(path)


def test_no_json_is_refused(engine):
    sidecar_path(engine).write_text("{")
    with pytest.raises(ArtifactError, match="malformed"):
        read_sidecar(sidecar_path(engine))
