"""Optimizers are torch's; schedules have the values that their names promise."""

import subprocess
import sys

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
    assert type(built).__bases__ == (kind,)
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


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (Adam(lr=0.01, weight_decay=0.1), torch.optim.Adam),
        (AdamW(lr=0.01, weight_decay=0.1), torch.optim.AdamW),
        (SGD(lr=0.01, momentum=0.9, nesterov=True), torch.optim.SGD),
    ],
)
def test_it_steps_as_torchs_own(config: Adam | AdamW | SGD, kind: type) -> None:
    ours, theirs = torch.nn.Linear(20, 3), torch.nn.Linear(20, 3)
    theirs.load_state_dict(ours.state_dict())
    given = {"lr": 0.01, "fused": True, **{k: v for k, v in vars(config).items() if k != "lr"}}
    pairs = [(ours, optimizer(config, ours.parameters())),
             (theirs, kind(theirs.parameters(), **given))]  # fmt: skip
    x = torch.randn(8, 20)
    for module, one in pairs:
        for _ in range(5):
            one.zero_grad(set_to_none=True)
            module(x).square().sum().backward()
            one.step()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


WITHOUT_COMPILER = """
import sys, torch
from graft.config import Adam
from graft.fit.optim import optimizer
module = torch.nn.Linear(2, 2)
one = optimizer(Adam(lr=1e-3), module.parameters())
one.zero_grad()
module(torch.ones(1, 2)).sum().backward()
one.step()
sys.exit("torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_a_step_does_not_import_the_compiler() -> None:
    assert subprocess.run([sys.executable, "-c", WITHOUT_COMPILER]).returncode == 0
