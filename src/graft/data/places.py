"""Where pictures may lie: below the folder that was named, whatever a table of labels says.

Names are judged as text, then by where their folders and links lead, before any file is opened.
"""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from graft.data.raw import Raw
from graft.errors import DataError

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm",
    ".pgm",
)  # fmt: skip

# A file name without folders or odd characters: nearly all are so, and there may be a million.
_PLAIN = re.compile(r"\w[\w.-]*")

# Nothing, zero bytes, backslashes, the home directory, absolute paths, drive letters, any step
# upwards. `a/../b` would stay inside as text, but not where `a` is a link.
_DOUBTFUL = re.compile(r"^\s*$|[\0\\]|^[~/]|^[A-Za-z]:|(?:^|/)\.\.(?:/|$)")

_MISSING = "missing"


def folder(value: str, key: str) -> Path:
    """The absolute path of a folder of pictures that the user named.

    Raises:
        DataError: it is not there, not a folder, cannot be read, or has nothing in it.
    """
    path = given(value)
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            raise DataError(f"{key}={value} is not a folder.")
        with os.scandir(path) as entries:
            if next(entries, None) is None:
                raise DataError(f"{key}={value} is empty.")
    except FileNotFoundError:
        raise DataError(f"{key}={value} does not exist: there is no {path}.") from None
    except OSError as error:
        raise DataError(f"{key}={value} cannot be read: {error.strerror}.") from None
    return path


def given(value: str) -> Path:
    """A path as the user typed it, made absolute from the working directory."""
    return Path(os.path.abspath(os.path.expanduser(value)))


def problems(raw: Raw, *, allow_absolute: bool, allow_missing: bool) -> list[str]:
    """What is wrong with the places that a table's file names stand for; opens no file."""
    reasons: dict[str, list[int]] = {}
    disk = _Disk(raw.root)
    here, _ = disk.listed("")
    is_plain = _PLAIN.fullmatch
    for i, name in enumerate(raw.ids):
        if name in here and is_plain(name):
            continue
        reason = _as_text(name, allow_absolute) or disk.problem(name)
        if reason:
            reasons.setdefault(reason, []).append(i)
    missing = reasons.pop(_MISSING, [])
    said = [
        f"{raw.name}: {raw.rows(found)}: {reason}: {raw.ids[found[0]]!r}."
        for reason, found in reasons.items()
    ]
    if missing and (not allow_missing or len(missing) == len(raw.ids)):
        said.append(_say_missing(raw, missing) + disk.hint(raw.ids[missing[0]]))
    return said


def _as_text(name: str, allow_absolute: bool) -> str:
    if not _DOUBTFUL.search(name):
        return ""
    if not name.strip():
        return "the file name is empty"
    if "\\" in name:
        return "a backslash in a file name; between folders write /"
    if name.startswith("/") and not _DOUBTFUL.search(name.lstrip("/")):
        return "" if allow_absolute else "absolute paths need dataset.absolute_paths=true"
    return "a file name that could lead out of the pictures' folder"


class _Disk:
    """Where names below a root lead, by their folders and links. Each folder is listed once."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._inside = os.path.realpath(root)
        self._listed: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
        self._leaves: dict[str, bool] = {}

    def listed(self, folder: str) -> tuple[frozenset[str], frozenset[str]]:
        """What is in a folder below the root, without links, and its links."""
        if folder not in self._listed:
            files: list[str] = []
            links: list[str] = []
            try:
                with os.scandir(os.path.join(self._root, folder)) as entries:
                    for entry in entries:
                        (links if entry.is_symlink() else files).append(entry.name)
            except OSError:
                pass  # nothing of it can be read: its pictures are as good as missing
            self._listed[folder] = frozenset(files), frozenset(links)
        return self._listed[folder]

    def problem(self, name: str) -> str:
        """What is wrong with where a name leads, or nothing. An absolute name may lead anywhere."""
        path = os.path.join(self._root, name)
        if name.startswith("/"):
            return "" if os.path.lexists(path) else _MISSING
        folder, _, last = name.rpartition("/")
        if self._folder_leaves(folder):
            return "a folder that is a link out of the pictures' folder"
        files, links = self.listed(folder)
        if last in links and self._is_outside(path):
            return "a link out of the pictures' folder"
        return "" if last in files or last in links else _MISSING

    def hint(self, name: str) -> str:
        """The file that a missing name may mean: with an extension, or of another case."""
        folder, _, last = name.rpartition("/")
        wanted = last.lower()
        there = sorted(
            file
            for file in frozenset().union(*self.listed(folder))
            if wanted in (file.lower(), os.path.splitext(file)[0].lower())
        )
        return f" There is a file {there[0]!r}." if there else ""

    def _folder_leaves(self, folder: str) -> bool:
        if folder not in self._leaves:
            self._leaves[folder] = self._is_outside(os.path.join(self._root, folder))
        return self._leaves[folder]

    def _is_outside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real != self._inside and not real.startswith(self._inside.rstrip("/") + "/")


def _say_missing(raw: Raw, missing: Sequence[int]) -> str:
    count = f"{len(missing):,} of {len(raw.ids):,} pictures are not in {raw.root_key}"
    where = f"{raw.name}: {raw.rows(missing)}: {raw.ids[missing[0]]!r}"
    if len(missing) == len(raw.ids):
        return f"{count} ({where}). Is it the right folder?"
    return f"{count} ({where}). Add them, or dataset.on_bad_image=skip leaves them out."
