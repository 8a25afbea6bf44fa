"""What a person sees while a run trains: a bar on a terminal, one line an epoch elsewhere."""

import logging
import sys
from types import TracebackType
from typing import Any, Self

log = logging.getLogger("graft")


class Progress:
    """Epochs and batches of one run, with losses, accuracies and the time left."""

    def __init__(self, title: str, epochs: int) -> None:
        self._title, self._epochs, self._row = title, epochs, ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None, row="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def batch(self, epoch: int, done: int, total: int) -> None:
        if self._bar is not None:
            finished = (epoch - 1) * total + done
            row = f"epoch {epoch}/{self._epochs} {self._row}"
            self._bar.update(self._task, completed=finished, total=self._epochs * total, row=row)

    def epoch(self, row: dict[str, float]) -> None:
        self._row = (
            f"train loss {row['train_loss']:.3f} acc {row['train_accuracy']:.3f}  "
            f"val loss {row['val_loss']:.3f} acc {row['val_accuracy']:.3f}"
        )
        if self._bar is None:
            log.info(
                "  epoch %d/%d  %s  (%.1f s)",
                row["epoch"], self._epochs, self._row, row["seconds"],
            )  # fmt: skip


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
