"""What a person sees while a run trains: a bar on a terminal, one line an epoch elsewhere."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

log = logging.getLogger("graft")
# For the screen alone: a run's train.log has the epochs of that run, in lines of its own.
screen = logging.getLogger("graft.progress")


# Somebody who shows progress in our place is told: the name of a run, or None for all of an array;
# the share that is done; words.
Told = Callable[[str | None, float, str], None]

# So often within an epoch.
TELL_S = 0.2

_told: Told | None = None
_is_shown = False


@contextmanager
def by(told: Told, *, is_live: bool) -> Iterator[None]:
    """Progress is told to another in here; `is_live`: who shows it, so that we need not."""
    global _told, _is_shown
    before = _told, _is_shown
    _told, _is_shown = told, is_live
    try:
        yield
    finally:
        _told, _is_shown = before


def tell(name: str | None, share: float, text: str) -> None:
    """Tell whoever shows progress in our place; nobody, where nobody does."""
    if _told is not None:
        _told(name, share, text)


class _Shown:
    """A bar on a terminal while it is entered; elsewhere none."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title, self._total = title, total
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not _is_shown:
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, row="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class Progress(_Shown):
    """Epochs and batches of an array of runs, with losses, accuracies and the time left.

    Args:
        names: of the runs.
        epochs: of each of them.
    """

    def __init__(self, names: Sequence[str], epochs: Sequence[int]) -> None:
        title = names[0] if len(names) == 1 else f"{len(names)} runs side by side"
        super().__init__(title, None)
        self._own = dict(zip(names, epochs, strict=True))
        self._rows = dict.fromkeys(names, "")
        self._epochs, self._row, self._told_at = max(epochs), "", 0.0

    def batch(self, epoch: int, done: int, total: int) -> None:
        """`done` batches of `total` in an epoch, 1-based."""
        finished = (epoch - 1) * total + done
        # A step of many small heads takes less time than telling of each of them.
        if _told is not None and time.monotonic() - self._told_at >= TELL_S:
            self._told_at = time.monotonic()
            for name, epochs in self._own.items():
                tell(name, min(finished / (epochs * total), 0.999), self._rows[name])
        if self._bar is not None:
            row = f"epoch {epoch}/{self._epochs} {self._row}"
            self._bar.update(self._task, completed=finished, total=self._epochs * total, row=row)

    def epoch(self, rows: Mapping[str, Mapping[str, float]]) -> None:
        """The rows of metrics of one epoch, by the name of the run."""
        if not rows:
            return
        for name, row in rows.items():
            self._rows[name] = f"epoch {row['epoch']}/{self._own[name]}  {_in_short(row)}"
            tell(name, min(row["epoch"] / self._own[name], 0.999), self._rows[name])
        first = next(iter(rows.values()))
        said = in_words(first) if len(rows) == 1 else _range(rows)
        # A bar leaves little room: first what selects, and what comes after it may be cut.
        self._row = _in_short(first) if len(rows) == 1 else said
        if self._bar is None and not _is_shown:
            screen.info(
                "  epoch %d/%d  %s  (%.1f s)",
                first["epoch"], self._epochs, said, first["seconds"],
            )  # fmt: skip


def in_words(row: Mapping[str, float]) -> str:
    """Losses and accuracies of one run in one epoch."""
    return (
        f"train loss {row['train_loss']:.3f} acc {row['train_accuracy']:.3f}  "
        f"val loss {row['val_loss']:.3f} acc {row['val_accuracy']:.3f}"
    )


def _in_short(row: Mapping[str, float]) -> str:
    return f"val acc {row['val_accuracy']:.3f} train {row['train_accuracy']:.3f}"


def _range(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Of several runs the least and the highest accuracy, and whose it is."""
    found = {name: row.get("val_accuracy", 0.0) for name, row in rows.items()}
    best = max(found, key=found.__getitem__)
    return f"{len(rows)} runs  val acc {min(found.values()):.3f} to {found[best]:.3f} ({best})"


class Counter(_Shown):
    """A long piece of work, counted: a bar on a terminal, a line now and then elsewhere."""

    EVERY_S = 15.0

    def __init__(self, title: str, total: int) -> None:
        super().__init__(title, total)
        self._whole, self._done = total, 0
        self._started = self._said = time.monotonic()
        self._told_at = -math.inf

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._told_at < TELL_S and self._done < self._whole:
            return
        self._told_at = now
        tell(None, 0.0, f"{self._title} {self._done:,} of {self._whole:,}")
        if self._bar is not None:
            row = f"{self._done:,} of {self._whole:,}"
            self._bar.update(self._task, completed=self._done, row=row)
        elif now - self._said >= self.EVERY_S and not _is_shown:
            self._said = now
            left = (now - self._started) * (self._whole - self._done) / max(self._done, 1)
            log.info(
                "  %s: %s of %s, about %s left",
                self._title, f"{self._done:,}", f"{self._whole:,}", span(left),
            )  # fmt: skip


def counted(count: int, what: str) -> str:
    """`1 run`, `1,000 runs`"""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def span(seconds: float) -> str:
    """A time in words: 40 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[row]}"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
    )
