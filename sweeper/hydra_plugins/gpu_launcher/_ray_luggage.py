"""What jobs have written on a node without our file system is brought home: which files, where to.

That is all that is new under the sweep's folder, save what belongs to jobs that still run, and what
the array's own jobs have in folders outside of it.
"""

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from hydra_plugins.gpu_launcher._array import Array, title
from hydra_plugins.gpu_launcher._job import Work
from hydra_plugins.gpu_launcher._ray_files import File, fetched
from hydra_plugins.gpu_launcher._ray_place import Place

log = logging.getLogger(__name__)

Request = tuple[Any, ...]  # a method of the actor, and its arguments
Talk = Generator[Request, Any, None]


class Runs(Protocol):
    """A slot, as far as it matters here."""

    array: Array
    place: Place | None


def sweep_folder(work: Work) -> Path:
    """The sweep's folder as it is configured, perhaps relative."""
    return Path(str(work.config.hydra.sweep.dir))


@contextmanager
def marked(folder: Path) -> Iterator[str]:
    """A file in a folder, by which an actor knows whether it sees this very folder."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = (folder / f".ray-{uuid4().hex}").absolute()
    marker.touch()
    try:
        yield marker.name
    finally:
        marker.unlink(missing_ok=True)


class Luggage:
    """What has to be brought home, and what is there already.

    Args:
        slots: all of the launch.
    """

    def __init__(self, work: Work, slots: Sequence[Runs]) -> None:
        self._work, self._slots = work, slots
        self._sweep = sweep_folder(work)
        self._home = self._sweep.absolute()
        self._here = Path.cwd()
        # What a node has that is here, too: (node, folder, name) -> when it was changed there.
        self._had: dict[tuple[str, str, str], int] = {}

    def brought_home(self, array: Array, place: Place | None) -> Talk:
        """See to it that what an array's jobs have written is here before its end is known.

        Yields:
            What to ask of the actor; to be sent its answers.
        """
        if place is None or place.is_home:
            return
        homes = self._folders(array)
        files = yield "changed", list(homes)
        missing = self._missing(files, homes, place.node, array)
        fetching = fetched(missing, homes)
        try:
            pieces = next(fetching)
            while True:
                pieces = fetching.send((yield "read", pieces))
        except StopIteration as over:
            failures: dict[File, Exception] = dict(over.value)
        self._had |= {_key(place.node, file): file.changed_ns for file in missing}
        for file, error in failures.items():
            log.error("%s: %s is not brought home: %s", title(array), file.name, error)

    def _folders(self, array: Array) -> dict[str, Path]:
        """Those in which the array's jobs leave files, as a node knows them -> at home."""
        own = {str(self._sweep): self._home}
        for folder in self._of_jobs(array):
            if not folder.is_relative_to(self._home):
                own[self._there(folder)] = folder
        return own

    def _missing(
        self, files: Sequence[File], homes: dict[str, Path], node: str, array: Array
    ) -> list[File]:
        others = [one for one in self._slots if one.array is not array and one.place is not None]
        arrays = [one.array for one in others if one.place and one.place.node == node]
        running = [folder for other in arrays for folder in self._of_jobs(other)]
        new = [file for file in files if self._had.get(_key(node, file)) != file.changed_ns]
        return [
            file
            for file in new
            if not any((homes[file.folder] / file.name).is_relative_to(one) for one in running)
        ]

    def _there(self, folder: Path) -> str:
        """As a node knows it, whose working directory may be another."""
        is_ours = not self._sweep.is_absolute() and folder.is_relative_to(self._here)
        return str(folder.relative_to(self._here) if is_ours else folder)

    def _of_jobs(self, array: Array) -> list[Path]:
        found = []
        for job in array:
            try:
                found.append(Path(self._work.placed(job).hydra.runtime.output_dir))
            except Exception as problem:  # it has no folder that could be named: that is its end
                log.debug("%s has no folder: %r", job, problem)
        return found


def _key(node: str, file: File) -> tuple[str, str, str]:
    return node, file.folder, file.name
