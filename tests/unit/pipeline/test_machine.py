import os
import subprocess
import sys

import pytest

from compress.errors import UnavailableError
from compress.pipeline import machine


def test_facts_are_plain_values():
    facts = {name: fact() for name, fact in machine.FACTS.items()}
    assert list(facts) == ["cpu", "threads", "gpu", "driver", "compute_capability"]
    assert isinstance(facts["cpu"], str)
    assert facts["cpu"]
    assert 1 <= facts["threads"] <= (os.cpu_count() or 1)
    assert (facts["gpu"] is None) == (facts["driver"] is None) == (facts["compute_capability"] is None)


def test_auto_becomes_what_the_machine_has():
    device = machine.resolve_device("auto")
    assert device in ("cpu", "cuda")
    has_bf16 = bool({"avx512_bf16", "amx_bf16"} & machine.cpu_flags())
    assert machine.resolve_precision("auto", "cpu") == ("bf16" if has_bf16 else "fp32")
    assert machine.resolve_threads("auto") == machine.threads()


def test_explicit_values_stay():
    assert machine.resolve_device("cpu") == "cpu"
    assert machine.resolve_precision("bf16") == "bf16"
    assert machine.resolve_threads(3) == 3


@pytest.mark.skipif(machine.resolve_device("auto") == "cuda", reason="this machine has a GPU and a torch with CUDA")
def test_a_gpu_that_is_not_here_is_never_replaced():
    with pytest.raises(UnavailableError, match="'cuda:0' is not available") as caught:
        machine.resolve_device("cuda:0")
    assert caught.value.exit_code == 7


def test_versions_come_from_metadata():
    assert machine.library_version("pydantic")[0].isdigit()
    assert machine.library_version("no-such-library") == "not installed"


def test_no_tensor_library_is_imported():
    program = (
        "import sys; from compress.pipeline import machine, plan, runner; from compress.artifacts import store; "
        "[fact() for fact in machine.FACTS.values()]; "
        "machine.resolve_precision('auto', machine.resolve_device('auto')); "
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'scipy', 'sklearn', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
