"""Small heads trained one after the other, and as one stack: milliseconds for a step of all.

    python benchmarks/stacks.py

A step is what graft does for a batch of 32 stored activations: forward, loss, backward, Adam; fused
Adam for a head alone, `graft.fit.stack`'s for a stack. Above `MAX_WEIGHTS` weights graft stacks no
more: the last shapes are around it. Each measurement is a line of JSON.
"""

import importlib
import os

if "OMP_WAIT_POLICY" not in os.environ:  # before torch, which looks up once if threads sleep
    importlib.import_module("graft")

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.fx import symbolic_trace

from graft import machine
from graft.config import RunConfig, from_dict
from graft.fit.learner import Learner
from graft.fit.stack import Stack

BATCH = 32
SMALL: dict[str, tuple[int, ...]] = {
    "1280 -> 1": (1280, 1),
    "1280 -> 10": (1280, 10),
    "576 -> 1024 -> 2": (576, 1024, 2),
}
# By number of weights: 0.1, 1 and 4 million.
LARGE: dict[str, tuple[int, ...]] = {
    "1280 -> 78 -> 1": (1280, 78, 1),
    "1280 -> 780 -> 1": (1280, 780, 1),
    "1280 -> 3120 -> 1": (1280, 3120, 1),
}
COUNTS = {**dict.fromkeys(SMALL, (1, 2, 4, 8, 32)), **dict.fromkeys(LARGE, (1, 2, 4, 8))}


@dataclass
class _Whole:
    """A network that is nothing but its head."""

    module: nn.Module

    def train(self) -> None:
        self.module.train()

    def eval(self) -> None:
        self.module.eval()

    def restore(self, path: Path) -> None:
        raise NotImplementedError


def main() -> None:
    options = _options()
    machine.keep_memory()
    device = torch.device(machine.device(options.device))
    for name, widths in {**SMALL, **LARGE}.items():
        for count in COUNTS[name]:
            looped, stacked = measured(widths, count, device, options.seconds)
            weights = sum(p.numel() for p in _head(widths).parameters())
            print(
                json.dumps(
                    {
                        "head": name,
                        "weights": weights,
                        "heads": count,
                        "looped_ms": looped,
                        "stacked_ms": stacked,
                        "device": str(device),
                    }
                ),
                flush=True,
            )


def measured(
    widths: tuple[int, ...], count: int, device: torch.device, seconds: float
) -> tuple[list[float], list[float]]:
    """Milliseconds for one step of all heads, one by one and stacked; five of each, in turn."""
    x = torch.randn(BATCH, widths[0], device=device)
    labels = torch.randint(max(2, widths[-1]), (BATCH,), device=device)
    alone = [_learner(widths, device) for _ in range(count)]
    together = [_learner(widths, device) for _ in range(count)]
    stack = Stack(together, [name for name, _ in together[0].tail.named_children()])
    among = set(together)

    def loop() -> None:
        for learner in alone:
            learner.step((x,), labels)

    def one() -> None:
        stack.step((x,), labels, among)

    found: list[tuple[float, float]] = []
    for _ in range(5):
        found.append((_per_step(loop, device, seconds), _per_step(one, device, seconds)))
    return [a for a, _ in found], [b for _, b in found]


def _per_step(step: Callable[[], None], device: torch.device, seconds: float) -> float:
    """Median milliseconds of steps made for so many seconds, after three to warm up."""
    times = []
    deadline = time.perf_counter() + seconds
    for number in range(100_000):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ended = time.perf_counter()
        if number >= 3:
            times.append(1e3 * (ended - started))
        if ended > deadline and len(times) >= 3:
            break
    return round(statistics.median(times), 4)


def _learner(widths: tuple[int, ...], device: torch.device) -> Learner:
    tail = symbolic_trace(_head(widths)).to(device)
    tail.train()
    return Learner("head", _config(), _Whole(tail), tail, steps_per_epoch=100, device=device)


def _head(widths: tuple[int, ...]) -> nn.Sequential:
    """One layer, or two with what MobileNet has between them."""
    first = nn.Linear(widths[0], widths[1])
    if len(widths) == 2:
        return nn.Sequential(first)
    return nn.Sequential(first, nn.Hardswish(), nn.Dropout(0.2), nn.Linear(widths[1], widths[2]))


def _config() -> RunConfig:
    return from_dict(
        {
            "dataset": {"_target_": "graft.config.EmojiDataset"},
            "model": {"name": "efficientnet_lite0"},
            "strategy": {"_target_": "graft.strategies.HeadOnly"},
            "optimizer": {"_target_": "graft.config.Adam"},
        }
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.2, help="of each of the five repeats")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
