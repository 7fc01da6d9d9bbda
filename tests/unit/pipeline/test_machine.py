import json
import os
import shutil
import subprocess
import sys

import pytest

from compress.distributions import find_distribution
from compress.engines.availability import check_gpu, library_version
from compress.errors import UnavailableError, UsageError
from compress.nvml import query_machine
from compress.pipeline import machine


def test_facts_are_plain_values():
    facts = {name: fact() for name, fact in machine.FACTS.items()}
    assert list(facts) == ["cpu", "threads", "gpu", "driver", "compute_capability"]
    assert isinstance(facts["cpu"], str)
    assert facts["cpu"]
    assert 1 <= facts["threads"] <= (os.cpu_count() or 1)
    if facts["gpu"] is None:
        assert (facts["driver"], facts["compute_capability"]) == (None, None)


def test_keys_and_sessions_agree_on_whether_there_is_a_gpu():
    assert (machine.gpu() is not None) == check_gpu(query_machine()).available


# Two C libraries in the place of the driver's, so that the question is asked where no GPU is.
CUDA = "int cuInit(unsigned flags) { return 0; }"
NVML = r"""
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, "580.65", size); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = 0; return 0; }
int nvmlDeviceGetName(void *device, char *text, unsigned size) { strncpy(text, "NVIDIA L4", size); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) { *major = 8; *minor = 9; return 0; }
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) { memory[0] = 24; return 0; }
"""


@pytest.fixture
def driver(tmp_path):
    """Folder with a small driver that knows one GPU; to be put on LD_LIBRARY_PATH."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    for name, text in (("libcuda.so.1", CUDA), ("libnvidia-ml.so.1", NVML)):
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(tmp_path / name)]
        subprocess.run(command, input=text, text=True, check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("remove", "visible", "expected"),
    [
        (None, "0", ["NVIDIA L4", "580.65", "8.9", True]),
        (None, "", [None, None, None, False]),
        (None, "-1", [None, None, None, False]),
        ("libnvidia-ml.so.1", "0", ["unknown", None, None, True]),
    ],
)
def test_a_gpu_is_found_without_any_python_package_for_it(driver, remove, visible, expected):
    if remove:
        (driver / remove).unlink()
        if query_machine().driver_version:
            pytest.skip("the machine's own management library would answer")
    program = (
        "import json; from compress.pipeline import machine as m; from compress.nvml import query_machine as q; "
        "from compress.engines.availability import check_gpu; "
        "print(json.dumps([m.gpu(), m.driver(), m.compute_capability(), check_gpu(q()).available]))"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "CUDA_VISIBLE_DEVICES": visible}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == expected


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


@pytest.mark.parametrize("count", [0, 100_000])
def test_thread_counts_that_would_starve_the_machine(count):
    with pytest.raises(UsageError, match=f"threads is {count}, expected 1 to") as caught:
        machine.resolve_threads(count)
    assert caught.value.exit_code == 2


@pytest.mark.skipif(machine.resolve_device("auto") == "cuda", reason="this machine has a GPU and a torch with CUDA")
def test_a_gpu_that_is_not_here_is_never_replaced():
    with pytest.raises(UnavailableError, match="'cuda:0' is not available") as caught:
        machine.resolve_device("cuda:0")
    assert caught.value.exit_code == 7


def test_versions_come_from_metadata():
    assert machine.library_version("pydantic")[0].isdigit()
    assert machine.library_version("no-such-library") == "not installed"


def test_a_version_says_which_alternative_is_installed(tmp_path, monkeypatch):
    if find_distribution("tensorrt"):
        pytest.skip("tensorrt is installed here")
    package = tmp_path / "tensorrt_cu12-11.0.1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt-cu12\nVersion: 11.0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    machine.library_version.cache_clear()
    try:
        assert machine.library_version("tensorrt") == "11.0.1 (tensorrt-cu12)"
        assert machine.library_version("tensorrt-cu12") == "11.0.1"
        assert library_version("tensorrt") == "11.0.1", "doctor shows what the key says"
    finally:
        machine.library_version.cache_clear()


def test_no_tensor_library_is_imported():
    program = (
        "import sys; from compress.pipeline import machine, plan, runner; from compress.artifacts import store; "
        "[fact() for fact in machine.FACTS.values()]; "
        "machine.resolve_precision('auto', machine.resolve_device('auto')); "
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'scipy', 'sklearn', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("policy", "spinning"), [("PASSIVE", False), ("passive", False), ("ACTIVE", True), ("", True)])
def test_the_machines_state_is_plain_values(monkeypatch, policy, spinning):
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)

    state = machine.machine_state()

    assert set(state) == {"governor", "load_average", "spinning"}
    assert state["spinning"] is spinning
    assert state["governor"] is None or state["governor"]
    assert all(value >= 0 for value in state["load_average"] or [])


def test_different_governors_are_all_named(monkeypatch, tmp_path):
    for name, text in (("cpu0", "powersave\n"), ("cpu1", "performance\n"), ("cpu2", "performance\n")):
        (tmp_path / name / "cpufreq").mkdir(parents=True)
        (tmp_path / name / "cpufreq" / "scaling_governor").write_text(text)
    monkeypatch.setattr(machine, "_CPUS", tmp_path)

    assert machine.governor() == "performance, powersave"
