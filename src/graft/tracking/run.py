"""One run: what MLflow is to have of it, from its first epoch to its end."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from graft.identity import NOT_RESULT, digest
from graft.record import Record
from graft.tracking import letter
from graft.tracking.client import now_ms
from graft.tracking.letter import Letter

log = logging.getLogger("graft")

# How long the end of a run waits for its upload, and 2 MB/s more. Opening a store takes 20 s on a
# busy machine; what hangs is given up long before, except a database.
FINISH_S = 60.0

P = ParamSpec("P")
T = TypeVar("T")


def harmless(method: Callable[P, T]) -> Callable[P, T | None]:
    """What goes wrong in tracking is said once, and goes no further."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            _warn(f"Tracking: {method.__name__.strip('_')} failed ({error}).")
            log.debug("Its traceback:", exc_info=True)
            return None

    return call


@functools.cache
def _warn(text: str) -> None:
    log.warning("%s", text)


class Reader(Protocol):
    """Who is told at once what a letter says now, where that is another than who reads the files:
    `SweepTracking`, in the process that talks to MLflow."""

    def take(self, one: Letter) -> None: ...
    def close_run(self, one: Letter, record: Record | None) -> None: ...


class RunTracking:
    """One run's letter to MLflow, kept by the process that trains it; another may send it.

    Args:
        folder: the sweep's.
        first: what is known before it starts; an earlier attempt's letter is gone on with.
        reader: is told of each change as well.
    """

    def __init__(self, folder: Path, first: Letter, reader: Reader | None = None) -> None:
        self._folder, self._reader = folder, reader
        self._letter = first
        self._resume()

    @harmless
    def params(self, choices: Mapping[str, str], config: Mapping[str, Any]) -> None:
        """What the sweep varies, and the settings that matter."""
        identity = digest({k: v for k, v in config.items() if k not in NOT_RESULT})
        found = letter.params_of(choices, config)
        self._letter = self._letter.with_settings(identity, found)
        self._changed()

    @harmless
    def epochs(self, rows: Sequence[Mapping[str, float]]) -> None:
        """`rows` of metrics.csv: `epoch` (1-based), `train_loss`, `val_accuracy`, ..."""
        for row in rows:
            self._letter = self._letter.with_row(row, now_ms())
        self._changed()

    @harmless
    def finish(
        self,
        record: Record | None,
        status: str,
        reason: str | None,
        scores: Mapping[str, float],
    ) -> None:
        """End the run: what is missing of its epochs, its scores, its files, its true status.

        Args:
            record: the run's folder, if it got that far.
            status: one of `graft.record.STATUSES`.
            scores: single values such as `best/val_accuracy`, `test/accuracy`, `seconds`.
        """
        if record is not None:
            self._letter = self._letter.with_record(record)
        self._letter = letter.ended(self._letter, status, reason, scores)
        self._letter.write(self._folder)
        if self._reader is not None:
            self._reader.close_run(self._letter, record)

    @harmless
    def _resume(self) -> None:
        """Go on with the letter of an earlier attempt, if there is one."""
        known = letter.read_letter(self._folder, self._letter.key)
        if known is not None:
            self._letter = dataclasses.replace(
                self._letter,
                start_ms=known.start_ms,
                params=known.params,
                rows=known.rows,
                attempt=known.attempt,
                identity=known.identity,
            )

    def _changed(self) -> None:
        self._letter.write(self._folder)
        if self._reader is not None:
            self._reader.take(self._letter)


class OffRun:
    """A run of a sweep that is not tracked."""

    def params(self, choices: Mapping[str, str], config: Mapping[str, Any]) -> None:
        pass

    def epochs(self, rows: Sequence[Mapping[str, float]]) -> None:
        pass

    def finish(
        self,
        record: Record | None,
        status: str,
        reason: str | None,
        scores: Mapping[str, float],
    ) -> None:
        pass


def upload_s(paths: Sequence[Path]) -> float:
    """How long files may take to be sent: 2 MB/s."""
    return sum(path.stat().st_size for path in paths) / 2_000_000
