"""The best epoch of each run of an array: stored, read back, and tested once."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from graft import lanes, metrics, weights
from graft.errors import GraftError
from graft.fit.learner import Learner
from graft.fit.loop import evaluate, predictions
from graft.record import CHECKPOINT, Predictions
from graft.run import Run
from graft.supply import Supply

# How many runs' files are written at a time: while a disk has one, the next is put together.
WRITERS = 2


def test(learners: Mapping[Learner, Run], fed: Supply) -> dict[Learner, str]:
    """Store each best epoch, read it back, and predict validation and test: the test's one use.

    Returns:
        The digests of the files of those that came so far.
    """
    with ThreadPoolExecutor(WRITERS, "digest") as beside:
        return _tested(learners, fed, beside)


def _tested(
    learners: Mapping[Learner, Run], fed: Supply, beside: ThreadPoolExecutor
) -> dict[Learner, str]:
    whole = [learner for learner in learners if learner.error is None]
    lanes.each(lambda learner: _store(learner, learners[learner]), whole, WRITERS)
    for learner in whole:
        if learner.error is not None:  # a disk may have had room for one, and not for two
            learner.error = None
            _store(learner, learners[learner])
    left = [learner for learner in whole if learner.error is None]
    digests = {
        one: beside.submit(weights.digest, learners[one].writer.path / CHECKPOINT) for one in left
    }
    examples = fed.examples
    parts: dict[Learner, list[Predictions]] = {learner: [] for learner in left}
    for split, positions in (("val", examples.val), ("test", examples.test)):
        found = evaluate([o for o in left if o.error is None], fed.trunk, fed.of(positions))
        for learner, (logits, labels) in found.items():
            one = predictions(logits, labels, examples.classes)
            names = np.full(len(positions), split, dtype=object)
            parts[learner].append(replace(one, ids=examples.ids[positions], splits=names))
    table = examples.table()
    left = [learner for learner in left if learner.error is None]
    lanes.each(
        lambda learner: _predicted(learner, learners[learner], parts[learner], table), left, WRITERS
    )
    came: dict[Learner, str] = {}
    for learner, digest in digests.items():
        if learner.error is None:
            with learner.keeping_error():
                came[learner] = digest.result()
    return came


def _store(learner: Learner, run: Run) -> None:
    """A checkpoint of the best epoch, which the network then holds."""
    with learner.keeping_error():
        if learner.best_state:  # else it was stored, and could not be read back
            state = learner.network.module.state_dict()
            run.writer.write_checkpoint({**state, **learner.best_state})
            learner.best_state.clear()  # it is as large as what trains
        learner.network.restore(run.writer.path / CHECKPOINT)


def _predicted(
    learner: Learner,
    run: Run,
    parts: Sequence[Predictions],
    examples: Mapping[str, Sequence[object]],
) -> None:
    with learner.keeping_error():
        _check_restored(learner, parts[0])
        run.writer.write_predictions(_joined(parts))
        run.writer.write_examples(examples)


def _check_restored(learner: Learner, val: Predictions) -> None:
    """Raises GraftError where what was stored does not give the metric that selected it."""
    best = learner.history[learner.best_epoch - 1]["val_accuracy"]
    again = metrics.scores(val)["accuracy"]
    if learner.device.type == "cpu" and again != best:
        raise GraftError(
            f"The stored checkpoint has a validation accuracy of {again}, epoch "
            f"{learner.best_epoch} had {best}: please report this."
        )


def _joined(parts: Sequence[Predictions]) -> Predictions:
    return Predictions(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.splits for p in parts]),
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.scores for p in parts]),
        parts[0].classes,
    )
