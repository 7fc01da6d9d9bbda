from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.distillation.layers import copy_layers
from compress.distillation.taps import pairs_named
from compress.errors import UsageError


def network(width: int = 3, blocks: int = 2) -> nn.Module:
    torch.manual_seed(width * 10 + blocks)
    inner = [nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()) for _ in range(blocks)]
    return nn.ModuleDict({"stem": nn.Linear(4, width), "blocks": nn.Sequential(*inner), "relu": nn.ReLU()})


def test_layers_with_their_statistics_are_copied_and_counted_once() -> None:
    student, source = network(), network()
    for value in source.state_dict().values():
        value.add_(1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    pairs = pairs_named(student, source, {"blocks.*": "blocks.*", "blocks.0.0": "blocks.0.0"})
    assert copy_layers(student, source, pairs, "teacher") == 2 * (9 + 3 + 3 + 3)
    for name, value in student.state_dict().items():
        wanted = source.state_dict()[name] if name.startswith("blocks") else before[name]
        assert torch.equal(value, wanted), name
    assert student.state_dict()["blocks.0.1.num_batches_tracked"] == 1
    source.get_parameter("blocks.0.0.weight").data.zero_()
    assert student.get_parameter("blocks.0.0.weight").abs().sum() > 0, "copied, not shared"


def test_every_other_block() -> None:
    student, source = network(blocks=2), network(blocks=4)
    pairs = pairs_named(student, source, {"blocks.0": "blocks.0", "blocks.1": "blocks.2"})
    copy_layers(student, source, pairs, "teacher")
    assert torch.equal(student.get_parameter("blocks.1.0.weight"), source.get_parameter("blocks.2.0.weight"))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            {"relu": "relu", "stem": "stem"},
            r"'stem' of the student and 'stem' of the teacher have other shapes: weight is \(3, 4\) and \(5, 4\)",
        ),
        ({"stem": "blocks.0"}, r"hold other tensors: only one of the two has 0.bias, 0.weight, 1.bias, \.\.\."),
        ({"relu": "relu"}, "names modules without parameters only: relu"),
        ({"block.0": "block.0"}, r"The student has no module 'block.0'; nearest: blocks.0"),
        ({"blocks.0": "blocks.7"}, "The teacher has no module 'blocks.7'; nearest: blocks"),
        ({"blocks.*": "blocks.*.0"}, None),
        ({"blocks.*": "stem"}, "means 2 modules of the student .* and 'stem' 1 of the teacher"),
    ],
)
def test_layers_that_do_not_fit_change_nothing(layers: dict[str, str], message: str | None) -> None:
    student, source = network(3), network(5)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(UsageError, match=message) as caught:
        copy_layers(student, source, pairs_named(student, source, layers), "teacher")
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
