import pytest

from compress.errors import InputError


def test_code_that_exits_fails_its_step(bench):
    bench.toy.FAULTS["student"] = "exit"
    with pytest.raises(InputError) as caught:
        bench.run()
    assert caught.value.exit_code == 5
    assert caught.value.message == "code that the step runs called sys.exit(0), expected it to return or raise"
    assert caught.value.where == "step student"
    record = bench.store.latest_run("toy")
    assert (record.status, record.exit_code, record.step("student").status) == ("failed", 5, "failed")
