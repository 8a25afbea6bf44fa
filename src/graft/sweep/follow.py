"""A thread of the driver that looks at the files of a sweep while it is worked on.

Workers write files and nothing else, wherever they run. What is new is sent to MLflow from here,
by one process for all of them, and the figures of a run that has ended are drawn.
"""

import contextlib
import functools
import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from graft.errors import RecordError
from graft.record import EPOCHS, RUN, Record, read_run, readable_runs
from graft.report import page
from graft.report.drawing import Drawing, is_drawn
from graft.sweep.asked import Asked
from graft.tracking import Off, SweepTracking
from graft.tracking.letter import key_of

log = logging.getLogger("graft")

EVERY_S = 1.0


class Follower:
    """Follows one sweep's folder until it is told to stop.

    Args:
        own: the runs to look at, of which there may be more later; none: all of the folder.
    """

    def __init__(
        self, folder: Path, tracking: "SweepTracking | Off", own: Sequence[Asked] = ()
    ) -> None:
        self._folder, self._tracking, self._own = folder, tracking, own
        self._drawing = Drawing()
        self._known: dict[Path, int] = {}
        self._ended = {one.name for one in _completed(folder)}
        for one in readable_runs(folder):
            if one.info["status"] == "pruned":
                self._is_new(one.path / RUN)  # an earlier driver has seen it
        self._seen_once: set[str] = set()
        self._is_warm = self._has_looked_last = False
        self._old_epochs = self._epochs()  # of earlier starts
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="follower", daemon=True)
        self._thread.start()

    def look_last(self) -> None:
        """Look at all that is in the folder: nothing comes after it. What is asked for by it, such
        as figures, is done in the background. What fails here is for `stop` to say."""
        self._is_over.set()
        self._thread.join()
        try:
            self._look(is_last=True)
            self._has_looked_last = True
        except Exception:
            log.debug("following %s", self._folder, exc_info=True)

    def stop(self) -> None:
        """Returns when all that is in the folder has been looked at, and all figures are drawn."""
        self._is_over.set()
        self._thread.join()
        if not self._has_looked_last:
            self._look(is_last=True)
        self._drawing.finish()
        own = {path.parent for path in self._runs()}
        for one in _completed(self._folder):
            if one.path in own and not is_drawn(one.path):  # an earlier start was killed
                self._drawing.add(one, lambda: None)
        self._drawing.finish()

    def _work(self) -> None:
        while not self._is_over.wait(EVERY_S):
            try:
                self._look()
            except Exception:  # what is not seen now is sent at the end
                log.debug("following %s", self._folder, exc_info=True)

    def _look(self, *, is_last: bool = False) -> None:
        if not (is_last or self._is_warm) and self._epochs() != self._old_epochs:
            self._is_warm = True
            self._warm_up()
        for path in self._letters():
            if self._is_new(path):
                self._tracking.follow(path)
        for path in self._runs():
            name = path.parent.name
            if name not in self._ended and self._is_new(path, is_last=is_last):
                self._see(path, is_last=is_last)

    def _letters(self) -> list[Path]:
        keys = {key_of(one.choices) for one in self._own}
        return [path for path in self._tracking.letters() if not keys or path.stem in keys]

    def _runs(self) -> list[Path]:
        """The files in which runs say how they are."""
        names = {one.name for one in self._own}
        found = sorted(self._folder.glob(f"*/{RUN}"))
        return [path for path in found if not names or path.parent.name in names]

    def _see(self, path: Path, *, is_last: bool) -> None:
        try:
            found = read_run(path.parent)
        except RecordError:  # damaged: trained anew
            return
        is_pruned = found.info["status"] == "pruned"
        if not (found.is_completed or is_pruned):
            return
        # Its letter is closed a moment later.
        if found.name not in self._seen_once and not is_last:
            self._seen_once.add(found.name)
            self._known.pop(path)
            return
        if is_pruned:  # it has no figures; and may be asked for again
            self._seen_once.discard(found.name)
            if not is_last:  # what is missing then is sent with the end of the sweep
                self._tracking.end(found)
            return
        self._ended.add(found.name)
        tell = functools.partial(self._tracking.end, found)
        self._drawing.add(found, tell, self._tracking.aside)

    def _epochs(self) -> dict[Path, int]:
        """Where there are metrics of epochs, and when they were written."""
        found = {}
        for path in self._folder.glob(f"*/{EPOCHS}"):
            with contextlib.suppress(OSError):
                found[path] = path.stat().st_mtime_ns
        return found

    def _warm_up(self) -> None:
        """Import what the end of the sweep takes, while runs train in other processes."""
        if "graft.train" not in sys.modules:  # else they train here, and would wait for it
            page.warm_up()
        self._drawing.warm_up(self._tracking.aside)

    def _is_new(self, path: Path, *, is_last: bool = False) -> bool:
        try:
            written = path.stat().st_mtime_ns
        except OSError:
            return False
        is_new = self._known.get(path) != written
        self._known[path] = written
        return is_new or is_last


def _completed(folder: Path) -> list[Record]:
    return [one for one in readable_runs(folder) if one.is_completed]
