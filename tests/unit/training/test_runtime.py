from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from compress.errors import UnavailableError
from compress.training.runtime import cpu_threads, fabric_on


def test_threads_are_set_and_restored():
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_threads_are_restored_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(UnavailableError), cpu_threads(before + 1):
        raise UnavailableError("no")
    assert torch.get_num_threads() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named():
    with pytest.raises(UnavailableError, match="torch sees no GPU") as caught:
        fabric_on("cuda", "fp32")
    assert caught.value.exit_code == 7


@pytest.mark.slow
def test_fabric_prints_nothing():
    code = "from compress.training.runtime import fabric_on; fabric_on('cpu', 'bf16')"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
