from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from compress.distillation.taps import Adapter, Taps, features_of, modules_named, pairs_named
from compress.errors import UsageError


class Spare(nn.Module):
    """Has a module that does not run, and one that puts out two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.unused, self.split = nn.Linear(4, 6), nn.Linear(4, 4), Split()

    def forward(self, x: Tensor) -> Tensor:
        return self.split(self.body(x))[0]


class Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :3], x[:, 3:]


def network(blocks: int = 3, channels: int = 4) -> nn.Module:
    def block(inputs: int) -> nn.Module:
        return nn.Sequential(
            OrderedDict(conv=nn.Conv2d(inputs, channels, 3, padding=1), norm=nn.BatchNorm2d(channels), relu=nn.ReLU())
        )

    layers = [block(channels if i else 1) for i in range(blocks)]
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(*layers), flat=nn.Flatten(), head=nn.LazyLinear(3)))


def built(*arguments: int) -> nn.Module:
    net = network(*arguments)
    net(torch.zeros(1, 1, 5, 5))
    return net.eval()


IMAGES = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))


def hooks(module: nn.Module) -> int:
    return sum(len(one._forward_hooks) for one in module.modules())


def test_taps_keep_what_the_last_pass_put_out_with_its_gradient():
    net = built()
    taps = Taps(net, ["blocks.0", "blocks.0.conv", "blocks.0"])
    net(IMAGES)
    net(IMAGES[:2])
    assert set(taps.features) == {"blocks.0", "blocks.0.conv"}
    assert torch.equal(taps.features["blocks.0"], net.get_submodule("blocks")[0](IMAGES[:2]))  # type: ignore[index]
    taps.features["blocks.0"].sum().backward()
    assert net.get_submodule("blocks.0.conv").weight.grad is not None
    assert net.get_submodule("head").weight.grad is None  # type: ignore[union-attr]
    assert hooks(net) == 2
    taps.close()
    assert hooks(net) == 0
    assert not taps.features


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("head", ["head"]),
        ("blocks.*", ["blocks.0", "blocks.1", "blocks.2"]),
        ("*.1.relu", ["blocks.1.relu"]),
        ("blocks.[02].conv", ["blocks.0.conv", "blocks.2.conv"]),
        ("*", ["blocks", "flat", "head"]),
    ],
)
def test_patterns_name_modules_of_their_own_depth(pattern: str, found: list[str]):
    assert modules_named(built(), pattern, "The student") == found


def test_ten_blocks_come_in_the_order_of_the_network():
    assert modules_named(built(11), "blocks.*", "The student") == [f"blocks.{i}" for i in range(11)]


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("blocks.0.convv", "blocks.0.conv"), ("block", "blocks"), ("net.head", "head")]
)
def test_an_unknown_module_lists_the_nearest(wrong: str, nearest: str):
    with pytest.raises(UsageError, match=f"The teacher has no module '{wrong}'; nearest: .*{nearest}") as caught:
        pairs_named(built(), built(), {"head": wrong})
    assert caught.value.exit_code == 2
    assert caught.value.hint.startswith("Its modules are blocks, blocks.0, blocks.0.conv")


def test_a_network_without_modules_says_so():
    with pytest.raises(UsageError, match="nearest: it has none"):
        modules_named(nn.ReLU(), "relu", "The student")


def test_patterns_pair_in_order():
    taps = {"blocks.*": "blocks.*.conv", "head": "flat"}
    assert pairs_named(built(2), built(2), taps) == [
        ("blocks.0", "blocks.0.conv"),
        ("blocks.1", "blocks.1.conv"),
        ("head", "flat"),
    ]


def test_patterns_that_do_not_pair_are_refused():
    with pytest.raises(UsageError, match=r"means 2 modules of the student \(blocks.0, blocks.1\) and .* 3 of the") as e:
        pairs_named(built(2), built(3), {"blocks.*": "blocks.*"})
    assert e.value.exit_code == 2


def test_features_of_a_network_leave_it_as_it_was():
    net = built().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    features = features_of(net, ["blocks.1", "head"], IMAGES)
    assert {name: tuple(one.shape) for name, one in features.items()} == {"blocks.1": (4, 4, 5, 5), "head": (4, 3)}
    assert not features["head"].requires_grad
    assert net.training
    assert hooks(net) == 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unused", "unused is not run when the network answers"),
        ("split", r"split \(Split\) puts out a tuple; expected"),
    ],
)
def test_modules_without_features_are_refused(name: str, message: str):
    net = Spare()
    with pytest.raises(UsageError, match=message) as caught:
        features_of(net, ["body", name], torch.rand(2, 4))
    assert caught.value.exit_code == 2
    assert hooks(net) == 0


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 3, 8, 8), (2, 5, 8, 8)),
        ((2, 3, 8, 8), (2, 3, 4, 4)),
        ((2, 3, 4, 4), (2, 7, 9, 5)),
        ((2, 6, 8), (2, 6, 12)),
        ((2, 8), (2, 3)),
    ],
)
def test_adapters_bring_one_shape_to_the_other(student: tuple[int, ...], teacher: tuple[int, ...]):
    adapter = Adapter(torch.zeros(student), torch.zeros(teacher), "a: b")
    features = torch.rand(7, *student[1:])
    assert adapter(features).shape == (7, *teacher[1:])
    assert (
        sum(p.numel() for p in adapter.parameters())
        == (student[-1 if len(student) < 4 else 1] + 1) * teacher[-1 if len(student) < 4 else 1]
    )


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((2, 3, 8, 8), (2, 3, 64)), ((2, 6, 8), (2, 7, 8)), ((2, 8), (2, 8, 1)), ((2, 2, 2, 2, 2), (2, 2, 2, 2, 2))],
)
def test_shapes_that_no_adapter_fits_are_refused(student: tuple[int, ...], teacher: tuple[int, ...]):
    with pytest.raises(UsageError) as caught:
        Adapter(torch.zeros(student), torch.zeros(teacher), "a: b")
    assert caught.value.exit_code == 2
    assert f"Taps a: b: the student's features are {student[1:]}, the teacher's {teacher[1:]}" in str(caught.value)
