"""Each run's own train.log, when several runs are trained by one process."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Self

from graft.progress import screen

_SHARED = logging.getLogger("graft")
_FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] %(message)s"


class RunLog:
    """While it is open, what the package logs goes to this file too; `info` goes nowhere else.

    A file that the process logs to already is not written to twice.
    """

    def __init__(self, path: Path) -> None:
        self._handler = logging.FileHandler(path, delay=True, encoding="utf-8")
        self._handler.setFormatter(logging.Formatter(_FORMAT))
        self._handler.addFilter(lambda said: said.name != screen.name)
        self._own = logging.Logger("graft", logging.INFO)
        self._own.addHandler(self._handler)
        root = logging.getLogger()
        known = {Path(h.baseFilename) for h in root.handlers if isinstance(h, logging.FileHandler)}
        self._is_known = Path(self._handler.baseFilename) in known

    def info(self, text: str, *args: object) -> None:
        """Of this run alone."""
        self._own.info(text, *args)

    def __enter__(self) -> Self:
        if not self._is_known:
            _SHARED.addHandler(self._handler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _SHARED.removeHandler(self._handler)
        self._handler.close()
