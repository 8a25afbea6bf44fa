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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from graft import backbones, machine, metrics, record, weights
from graft.backbones import Network
from graft.config import Dataset, RunConfig, to_dict
from graft.data import Examples, load
from graft.data.check import check, leaks, message
from graft.data.pictures import available_bytes
from graft.errors import ConfigError, DataError, Diverged, GraftError, RunError
from graft.fit.learner import Learner, autocast
from graft.fit.loop import can_stack, evaluate, fit, predictions
from graft.fit.losses import class_weights
from graft.identity import digest, run_identity
from graft.progress import Progress, in_words
from graft.record import CHECKPOINT, Predictions, Record, RunFolder, read_run
from graft.runlog import RunLog
from graft.supply import Supply, supply, trunk_settings
from graft.trunk.cut import Cut, cut

log = logging.getLogger("graft")


class Follower(Protocol):
    """Told of rows of metrics, one an epoch: what tracking gives."""

    def epochs(self, rows: Sequence[Mapping[str, float]]) -> None: ...


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
        digests: [N] of the pictures' files, in the table's order.
        notes: what the user should know of it.
        skipped: pictures that were left out, each with its reason.
    """

    examples: Examples
    digest: str
    digests: tuple[str, ...]
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
    return LoadedDataset(examples, examples.digest_with(digests), tuple(digests), every, skipped)


def num_outputs(classes: Sequence[str]) -> int:
    """One logit for two classes, else one a class."""
    return 1 if len(classes) == 2 else len(classes)


# --- an array of runs -----------------------------------------------------------------------

# Runs that are trained side by side at most: what they hold in memory grows with their number.
MAX_SIDE_BY_SIDE = 64
# How long a run's rows of metrics may wait before they are written and sent.
WRITE_S = 1.0


@dataclass(frozen=True)
class Member:
    """One run of an array.

    Attributes:
        config: resolved.
        folder: the run's own; what an earlier, unfinished attempt left there is replaced.
        choices: what this run chose on each axis of its sweep, for the record.
        followers: told of each epoch.
    """

    config: RunConfig
    folder: Path
    choices: Mapping[str, str] = field(default_factory=dict)
    followers: Sequence[Follower] = ()


# How a run ended: its record, or what ended it; the record then says so too.
Outcome = Record | Exception


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
        config, folder, choices, followers: see `Member`.
        dataset: from `load_dataset`.

    Raises:
        Diverged: the loss became NaN or infinite. The record says so too, as for any error.
    """
    member = Member(config, folder, choices or {}, followers)
    (outcome,) = train_array([member], dataset)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def array_key(config: RunConfig) -> str:
    """Equal for runs that one array can hold: on the same batches, through the same trunk.

    They may differ in optimizer, schedule, loss, epochs, patience, metric, dropout, and in the
    first values of the head.
    """
    values = {**trunk_settings(config), "strategy": to_dict(config)["strategy"]}
    return digest([values, config.sampling, config.seed, config.batch_size])


def train_array(
    members: Sequence[Member],
    dataset: LoadedDataset,
    *,
    beside: Sequence[RunConfig] = (),
    ended: Callable[[Member, Outcome], None] = lambda member, outcome: None,
) -> list[Outcome]:
    """Train runs of equal `array_key`, each to its own record; one that fails leaves the others.

    Args:
        dataset: theirs, from `load_dataset`.
        beside: runs of other arrays of the sweep, one each: activations that they will want of the
            same pictures are computed in the same pass.
        ended: called as soon as a run has ended, with its outcome.

    Returns:
        Their outcomes, in order.
    """
    machine.prepare_process(members[0].config)
    with ExitStack() as stack:
        runs = [_Run(member, dataset, ended, stack) for member in members]
        try:
            _train(runs, dataset, beside)
        except Exception as error:  # of what they share
            for run in runs:
                if run.outcome is None:
                    run.fail(error)
        return [run.outcome for run in runs if run.outcome is not None]


def build_network(config: RunConfig, classes: Sequence[str], device: torch.device) -> Network:
    """The run's network on its device, frozen as its strategy says."""
    assert config.image_size is not None
    seed = config.seed if config.model.head_seed is None else config.model.head_seed
    network = backbones.build(
        config.model, num_outputs(classes), seed=seed, image_size=config.image_size
    )
    # Convolutions work on channels-last tensors; in the other order each one converts and, on two
    # cores, ran at half the speed at best (docs/decisions/0006).
    network.module.to(device).to(memory_format=torch.channels_last)
    network.freeze(config.strategy.trainable(list(network.blocks)))
    return network


class _Run:
    """One member while it is trained: its folder, its log, its time, its end."""

    def __init__(
        self,
        member: Member,
        dataset: LoadedDataset,
        ended: Callable[[Member, Outcome], None],
        stack: ExitStack,
    ) -> None:
        self.member, self.config, self.name = member, member.config, member.folder.name
        self.outcome: Outcome | None = None
        self.seconds: dict[str, float] = {}
        self._ended, self._started = ended, time.monotonic()
        self.writer = RunFolder(member.folder)
        self.log = stack.enter_context(RunLog(member.folder / record.LOG))
        self.info = _first_info(self.config, dataset, member.choices)
        self.writer.write_config(to_dict(self.config))
        self.writer.write_environment(machine.environment(self.config.device))
        self.writer.write_run(self.info)

    def spent(self, what: str, seconds: float) -> None:
        """What runs spend together is shared out evenly among them before it comes here."""
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def complete(self, best_epoch: int) -> None:
        self.info["checkpoint_digest"] = weights.digest(self.writer.path / CHECKPOINT)
        self.info |= {"status": "completed", "best_epoch": best_epoch}
        self._end()
        self.outcome = read_run(self.writer.path)
        self._ended(self.member, self.outcome)

    def fail(self, error: Exception) -> None:
        # Diverged is the one failure that a user can read off the numbers: it has its own word.
        status = "diverged" if isinstance(error, Diverged) else "failed"
        self.info |= {"status": status, "reason": _reason(error, self.config)}
        with suppress(OSError):  # most likely what it failed of; the caller is told all the same
            self._end()
        self.outcome = error
        self._ended(self.member, error)

    def _end(self) -> None:
        spent = {what: round(seconds, 2) for what, seconds in self.seconds.items()}
        self.info["timings_s"] = {**spent, "total": round(sum(self.seconds.values()), 2)}
        self.writer.write_run(self.info)


def _train(runs: Sequence[_Run], dataset: LoadedDataset, beside: Sequence[RunConfig]) -> None:
    config, examples = runs[0].config, dataset.examples
    with _sharing(runs, "prepare"):
        device = torch.device(config.device)
        network = build_network(config, examples.classes, device)
        others = _cuts_beside(network, config, beside)
        own = cut(network.module)
        log.info("  %s", network.source)
        log.info("  trains {trainable:,} of {total:,} parameters".format(**network.counts()))
    if own is None or beside or not can_stack(own.tail, config):
        machine.import_ahead("torch._dynamo")  # torch.optim takes a second for it at its first step
    with _sharing(runs, "trunk"):
        fed = supply(
            config, examples, dataset.digests, network.module, own,
            autocast=functools.partial(autocast, config.precision, device), beside=others,
        )  # fmt: skip
        log.info("  %s", fed.origin.line())
    try:
        for group in _groups(runs, fed, own, network):
            _train_group(group, fed, own, network if group[0] is runs[0] else None)
    finally:
        fed.close()


def _cuts_beside(network: Network, config: RunConfig, beside: Sequence[RunConfig]) -> list[Cut]:
    """Where the network is cut for other arrays that are fed from the same pictures."""
    wanted = trunk_settings(config)
    strategies = {
        other.strategy for other in beside
        if other.strategy != config.strategy and trunk_settings(other) == wanted
    }  # fmt: skip
    found = []
    for strategy in sorted(strategies, key=repr):
        network.freeze(strategy.trainable(list(network.blocks)))
        found.append(cut(network.module))
    network.freeze(config.strategy.trainable(list(network.blocks)))
    return [one for one in found if one is not None]


def _groups(
    runs: Sequence[_Run], fed: Supply, own: Cut | None, network: Network
) -> Iterator[Sequence[_Run]]:
    """Runs to train side by side: where they share something in each batch, or are one stack.

    Others gain nothing by it, and would fight for the processor's cache.
    """
    can_gain = (own is not None and can_stack(own.tail, runs[0].config)) or (
        own is not None and not fed.is_complete
    )
    size = min(MAX_SIDE_BY_SIDE, _fitting(network, fed)) if can_gain else 1
    for start in range(0, len(runs), size):
        yield runs[start : start + size]


def _fitting(network: Network, fed: Supply) -> int:
    """How many runs' weights, gradients and optimizer states half the free memory holds."""
    sizes = [(p.numel(), p.requires_grad) for p in network.module.parameters()]
    of_run = 4 * sum(5 * count if trains else count for count, trains in sizes)
    if fed.config.device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(fed.config.device)
    else:
        free = available_bytes()
    return max(1, int(free / 2 / of_run))


def _train_group(
    group: Sequence[_Run], fed: Supply, own: Cut | None, first: Network | None
) -> None:
    """Fit runs side by side, then test each."""
    with _sharing(group, "prepare"):
        learners = {_learner(run, fed, own, first if run is group[0] else None): run
                    for run in group}  # fmt: skip
    title = group[0].name if len(group) == 1 else f"{len(group)} runs side by side"
    epochs = max(run.config.epochs for run in group)
    with _sharing(group, "fit"), Progress(title, epochs) as bar:
        watcher = _Watcher(learners, bar)
        fit(
            list(learners), fed.trunk, num_batches=fed.num_batches, train_batches=fed.train,
            val_batches=lambda: fed.of(fed.examples.val), classes=fed.examples.classes,
            watcher=watcher,
        )  # fmt: skip
        watcher.flush()
    for learner, run in learners.items():
        if learner.error is None and not learner.best_epoch:
            learner.error = RunError(
                f"metric={run.config.metric} has no value on this validation set in any epoch, "
                "most often because a class has no validation pictures: no epoch can be chosen "
                "by it."
            )
    with _sharing(group, "test"):
        _test(learners, fed)
    for learner, run in learners.items():
        if learner.error is not None:
            run.fail(learner.error)
        else:
            run.complete(learner.best_epoch)


def _learner(run: _Run, fed: Supply, own: Cut | None, network: Network | None) -> Learner:
    config, examples = run.config, fed.examples
    device = torch.device(config.device)
    network = network or build_network(config, examples.classes, device)
    run.info |= {
        "parameters": network.counts(),
        "weights": str(network.source),
        "trunk": fed.origin.to_dict(),
    }
    return Learner(
        run.name, config, network, own.tail_of(network.module) if own else network.module,
        steps_per_epoch=fed.num_batches, device=device,
        class_weights=class_weights(
            config.loss, examples.labels[examples.train], len(examples.classes)
        ),
    )  # fmt: skip


def _test(learners: Mapping[Learner, _Run], fed: Supply) -> None:
    """Store each best epoch, read it back, and predict validation and test: the test's one use."""
    for learner, run in learners.items():
        if learner.error is not None:
            continue
        with _keeping_error(learner):
            state = learner.network.module.state_dict()
            run.writer.write_checkpoint({**state, **learner.best_state})
            learner.network.restore(run.writer.path / CHECKPOINT)
    left = [learner for learner in learners if learner.error is None]
    examples = fed.examples
    parts: dict[Learner, list[Predictions]] = {learner: [] for learner in left}
    for split, positions in (("val", examples.val), ("test", examples.test)):
        found = evaluate(left, fed.trunk, fed.of(positions))
        for learner, (logits, labels) in zip(left, found, strict=True):
            one = predictions(logits, labels, examples.classes)
            names = np.full(len(positions), split, dtype=object)
            parts[learner].append(replace(one, ids=examples.ids[positions], splits=names))
    for learner in left:
        with _keeping_error(learner):
            _check_restored(learner, parts[learner][0])
            writer = learners[learner].writer
            writer.write_predictions(_joined(parts[learner]))
            writer.write_examples(examples.frame())


def _check_restored(learner: Learner, val: Predictions) -> None:
    """Raises GraftError where what was stored does not give the metric that selected it."""
    best = learner.history[learner.best_epoch - 1]["val_accuracy"]
    again = metrics.scores(val)["accuracy"]
    if learner.device.type == "cpu" and again != best:
        raise GraftError(
            f"The stored checkpoint has a validation accuracy of {again}, epoch "
            f"{learner.best_epoch} had {best}: please report this."
        )


@contextmanager
def _keeping_error(learner: Learner) -> Iterator[None]:
    """What goes wrong in here ends this run alone."""
    try:
        yield
    except Exception as error:
        learner.error = error


@contextmanager
def _sharing(runs: Sequence[_Run], what: str) -> Iterator[None]:
    """Time spent in here is shared out among these runs."""
    started = time.monotonic()
    try:
        yield
    finally:
        for run in runs:
            run.spent(what, (time.monotonic() - started) / len(runs))


def _joined(parts: Sequence[Predictions]) -> Predictions:
    return Predictions(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.splits for p in parts]),
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.scores for p in parts]),
        parts[0].classes,
    )


class _Watcher:
    """Passes what the loop says on to the folders, the bar and tracking.

    An epoch on stored activations can take a few milliseconds, so rows are written and sent
    together, at most once a second.
    """

    def __init__(self, runs: Mapping[Learner, _Run], bar: Progress) -> None:
        self._runs, self._bar = runs, bar
        self._sent = dict.fromkeys(runs, 0)
        self._written_at = time.monotonic()

    def batch(self, epoch: int, done: int, total: int) -> None:
        self._bar.batch(epoch, done, total)

    def epoch(self, rows: Mapping[Learner, dict[str, float]]) -> None:
        self._bar.epoch({self._runs[learner].name: row for learner, row in rows.items()})
        if len(self._runs) > 1:
            for learner, row in rows.items():
                of = self._runs[learner].config.epochs
                self._runs[learner].log.info("  epoch %d/%d  %s", row["epoch"], of, in_words(row))
        if time.monotonic() - self._written_at >= WRITE_S:
            self.flush()

    def flush(self) -> None:
        for learner, run in self._runs.items():
            rows = learner.history[self._sent[learner] :]
            if rows:
                self._sent[learner] += len(rows)
                run.writer.write_epochs(learner.history)
                for follower in run.member.followers:
                    follower.epochs(rows)
        self._written_at = time.monotonic()


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
        "trunk": None,
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
