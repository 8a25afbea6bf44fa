"""Each run's own train.log, when several runs are trained by one process."""

import logging
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from graft.progress import screen

_SHARED = logging.getLogger("graft")
_FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] %(message)s"


class RunLog:
    """While it is open, what the package logs goes to this file too; `info` goes nowhere else.

    A file that the process logs to already is not written to twice. Ours is open from the first
    `info` to `rest` at most: an array may hold more runs than a process may have open files.
    """

    def __init__(self, path: Path) -> None:
        format_ = logging.Formatter(_FORMAT)
        self._handler = logging.FileHandler(path, delay=True, encoding="utf-8")
        self._handler.setFormatter(format_)
        self._shared = _Appended(path)
        self._shared.setFormatter(format_)
        self._shared.addFilter(lambda said: said.name != screen.name)
        self._own = logging.Logger("graft", logging.INFO)
        self._own.addHandler(self._handler)
        root = logging.getLogger()
        known = {Path(h.baseFilename) for h in root.handlers if isinstance(h, logging.FileHandler)}
        self._is_known = Path(self._handler.baseFilename) in known

    def info(self, text: str, *args: object) -> None:
        """Of this run alone."""
        with suppress(OSError):  # its folder is gone, say: who writes what counts will find out
            self._own.info(text, *args)

    def rest(self) -> None:
        """Little is to be said from now on."""
        self._handler.close()

    def __enter__(self) -> Self:
        if not self._is_known:
            _SHARED.addHandler(self._shared)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _SHARED.removeHandler(self._shared)
        self._handler.close()


class _Appended(logging.Handler):
    """Appends each line to a file that it opens for it. A file that cannot be had costs the line:
    what one run's folder is in want of must not end the runs beside it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, said: logging.LogRecord) -> None:
        with suppress(OSError), self._path.open("a", encoding="utf-8") as stream:
            stream.write(f"{self.format(said)}\n")
