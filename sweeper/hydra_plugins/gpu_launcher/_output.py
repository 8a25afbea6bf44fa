"""What a worker prints, line by line."""

import os
import subprocess
import sys
from collections.abc import Callable, Collection
from typing import Any, TextIO

_CHUNK = 1 << 16


class Output:
    """The standard output and standard error of a process, read without waiting.

    Args:
        process: started with both as pipes. They are not needed to know whether it lives: what it
            has started may hold them open after its end.
        say: called with where a line belongs, our own stdout or stderr, and the line.
    """

    def __init__(
        self, process: "subprocess.Popen[bytes]", say: Callable[[TextIO, str], None]
    ) -> None:
        assert process.stdout is not None and process.stderr is not None
        self._say = say
        self._streams: dict[Any, TextIO] = {
            process.stdout: sys.__stdout__ or sys.stdout,
            process.stderr: sys.__stderr__ or sys.stderr,
        }
        self._rests = dict.fromkeys(self._streams, b"")
        self.open: list[Any] = list(self._streams)
        for pipe in self.open:
            os.set_blocking(pipe.fileno(), False)

    def forward(self, ready: Collection[Any]) -> None:
        """Show what has come through those of our pipes that are ready."""
        for pipe in [pipe for pipe in self.open if pipe in ready]:
            try:
                chunk = os.read(pipe.fileno(), _CHUNK)
            except BlockingIOError:
                continue
            self._take(pipe, chunk)
            if not chunk:
                self.open.remove(pipe)

    def close(self) -> None:
        """Show what is left, and what is half a line."""
        for pipe in self.open:
            try:
                while chunk := os.read(pipe.fileno(), _CHUNK):
                    self._take(pipe, chunk)
            except BlockingIOError:
                pass  # what the process had started lives on, and holds it
            self._take(pipe, b"")
        self.open = []
        for pipe in self._streams:
            pipe.close()

    def _take(self, pipe: Any, chunk: bytes) -> None:
        """Say whole lines, and at the end of the pipe the rest."""
        whole, newline, rest = (self._rests[pipe] + chunk).rpartition(b"\n")
        if not chunk:
            whole, newline, rest = whole + newline + rest, b"", b""
        self._rests[pipe] = rest
        if not whole and not newline:
            return
        for line in whole.split(b"\n"):
            # A bar that redraws itself: its last state.
            shown = line.rstrip(b"\r").rpartition(b"\r")[2]
            self._say(self._streams[pipe], shown.decode(errors="replace"))
