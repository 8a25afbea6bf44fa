"""A trial changes hands: of several drivers that reach for it at once, one gets it.

Optuna's own steps are safe where a database locks rows, and in a journal. In SQLite two processes
may both be given a trial that waits; and to set one back that nobody runs any more takes several
steps in any storage, between which somebody else may have done so, and have begun to run it.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb.models import TrialModel, TrialUserAttributeModel
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.storages.journal import JournalFileSymlinkLock
from optuna.trial import TrialState


def take(storage: BaseStorage, trial_id: int, attrs: Mapping[str, Any]) -> bool:
    """Let a trial run that waits, and set attributes of it; False: somebody else has."""
    database = _database(storage)
    if database is not None:
        return _moved(database, trial_id, TrialState.WAITING, TrialState.RUNNING, {}, attrs)
    try:
        if not storage.set_trial_state_values(trial_id, TrialState.RUNNING):
            return False
    except UpdateFinishedTrialError:
        return False
    for key, value in attrs.items():
        storage.set_trial_user_attr(trial_id, key, value)
    return True


def set_back(
    storage: BaseStorage,
    trial_id: int,
    state: TrialState,
    expected: Mapping[str, Any],
    attrs: Mapping[str, Any],
) -> bool:
    """End a trial that runs, or let it wait, and set attributes; False: it is another's by now.

    Args:
        expected: attributes as they must be. One that says who runs it, and one that no two that
            set it back would leave the same, make sure that it is.
    """
    database = _database(storage)
    if database is not None:
        return _moved(database, trial_id, TrialState.RUNNING, state, expected, attrs)
    with _journal_alone(storage):
        now = storage.get_trial(trial_id)
        is_same = all(now.user_attrs.get(key) == value for key, value in expected.items())
        if now.state != TrialState.RUNNING or not is_same:
            return False
        for key, value in attrs.items():
            storage.set_trial_user_attr(trial_id, key, value)
        storage.set_trial_state_values(trial_id, state)
    return True


def _database(storage: BaseStorage) -> RDBStorage | None:
    found = storage._backend if isinstance(storage, _CachedStorage) else storage
    return found if isinstance(found, RDBStorage) else None


def _moved(
    database: RDBStorage,
    trial_id: int,
    before: TrialState,
    after: TrialState,
    expected: Mapping[str, Any],
    attrs: Mapping[str, Any],
) -> bool:
    """In one transaction, which begins with a write: that locks the row, or SQLite's file."""
    is_it = (TrialModel.trial_id == trial_id) & (TrialModel.state == before)
    with _create_scoped_session(database.scoped_session) as session:
        locked: Any = session.execute(
            sqlalchemy.update(TrialModel).where(is_it).values(state=before),
            execution_options={"synchronize_session": False},
        )
        if locked.rowcount != 1 or not _are(session, trial_id, expected):
            return False
        for key, value in attrs.items():
            database._set_trial_attr_without_commit(
                session, TrialUserAttributeModel, trial_id, key, value
            )
        trial = TrialModel.find_or_raise_by_id(trial_id, session)
        trial.state = after
        if after == TrialState.RUNNING:
            trial.datetime_start = datetime.now()
        if after.is_finished():
            trial.datetime_complete = datetime.now()
    return True


def _are(session: Any, trial_id: int, expected: Mapping[str, Any]) -> bool:
    if not expected:
        return True
    own = TrialUserAttributeModel.trial_id == trial_id
    rows = session.query(TrialUserAttributeModel).filter(own).all()
    attrs = {row.key: json.loads(row.value_json) for row in rows}
    return all(attrs.get(key) == value for key, value in expected.items())


@contextlib.contextmanager
def _journal_alone(storage: BaseStorage) -> Iterator[None]:
    """No other driver sets a trial back meanwhile, where the storage is a journal's file."""
    backend = storage._backend if isinstance(storage, JournalStorage) else None
    path = getattr(backend, "_file_path", None)
    if path is None:
        yield
        return
    lock = JournalFileSymlinkLock(f"{path}.trials")
    lock.acquire()
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # it took so long that it was taken away
            lock.release()
