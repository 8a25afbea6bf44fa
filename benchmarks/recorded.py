"""What recording a training step (CUDA graphs) is worth on a GPU: milliseconds a step.

    python benchmarks/recorded.py

Networks of the catalog with random weights, on random activations, batches of 32. "Asked for" is
`cuda_graphs=false`: Python asks for every kernel. Medians of five rounds in alternation, with the
least and the largest; a line of JSON each.
"""

import argparse
import json
import statistics
import sys
import time

import torch

from graft import machine, train
from graft.config import Adam, EmojiDataset, Model, RunConfig
from graft.fit.learner import Learner
from graft.strategies import FineTune, Full, HeadOnly, Strategy
from graft.trunk.cut import cut

BATCH, OUTPUTS = 32, ("one", "two")
STEPS, ROUNDS = 40, 5

CASES: list[tuple[str, Strategy]] = [
    ("efficientnet_lite0", FineTune(1)),
    ("resnet18", FineTune(1)),
    ("resnet50", FineTune(1)),
    ("vit_b_16", FineTune(1)),
    ("vgg16", HeadOnly()),
    ("vgg16", FineTune(1)),
    ("efficientnet_lite0", Full()),
    ("resnet18", Full()),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = torch.device(machine.device(options.device))
    if device.type != "cuda":
        print("Steps are recorded on a GPU only: both numbers are of the same.", file=sys.stderr)
    for name, strategy in CASES:
        asked, recorded = (_step(name, strategy, options, device, is_on) for is_on in (False, True))
        times: dict[str, list[float]] = {"asked": [], "recorded": []}
        for _ in range(ROUNDS):
            times["asked"].append(_per_step_ms(asked, device))
            times["recorded"].append(_per_step_ms(recorded, device))
        found = {
            kind: [round(x, 3) for x in (statistics.median(ms), min(ms), max(ms))]
            for kind, ms in times.items()
        }
        about = {"model": name, "strategy": str(strategy), "precision": options.precision}
        print(json.dumps(about | found), flush=True)


def _step(
    name: str, strategy: Strategy, options: argparse.Namespace, device: torch.device, is_on: bool
) -> "Step":
    config = train.resolve(
        RunConfig(
            dataset=EmojiDataset(), model=Model(name=name, weights="none"), strategy=strategy,
            optimizer=Adam(lr=1e-4), image_size=224, precision=options.precision,
            device=str(device), cuda_graphs=is_on,
        )
    )  # fmt: skip
    machine.prepare_process(config)
    network = train.build_network(config, OUTPUTS, device)
    pictures = torch.randn(BATCH, 3, 224, 224, device=device)
    inputs: tuple[torch.Tensor, ...] = (pictures.to(memory_format=torch.channels_last),)
    own = cut(network.module)
    if own is not None:
        network.eval()
        with torch.no_grad():
            inputs = tuple(t.clone() for t in own.trunk(*inputs))
    tail = own.tail_of(network.module) if own else network.module
    network.train()
    learner = Learner(name, config, network, tail, steps_per_epoch=STEPS, device=device)
    return Step(learner, inputs, torch.randint(2, (BATCH,), device=device))


class Step:
    def __init__(
        self, learner: Learner, inputs: tuple[torch.Tensor, ...], labels: torch.Tensor
    ) -> None:
        self._learner, self._inputs, self._labels = learner, inputs, labels

    def __call__(self) -> None:
        self._learner.step(self._inputs, self._labels)


def _per_step_ms(step: Step, device: torch.device) -> float:
    for _ in range(5):
        step()
    _wait(device)
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    _wait(device)
    return 1e3 * (time.perf_counter() - started) / STEPS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
