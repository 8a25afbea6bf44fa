"""A sweep as a notebook does it: the baseline. Nothing of graft's training code takes part.

    python benchmarks/plain_loop.py --strategies head_only,fine_tune --rates 1e-3,1e-4
    python benchmarks/plain_loop.py --tuned
    python benchmarks/plain_loop.py --dataset random --counts 240,30,30 --model vgg16 --weights none

From graft come the pictures' paths, labels and parts, and the network with its weights and frozen
blocks, so that the work is the same. One run after the other, each from the start.

plain     Every picture is opened, decoded and resized with Pillow in every epoch of every run, in
          a DataLoader without workers; the whole network goes forward in every batch; Adam as torch
          gives it; PyTorch's own memory order, allocator and waiting threads.
--tuned   What someone does who has read the tuning guides: pictures decoded once, by threads, and
          kept; channels-last; fused Adam; no reading of the loss in each step; freed memory kept
          and threads that sleep while they wait, as graft has them. Still the whole network in
          every batch, one run after the other.

Each run is a line of JSON:
    run_s           from the network's building to the end of the last epoch
    decode_s        of that, decoding once: with --tuned, in the first run
    epoch_s         of that, each epoch: training and validation
    val_accuracy    after each epoch
    peak_mb         the process's largest memory so far

On a GPU torch's defaults hold here, TF32 in convolutions included; graft's float32 is without.
"""

import importlib
import sys

if "--tuned" in sys.argv:  # before torch, which looks up once whether waiting threads sleep
    importlib.import_module("graft")

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pictures
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from graft import backbones, machine
from graft.config import RunConfig, from_dict
from graft.data import Examples, load

BATCH = 32
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]
Positions = NDArray[np.int64]
STRATEGIES = {"head_only": "HeadOnly", "fine_tune": "FineTune", "full": "Full"}


@dataclass(frozen=True)
class Task:
    """Pictures, labels and parts, and how the network wants to see them."""

    config: RunConfig
    examples: Examples
    train: Positions
    val: Positions
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.examples.paths


class Feed(Protocol):
    """Batches of normalised pictures [B, 3, S, S] and labels [B]."""

    def train(self) -> Batches: ...
    def val(self) -> Batches: ...


def main() -> None:
    options = _options()
    if options.tuned:
        machine.keep_memory()
        torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as folder:
        task = _task(options, Path(folder))
        started = time.perf_counter()
        feed: Feed = _Kept(task) if options.tuned else _Decoding(task)
        decode_s = time.perf_counter() - started
        for strategy in options.strategies.split(","):
            for rate in map(float, options.rates.split(",")):
                result = {
                    "run_s": 0.0,
                    "decode_s": round(decode_s, 3),
                    **run(task, feed, options, strategy, rate),
                    "device": str(task.device),
                }
                result["run_s"] = round(time.perf_counter() - started, 3)
                print(json.dumps(result), flush=True)
                started, decode_s = time.perf_counter(), 0.0


def run(
    task: Task, feed: Feed, options: argparse.Namespace, strategy: str, rate: float
) -> dict[str, Any]:
    """One run, from a new network on."""
    torch.manual_seed(0)
    network = _network(task, options, strategy)
    trained = [p for p in network.module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=rate, fused=options.tuned or None)
    epoch_s, accuracies = [], []
    for _ in range(options.epochs):
        epoch_started = time.perf_counter()
        network.train()
        _train(network.module, optimizer, feed.train(), reads_loss=not options.tuned)
        network.eval()
        accuracies.append(round(_accuracy(network.module, feed.val()), 4))
        epoch_s.append(round(time.perf_counter() - epoch_started, 3))
    return {
        "strategy": strategy,
        "rate": rate,
        "epoch_s": epoch_s,
        "val_accuracy": accuracies,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
    }


def _train(
    module: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, *, reads_loss: bool
) -> None:
    criterion, total = nn.BCEWithLogitsLoss(), 0.0
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = criterion(module(inputs)[:, 0], labels.float())
        loss.backward()
        optimizer.step()
        if reads_loss:  # as notebooks do: on a GPU it waits for every step
            total += loss.item() * len(labels)


def _accuracy(module: nn.Module, batches: Batches) -> float:
    right, count = 0, 0
    with torch.no_grad():
        for inputs, labels in batches:
            right += int(((module(inputs)[:, 0] >= 0) == labels.bool()).sum())
            count += len(labels)
    return right / count


# --- pictures -------------------------------------------------------------------------------


class _Files(Dataset[tuple[torch.Tensor, int]]):
    """Opens and decodes a picture whenever it is asked for."""

    def __init__(self, task: Task, positions: Positions, *, flips: bool) -> None:
        self._task, self._positions = task, positions
        self._transform: Callable[[Image.Image], torch.Tensor] = transforms.Compose(
            [
                transforms.Resize((task.side, task.side)),
                *([transforms.RandomHorizontalFlip()] if flips else []),
                transforms.ToTensor(),
                transforms.Normalize(task.mean, task.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        at = self._positions[index]
        with Image.open(self._task.paths[at]) as picture:
            return self._transform(picture.convert("RGB")), int(self._task.examples.labels[at])


class _Decoding:
    """Every picture from its file, every time."""

    def __init__(self, task: Task) -> None:
        self._device = task.device
        train, val = _Files(task, task.train, flips=True), _Files(task, task.val, flips=False)
        self._train = DataLoader(train, batch_size=BATCH, shuffle=True, num_workers=0)
        self._val = DataLoader(val, batch_size=BATCH, num_workers=0)

    def train(self) -> Batches:
        return self._moved(self._train)

    def val(self) -> Batches:
        return self._moved(self._val)

    def _moved(self, loader: DataLoader[tuple[torch.Tensor, int]]) -> Batches:
        for inputs, labels in loader:
            yield inputs.to(self._device), labels.to(self._device)


class _Kept:
    """Pictures decoded once, by threads, and kept on the device: uint8 [N, 3, S, S]."""

    def __init__(self, task: Task) -> None:
        self._task = task
        used = np.concatenate([task.train, task.val])
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            decoded = list(pool.map(self._decoded, used))
        self._pictures = torch.stack(decoded).to(task.device)
        self._labels = torch.from_numpy(task.examples.labels[used]).to(task.device)
        self._mean, self._std = (
            torch.tensor(values, device=task.device)[:, None, None] * 255
            for values in (task.mean, task.std)
        )

    def train(self) -> Batches:
        for chosen in torch.randperm(len(self._task.train)).split(BATCH):
            found = self._pictures[chosen.to(self._task.device)]
            is_flipped = torch.rand(len(found), 1, 1, 1, device=found.device) < 0.5
            yield self._normalised(torch.where(is_flipped, found.flip(-1), found)), self._of(chosen)

    def val(self) -> Batches:
        first = len(self._task.train)
        for chosen in torch.arange(first, len(self._pictures)).split(BATCH):
            yield self._normalised(self._pictures[chosen.to(self._task.device)]), self._of(chosen)

    def _of(self, chosen: torch.Tensor) -> torch.Tensor:
        return self._labels[chosen.to(self._task.device)]

    def _normalised(self, found: torch.Tensor) -> torch.Tensor:
        inputs = (found.float() - self._mean) / self._std
        return inputs.contiguous(memory_format=torch.channels_last)

    def _decoded(self, at: int) -> torch.Tensor:
        side = self._task.side
        with Image.open(self._task.paths[at]) as picture:
            resized = picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


# --- the same work as graft's ---------------------------------------------------------------


def _task(options: argparse.Namespace, folder: Path) -> Task:
    config = from_dict(_values(options, folder))
    backbone = backbones.find(config.model.name)
    examples = load(config.dataset, machine.cache_dir())
    side = options.image_size or config.dataset.own_image_size or backbone.input_size
    keep = min(1.0, (options.limit or len(examples.ids)) / len(examples.ids))
    random = np.random.default_rng(0)
    train, val = (random.permutation(p)[: round(keep * len(p))]
                  for p in (examples.train, examples.val))  # fmt: skip
    return Task(
        config, examples, train, val, side,
        options.mean or backbone.mean, options.std or backbone.std,
        torch.device(machine.device(options.device)),
    )  # fmt: skip


def _values(options: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    """The plain values of a configuration: the dataset's and the network's are used."""
    dataset: dict[str, Any] = {"_target_": "graft.config.EmojiDataset"}
    if options.dataset == "random":
        folder = options.folder or temporary
        if not (folder / pictures.TABLE).exists():
            pictures.write_random(folder, options.counts, options.picture_size)
        dataset = {
            "_target_": "graft.config.CsvDataset", "csv": str(folder / pictures.TABLE),
            "images": str(folder), "target": "label", "split": "split",
        }  # fmt: skip
    return {
        "dataset": dataset,
        "model": {"name": options.model, "weights": options.weights},
        "strategy": {"_target_": "graft.strategies.HeadOnly"},
        "optimizer": {"_target_": "graft.config.Adam"},
    }


def _network(task: Task, options: argparse.Namespace, strategy: str) -> backbones.Network:
    from graft import strategies

    network = backbones.build(task.config.model, 1, seed=0, image_size=task.side)
    order = torch.channels_last if options.tuned else torch.preserve_format
    network.module.to(task.device).to(memory_format=order)
    chosen = getattr(strategies, STRATEGIES[strategy])()
    network.freeze(chosen.trainable(list(network.blocks)))
    return network


def _options() -> argparse.Namespace:
    def numbers(text: str) -> tuple[float, ...]:
        return tuple(map(float, text.split(",")))

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tuned", action="store_true", help="the strong baseline: see above")
    add("--strategies", default="head_only,fine_tune", help="of head_only, fine_tune, full")
    add("--rates", default="1e-3,1e-4", help="learning rates")
    add("--epochs", type=int, default=10)
    add("--model", default="efficientnet_lite0")
    add("--weights", default="imagenet", help="or none, or a file")
    add("--image-size", type=int, help="side in pixels; default: the dataset's or the network's")
    add("--mean", type=numbers, help="per channel; default: the network's")
    add("--std", type=numbers)
    add("--device", default="auto")
    add("--limit", type=int, help="use so many pictures, each part in proportion")
    add("--dataset", choices=["emoji", "random"], default="emoji")
    add("--folder", type=Path, help="of made pictures, kept there; default: a temporary one")
    add("--counts", default="240,30,30", type=lambda text: tuple(map(int, text.split(","))),
        help="made pictures for training, validation and test")  # fmt: skip
    add("--picture-size", type=pictures.parse_size, default="178x218", help="of made pictures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
