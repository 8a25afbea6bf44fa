"""A run while it trains: its random numbers are its own, whoever trains beside it."""

import time
from functools import partial

import pytest
import torch
from tests.fit.plain import PlainNetwork
from torch import nn
from torch.nn import functional as F

from graft.config import Adam, CsvDataset, Model, RunConfig
from graft.fit.learner import Learner
from graft.lanes import Lanes
from graft.strategies import HeadOnly

CPU = torch.device("cpu")


class Tail(nn.Module):
    """Draws, lets others run, and draws again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(x, 0.3, self.training)
        time.sleep(0.002)
        out: torch.Tensor = self.linear(F.dropout(x, 0.3, self.training))
        return out


def new_learner(seed: int) -> Learner:
    torch.manual_seed(0)
    net = PlainNetwork(Tail())
    config = RunConfig(
        dataset=CsvDataset(csv="", images="", target=""), model=Model(name="resnet18"),
        strategy=HeadOnly(), optimizer=Adam(lr=1e-2), seed=seed,
    )  # fmt: skip
    return Learner("", config, net, net.module, steps_per_epoch=10, device=CPU)


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=str)
def test_two_that_draw_at_once_draw_what_they_would_alone(seeds: tuple[int, int]) -> None:
    batch = (torch.randn(16, 8, generator=torch.Generator().manual_seed(1)),)
    labels = torch.arange(16) % 2
    alone = [new_learner(seed) for seed in seeds]
    for learner in alone:
        for _ in range(10):
            learner.step(batch, labels)
    beside = [new_learner(seed) for seed in seeds]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with Lanes(2) as two:
        for _ in range(10):
            for lane, learner in enumerate(beside):
                two.do(lane, partial(learner.step, batch, labels))
        two.wait()
    for one, other in zip(alone, beside, strict=True):
        assert all(map(torch.equal, one.tail.parameters(), other.tail.parameters()))
    # What anybody else draws is what it would have been.
    assert torch.equal(torch.rand(3), expected)


def test_a_step_that_fails_gives_the_random_numbers_back() -> None:
    learner = new_learner(0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with pytest.raises(RuntimeError):
        learner.step((torch.randn(16, 9, generator=torch.Generator()),), torch.arange(16) % 2)
    assert torch.equal(torch.rand(3), expected)
    other = new_learner(1)  # and nobody waits for it
    other.step((torch.ones(16, 8),), torch.arange(16) % 2)
    assert other.steps == 1
