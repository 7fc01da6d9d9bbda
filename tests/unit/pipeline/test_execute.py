import pytest

from compress.errors import InputError, ModelError
from compress.pipeline.stage import Watch


def test_code_that_exits_fails_its_step(bench):
    bench.toy.FAULTS["student"] = "exit"
    with pytest.raises(InputError) as caught:
        bench.run()
    assert caught.value.exit_code == 5
    assert caught.value.message == "code that the step runs called sys.exit(0), expected it to return or raise"
    assert caught.value.where == "step student"
    record = bench.store.latest_run("toy")
    assert (record.status, record.exit_code, record.step("student").status) == ("failed", 5, "failed")


def test_a_stage_is_told_where_its_traces_go_and_who_listens(bench):
    heard = []
    first = bench.run(profile=True, on_epoch=lambda step, record: heard.append((step, record)))
    watch = bench.toy.WATCHED.pop("teacher")
    assert watch.traces == bench.store.traces("toy-0001") / "teacher"
    assert watch.profile
    assert heard == [("teacher", {"epoch": 1, "loss": 0.5})]
    assert not bench.store.traces("toy-0001").exists(), "made by whoever writes into it"
    second = bench.run(on_epoch=lambda step, record: heard.append((step, record)))
    assert bench.statuses(second) == ["hit"] * 4, "nothing of it is in a key"
    assert (len(heard), bench.toy.WATCHED) == (1, {})
    assert [step.digest for step in second.steps] == [step.digest for step in first.steps]


def test_nothing_is_left_or_told_unless_somebody_asks(bench):
    assert Watch() == Watch(traces=None, profile=False)
    bench.run()
    assert not bench.toy.WATCHED["teacher"].profile


def test_a_listener_can_end_a_training(bench):
    def stop(step, record):
        raise ModelError(f"{step} is not worth it")

    with pytest.raises(ModelError, match="teacher is not worth it") as caught:
        bench.run(on_epoch=stop)
    assert caught.value.where == "step teacher"
    assert bench.artifacts() == []
    assert bench.store.latest_run("toy").step("teacher").status == "failed"
