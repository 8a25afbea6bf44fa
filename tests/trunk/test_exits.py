"""Parts of a trunk: what is left of it at an exit, and gone on with, is the trunk's output."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from graft.backbones import BACKBONES, Network, build
from graft.config import Model
from graft.strategies import FineTune, HeadOnly, Strategy
from graft.trunk.cut import Cut, cut
from graft.trunk.exits import Exit, frontiers, holds, measure, prefix, rest

STRATEGIES = (HeadOnly(), FineTune(1), FineTune(2))
FAST = ("efficientnet_lite0", "mobilenet_v3_small", "resnet18", "efficientnet_b0")
NETWORKS = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in BACKBONES]
# Frontiers of a network that are tried, at most: its first and last ones, and some between.
MAX_TRIED = 8


def pictures(name: str = "", count: int = 2) -> torch.Tensor:
    size = 48 if name == "vit_b_16" else 32
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def network_of(name: str) -> Network:
    """With measured statistics: without, a random network fades to zeros in eval mode."""
    size = 48 if name == "vit_b_16" else 32
    network = build(Model(name=name, weights="none"), 2, seed=0, image_size=size)
    norms = [m for m in network.module.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad(), torch.random.fork_rng():
        network.module.train()(pictures(name, 16))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network


def cut_of(network: Network, strategy: Strategy) -> Cut:
    network.freeze(strategy.trainable(list(network.blocks)))
    found = cut(network.module)
    assert found is not None
    network.eval()
    return found


def some(found: Sequence[Exit]) -> list[Exit]:
    step = max(1, len(found) // (MAX_TRIED - 1))
    return list(dict.fromkeys([*found[::step], *found[-1:]]))


@torch.no_grad()
def run(module: nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of inputs that are this call's own: a network may begin with an operation in place."""
    out: tuple[torch.Tensor, ...] = module(*(tensor.clone() for tensor in inputs))
    return out


@torch.no_grad()
def left_at(trunk: GraphModule, exits: Sequence[Exit], x: torch.Tensor) -> list[list[torch.Tensor]]:
    return [list(tensors) for tensors in prefix(trunk, exits)(x.clone())]


def assert_equal(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def assert_gone_on_with_is_whole(
    trunk: GraphModule, exits: Sequence[Exit], x: torch.Tensor
) -> None:
    whole = run(trunk, x)
    assert not torch.allclose(whole[0][0], whole[0][1])
    for exit in exits:
        (left,) = left_at(trunk, [exit], x)
        then = rest(trunk, exit)
        assert_equal(left if then is None else run(then, *left), whole)


# --- our networks -----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_leaves_at_a_frontier_and_goes_on_is_the_trunks_output(
    name: str, strategy: Strategy
) -> None:
    found = cut_of(network_of(name), strategy)
    places = frontiers(found.trunk)
    assert len(places) > 5
    assert_gone_on_with_is_whole(found.trunk, some(places), pictures(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_one_pass_gives_the_exits_of_several_strategies_as_each_trunk_alone(name: str) -> None:
    network, x = network_of(name), pictures(name)
    cuts = [cut_of(network, strategy) for strategy in STRATEGIES]
    alone = [run(one.trunk, x) for one in cuts]
    deepest = cuts[0].trunk
    assert all(holds(deepest, one.trunk, one.exits) for one in cuts)
    together = left_at(deepest, [one.exits for one in cuts], x)
    for ours, theirs in zip(together, alone, strict=True):
        assert_equal(ours, theirs)


def test_the_end_of_a_trunk_has_nothing_after_it() -> None:
    found = cut_of(network_of("resnet18"), FineTune(1))
    assert rest(found.trunk, found.exits) is None
    assert frontiers(found.trunk)[-1] == found.exits


def test_inside_a_residual_block_is_no_frontier() -> None:
    """Two values are needed there: what the block was given, and what it has made of it."""
    names = {name for (name,) in frontiers(cut_of(network_of("resnet18"), FineTune(1)).trunk)}
    assert {"conv1", "maxpool", "layer1_0_relu_1", "layer3_1_relu_1"} <= names
    assert not names & {"layer1_0_conv1", "layer1_0_conv2", "layer2_0_downsample_0"}


def test_a_part_has_only_what_leads_there() -> None:
    found = cut_of(network_of("resnet18"), HeadOnly())
    part = prefix(found.trunk, [("layer1_0_relu_1",)])
    assert not any("layer2" in node.name for node in part.graph.nodes)
    (left,) = left_at(found.trunk, [("layer1_0_relu_1",)], pictures())
    assert left[0].shape == (2, 64, 8, 8)
    then = rest(found.trunk, ("layer1_0_relu_1",))
    assert then is not None
    assert not any("layer1_0" in str(n.target) for n in then.graph.nodes if n.op == "call_module")


def test_another_network_is_not_held() -> None:
    ours, other = (cut_of(network_of(n), HeadOnly()) for n in ("resnet18", "mobilenet_v3_small"))
    assert holds(ours.trunk, ours.trunk, ours.exits)
    assert not holds(ours.trunk, other.trunk, other.exits)
    assert not holds(other.trunk, ours.trunk, ours.exits)


def test_a_shorter_trunk_does_not_hold_a_longer_one() -> None:
    network = network_of("resnet18")
    longer, shorter = cut_of(network, HeadOnly()), cut_of(network, FineTune(1))
    assert holds(longer.trunk, shorter.trunk, shorter.exits)
    assert not holds(shorter.trunk, longer.trunk, longer.exits)


# --- small networks, one trap each ------------------------------------------------------------


class Small(nn.Module):
    """A frozen stem and a convolution; what a test puts between; a head that trains."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.block = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 2)
        self.relu = nn.ReLU(inplace=True)
        for part in (self.stem, self.block):
            part.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.middle(self.stem(x)).mean((2, 3)))
        return out

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class ModuleInPlace(Small):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.block(self.relu(x)))


class MethodInPlace(Small):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x).add_(x).relu_()


class AlsoUsedLater(Small):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.relu(x)) + x


class ResultNotUsed(Small):
    """The write is seen only through the other name of what it writes to."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        x.relu_()
        return self.block(x)


class SizesNotUsed(Small):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        _, channels, height, width = x.shape
        return self.block(x).reshape(-1, channels, height * width, 1)


class Views(Small):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        y = x.flatten(2)
        return self.block(y.relu_().unflatten(2, (32, 32)))


class WrittenAtTheEnd(Small):
    """What crosses is written to after it was made, under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 4, 1)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block(x)
        y.relu_()
        return self.last(y)


class Dense(Small):
    """Each layer sees all before it; one of them trains, so that two tensors leave the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 4, 1)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block(x)
        z = torch.cat((x.sin(), y.cos()), 1)
        return self.last(z[:, ::2]) * y.sigmoid()


def small(kind: type[Small]) -> Cut:
    module = kind().eval()
    found = cut(module)
    assert found is not None
    return found


SMALL = (
    ModuleInPlace,
    MethodInPlace,
    AlsoUsedLater,
    ResultNotUsed,
    SizesNotUsed,
    Views,
    WrittenAtTheEnd,
    Dense,
)


@pytest.mark.parametrize("kind", SMALL)
def test_of_a_small_network_too(kind: type[Small]) -> None:
    found = small(kind)
    places = frontiers(found.trunk)
    assert ("stem",) in places
    assert_gone_on_with_is_whole(found.trunk, [*places, found.exits], pictures())


@pytest.mark.parametrize("kind", SMALL)
def test_a_part_up_to_the_trunks_end_is_the_trunk(kind: type[Small]) -> None:
    found, x = small(kind), pictures()
    (left,) = left_at(found.trunk, [found.exits], x)
    assert_equal(left, run(found.trunk, x))


@pytest.mark.parametrize("kind", [ModuleInPlace, MethodInPlace, AlsoUsedLater, ResultNotUsed])
def test_what_left_is_not_written_to_afterwards(kind: type[Small]) -> None:
    found, x = small(kind), pictures()
    with torch.no_grad():
        stem = found.trunk.get_submodule("stem")(x)
    (left, end) = left_at(found.trunk, [("stem",), found.exits], x)
    assert torch.equal(left[0], stem) and (left[0] < 0).any()
    assert_equal(end, run(found.trunk, x))


@pytest.mark.slow
def test_what_left_vgg16_is_not_written_to_afterwards() -> None:
    """Each of its convolutions is followed by a ReLU in place."""
    found, x = cut_of(network_of("vgg16"), HeadOnly()), pictures()
    exits = [("features_0",), ("features_7",), ("features_28",)]
    together = left_at(found.trunk, [*exits, found.exits], x)
    for exit, ours in zip(exits, together, strict=False):
        assert_equal(ours, left_at(found.trunk, [exit], x)[0])
        assert (ours[0] < 0).any()
    assert_equal(together[-1], run(found.trunk, x))


def test_several_tensors_leave_together_in_the_order_of_the_cut() -> None:
    found, x = small(Dense), pictures()
    assert found.tensors == 2
    (left,) = left_at(found.trunk, [found.exits], x)
    assert_equal(left, run(found.trunk, x))
    reverse = tuple(reversed(found.exits))
    (swapped,) = left_at(found.trunk, [reverse], x)
    assert_equal(swapped[::-1], left)


# --- sizes and times --------------------------------------------------------------------------


def test_sizes_are_of_one_picture_and_times_add_up() -> None:
    found = cut_of(network_of("resnet18"), HeadOnly())
    exits = frontiers(found.trunk)
    measured = measure(found.trunk, exits, pictures(count=4))
    assert measured["layer1_0_relu_1",].bytes == 4 * 64 * 8 * 8
    assert measured[found.exits].bytes == 4 * 512
    wholes = [one.before_s + one.after_s for one in measured.values()]
    assert max(wholes) == pytest.approx(min(wholes)) and min(wholes) > 0
    assert all(measured[a].before_s <= measured[b].before_s for a, b in pairwise(exits))
    # The least of a few: a busy machine may make us wait behind the end, too.
    again = [measure(found.trunk, exits, pictures(count=4)) for _ in range(2)]
    after_s = min(one[found.exits].after_s for one in (measured, *again))
    assert after_s == pytest.approx(0, abs=measured["conv1",].after_s / 10)


def test_two_tensors_are_measured_together() -> None:
    found = small(Dense)
    measured = measure(found.trunk, [found.exits], pictures(count=5))
    assert measured[found.exits].bytes == sum(4 * t[0].numel() for t in found.trunk(pictures()))


class Summed(Small):
    """Over the batch: no row for each picture."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x - x.mean(0, keepdim=True))


def test_an_exit_without_a_row_for_each_picture_is_left_out() -> None:
    found = small(Summed)
    names = [(node.name,) for node in found.trunk.graph.nodes if node.name in ("stem", "mean")]
    assert len(names) == 2
    assert list(measure(found.trunk, names, pictures(count=4))) == [("stem",)]
