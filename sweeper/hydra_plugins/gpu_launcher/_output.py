"""What a worker prints, line by line."""

import os
import subprocess
from collections.abc import Callable, Collection
from typing import Any

_CHUNK = 1 << 16
# A line that is longer comes in pieces: a job may print gigabytes without ending one.
MAX_LINE = 1 << 16
# What a pipe can hold at most on Linux, where it is not set otherwise, and more: what has been
# started in a worker and lives on may write for ever.
_MAX_LEFT = 1 << 20


class Output:
    """The standard output and standard error of a process, read without waiting.

    Args:
        process: started with both as pipes. They are not needed to know whether it lives: what it
            has started may hold them open after its end.
        say: called with a line, and whether it was printed on standard error.
    """

    def __init__(
        self, process: "subprocess.Popen[bytes]", say: Callable[[str, bool], None]
    ) -> None:
        assert process.stdout is not None and process.stderr is not None
        self._say, self._error = say, process.stderr
        self._rests = {process.stdout: b"", process.stderr: b""}
        self.open: list[Any] = list(self._rests)
        for pipe in self.open:
            os.set_blocking(pipe.fileno(), False)

    def forward(self, ready: Collection[Any]) -> None:
        """Show what has come through those of our pipes that are ready."""
        for pipe in [pipe for pipe in self.open if pipe in ready]:
            self._read(pipe)

    def close(self) -> None:
        """Show what is left, and what is half a line."""
        for pipe in self.open:
            for _ in range(_MAX_LEFT // _CHUNK):
                if not self._read(pipe):
                    break
            self._take(pipe, b"")
        self.open = []
        for pipe in self._rests:
            pipe.close()

    def _read(self, pipe: Any) -> bool:
        """Whether there was something."""
        try:
            chunk = os.read(pipe.fileno(), _CHUNK)
        except BlockingIOError:
            return False
        self._take(pipe, chunk)
        if not chunk:
            self.open = [one for one in self.open if one is not pipe]
        return bool(chunk)

    def _take(self, pipe: Any, chunk: bytes) -> None:
        """Say whole lines, and at the end of the pipe the rest."""
        *lines, rest = (self._rests[pipe] + chunk).split(b"\n")
        rest = _last_state(rest)
        if rest and (not chunk or len(rest) > MAX_LINE):
            lines.append(rest)
            rest = b""
        self._rests[pipe] = rest
        for line in lines:
            shown = _last_state(line).rstrip(b"\r")
            self._say(shown.decode(errors="replace"), pipe is self._error)


def _last_state(line: bytes) -> bytes:
    """Of a bar that redraws itself what can be seen of it, with the marks at its end."""
    seen = line.rstrip(b"\r")
    return line[seen.rfind(b"\r") + 1 :]
