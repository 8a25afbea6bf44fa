"""Reads pictures that lie in one folder per class, with or without train/, val/ and test/ above."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from graft.config import ImageFolderDataset
from graft.data import places
from graft.data.raw import Raw, listed
from graft.data.split import PART_NAMES
from graft.errors import ConfigError, DataError

# A column may say 0, 1, 2 for the parts, as CelebA's list does; folders of these names are classes.
_SPLITS = {name: part for name, part in PART_NAMES.items() if name.isalpha()}


@dataclass
class _Found:
    """What a walk through the folders gathers."""

    root: Path
    pictures: list[tuple[str, str, str]] = field(default_factory=list)  # id, class, part
    empty: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)  # by extension
    stray: int = 0
    links: list[str] = field(default_factory=list)


def read(config: ImageFolderDataset) -> Raw:
    """Every picture below the root, in the order of its path.

    A folder's pictures may lie in folders of its own. Hidden files are ignored; other files too,
    with a note. Links to folders are refused: they may lead in a circle, or out of the root.

    Raises:
        DataError: the root or a class is empty, or it is not clear which folders are splits.
    """
    if config.group is not None or config.split is not None:
        raise ConfigError(
            "dataset.group and dataset.split name columns of a table, which folders do not have: "
            "set them to null, or use dataset=csv."
        )
    found = _Found(places.folder(config.root, "dataset.root"))
    parts = _parts(found.root, config.root)
    for folder, part in parts.items() if parts else [(found.root, "")]:
        _walk_classes(folder, part, found)
    problems = _problems(found, config)
    if problems:
        raise DataError("\n".join(problems))
    found.pictures.sort()
    ids, labels, splits = zip(*found.pictures, strict=True)
    return Raw(
        name=config.root, root=found.root, root_key=f"dataset.root={config.root}",
        ids=ids, labels=labels, target=config.target,
        split="folder above" if parts else None, splits=splits if parts else None,
        columns={}, notes=_notes(found),
    )  # fmt: skip


def _parts(root: Path, shown: str) -> dict[Path, str]:
    """The folders that are splits; none where the folders are classes.

    They are splits if all of them are named so. A class may be called "train" among others, but
    "train" and "test" beside a folder of another name leave open what is meant, and so does a
    "train" that holds folders only, as a class does not.
    """
    folders = [entry.name for entry in _visible(root) if _is_folder(entry)]
    named = {name: _SPLITS[name.lower()] for name in folders if name.lower() in _SPLITS}
    others = [name for name in folders if name not in named]
    if others and (len(named) > 1 or any(_holds_folders_only(root / name) for name in named)):
        raise DataError(
            f"dataset.root={shown} has folders like splits ({listed(sorted(named))}) beside "
            f"folders like classes ({listed(others)}). Move the one or the other."
        )
    if others or not named:
        return {}
    if len(set(named.values())) < len(named):
        raise DataError(
            f"dataset.root={shown}: {listed(sorted(named))}: two of these name one part."
        )
    return {root / name: part for name, part in named.items()}


def _holds_folders_only(folder: Path) -> bool:
    entries = list(_visible(folder))
    has_pictures = any(_is_picture(e.name) and not _is_folder(e) for e in entries)
    return not has_pictures and any(map(_is_folder, entries))


def _walk_classes(folder: Path, part: str, found: _Found) -> None:
    for entry in _visible(folder):
        if not _is_folder(entry):
            if _is_picture(entry.name):
                found.stray += 1
            else:
                found.ignored[_extension(entry.name)] += 1
        elif entry.is_symlink():
            found.links.append(_id(entry, found.root))
        else:
            before = len(found.pictures)
            _walk(Path(entry.path), (entry.name, part), found)
            if len(found.pictures) == before:
                found.empty.append(_id(entry, found.root))


def _walk(folder: Path, where: tuple[str, str], found: _Found) -> None:
    for entry in _visible(folder):
        name = _id(entry, found.root)
        if _is_folder(entry) and entry.is_symlink():
            found.links.append(name)
        elif _is_folder(entry):
            _walk(Path(entry.path), where, found)
        elif _is_picture(entry.name):
            found.pictures.append((name, *where))
        else:
            found.ignored[_extension(entry.name)] += 1


def _visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None


def _is_picture(name: str) -> bool:
    return name.lower().endswith(places.EXTENSIONS)


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "no extension"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _id(entry: os.DirEntry[str], root: Path) -> str:
    """Path below the root, with slashes; cut from the text, since there may be a million."""
    return entry.path[len(str(root)) :].replace(os.sep, "/").lstrip("/")


def _problems(found: _Found, config: ImageFolderDataset) -> list[str]:
    start = f"dataset.root={config.root}"
    said = []
    if found.links:
        said.append(f"{start}: links to folders are not followed: {listed(found.links)}.")
    names = [name for name, *_ in found.pictures]
    odd = [ascii(name) for name in names if not _is_text(name)]
    if odd:
        said.append(f"{start}: file names that are not UTF-8: {listed(odd)}.")
    if not names:
        said.append(
            f"{start} has no pictures in folders, one for each class, such as {config.root}/cats/"
            "1.jpg. With labels in a table, use dataset=csv."
        )
    elif found.empty and config.min_class == "error":
        said.append(
            f"{start}: folders without a picture: {listed(found.empty)}. Remove them, or "
            "dataset.min_class=drop leaves these classes out."
        )
    return said


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _notes(found: _Found) -> tuple[str, ...]:
    notes = []
    if found.empty:
        notes.append(f"Folders without a picture, not used: {listed(found.empty)}.")
    if found.ignored:
        # By kind, most first: a phone's .heic files are pictures to whoever put them there.
        kinds = listed([f"{kind} {count:,}" for kind, count in found.ignored.most_common()])
        total = found.ignored.total()
        notes.append(f"Files that are not pictures we read, not used: {total:,} ({kinds}).")
    if found.stray:
        notes.append(f"Pictures outside of a class folder, not used: {found.stray:,}.")
    return tuple(notes)
