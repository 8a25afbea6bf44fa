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

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")

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
        raise DataError(f"{key}={value} does not exist.") from None
    except OSError as error:
        raise DataError(f"{key}={value} cannot be read: {error.strerror}.") from None
    return path


def given(value: str) -> Path:
    """A path as the user typed it, made absolute from the working directory."""
    return Path(os.path.abspath(os.path.expanduser(value)))


def problems(raw: Raw, *, allow_absolute: bool, allow_missing: bool) -> list[str]:
    """What is wrong with the places that a table's file names stand for; opens no file."""
    reasons: dict[str, list[int]] = {}
    missing = []
    on_disk = _Disk(raw.root)
    for i, name in enumerate(raw.ids):
        # One search for a name without fault: there may be a million.
        reason = _as_text(name, allow_absolute) if _DOUBTFUL.search(name) else ""
        reason = reason or on_disk.problem(name)
        if reason == _MISSING:
            missing.append(i)
        elif reason:
            reasons.setdefault(reason, []).append(i)
    said = [
        f"{raw.name}: {raw.rows(found)}: {reason}: {raw.ids[found[0]]!r}."
        for reason, found in reasons.items()
    ]
    if missing and (not allow_missing or len(missing) == len(raw.ids)):
        said.append(_say_missing(raw, missing))
    return said


def _as_text(name: str, allow_absolute: bool) -> str:
    if not name.strip():
        return "the file name is empty"
    if name.startswith("/") and not _DOUBTFUL.search(name.lstrip("/")):
        return "" if allow_absolute else "absolute paths need dataset.absolute_paths=true"
    return "a file name that could lead out of the pictures' folder"


class _Disk:
    """Where names below a root lead, by their folders and links."""

    def __init__(self, root: Path) -> None:
        self.start = f"{root}/"
        self.inside = os.path.realpath(root)
        self.folders: dict[str, bool] = {}

    def problem(self, name: str) -> str:
        """What is wrong with where a name leads, or nothing. An absolute name may lead anywhere."""
        is_absolute = name.startswith("/")
        if "/" in name and not is_absolute and self._folder_leaves(os.path.dirname(name)):
            return "a folder that is a link out of the pictures' folder"
        path = name if is_absolute else self.start + name
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            return _MISSING
        is_link = stat.S_ISLNK(mode) and not is_absolute
        return "a link out of the pictures' folder" if is_link and self._is_outside(path) else ""

    def _folder_leaves(self, name: str) -> bool:
        if name not in self.folders:
            self.folders[name] = self._is_outside(self.start + name)
        return self.folders[name]

    def _is_outside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real != self.inside and not real.startswith(self.inside.rstrip("/") + "/")


def _say_missing(raw: Raw, missing: Sequence[int]) -> str:
    count = f"{len(missing):,} of {len(raw.ids):,} pictures are not in {raw.root_key}"
    where = f"{raw.name}: {raw.rows(missing)}: {raw.ids[missing[0]]!r}"
    if len(missing) == len(raw.ids):
        return f"{count} ({where}). Is it the right folder?"
    return f"{count} ({where}). Add them, or dataset.on_bad_image=skip leaves them out."
