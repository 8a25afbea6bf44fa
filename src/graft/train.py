"""One array of runs: builds the stages from the typed configuration, and joins them.

This is also the Python API:

    from graft.config import from_dict
    from graft.train import load_dataset, resolve, train

    config = resolve(from_dict({...}))
    record = train(config, Path("outputs/mine/first"), load_dataset(config))
"""

import functools
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from graft import best, machine
from graft.backbones import Network
from graft.config import RunConfig
from graft.dataset import LoadedDataset, load_dataset
from graft.errors import RunError
from graft.fit.checkpoint import Pace
from graft.fit.learner import Learner, autocast, trained_tensors
from graft.fit.loop import can_stack, fit
from graft.fit.losses import class_weights
from graft.groups import Group, groups
from graft.networks import Kept, Networks, build_network
from graft.progress import Progress, in_words, screen
from graft.record import Record
from graft.run import Follower, Member, Outcome, Run, start
from graft.settings import array_key, resolve, trunk_key, trunk_settings
from graft.supply import Supply, made_up, supply
from graft.trunk.cut import Cut, cut

__all__ = [
    "Follower", "LoadedDataset", "Member", "Outcome", "array_key", "build_network", "load_dataset",
    "resolve", "train", "train_array", "trunk_key",
]  # fmt: skip

log = logging.getLogger("graft")


# How long a run's rows of metrics may wait before they are written and sent.
WRITE_S = 1.0
# How long an array waits for other processes that train runs of it: they may be dying.
LOCK_S = 15.0


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


def train_array(
    members: Sequence[Member],
    dataset: LoadedDataset,
    *,
    beside: Sequence[RunConfig] = (),
    ended: Callable[[Member, Outcome], None] = lambda member, outcome: None,
) -> list[Outcome]:
    """Train runs of equal `array_key`, each to its own record; one that fails leaves the others.

    A run that was killed, or failed, goes on from its last checkpoint, and is then bit for bit (on
    a CPU) what it would have been. One that another process trains is left to that.

    Args:
        dataset: theirs, from `load_dataset`.
        beside: runs of other arrays of the sweep, one each: activations that they will want of the
            same pictures are computed in the same pass.
        ended: called as soon as a run has ended, with its outcome.

    Returns:
        Their outcomes, in order.
    """
    machine.prepare_process(members[0].config)
    outcomes: dict[Path, Outcome] = {}
    with ExitStack() as stack:
        runs, until = [], time.monotonic() + LOCK_S
        for member in members:
            try:
                found = start(member, dataset, ended, stack, until)
            except (OSError, RunError) as error:  # its folder alone cannot be had
                outcomes[member.folder] = error
                ended(member, error)
                continue
            if isinstance(found, Run):
                runs.append(found)
            else:
                outcomes[member.folder] = found
                ended(member, found)
        try:
            if runs:
                _train(runs, dataset, beside)
        except Exception as error:  # of what they share
            for run in runs:
                if run.outcome is None:
                    run.give_up(error)
    outcomes |= {run.member.folder: run.outcome for run in runs if run.outcome is not None}
    for outcome in outcomes.values():
        if isinstance(outcome, torch.OutOfMemoryError):
            machine.return_gpu_memory(outcome)
    return [outcomes[member.folder] for member in members]


_kept = Kept()


def _train(runs: Sequence[Run], dataset: LoadedDataset, beside: Sequence[RunConfig]) -> None:
    config, examples = runs[0].config, dataset.examples
    with _sharing(runs, "prepare"):
        device = torch.device(config.device)
        network = _kept.network(config, examples.classes, device)
        others = _cuts_beside(network, config, beside)
        own = cut(network.module, made_up(config, 2, device))
        log.info("  %s", network.source)
        log.info("  trains {trainable:,} of {total:,} parameters".format(**network.counts()))
    with _sharing(runs, "trunk"):
        fed = supply(
            config, examples, dataset.digests, network.module, own,
            autocast=functools.partial(autocast, config.precision, device), beside=others,
        )  # fmt: skip
        log.info("  %s", fed.origin.line(_trained(network)))
    machine.return_memory()
    try:
        with _sharing(runs, "prepare"):
            left = _with_checkpoints(runs, own, network)
        networks = Networks(network, runs)
        for group in groups(left, fed, own, network):
            _train_group(group, fed, own, networks)
    except Exception:
        fed.close()
        raise
    fed.close()  # not of who interrupts: it may have to wait for the disk


def _trained(network: Network) -> str:
    """The blocks that train, in words: "head", "stage7, head", "stage2 to head"."""
    names = [block for block in network.blocks if block in network.trainable]
    return ", ".join(names) if len(names) < 3 else f"{names[0]} to {names[-1]}"


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


def _with_checkpoints(runs: Sequence[Run], own: Cut | None, network: Network) -> list[Run]:
    """Runs that know what earlier starts left, from the same weights by the same kind of optimizer.

    Returns:
        Those whose folders can be written; the others have ended.
    """
    config = runs[0].config
    is_stack = own is not None and can_stack(own.tail, config)
    of = {
        "weights": network.source.digest,
        # Another kind has another state of its random numbers.
        "device": torch.device(config.device).type,
        "optimizer": "stacked" if is_stack else "torch",
    }
    shapes = {name: tensor.shape for name, tensor in trained_tensors(network.module).items()}
    for run in runs:
        try:
            run.find_checkpoint(of, shapes)
        except OSError as error:
            run.give_up(error)
    return [run for run in runs if run.outcome is None]


def _train_group(group: Group, fed: Supply, own: Cut | None, networks: Networks) -> None:
    """Fit runs side by side, then test each."""
    learners = {}
    with _sharing(group.runs, "prepare"):
        for run in group.runs:
            try:
                learners[_learner(run, fed, own, networks)] = run
            except Exception as error:  # that of one run, most likely memory
                traceback.clear_frames(error.__traceback__)  # the next ones need what they hold
                run.give_up(error)
    if not learners:
        return
    runs = list(learners.values())
    epochs = [run.config.epochs for run in runs]
    if runs[0].epochs_done:
        who = "goes" if len(runs) == 1 else f"{len(runs)} runs go"
        screen.info("  %s on after epoch %d of %d", who, runs[0].epochs_done, max(epochs))
    with _sharing(runs, "fit"), Progress([run.name for run in runs], epochs) as bar:
        watcher = _Watcher(learners, bar)
        fit(
            list(learners), fed.trunk, num_batches=fed.num_batches, train_batches=fed.train,
            val_batches=lambda: fed.of(fed.examples.val), classes=fed.examples.classes,
            watcher=watcher, num_lanes=group.num_lanes,
        )  # fmt: skip
        watcher.flush()
    for learner, run in learners.items():
        if learner.error is None and not learner.best_epoch:
            learner.error = RunError(
                f"metric={run.config.metric} has no value on this validation set in any epoch, "
                "most often because a class has no validation pictures: no epoch can be chosen "
                "by it."
            )
    for learner in learners:
        learner.release()
    machine.return_memory()
    with _sharing(runs, "test"):
        stored = best.test(learners, fed)
    for learner, run in learners.items():
        if learner.error is None:
            with learner.keeping_error():
                run.complete(learner.best_epoch, stored[learner])
        if learner.error is not None:
            if run.outcome is None:
                run.give_up(learner.error)
            machine.forget_frames(learner.error)  # they hold all that was trained beside


def _learner(run: Run, fed: Supply, own: Cut | None, networks: Networks) -> Learner:
    config, examples = run.config, fed.examples
    device = torch.device(config.device)
    network = networks.of(config, examples.classes, device)
    run.info |= {
        "parameters": network.counts(),
        "weights": str(network.source),
        "weights_digest": network.source.digest,
        "trunk": fed.origin.to_dict(),
    }
    learner = Learner(
        run.name, config, network, own.tail_of(network.module) if own else network.module,
        steps_per_epoch=fed.num_batches, device=device,
        class_weights=class_weights(
            config.loss, examples.labels[examples.train], len(examples.classes)
        ),
        judge=run.member.judge,
    )  # fmt: skip
    if run.found is not None:
        learner.restore(run.found.load())
    return learner


@contextmanager
def _sharing(runs: Sequence[Run], what: str) -> Iterator[None]:
    """Time spent in here is shared out among these runs."""
    started = time.monotonic()
    try:
        yield
    finally:
        for run in runs:
            run.spent(what, (time.monotonic() - started) / len(runs))


class _Watcher:
    """Passes what the loop says on to the folders, the bar and tracking.

    An epoch on stored activations can take a few milliseconds, so behind the first one rows are
    written and sent together, at most once a second; checkpoints as `Pace` says. A follower of a
    run that goes on is told of every epoch, those before included.
    """

    def __init__(self, runs: Mapping[Learner, Run], bar: Progress) -> None:
        self._runs, self._bar = runs, bar
        self._sent = dict.fromkeys(runs, 0)
        # At most: weights, two moments, and the weights of the best epoch.
        trained = trained_tensors(next(iter(runs)).network.module).values()
        self._pace = Pace(4 * sum(tensor.nbytes for tensor in trained) * len(runs))
        self._began, self._written_at = time.monotonic(), -math.inf

    def batch(self, epoch: int, done: int, total: int) -> None:
        self._bar.batch(epoch, done, total)

    def epoch(self, rows: Mapping[Learner, dict[str, float]]) -> None:
        self._bar.epoch({self._runs[learner].name: row for learner, row in rows.items()})
        for learner, row in rows.items():
            of = self._runs[learner].config.epochs
            self._runs[learner].log.info("  epoch %d/%d  %s", row["epoch"], of, in_words(row))
        if time.monotonic() - self._written_at >= WRITE_S:
            self.flush()
        if self._pace.is_due:
            self._keep([learner for learner in rows if not learner.is_done])
        for learner, run in self._runs.items():
            if learner.error is not None and run.outcome is None:
                self.flush()
                run.spent("fit", self._fit_s())
                run.give_up(learner.error)  # now, and not when the others have come to their end

    def flush(self) -> None:
        for learner, run in self._runs.items():
            rows = learner.history[self._sent[learner] :]
            if not rows:
                continue
            self._sent[learner] += len(rows)
            with learner.keeping_error():  # a folder that cannot be written ends its run alone
                run.writer.write_epochs(learner.history)
                for follower in run.member.followers:
                    follower.epochs(rows)
        self._written_at = time.monotonic()

    def _keep(self, learners: Sequence[Learner]) -> None:
        """Checkpoints of runs that have epochs left, once metrics.csv has the rows till here."""
        if not learners:
            return
        self.flush()
        with self._pace.writing():
            for learner in learners:
                if learner.error is None:  # else its rows could not be written
                    self._runs[learner].keep(learner.state(), self._fit_s())

    def _fit_s(self) -> float:
        """Each run's share of the time till now."""
        return (time.monotonic() - self._began) / len(self._runs)
