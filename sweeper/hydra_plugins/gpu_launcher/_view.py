"""What a person sees of a launch: a line for each thing that happens, or on a terminal a table of
what runs, kept up to date, below those lines."""

import contextlib
import logging
import os
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from hydra_plugins.gpu_launcher._array import Array, title
from hydra_plugins.gpu_launcher._job import Job
from hydra_plugins.gpu_launcher.progress import Teller

log = logging.getLogger(__name__)

# Below this share of the whole, how long it has taken says nothing of how long it will.
ENOUGH = 0.02
BAR = 12  # columns


@dataclass
class _Shown:
    """A job that runs: where, how far, in what words."""

    job: Job
    slot: str
    share: float = 0.0
    text: str = ""


class View:
    """Lines. The base of the live view, which keeps count in the same way.

    Args:
        num_jobs: of the launch, those included that are done already.
        num_slots: with several, what a job prints is shown with its slot in front.
    """

    is_live = False

    def __init__(self, num_jobs: int, num_slots: int) -> None:
        self.num_jobs, self.num_slots = num_jobs, num_slots
        self.num_done = self.num_failed = self.num_begun = self._done_before = 0
        self.running: dict[int, _Shown] = {}
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def begins(self, array: Array, slot: str) -> None:
        """An array is started in a slot; `slot` may be empty, where there is only one place."""
        self.running |= {job.num: _Shown(job, slot) for job in array}
        first, self.num_begun = self.num_begun + 1, self.num_begun + len(array)
        count = f"{first}-{self.num_begun}" if len(array) > 1 else f"{first}"
        where = f" on {slot}" if slot else ""
        log.info("%s of %d%s: %s", count, self.num_jobs, where, title(array))

    def told(self, num: int | None, share: float, text: str, array: Array) -> None:
        """A job of a running array, or all of them, said how far it is."""
        for job in array if num is None else [job for job in array if job.num == num]:
            if shown := self.running.get(job.num):
                shown.share = min(max(share, 0.0), 1.0) if share == share else 0.0  # not a number
                shown.text = " ".join(text.split())

    def teller(self, array: Array) -> Teller:
        """For a job in this process."""

        def tell(num: int | None, share: float, text: str) -> None:
            self.told(num, share, text, array)

        return tell

    def said(self, line: str, slot: str, *, is_error: bool) -> None:
        """A line that a job in another process printed, on standard error or on standard output.

        It costs no job anything that nobody listens, or that our terminal lacks a letter.
        """
        stream = sys.stderr if is_error else sys.stdout
        shown = f"[{slot}] {line}" if self.num_slots > 1 else line
        encoding = getattr(stream, "encoding", None) or "utf-8"
        with contextlib.suppress(OSError, ValueError):
            print(
                shown.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True
            )

    def ends(self, array: Array, *, num_ended: int, num_failed: int) -> None:
        """An array has ended.

        Args:
            num_ended: jobs of it that will not be run again.
            num_failed: how many of these failed.
        """
        for job in array:
            self.running.pop(job.num, None)
        self.num_done += num_ended
        self.num_failed += num_failed
        self.num_begun -= len(array) - num_ended

    def left_s(self) -> float | None:
        """How long the rest will take if it goes on like this; None: nobody knows yet."""
        done = self._share()
        if done <= 0 or done < ENOUGH * (self.num_jobs - self._done_before):
            return None
        spent = time.monotonic() - self._began
        return spent * (self.num_jobs - self.num_done - self._of_running()) / done

    def skip(self, count: int) -> None:
        """So many jobs were done before this launch."""
        self.num_done += count
        self.num_begun += count
        self._done_before += count

    def _share(self) -> float:
        """Jobs' worth of work that this launch has done."""
        return self.num_done - self._done_before + self._of_running()

    def _of_running(self) -> float:
        # A copy: the live view asks from a thread of its own.
        return sum(shown.share for shown in list(self.running.values()))


class LiveView(View):
    """A table below the lines, on stderr."""

    is_live = True

    def __init__(self, num_jobs: int, num_slots: int) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(num_jobs, num_slots)
        self._console = Console(stderr=True)
        self._live = Live(
            get_renderable=self._table,
            console=self._console,
            transient=True,
            refresh_per_second=4,
            # What goes to a file, or to another program, goes on to do so.
            redirect_stdout=_is_terminal(sys.stdout),
        )
        self._redirected: list[tuple[logging.StreamHandler[Any], Any]] = []

    def __enter__(self) -> Self:
        before = {id(sys.stdout): "stdout", id(sys.stderr): "stderr"}
        super().__enter__()
        self._live.start()
        # Handlers hold the streams that the live view has put itself in front of.
        for handler in _stream_handlers():
            stream = getattr(sys, before.get(id(handler.stream), ""), handler.stream)
            if stream is not handler.stream:
                self._redirected.append((handler, handler.setStream(stream)))
        return self

    def __exit__(self, *error: object) -> None:
        for handler, stream in self._redirected:
            handler.setStream(stream)
        with contextlib.suppress(OSError):  # the terminal is gone; what ends the launch counts
            self._live.stop()

    def _table(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        def line(words: str) -> Text:
            return Text(words, no_wrap=True, overflow="ellipsis")

        running = list(self.running.values())
        # The terminal's last line stays free; else the table would push itself up.
        room = len(running) if len(running) < self._console.height - 1 else self._console.height - 3
        table = Table.grid(padding=(0, 1))
        for is_whole in (True, False, True, False):  # the others give way
            table.add_column(no_wrap=is_whole)
        for one in running[: max(0, room)]:
            bar = ProgressBar(total=1.0, completed=one.share, width=BAR)
            table.add_row(
                line(one.slot), line(one.job.label or f"job {one.job.num}"), bar, line(one.text)
            )
        more = len(running) - table.row_count
        lines = [line(f"and {more} more")] if more else []
        return Group(*([table] if table.row_count else []), *lines, line(self.summary()))

    def summary(self) -> str:
        """Counts and the time left, in a line."""
        waiting = self.num_jobs - self.num_done - len(self.running)
        words = [f"{self.num_done} of {self.num_jobs} done"]
        words += [f"{self.num_failed} failed"] if self.num_failed else []
        words += [f"{len(self.running)} running"]
        words += [f"{waiting} waiting"] if waiting > 0 else []
        left_s = self.left_s()
        return ", ".join([*words, *([f"about {span(left_s)} left"] if left_s is not None else [])])


def view(num_jobs: int, num_slots: int, *, is_apart: bool) -> View:
    """The live view where jobs run in other processes and stderr is a terminal; else lines."""
    is_live = is_apart and _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
    return (LiveView if is_live else View)(num_jobs, num_slots)


def span(seconds: float) -> str:
    """A time in words: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _is_terminal(stream: Any) -> bool:
    with contextlib.suppress(AttributeError, ValueError):  # there is none, or it is closed
        return bool(stream.isatty())
    return False


def _stream_handlers() -> list["logging.StreamHandler[Any]"]:
    names = [None, *logging.root.manager.loggerDict]
    found = [handler for name in names for handler in logging.getLogger(name).handlers]
    return [
        handler
        for handler in found
        if isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
    ]
