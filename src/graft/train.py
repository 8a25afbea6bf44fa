"""One array of runs: builds the stages from the typed configuration, and joins them.

This is also the Python API:

    from graft.config import from_dict
    from graft.train import load_dataset, resolve, train

    config = resolve(from_dict({...}))
    record = train(config, Path("outputs/mine/first"), load_dataset(config))
"""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from graft import backbones, machine, metrics, weights
from graft.backbones import Network
from graft.config import Dataset, RunConfig, to_dict
from graft.data import Examples, load
from graft.data.augment import views
from graft.data.batches import batches, order
from graft.data.check import check, leaks, message
from graft.data.pictures import Pictures, normalise
from graft.errors import ConfigError, DataError, Diverged, GraftError, RunError
from graft.fit.learner import Learner
from graft.fit.loop import Batch, Trunk, evaluate, fit, predictions
from graft.fit.losses import class_weights
from graft.identity import run_identity
from graft.progress import Progress
from graft.record import CHECKPOINT, Predictions, Record, RunFolder, read_run
from graft.trunk.cut import cut

log = logging.getLogger("graft")


class Follower(Protocol):
    """Told of each epoch's row of metrics: what tracking gives."""

    def epoch(self, row: Mapping[str, float]) -> None: ...


# --- configuration and data -----------------------------------------------------------------


def resolve(config: RunConfig) -> RunConfig:
    """The configuration with nothing left open: image size, mean and deviation, device.

    Raises:
        ConfigError: no such model or device, or a precision that the device has not.
    """
    backbone = backbones.find(config.model.name)
    model = replace(
        config.model,
        mean=config.model.mean or backbone.mean,
        std=config.model.std or backbone.std,
    )
    for key, values in (("mean", model.mean), ("std", model.std)):
        if values is None or len(values) != 3 or (key == "std" and min(values) <= 0):
            raise ConfigError(
                f"model.{key}={list(values or ())}: expected three numbers, one a channel"
                f"{', each above 0' if key == 'std' else ''}."
            )
    device = machine.device(config.device)
    if config.precision == "float16" and device.type == "cpu":
        raise ConfigError("precision=float16 needs a GPU. Use float32, or bfloat16, on a CPU.")
    size = config.image_size or config.dataset.own_image_size or backbone.input_size
    return replace(config, model=model, image_size=size, device=str(device))


@dataclass(frozen=True)
class LoadedDataset:
    """A dataset that was read, checked and split.

    Attributes:
        examples: the table.
        digest: of table and pictures.
        notes: what the user should know of it.
        skipped: pictures that were left out, each with its reason.
    """

    examples: Examples
    digest: str
    notes: tuple[str, ...]
    skipped: tuple[str, ...] = ()


def load_dataset(config: RunConfig) -> LoadedDataset:
    """Read the table, check every picture, split. Done once a process for each dataset.

    Raises:
        DataError: all that is wrong with table, pictures or split.
    """
    return _load_dataset(config.dataset, machine.cache_dir(config.output_dir), config.workers)


@functools.lru_cache(maxsize=4)
def _load_dataset(config: Dataset, cache: Path, workers: int | None) -> LoadedDataset:
    examples = load(config, cache)
    checked = check(
        list(examples.ids), examples.paths, None, cache,
        max_pixels=config.max_pixels, min_side=config.min_side, workers=workers,
    )  # fmt: skip
    digests = list(checked.digests)
    if checked.bad:
        said = message(checked.bad, len(examples.ids), config.on_bad_image)
        if config.on_bad_image == "error":
            raise DataError(said)
        log.warning("%s", said)
        bad = {one.id for one in checked.bad}
        digests = [d for d, name in zip(digests, examples.ids, strict=True) if name not in bad]
        examples = load(config, cache, drop=bad)
    names = [examples.classes[label] for label in examples.labels]
    problems, notes = leaks(list(examples.ids), digests, names, list(examples.parts()))
    if problems and config.on_leak == "error":
        raise DataError(
            "\n".join([*problems, "dataset.on_leak=warn goes on, with a warning in the report."])
        )
    every = (*examples.notes, *checked.notes, *notes, *problems)
    skipped = tuple(f"{one.id}: {one.reason}" for one in checked.bad)
    return LoadedDataset(examples, examples.digest_with(digests), every, skipped)


@functools.lru_cache(maxsize=2)
def _pictures(paths: tuple[Path, ...], size: int, workers: int | None) -> Pictures:
    return Pictures(paths, size, workers=workers)


def num_outputs(classes: Sequence[str]) -> int:
    """One logit for two classes, else one a class."""
    return 1 if len(classes) == 2 else len(classes)


# --- one run --------------------------------------------------------------------------------


def train(
    config: RunConfig,
    folder: Path,
    dataset: LoadedDataset,
    *,
    choices: Mapping[str, str] | None = None,
    followers: Sequence[Follower] = (),
) -> Record:
    """Train one run, test its best epoch once, and leave the record in `folder`.

    Args:
        config: resolved.
        folder: the run's own; what an earlier, unfinished attempt left there is replaced.
        dataset: from `load_dataset`.
        choices: what this run chose on each axis of its sweep, for the record.
        followers: told of each epoch.

    Raises:
        Diverged: the loss became NaN or infinite. The record says so too, as for any error.
    """
    machine.prepare_process(config)
    writer = RunFolder(folder)
    info = _first_info(config, dataset, choices or {})
    writer.write_config(to_dict(config))
    writer.write_environment(machine.environment(config.device))
    writer.write_run(info)
    started = time.monotonic()
    try:
        _train(config, writer, dataset, info, followers)
    except Exception as error:
        # Diverged is the one failure that a user can read off the numbers: it has its own word.
        status = "diverged" if isinstance(error, Diverged) else "failed"
        seconds = {"timings_s": {"total": round(time.monotonic() - started, 2)}}
        writer.write_run({**info, "status": status, "reason": _reason(error, config), **seconds})
        raise
    return read_run(folder)


def _train(
    config: RunConfig,
    writer: RunFolder,
    dataset: LoadedDataset,
    info: dict[str, Any],
    followers: Sequence[Follower],
) -> None:
    clock = _Clock()
    device = torch.device(config.device)
    examples = dataset.examples
    network = build_network(config, examples.classes, device)
    info["parameters"] = network.counts()
    info["weights"] = str(network.source)
    log.info("  %s", network.source)
    log.info("  trains {trainable:,} of {total:,} parameters".format(**info["parameters"]))
    halves = cut(network.module)
    source = _Source(config, examples, device)
    learner = Learner(
        writer.path.name, config, network, halves.tail if halves else network.module,
        steps_per_epoch=len(batches(examples.train, config.batch_size)), device=device,
        class_weights=class_weights(
            config.loss, examples.labels[examples.train], len(examples.classes)
        ),
    )  # fmt: skip
    trunk = Trunk(halves.trunk if halves else None, learner.autocast)
    if halves:
        log.info("  trunk: up to %s, run once a batch without gradients", halves.at)
    clock.mark("prepare")
    with Progress(writer.path.name, config.epochs) as bar:
        fit(
            [learner], trunk, epochs=config.epochs, train_batches=source.train,
            val_batches=lambda: source.of(examples.val), classes=examples.classes,
            watcher=_Watcher(writer, bar, followers),
        )  # fmt: skip
    if learner.error is not None:
        raise learner.error
    if not learner.best_epoch:
        raise RunError(
            f"metric={config.metric} has no value on this validation set in any epoch, most often "
            "because a class has no validation pictures: no epoch can be chosen by it."
        )
    clock.mark("fit")
    stored = _test(learner, trunk, source, writer)
    clock.mark("test")
    writer.write_predictions(stored)
    writer.write_examples(examples.frame())
    info["checkpoint_digest"] = weights.digest(writer.path / CHECKPOINT)
    info |= {"status": "completed", "best_epoch": learner.best_epoch, "timings_s": clock.seconds()}
    writer.write_run(info)


def build_network(config: RunConfig, classes: Sequence[str], device: torch.device) -> Network:
    """The run's network on its device, frozen as its strategy says."""
    assert config.image_size is not None
    network = backbones.build(
        config.model, num_outputs(classes), seed=config.seed, image_size=config.image_size
    )
    # Convolutions work on channels-last tensors; in the other order each one converts and, on two
    # cores, ran at half the speed at best (docs/decisions/0006).
    network.module.to(device).to(memory_format=torch.channels_last)
    network.freeze(config.strategy.trainable(list(network.blocks)))
    return network


def _test(learner: Learner, trunk: Trunk, source: "_Source", writer: RunFolder) -> Predictions:
    """Store the best epoch, read it back, and predict validation and test: the test's one use.

    Raises:
        GraftError: what was stored does not give the validation metric that selected it.
    """
    module = learner.network.module
    writer.write_checkpoint({**module.state_dict(), **learner.best_state})
    learner.network.restore(writer.path / CHECKPOINT)
    examples = source.examples
    parts = []
    for split, positions in (("val", examples.val), ("test", examples.test)):
        ((logits, labels),) = evaluate([learner], trunk, source.of(positions))
        found = predictions(logits, labels, examples.classes)
        names = np.full(len(positions), split, dtype=object)
        parts.append(replace(found, ids=examples.ids[positions], splits=names))
    best = learner.history[learner.best_epoch - 1]["val_accuracy"]
    again = metrics.scores(parts[0])["accuracy"]
    if learner.device.type == "cpu" and again != best:
        raise GraftError(
            f"The stored checkpoint has a validation accuracy of {again}, epoch "
            f"{learner.best_epoch} had {best}: please report this."
        )
    return _joined(parts)


def _joined(parts: Sequence[Predictions]) -> Predictions:
    return Predictions(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.splits for p in parts]),
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.scores for p in parts]),
        parts[0].classes,
    )


def as_input(pictures: torch.Tensor, config: RunConfig) -> torch.Tensor:
    """uint8 pictures [B, 3, S, S] as the network takes them: float32, normalised, channels last."""
    assert config.model.mean is not None and config.model.std is not None
    normalised = normalise(pictures, config.model.mean, config.model.std)
    return normalised.contiguous(memory_format=torch.channels_last)


class _Source:
    """Batches of one run: decoded pictures, viewed and normalised, on the device."""

    def __init__(self, config: RunConfig, examples: Examples, device: torch.device) -> None:
        assert config.image_size is not None
        self.config, self.examples, self.device = config, examples, device
        self._pictures = _pictures(examples.paths, config.image_size, config.workers)

    def train(self, epoch: int) -> tuple[int, Iterable[Batch]]:
        """Number of batches in an epoch (1-based), and the batches."""
        config, train_set = self.config, self.examples.train
        positions = order(
            self.examples.labels[train_set],
            seed=config.seed,
            epoch=epoch,
            is_balanced=config.sampling == "balanced",
        )
        look = views(
            config.augmentation, seed=config.seed, epoch=epoch, num_examples=len(train_set)
        )
        chunks = batches(positions, config.batch_size)
        return len(chunks), self._batches([train_set[c] for c in chunks], chunks, look)

    def of(self, examples: NDArray[np.int64]) -> Iterable[Batch]:
        """Batches of some examples, in their order, as they are."""
        chunks = batches(examples, self.config.batch_size)
        return self._batches(chunks, chunks, lambda pictures, _: pictures)

    def _batches(
        self,
        chunks: Sequence[NDArray[np.int64]],
        positions: Sequence[NDArray[np.int64]],
        look: Callable[[torch.Tensor, NDArray[np.int64]], torch.Tensor],
    ) -> Iterator[Batch]:
        decoded = self._pictures.batches(chunks)
        for pictures, chunk, where in zip(decoded, chunks, positions, strict=True):
            seen = look(pictures.to(self.device, non_blocking=True), where)
            labels = torch.from_numpy(self.examples.labels[chunk]).to(self.device)
            yield Batch(as_input(seen, self.config), labels)


class _Watcher:
    """Passes what the loop says on to the folder, the bar and tracking."""

    def __init__(self, writer: RunFolder, bar: Progress, followers: Sequence[Follower]) -> None:
        self._writer, self._bar, self._followers = writer, bar, followers

    def batch(self, epoch: int, done: int, total: int) -> None:
        self._bar.batch(epoch, done, total)

    def epoch(self, learner: Learner, row: dict[str, float]) -> None:
        self._writer.write_epochs(learner.history)
        self._bar.epoch(row)
        for follower in self._followers:
            follower.epoch(row)


class _Clock:
    """Seconds between marks."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._parts: dict[str, float] = {}

    def mark(self, name: str) -> None:
        now = time.monotonic()
        self._parts[name], self._last = round(now - self._last, 2), now

    def seconds(self) -> dict[str, float]:
        return {**self._parts, "total": round(time.monotonic() - self._start, 2)}


# --- facts for the record -------------------------------------------------------------------


def _first_info(
    config: RunConfig, dataset: LoadedDataset, choices: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "status": "running",
        "reason": None,
        "identity": run_identity(config),
        "choices": dict(choices),
        "classes": list(dataset.examples.classes),
        "metric": config.metric,
        "best_epoch": None,
        "parameters": None,
        "weights": None,
        "split": dataset.examples.shares(),
        "data_digest": dataset.digest,
        "notes": list(dataset.notes),
        "skipped": list(dataset.skipped),
        "timings_s": {},
    }


def _reason(error: Exception, config: RunConfig) -> str:
    """One line on why a run failed."""
    text = " ".join(str(error).split())
    if isinstance(error, GraftError):
        return text
    if isinstance(error, torch.OutOfMemoryError):
        peak = torch.cuda.max_memory_allocated(config.device) / 2**30
        return (
            f"out of GPU memory at batch_size={config.batch_size}, image_size={config.image_size} "
            f"(peak {peak:.1f} GiB). A smaller batch_size needs less."
        )
    return f"{type(error).__name__}: {text}"[:500]
