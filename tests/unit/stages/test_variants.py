from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress.artifacts.manifest import Kind
from compress.engines.availability import why_not
from compress.engines.session import ran_as
from compress.stages.contract import INPUT, OUTPUT
from compress.stages.variants import EVALUATION_BATCH, Runnable, runnable_from_artifact


class Sum:
    """A session with an engine's limits: sums the pixels of each image, refuses batches outside its profile."""

    def __init__(self, smallest, largest):
        self.smallest, self.largest, self.batches = smallest, largest, []

    def run(self, inputs):
        images = inputs[INPUT]
        assert self.smallest <= len(images) <= self.largest
        self.batches.append(len(images))
        return {OUTPUT: images.sum(axis=(2, 3))}

    def close(self):
        pass


@pytest.fixture
def runnable(make):
    def build(smallest, largest):
        session = Sum(smallest, largest)
        artifact = make("engine", Kind.ENGINE)
        return session, Runnable(artifact, Path(), "sum", session, smallest=smallest, largest=largest)  # type: ignore[arg-type]

    return build


@pytest.mark.parametrize(("smallest", "largest"), [(1, 64), (8, 64), (1, 1), (300, 1000)])
def test_all_images_are_answered_within_the_profile(runnable, smallest, largest):
    session, one = runnable(smallest, largest)
    images = np.random.default_rng(0).random((130, 1, 4, 4), dtype=np.float32)

    got = one.logits(images)

    np.testing.assert_array_equal(got, images.sum(axis=(2, 3)))
    assert max(session.batches) <= max(largest, EVALUATION_BATCH)


def test_a_batch_outside_the_profile_is_not_taken(runnable):
    _, one = runnable(4, 64)

    assert [one.takes(batch) for batch in (1, 4, 64, 65)] == [False, True, True, False]


def test_what_cannot_run_takes_no_batch(make):
    assert not Runnable(make("engine", Kind.ENGINE), Path(), "x", None, "no NVIDIA driver").takes(1)


@pytest.mark.skipif(why_not("tensorrt_rtx") is None, reason="an engine can run here")
def test_an_engine_that_cannot_run_keeps_its_reason(make):
    engine = make("engine", Kind.ENGINE, config={"backend": "tensorrt_rtx", "batch": {"min": 1, "opt": 8, "max": 64}})

    one = runnable_from_artifact(engine, Path(), device="cpu", threads=1)

    assert one.session is None
    assert one.reason == why_not("tensorrt_rtx")


@pytest.mark.parametrize(
    ("asked", "said", "label"),
    [
        (True, "yes", "tensorrt_rtx cuda, graphs"),
        (True, "no: the engine cannot be captured from a stream", "tensorrt_rtx cuda"),
        (False, "no: not asked for", "tensorrt_rtx cuda"),
    ],
)
def test_cuda_graphs_are_asked_for_and_named_where_they_are_used(make, monkeypatch, asked, said, label):
    class Recorded(Sum):
        def describe(self):
            return {"cuda_graphs": said}

    taken = {}

    def load(path, **options):
        taken.update(options)
        return Recorded(1, 64)

    monkeypatch.setattr("compress.engines.availability.why_not", lambda backend: None)
    monkeypatch.setattr("compress.engines.sidecar.find_plan", lambda folder, capability: folder / "model.plan")
    monkeypatch.setattr("compress.engines.tensorrt_session.TensorRTSession.load", load)
    engine = make("engine", Kind.ENGINE, config={"backend": "tensorrt_rtx", "batch": {"min": 1, "opt": 8, "max": 64}})

    one = runnable_from_artifact(engine, Path(), device="cpu", threads=1, cuda_graphs=asked)

    assert taken == {"graphs": asked}
    assert ran_as(one.label, one.session) == label
    assert (one.smallest, one.largest) == (1, 64)


def test_gaps_between_profiles_are_filled_up(make):
    class Gaps(Sum):
        def run(self, inputs):
            assert len(inputs[INPUT]) == 1 or 32 <= len(inputs[INPUT]) <= 64
            return super().run(inputs)

    session = Gaps(1, 64)
    artifact = make("engine", Kind.ENGINE)
    one = Runnable(artifact, Path(), "sum", session, smallest=1, largest=64, ranges=((1, 1), (32, 64)))  # type: ignore[arg-type]
    images = np.random.default_rng(0).random((130, 1, 4, 4), dtype=np.float32)

    np.testing.assert_array_equal(one.logits(images), images.sum(axis=(2, 3)))

    assert [one.takes(batch) for batch in (1, 2, 31, 32, 64, 65)] == [True, False, False, True, True, False]
    assert session.batches == [64, 64, 32]
