"""The figures of runs that have ended, drawn in another process while the next runs train."""

import atexit
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from graft.aside import Aside, Busy, Gone
from graft.record import FIGURES, Record, read_run
from graft.report import figures

log = logging.getLogger("graft")

# How long a drawing waits for a process that has other things to do.
PATIENCE_S = 2.0


class Drawing:
    """Draws in the order in which runs are given. What cannot be drawn costs a warning, once."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[_Given] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._own: Aside | None = None
        self._has_warned = False

    def add(self, record: Record, then: Callable[[], None], aside: Aside | None = None) -> None:
        """Draw a completed run's figures into its folder, then call `then`, in another thread.

        Args:
            aside: a process that is there anyway; None: one for figures alone.
        """
        self._put(_Given(record.path, then, aside))

    def warm_up(self, aside: Aside | None) -> None:
        """Have the process that will draw import what it takes; see `add`."""
        self._put(_Given(None, lambda: None, aside))

    def _put(self, given: "_Given") -> None:
        self._waiting.put(given)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="figures", daemon=True)
            self._thread.start()
            atexit.register(self.finish)

    def finish(self) -> None:
        """Until all is drawn; lends a hand, as nothing trains any more."""
        while True:
            try:
                given = self._waiting.get_nowait()
            except queue.Empty:
                break
            self._drawn(given, _draw_here)
        self._waiting.join()

    def _work(self) -> None:
        while True:
            self._drawn(self._waiting.get(), self._draw_aside)

    def _drawn(self, given: "_Given", by: "Callable[[_Given], None]") -> None:
        try:
            self._tried(given, by)
            given.then()
        except Exception:
            log.debug("after the figures of %s", given.folder, exc_info=True)
        finally:
            self._waiting.task_done()  # else `finish` would wait for ever

    def _tried(self, given: "_Given", by: "Callable[[_Given], None]") -> None:
        try:
            by(given)
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                log.warning("The figures of a run could not be drawn (%s).", error)

    def _draw_aside(self, given: "_Given") -> None:
        aside = given.aside
        if aside is None:
            aside = self._own = self._own or Aside()
        function = "warm_up" if given.folder is None else "draw"
        arguments = () if given.folder is None else (given.folder,)
        try:
            aside.call_soon(PATIENCE_S, f"{__name__}:{function}", *arguments)
        except (Gone, Busy):
            self._own = None
            _draw_here(given)


def _draw_here(given: "_Given") -> None:
    if given.folder is not None:
        draw(given.folder)


class _Given(NamedTuple):
    folder: Path | None
    then: Callable[[], None]
    aside: Aside | None


def warm_up() -> None:
    """Called in the other process, while there is time."""
    figures.warm_up()


def draw(folder: Path) -> None:
    """Draw the figures of the completed run in a folder."""
    record = read_run(folder)
    figures.run_figures(record, folder / FIGURES)


def is_drawn(folder: Path) -> bool:
    """Whether a run's folder has its figures: all of them, had the process been killed."""
    return (folder / FIGURES / figures.LAST).exists()
