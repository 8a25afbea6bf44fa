"""The figures of runs that have ended, drawn in another process while the next runs train."""

import atexit
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from graft.aside import Aside, Gone
from graft.record import Record, read_run
from graft.report.figures import run_figures

log = logging.getLogger("graft")

FOLDER = "figures"


class Drawing:
    """Draws in the order in which runs are given. What cannot be drawn costs a warning, once."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Path, Callable[[], None]]] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._process: Aside | None = None
        self._has_warned = False

    def add(self, record: Record, then: Callable[[], None]) -> None:
        """Draw a completed run's figures into its folder, then call `then`, in another thread."""
        self._waiting.put((record.path, then))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="figures", daemon=True)
            self._thread.start()
            atexit.register(self.finish)

    def finish(self) -> None:
        """Until all is drawn; lends a hand, as nothing trains any more."""
        while True:
            try:
                folder, then = self._waiting.get_nowait()
            except queue.Empty:
                break
            self._drawn(folder, then, draw)
        self._waiting.join()

    def _work(self) -> None:
        while True:
            folder, then = self._waiting.get()
            self._drawn(folder, then, self._draw_aside)

    def _drawn(self, folder: Path, then: Callable[[], None], by: Callable[[Path], None]) -> None:
        try:
            by(folder)
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                log.warning("The figures of a run could not be drawn (%s).", error)
        finally:
            then()
            self._waiting.task_done()

    def _draw_aside(self, folder: Path) -> None:
        if self._process is None:
            self._process = Aside()
        try:
            self._process.call(f"{__name__}:draw", folder)
        except Gone:
            self._process = None
            draw(folder)


def draw(folder: Path) -> None:
    """Draw the figures of the completed run in a folder."""
    record = read_run(folder)
    run_figures(record, folder / FOLDER)
