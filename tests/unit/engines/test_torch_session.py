from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from compress.engines.torch_session import TorchSession
from compress.errors import DataError, ModelError, UnavailableError, UsageError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3 * 4 * 4, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(image).flatten(1))


@pytest.fixture
def images():
    return np.random.default_rng(0).random((4, 3, 4, 4), np.float32)


def test_runs_in_evaluation_mode_and_leaves_statistics_alone(images):
    net = Net().train()
    session = TorchSession.load(net)
    assert net.norm.running_mean is not None
    before = net.norm.running_mean.clone()
    logits = session.run({"image": images})["logits"]
    assert torch.equal(net.norm.running_mean, before)
    with torch.no_grad():
        np.testing.assert_array_equal(logits, net.eval()(torch.from_numpy(images)).numpy())


def test_takes_an_exported_graph(images):
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(Net().eval(), (torch.from_numpy(images),), dynamic_shapes=({0: batch},))
    logits = TorchSession.load(program.module()).run({"image": images[:2]})["logits"]
    assert logits.shape == (2, 10)


def test_thread_count_holds_at_every_run(images):
    session = TorchSession.load(Net(), threads=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        session.run({"image": images})
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_describe_is_plain_json():
    described = TorchSession.load(Net()).describe()
    assert described["backend"] == "torch"
    assert described["device"] == "cpu"
    assert described["inputs"] == [{"name": "image"}]


def test_timed_runs_the_module_and_returns_milliseconds(images):
    timed = TorchSession.load(Net()).timed({"image": images})
    start = time.perf_counter()
    taken_ms = timed()
    assert 0 < taken_ms <= 1000 * (time.perf_counter() - start)
    with pytest.raises(DataError, match="expected image"):
        TorchSession.load(Net()).timed({"picture": images})()


def test_wrong_names_are_data_errors(images):
    with pytest.raises(DataError, match="got picture, expected image") as caught:
        TorchSession.load(Net()).run({"picture": images})
    assert caught.value.exit_code == 5


def test_wrong_shape_is_a_model_error():
    with pytest.raises(ModelError, match=r"fails on inputs of shape .*\(1, 3, 5, 5\)") as caught:
        TorchSession.load(Net()).run({"image": np.zeros((1, 3, 5, 5), np.float32)})
    assert caught.value.exit_code == 5


def test_wrong_number_of_outputs_is_a_model_error(images):
    session = TorchSession.load(Net(), output_names=("logits", "features"))
    with pytest.raises(ModelError, match="gives 1 outputs, expected 2"):
        session.run({"image": images})


@pytest.mark.parametrize(("device", "threads"), [("nonsense", 1), ("cpu", 0)])
def test_impossible_settings_are_usage_errors(device, threads):
    with pytest.raises(UsageError) as caught:
        TorchSession.load(Net(), device, threads=threads)
    assert caught.value.exit_code == 2


def test_a_gpu_that_is_not_there_is_never_replaced():
    with pytest.raises(UnavailableError, match=r"sees \d+ GPUs, so not cuda:99") as caught:
        TorchSession.load(Net(), "cuda:99")
    assert caught.value.exit_code == 7


def test_a_closed_session_does_not_run(images):
    session = TorchSession.load(Net())
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run({"image": images})
