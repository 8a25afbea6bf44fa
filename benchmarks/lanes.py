"""What two lanes are worth on a CPU: the same work, one piece after the other and two at once.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=3000 python benchmarks/lanes.py

Networks of the catalog with random weights on random pictures. `trunk`: pictures a second, in parts
of 16. `step`: milliseconds a step of each of two runs, batches of 32. Medians of the rounds, in
alternation, with the least and the largest; the ratio is that of the same round. A line of JSON
each. The table of docs/decisions/0016 comes from this.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable

import torch

from graft import machine, train
from graft.config import Adam, EmojiDataset, Model, RunConfig
from graft.fit.learner import Learner, autocast
from graft.lanes import Lanes
from graft.strategies import FineTune, Full, Strategy
from graft.trunk.cut import Cut, cut
from graft.trunk.run import Frozen, Pace

CPU, OUTPUTS = torch.device("cpu"), ("one", "two")
PART, BATCH = 16, 32
ROUND_S = 1.0

CASES: list[tuple[str, Strategy, int]] = [
    ("efficientnet_lite0", FineTune(1), 128),
    ("mobilenet_v3_small", FineTune(1), 128),
    ("resnet18", FineTune(1), 224),
    ("resnet50", FineTune(1), 128),
    ("vit_b_16", FineTune(1), 224),
    ("vgg16", FineTune(1), 64),
    ("efficientnet_lite0", Full(), 128),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", default="", help="of the cases, those of these names")
    options = parser.parse_args()
    rounds, models = options.rounds, options.models.split(",") if options.models else ()
    for name, strategy, side in CASES:
        if models and name not in models:
            continue
        learners, own, inputs = _two(name, strategy, side)
        about = {"model": name, "strategy": str(strategy), "px": side}
        weights = sum(p.numel() for p in learners[0].tail.parameters() if p.requires_grad)
        _say(about | {"what": "step, ms", "weights": weights}, *_steps(learners, inputs, rounds))
        if own is not None:
            learners[0].network.eval()
            _say(about | {"what": "trunk, pictures/s"}, *_trunk(own, side, rounds))


def _two(
    name: str, strategy: Strategy, side: int
) -> tuple[list[Learner], Cut | None, tuple[torch.Tensor, ...]]:
    config = train.resolve(
        RunConfig(
            dataset=EmojiDataset(), model=Model(name=name, weights="none"), strategy=strategy,
            optimizer=Adam(lr=1e-4), image_size=side, device="cpu",
        )
    )  # fmt: skip
    machine.prepare_process(config)
    first = train.build_network(config, OUTPUTS, CPU)
    own = cut(first.module)
    inputs: tuple[torch.Tensor, ...] = (_pictures(BATCH, side),)
    if own is not None:
        first.eval()
        with torch.no_grad():
            inputs = tuple(t.clone() for t in own.trunk(*inputs))
    learners = []
    for network in (first, first.twin()):
        network.train()
        tail = own.tail_of(network.module) if own else network.module
        learners.append(Learner(name, config, network, tail, steps_per_epoch=10, device=CPU))
    return learners, own, inputs


def _steps(
    learners: list[Learner], inputs: tuple[torch.Tensor, ...], rounds: int
) -> tuple[list[float], list[float]]:
    labels = torch.arange(BATCH) % 2
    count = 1

    def made(num_lanes: int) -> float:
        started = time.perf_counter()
        with Lanes(num_lanes) as lanes:
            for _ in range(count):
                for number, learner in enumerate(learners):
                    lanes.do(number, functools.partial(learner.step, inputs, labels))
            lanes.wait()
        return 1e3 * (time.perf_counter() - started) / count / len(learners)

    made(1)
    count = max(2, int(1e3 * ROUND_S / made(1) / len(learners)))
    return _alternating(made, rounds)


def _trunk(own: Cut, side: int, rounds: int) -> tuple[list[float], list[float]]:
    pictures = _pictures(4 * PART, side)
    plainly = functools.partial(autocast, "float32", CPU)

    def run(num_lanes: int) -> float:
        pace = Pace((PART,), must_be_equal=True, num_lanes=num_lanes)
        frozen = Frozen(own.trunk, plainly, pace, is_for_storing=True)
        started = time.perf_counter()
        for _ in range(count):
            frozen(pictures)
        return count * len(pictures) / (time.perf_counter() - started)

    count = 1
    run(2)
    count = max(1, int(ROUND_S * run(2) / len(pictures)))
    return _alternating(run, rounds)


def _alternating(measured: Callable[[int], float], rounds: int) -> tuple[list[float], list[float]]:
    one: list[float] = []
    two: list[float] = []
    for number in range(rounds):
        for num_lanes in (1, 2) if number % 2 else (2, 1):
            (one if num_lanes == 1 else two).append(measured(num_lanes))
    return one, two


def _say(about: dict[str, object], one: list[float], two: list[float]) -> None:
    is_time = str(about["what"]).endswith("ms")
    ratios = [a / b if is_time else b / a for a, b in zip(one, two, strict=True)]
    found = {
        name: [round(x, 2) for x in (statistics.median(xs), min(xs), max(xs))]
        for name, xs in (("one lane", one), ("two lanes", two), ("times as fast", ratios))
    }
    print(json.dumps(about | found), flush=True)


def _pictures(count: int, side: int) -> torch.Tensor:
    made = torch.randn(count, 3, side, side)
    return made.contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
