"""Optimizers are torch's; schedules have the values that their names promise."""

import pytest
import torch

from graft.config import SGD, Adam, AdamW, Constant, Cosine
from graft.fit.optim import factor, optimizer


@pytest.mark.parametrize(
    ("config", "kind"),
    [(Adam(), torch.optim.Adam), (AdamW(), torch.optim.AdamW), (SGD(), torch.optim.SGD)],
)
def test_a_config_builds_the_optimizer_of_its_name(
    config: Adam | AdamW | SGD, kind: type[torch.optim.Optimizer]
) -> None:
    built = optimizer(config, [torch.nn.Parameter(torch.ones(2))])
    assert type(built) is kind
    assert built.defaults["lr"] == config.lr
    assert built.defaults["weight_decay"] == config.weight_decay


@pytest.mark.parametrize(
    ("schedule", "epoch", "expected"),
    [
        (Constant(), 0.0, 1.0),
        (Constant(), 9.9, 1.0),
        (Constant(warmup_epochs=2), 1.0, 0.5),
        (Constant(warmup_epochs=2), 2.0, 1.0),
        (Cosine(), 0.0, 1.0),
        (Cosine(), 5.0, 0.5),
        (Cosine(), 10.0, 0.0),
        (Cosine(final_fraction=0.2), 10.0, 0.2),
        (Cosine(warmup_epochs=2), 1.0, 0.5),
        (Cosine(warmup_epochs=2), 6.0, 0.5),
    ],
)
def test_the_share_of_the_rate(schedule: Constant | Cosine, epoch: float, expected: float) -> None:
    assert factor(schedule, 10)(epoch) == pytest.approx(expected)
