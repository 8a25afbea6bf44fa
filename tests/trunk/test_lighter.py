"""A lighter tail: the same numbers, and no detour of the gradients."""

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace
from torch.nn import functional as F

from graft.trunk.lighter import lighten, mean


class Net(nn.Module):
    """A convolution, an activation, and a mean that is written in one of many ways."""

    def __init__(self, mean: str) -> None:
        super().__init__()
        self.conv, self.act, self.mean = nn.Conv2d(3, 8, 1), nn.ReLU6(inplace=True), mean
        self.pool, self.head = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.conv(x))
        match self.mean:
            case "method":
                x = x.mean((2, 3))
            case "method, kept":
                x = x.mean(dim=[-2, -1], keepdim=True).flatten(1)
            case "function":
                x = torch.mean(x, dim=(-1, -2))
            case "pool":
                x = self.pool(x).flatten(1)
            case "functional pool":
                x = F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
        out: torch.Tensor = self.head(x)
        return out


WAYS = ("method", "method, kept", "function", "pool", "functional pool")


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("way", WAYS)
def test_the_same_outputs_and_gradients(way: str, order: torch.memory_format) -> None:
    torch.manual_seed(0)
    plain = Net(way).to(memory_format=order)
    light = Net(way).to(memory_format=order)
    light.load_state_dict(plain.state_dict())
    graph = symbolic_trace(light)
    lighten(light, graph.graph)
    graph.recompile()
    x = torch.randn(4, 3, 6, 5).contiguous(memory_format=order)
    found, expected = graph(x), plain(x)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(light.parameters(), plain.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        # Behind the mean the gradient is the same, bit for bit; the convolution that gets it in
        # another order of memory adds up in another order.
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)
    assert any(node.target is mean for node in graph.graph.nodes)
    assert light.act.inplace and not [n for n in graph.graph.nodes if n.target == "act"]


def test_the_gradient_has_the_order_of_the_input() -> None:
    x = torch.randn(2, 8, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    hidden = x * 2
    seen: list[torch.Tensor] = []
    hidden.register_hook(seen.append)
    mean(hidden, (2, 3), False).square().sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    plain = x.detach().clone().requires_grad_()
    (plain * 2).mean((2, 3)).square().sum().backward()
    assert plain.grad is not None and x.grad is not None
    assert torch.equal(x.grad, plain.grad)


@pytest.mark.parametrize("kind", [nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.SiLU, nn.ReLU, nn.ELU])
def test_activations_in_place_give_the_same_out_of_place(kind: type[nn.Module]) -> None:
    module = nn.Sequential(nn.Linear(4, 4), kind(inplace=True))
    traced = symbolic_trace(module)
    lighten(module, traced.graph)
    traced.recompile()
    x = 4 * torch.randn(64, 4)
    assert torch.equal(traced(x), module(x))
    is_changed = not [node for node in traced.graph.nodes if node.target == "1"]
    assert is_changed == (kind not in (nn.ReLU, nn.ELU))


class Others(nn.Module):
    """Means over other axes than height and width."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1, keepdim=True) + x.flatten(2).mean(2)[:, :1, None, None] + x.mean()


def test_other_means_are_left_alone() -> None:
    module = Others()
    traced = symbolic_trace(module)
    lighten(module, traced.graph)
    assert not [node for node in traced.graph.nodes if node.target is mean]


class Middle(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_axes_2_and_3_of_more_than_pictures_stay_what_they_are() -> None:
    module = Middle()
    traced = symbolic_trace(module)
    lighten(module, traced.graph)
    traced.recompile()
    x = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(traced(x), x.mean((2, 3)))
