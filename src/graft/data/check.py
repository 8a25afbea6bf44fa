"""Checks every picture of a table once, before anything is trained on it.

A check opens, measures and decodes each file in full. What it found is kept by the digest of the
file's bytes, so that the next sweep only looks at sizes and times; verdicts are not kept, only
facts, so that another limit needs no second look. Bad files are looked at again every time.
"""

import hashlib
import json
import os
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache as remember
from pathlib import Path
from typing import Literal, NamedTuple

import PIL
from PIL import Image

from graft.data.decode import Unreadable, digest_of, opened, opened_file, rgb
from graft.data.decoders import Decoders
from graft.data.raw import SHOWN
from graft.record import write_whole

# Raised when the facts or the rule of decoding change; another Pillow decodes again, too.
FORMAT = 1

# A file that changed this recently may change again without its time showing it.
_SETTLED_S = 2.0

_BY_EXTENSION = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
}


@dataclass(frozen=True)
class BadPicture:
    """A picture that cannot be used. `row` is its position in the table, 0-based."""

    id: str
    path: Path
    row: int
    reason: str


@dataclass(frozen=True)
class Checked:
    """What became of a check of N pictures.

    Attributes:
        bad: those that cannot be used, in the table's order.
        digests: [N] blake2b of each file's bytes, 16 hexadecimal digits; "" for bad ones.
        notes: what the user should be told, and can go on with.
    """

    bad: tuple[BadPicture, ...]
    digests: tuple[str, ...]
    notes: tuple[str, ...]


class Leaks(NamedTuple):
    """Equal pictures: `problems` across splits, `notes` where their labels differ."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Facts:
    """Of a file that was decoded in full. `stamp` is "" where its time cannot be relied on yet."""

    stamp: str
    digest: str
    width: int
    height: int
    format: str
    has_more: bool


def check(
    ids: Sequence[str],
    paths: Sequence[Path],
    root: Path | None,
    cache: Path,
    *,
    max_pixels: int,
    min_side: int,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Checked:
    """Decode every file that is not known yet, in a pool of threads.

    Args:
        ids, paths: [N] names in the table, and the files that they stand for.
        root: a relative id must not lead out of this folder through links; None: not checked.
        cache: folder in which what was found is kept; it may be lost at any time.
        max_pixels: pictures with more are bad, and are never decoded.
        min_side: pictures with a shorter side are bad.
        workers: threads; None: one per core.
        progress: called with (done, total).
    """
    store = cache / f"pictures-{_digest(os.fsencode(root or ''))}.checked"
    known = _read(store)
    looks = _Looks(root, known, max_pixels)
    outcomes: dict[int, _Facts | str] = {}
    tell = progress or (lambda done, total: None)
    notes: list[str] = []
    try:
        for row, outcome in looks.at(ids, paths, workers):
            outcomes[row] = outcome
            tell(len(outcomes), len(paths))
    finally:
        # After Ctrl-C too: what has been decoded need not be decoded again.
        found = {str(paths[row]): f for row, f in outcomes.items() if isinstance(f, _Facts)}
        notes.extend(_write(store, known, found))
    return _judge(ids, paths, outcomes, notes, max_pixels=max_pixels, min_side=min_side)


def message(
    bad: Sequence[BadPicture], total: int, on_bad_image: Literal["error", "skip"] | None
) -> str:
    """What to tell the user of bad pictures: the first ten, each with its row and path.

    Args:
        on_bad_image: None: there is no such key to be set.
    """
    count = f"{len(bad):,} of {total:,} pictures cannot be used (row 1 is the first picture)"
    lines = [f"  row {one.row + 1}: {one.path}: {one.reason}" for one in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"  and {len(bad) - SHOWN:,} more")
    if on_bad_image == "skip":
        return "\n".join([f"{count}; dataset.on_bad_image=skip leaves them out:", *lines])
    skip = ": dataset.on_bad_image=skip" if on_bad_image else ""
    advice = f"Repair or replace them, or leave them out{skip}."
    return "\n".join([f"{count}:", *lines, advice])


def leaks(
    ids: Sequence[str], digests: Sequence[str], labels: Sequence[object], splits: Sequence[str]
) -> Leaks:
    """Pictures whose files are equal, byte for byte, where that matters. All arguments: [N]."""
    rows = defaultdict[str, list[int]](list)
    for row, digest in enumerate(digests):
        if digest:
            rows[digest].append(row)
    equal = [found for found in rows.values() if len(found) > 1]
    across = [found for found in equal if len({splits[row] for row in found}) > 1]
    torn = [found for found in equal if len({labels[row] for row in found}) > 1]
    problems, notes = [], []
    if across:
        problems.append(
            f"{_pictures(across)} stand in more than one split, such as "
            f"{_shown(across[0], ids, splits)}. Remove the copies, or keep them together by "
            "dataset.group=..."
        )
    if torn:
        notes.append(
            f"{_pictures(torn)} have different labels, such as {_shown(torn[0], ids, labels)}."
        )
    return Leaks(tuple(problems), tuple(notes))


class _Looks:
    """One look at each file of a table, with what is known of it from before."""

    def __init__(self, root: Path | None, known: dict[str, _Facts], max_pixels: int) -> None:
        self._known, self._max_pixels = known, max_pixels
        self._by_digest = {facts.digest: facts for facts in known.values()}
        self._root = None if root is None else os.path.realpath(root)
        self._real = remember(os.path.realpath)

    def at(
        self, ids: Sequence[str], paths: Sequence[Path], workers: int | None
    ) -> Iterable[tuple[int, _Facts | str]]:
        """Row and outcome of each file, in no order: facts, or why it is bad."""
        rest = []
        for row, (name, path) in enumerate(zip(ids, paths, strict=True)):
            known = self._unchanged(name, path)
            if known is None:
                rest.append(row)
            else:
                yield row, known
        # What is known travels with each call: to threads only.
        many = 0 if self._by_digest else len(rest)
        with Decoders("check", workers or None, many) as decoders:
            size = decoders.at_a_time
            parts = [rest[start : start + size] for start in range(0, len(rest), size)]
            futures = [
                decoders.submit(
                    decoders.call,
                    look,
                    [paths[row] for row in part],
                    self._max_pixels,
                    self._by_digest,
                )
                for part in parts
            ]
            for part, future in zip(parts, futures, strict=True):
                yield from zip(part, future.result(), strict=True)

    def _unchanged(self, name: str, path: Path) -> _Facts | str | None:
        if self._root is not None and not name.startswith("/") and self._leads_out(path):
            return f"a link out of {self._root}"
        known = self._known.get(str(path))
        if known is None or not known.stamp:
            return None
        try:
            return known if known.stamp == _stamp(os.stat(path)) else None
        except OSError:
            return None

    def _leads_out(self, path: Path) -> bool:
        real = self._real(os.path.dirname(path))
        try:
            if stat.S_ISLNK(os.lstat(path).st_mode):
                real = os.path.realpath(path)
        except OSError:
            return False  # not there: said as that
        return real != self._root and not real.startswith(f"{str(self._root).rstrip('/')}/")


def look(
    paths: Sequence[Path], max_pixels: int, by_digest: Mapping[str, _Facts]
) -> list[_Facts | str]:
    """Of each file the facts, or why it is bad; not decoded where its bytes are known."""
    return [_look(path, max_pixels, by_digest) for path in paths]


def _look(path: Path, max_pixels: int, by_digest: Mapping[str, _Facts]) -> _Facts | str:
    try:
        # The header first: a bomb, or a huge file that is no picture, is not read through.
        with opened(path, max_pixels=max_pixels) as picture:
            digest, stamp = _digest_of_file(path)
            if digest in by_digest:
                return replace(by_digest[digest], stamp=stamp)
            width, height = picture.size
            rgb(picture)
            more = _has_more(picture)
            if picture.format == "PNG":
                _must_be_intact(path)
            return _Facts(stamp, digest, width, height, str(picture.format), more)
    except Unreadable as error:
        return error.reason


def _must_be_intact(path: Path) -> None:
    """PNG holds checksums that decoding alone does not look at once all pixels are there."""
    with opened(path, max_pixels=None) as picture:
        picture.verify()


def _has_more(picture: Image.Image) -> bool:
    try:
        picture.seek(1)
    except EOFError:
        return False
    except Exception:
        return True  # there is more, but damaged; only the first is used
    return True


def _digest_of_file(path: Path) -> tuple[str, str]:
    """Digest of a file's bytes, and the stamp by which it is known to be unchanged, or ""."""
    with opened_file(path) as stream:
        status = os.fstat(stream.fileno())
        digest = digest_of(stream)
    changed = max(status.st_mtime, status.st_ctime)
    return digest, _stamp(status) if time.time() - changed > _SETTLED_S else ""


def _stamp(status: os.stat_result) -> str:
    """Differs once a file is written to: copying tools can set back mtime, but not ctime."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _judge(
    ids: Sequence[str],
    paths: Sequence[Path],
    outcomes: dict[int, _Facts | str],
    notes: Sequence[str],
    *,
    max_pixels: int,
    min_side: int,
) -> Checked:
    bad, digests, other = [], [""] * len(paths), Counter[str]()
    for row, path in enumerate(paths):
        found = outcomes[row]
        reason = found if isinstance(found, str) else _beyond(found, max_pixels, min_side)
        if reason or isinstance(found, str):
            bad.append(BadPicture(ids[row], path, row, reason))
            continue
        digests[row] = found.digest
        other.update(_noteworthy(path, found))
    counted = [f"{count:,} pictures: {what}." for what, count in other.most_common()]
    return Checked(tuple(bad), tuple(digests), (*counted, *notes))


def _beyond(facts: _Facts, max_pixels: int, min_side: int) -> str:
    size = f"{facts.width}x{facts.height}"
    if facts.width * facts.height > max_pixels:
        return f"{size} pixels, more than dataset.max_pixels={max_pixels}"
    if min(facts.width, facts.height) < min_side:
        return f"{size} pixels, a side shorter than dataset.min_side={min_side}"
    return ""


def _noteworthy(path: Path, facts: _Facts) -> list[str]:
    extension = path.suffix.lower()
    # A phone's JPEG with a second picture behind it, such as a depth map, reports itself as MPO.
    content = "JPEG" if facts.format == "MPO" else facts.format
    said = []
    if _BY_EXTENSION.get(extension, content) != content:
        said.append(f"extension {extension}, content {content}; read by content")
    if facts.has_more:
        said.append(f"several frames or pages ({content}); the first is used")
    return said


def _read(store: Path) -> dict[str, _Facts]:
    """What earlier checks found, by path; nothing where that is missing, damaged or outdated."""
    try:
        digest, text = store.read_text(encoding="ascii").split("\n", 1)
        if digest != _digest(text.encode()):
            return {}
        kept = json.loads(text)
        if kept["format"] != [FORMAT, PIL.__version__]:
            return {}
        return {path: _Facts(*values) for path, values in kept["files"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(store: Path, known: dict[str, _Facts], found: dict[str, _Facts]) -> list[str]:
    """Add what was found; a folder that cannot be written costs time, and one note."""
    files = known | found
    if files == known:
        return []
    values = {path: astuple(facts) for path, facts in files.items()}
    # ASCII with escapes, since a file name need not be valid text.
    text = json.dumps({"format": [FORMAT, PIL.__version__], "files": values})
    whole = f"{_digest(text.encode())}\n{text}"
    try:
        write_whole(store, lambda part: part.write_text(whole, encoding="ascii"))
    except OSError as error:
        return [
            f"What the check of the pictures found cannot be kept in {store.parent} "
            f"({error.strerror}): they will be checked again."
        ]
    return []


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _pictures(equal: Sequence[Sequence[int]]) -> str:
    return f"{sum(map(len, equal)):,} pictures that are copies of each other"


def _shown(rows: Sequence[int], ids: Sequence[str], values: Sequence[object]) -> str:
    first = rows[0]
    other = next(row for row in rows if values[row] != values[first])
    return f"{ids[first]} ({values[first]}) and {ids[other]} ({values[other]})"
