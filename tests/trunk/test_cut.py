"""The cut: trunk and tail are the network, exactly, in every mode that it trains in."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from graft.backbones import BACKBONES, Network, build
from graft.config import Model
from graft.strategies import FineTune, Full, HeadOnly, Strategy
from graft.trunk.cut import Cut, cut

STRATEGIES = (HeadOnly(), FineTune(1), FineTune(2))
FAST = ("efficientnet_lite0", "mobilenet_v3_small", "resnet18", "efficientnet_b0")
NETWORKS = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in BACKBONES]


def frozen(name: str, strategy: Strategy) -> Network:
    size = 48 if name == "vit_b_16" else 32
    network = build(Model(name=name, weights="none"), 2, seed=0, image_size=size)
    measure_statistics(network)
    network.freeze(strategy.trainable(list(network.blocks)))
    return network


def measure_statistics(network: Network) -> None:
    """Without them a random network fades to zeros in eval mode, and any two would be equal."""
    norms = [m for m in network.module.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad(), torch.random.fork_rng():
        network.module(pictures(network).repeat(8, 1, 1, 1))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def pictures(network: Network | None = None) -> torch.Tensor:
    size = 48 if network is not None and network.backbone.name == "vit_b_16" else 32
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def halves(module: nn.Module, example: torch.Tensor | None = None) -> Cut:
    found = cut(module, example)
    assert found is not None
    return found


def step(
    module: nn.Module, logits: Callable[[], torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits and gradients, with equal random numbers and the batch-norm statistics put back."""
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    torch.manual_seed(7)
    out = logits()
    out.square().sum().backward()
    gradients = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad(set_to_none=True)
    module.load_state_dict(state)
    return out.detach(), gradients


def assert_exact(module: nn.Module, found: Cut, x: torch.Tensor) -> None:
    """In the mode that the module is in: outputs and gradients equal, activations untouched."""
    with torch.no_grad():
        activations = found.trunk(x)
    before = [tensor.clone() for tensor in activations]
    whole, gradients = step(module, lambda: module(x))
    parts, gradients_of_parts = step(module, lambda: found.tail(*activations))
    assert torch.equal(whole, parts) and not torch.allclose(whole[0], whole[1])
    assert gradients and len(gradients) == len(gradients_of_parts)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_of_parts, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(activations, before, strict=True))


# --- our networks -----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_tail_of_the_trunk_is_the_network(name: str, strategy: Strategy) -> None:
    network = frozen(name, strategy)
    found, x = halves(network.module), pictures(network)
    network.train()
    assert_exact(network.module, found, x)
    network.eval()
    assert_exact(network.module, found, x)


@pytest.mark.parametrize("name", FAST)
def test_no_parameter_of_the_trunk_trains_and_the_tail_holds_all_that_do(name: str) -> None:
    network = frozen(name, FineTune(1))
    found = halves(network.module)
    trained = {id(p) for p in network.module.parameters() if p.requires_grad}
    assert not any(p.requires_grad for p in found.trunk.parameters())
    assert {id(p) for p in found.tail.parameters()} >= trained


@pytest.mark.parametrize(
    ("name", "strategy", "at", "shape"),
    [
        ("resnet18", HeadOnly(), "flatten", (512,)),
        ("resnet18", FineTune(1), "layer3", (256, 2, 2)),
        ("efficientnet_lite0", HeadOnly(), "mean", (1280,)),
        ("efficientnet_lite0", FineTune(1), "stages.5", (192, 1, 1)),
        ("mobilenet_v3_small", FineTune(1), "features.8", (48, 2, 2)),
        pytest.param("vgg16", FineTune(1), "features.23", (512, 2, 2), marks=pytest.mark.slow),
        pytest.param("vit_b_16", FineTune(1), "encoder.layers.encoder_layer_10", (10, 768),
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_cut_is_named_as_the_network_names_it(
    name: str, strategy: Strategy, at: str, shape: tuple[int, ...]
) -> None:
    network = frozen(name, strategy)
    found = halves(network.module)
    (tensor,) = found.trunk(pictures(network))
    assert (found.at, found.tensors, tuple(tensor.shape[1:])) == (at, 1, shape)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "efficientnet_b0"])
def test_where_everything_trains_there_is_no_cut_and_the_log_says_so(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """EfficientNet-Lite pads the pictures first: that is nothing to share."""
    with caplog.at_level(logging.INFO):
        assert cut(frozen(name, Full()).module) is None
    assert "training begins at the pictures" in caplog.text


def test_training_the_tail_trains_the_network() -> None:
    network = frozen("resnet18", HeadOnly())
    found, x = halves(network.module), pictures()
    activations = found.trunk(x)
    before = network.module(x)
    with torch.no_grad():
        for parameter in network.parameters("head"):
            parameter.add_(1.0)
    assert not torch.equal(network.module(x), before)
    assert torch.equal(found.tail(*activations), network.module(x))


def test_the_statistics_of_a_frozen_batch_norm_do_not_move() -> None:
    network = frozen("resnet18", FineTune(1))
    found = halves(network.module)
    network.train()
    before = {key: t.clone() for key, t in network.module.state_dict().items() if "running" in key}
    found.tail(*found.trunk(pictures()))
    after = network.module.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"layer4"}


def test_dropout_before_the_head_belongs_to_the_tail() -> None:
    network = frozen("efficientnet_b0", HeadOnly())
    found = halves(network.module)
    (activations,) = found.trunk(pictures())
    network.train()
    assert not torch.equal(found.tail(activations), found.tail(activations))
    network.eval()
    assert torch.equal(found.tail(activations), found.tail(activations))


# --- small networks, one trap each ------------------------------------------------------------


class Toy(nn.Module):
    """A frozen convolution and batch norm, then what a test puts behind them, then a head."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
            self.block = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 2)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.bias = nn.Parameter(torch.linspace(0, 1, 4).reshape(1, 4, 1, 1))
        self.register_buffer("position", torch.linspace(-1, 1, 4).reshape(1, 4, 1, 1))
        for parameter in (*self.stem.parameters(), self.scale, self.bias):
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "Toy":
        super().train(mode)
        self.stem.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.middle(self.stem(x)).mean((2, 3)))
        return y

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def toy(middle: Callable[[Toy, torch.Tensor], torch.Tensor], **parts: nn.Module) -> Toy:
    """A Toy class of its own, as torch.fx reads code: `middle(self, stem's output)`."""
    module = type("Made", (Toy,), {"middle": middle})()
    for name, part in parts.items():
        module.add_module(name, part)
    return module.train()


class FunctionalDropout(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, self.training)


CASES: dict[str, tuple[Callable[[Toy, torch.Tensor], torch.Tensor], dict[str, nn.Module], int]] = {
    "plain": (lambda self, x: self.block(x), {}, 1),
    "dropout in place": (
        lambda self, x: self.block(self.part(x)), {"part": nn.Dropout(0.5, inplace=True)}, 1,
    ),
    "functional dropout": (
        lambda self, x: self.block(self.part(x)), {"part": FunctionalDropout()}, 1,
    ),
    "stochastic depth beside what trains": (
        lambda self, x: x + self.part(self.block(x)), {"part": StochasticDepth(0.5, "row")}, 1,
    ),
    "addition in place": (lambda self, x: self.block(x.add_(self.gain)), {}, 1),
    "an operator in place": (lambda self, x: self.block(_iadd(x, self.gain)), {}, 1),
    "an activation in place that others read": (
        lambda self, x: _after(self.part, self.block(x)), {"part": nn.SiLU(inplace=True)}, 1,
    ),
    "an activation in place of a view": (
        lambda self, x: _after(lambda y: self.part(y.flatten(2)), self.block(x)),
        {"part": nn.Hardtanh(-0.1, 0.1, inplace=True)}, 1,
    ),
    "a view, then in place": (
        lambda self, x: self.block(self.part(x.flatten(2)).unflatten(2, (32, 32))),
        {"part": nn.Dropout(0.3, inplace=True)}, 1,
    ),
    "two tensors": (lambda self, x: self.block(x.sin()) * x.cos(), {}, 2),
    "frozen constants": (
        lambda self, x: self.block(x) * self.scale + self.bias.exp() * self.position, {}, 1,
    ),
    "sizes": (lambda self, x: self.block(x).reshape(x.shape[0], x.size(1), -1, 1) * 2, {}, 1),
}  # fmt: skip


def _after(write: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    write(x)
    return x * 2


def _iadd(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x += y
    return x


@pytest.mark.parametrize("case", CASES)
def test_trap(case: str) -> None:
    middle, parts, tensors = CASES[case]
    module, x = toy(middle, **parts), pictures()
    found = halves(module)
    assert found.tensors == tensors
    assert_exact(module, found, x)
    module.eval()
    assert_exact(module, found, x)


def test_a_constant_is_fetched_anew_and_is_no_part_of_the_cut() -> None:
    module, x = toy(CASES["frozen constants"][0]), pictures()
    found = halves(module)
    activations = found.trunk(x)
    with torch.no_grad():
        module.bias.add_(1.0)
    assert torch.equal(found.tail(*activations), module(x))


def test_a_dropout_in_eval_mode_stays_in_the_trunk() -> None:
    module = toy(lambda self, x: self.block(self.part(x).relu()), part=nn.Dropout(0.5))
    module.part.eval()
    assert halves(module).at == "relu"
    module.part.train()
    assert halves(module).at == "stem"


def test_a_batch_norm_in_train_mode_belongs_to_the_tail_though_it_is_frozen() -> None:
    module = toy(lambda self, x: self.block(x))
    module.stem.train()
    assert halves(module).at == "stem.0"


class WritesToPictures(Toy):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(2).mul_(0.5).unflatten(2, (32, 32)))

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.block(x)
        return y


def test_a_trunk_leaves_the_pictures_as_they_are() -> None:
    """They are run again where a number of them at a time is tried and ruled out."""
    module, x = WritesToPictures().train(), pictures()
    found = halves(module)
    first, again = (found.trunk(x)[0] for _ in range(2))
    assert torch.equal(first, again) and torch.equal(x, pictures())
    assert torch.equal(found.tail(first), module(x))


def _trunk_overwrites_early(self: Toy, x: torch.Tensor) -> torch.Tensor:
    y = self.block(x)
    return y + x.relu_().sin()


def _tail_overwrites_what_the_trunk_reads(self: Toy, x: torch.Tensor) -> torch.Tensor:
    y = x.add_(self.gain)
    return self.block(y) + x.sin()


def _tail_overwrites_under_another_name(self: Toy, x: torch.Tensor) -> torch.Tensor:
    y = x.flatten(2)
    return (self.block(x.add_(self.gain)).flatten(2) + y).unflatten(2, (32, 32))


@pytest.mark.parametrize(
    "middle",
    [
        _trunk_overwrites_early,
        _tail_overwrites_what_the_trunk_reads,
        _tail_overwrites_under_another_name,
    ],
)
def test_a_write_that_the_graph_does_not_show_prevents_the_cut(
    middle: Callable[[Toy, torch.Tensor], torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert cut(toy(middle)) is None
    assert "overwrites what is needed elsewhere" in caplog.text


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda self, x: self.block(x) if x.sum() > 0 else x, "cannot be followed"),
        (lambda self, x: self.block(x + torch.rand(1)), "makes new tensors"),
        (lambda self, x: F.dropout(self.block(x), 0.5, self.training), "behaves differently"),
    ],
    ids=["a branch", "random numbers", "own mode"],
)
def test_a_network_that_cannot_be_followed_is_not_cut_and_the_log_says_why(
    middle: Callable[[Toy, torch.Tensor], torch.Tensor],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        assert cut(toy(middle)) is None
    assert reason in caplog.text


class Passing(nn.Module):
    """Hands on its input itself, which its parameter makes look unlikely."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight if self.training else x


def test_an_example_that_shows_a_difference_prevents_the_cut(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def middle(self: Toy, x: torch.Tensor) -> torch.Tensor:
        y = self.part(x)
        return self.block(x.add_(self.gain)) + y

    module = toy(middle, part=Passing())
    module.part.eval()
    with caplog.at_level(logging.INFO):
        assert cut(module, pictures()) is None
    assert "differ from the network by" in caplog.text
    assert module.training and not module.stem.training
