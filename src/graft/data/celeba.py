"""Reads CelebA as it is passed around.

    list_attr_celeba.txt      the official list: a count, a line of names, rows with runs of blanks
    list_attr_celeba.csv      its mirrors, separated by commas, first column image_id
    filename,Male             any other CSV with a column `filename` or `image_id`
    identity_CelebA.txt       picture, person
    list_eval_partition.txt   picture, 0 (train), 1 (validation) or 2 (test); or .csv

Lists of persons and partitions that are there become the columns `identity` and `partition`.
Source: Z. Liu et al., Deep Learning Face Attributes in the Wild, ICCV 2015, and its README.
"""

import dataclasses
import sys
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

from graft.config import CelebaDataset
from graft.data import places
from graft.data.csv_table import Columns, open_text, raw, read_csv
from graft.data.raw import Raw, listed, rows
from graft.errors import ConfigError, DataError

_FILE_COLUMNS = ("image_id", "filename", "file_name", "file", "image")
_PICTURES = "img_align_celeba"
# Where the official archive and its mirrors keep their lists, below the root.
_LIST_FOLDERS = (".", "Anno", "Eval")
_ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
_IDENTITIES = ("identity_CelebA.txt", "identity_CelebA.csv")
_PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")


def read(config: CelebaDataset) -> Raw:
    """The attributes of every picture, with persons and partitions where their lists are."""
    attributes, key = _attributes_file(config)
    images, images_key = _pictures(config)
    table = _read_attributes(attributes, key)
    file = _file_column(table)
    lists = {
        "identity": _list(config.identities, "dataset.identities", _IDENTITIES, attributes, config),
        "partition": _list(config.partition, "dataset.partition", _PARTITIONS, attributes, config),
    }
    group = _column(config.group, "identity", lists["identity"], table)
    split = _column(config.split, "partition", lists["partition"], table)
    notes = []
    for name, found in lists.items():
        if found is not None and name not in table.columns:
            is_used = name in (group, split)
            table = _join(table, file, name, _read_pairs(*found), found[0], is_used)
    if config.group == "auto" and group:
        notes.append(f"dataset.group=auto: a person's pictures stay together ({group}).")
    if config.split == "auto" and split:
        notes.append(f"dataset.split=auto: the official {split} is used.")
    return raw(
        table, config, file=file, root=images, root_key=images_key,
        group=group, split=split, notes=tuple(notes),
    )  # fmt: skip


# --- where things are ------------------------------------------------------------------------


def _attributes_file(config: CelebaDataset) -> tuple[Path, str]:
    if config.root is None and (config.csv is None or config.images is None):
        raise ConfigError(
            "dataset=celeba needs dataset.root=<the folder with list_attr_celeba.txt and "
            f"{_PICTURES}/>, or dataset.csv=<file> and dataset.images=<folder>."
        )
    if config.csv is not None:
        return places.given(config.csv), "dataset.csv"
    assert config.root is not None
    root = places.folder(config.root, "dataset.root")
    found = _find(_ATTRIBUTES, root)
    if found is None:
        raise DataError(
            f"dataset.root={config.root} has no {' or '.join(_ATTRIBUTES)}, nor have "
            f"{' and '.join(_LIST_FOLDERS[1:])} below it. Or name it: dataset.csv=..."
        )
    return found, "dataset.root"


def _pictures(config: CelebaDataset) -> tuple[Path, str]:
    """The folder of pictures; unpacking the archive often leaves one within another."""
    if config.images is not None:
        path = places.folder(config.images, "dataset.images")
        return _innermost(path), f"dataset.images={config.images}"
    assert config.root is not None
    root = places.given(config.root)
    for place in (root / _PICTURES, root / "Img" / _PICTURES):
        if place.is_dir():
            inner = _innermost(place)
            places.folder(str(inner), "dataset.root")
            return inner, f"dataset.root={config.root} ({inner.relative_to(root)}/)"
    raise DataError(
        f"dataset.root={config.root} has no {_PICTURES}/, nor has Img/ below it. "
        "Or name the pictures' folder: dataset.images=..."
    )


def _innermost(path: Path) -> Path:
    inner = path / _PICTURES
    return inner if inner.is_dir() else path


def _list(
    value: str | None, key: str, names: Sequence[str], attributes: Path, config: CelebaDataset
) -> tuple[Path, str] | None:
    """The list that the user named, or the one found below the root or beside the attributes."""
    if value is not None:
        return places.given(value), key
    folders = [attributes.parent, attributes.parent.parent / "Eval"]
    if config.root is not None:
        folders.append(places.given(config.root))
    for place in folders:
        found = _find(names, place)
        if found is not None:
            return found, key
    return None


def _find(names: Sequence[str], root: Path) -> Path | None:
    places_of = (root / below / name for below in _LIST_FOLDERS for name in names)
    return next((place for place in places_of if place.is_file()), None)


def _column(
    asked: str | None, name: str, found: tuple[Path, str] | None, table: Columns
) -> str | None:
    """The column that a group or split is taken from; "auto" is `name` where it is there."""
    if asked == "auto":
        return name if found is not None or name in table.columns else None
    if asked == name and found is None and name not in table.columns:
        files, key = {
            "identity": (_IDENTITIES, "dataset.group=identity"),
            "partition": (_PARTITIONS, "dataset.split=partition"),
        }[name]
        raise DataError(f"{key}, but {files[0]} was not found beside {table.file}.")
    return asked


# --- the lists -------------------------------------------------------------------------------


def _read_attributes(path: Path, key: str) -> Columns:
    with open_text(path, key) as stream:
        first = stream.readline().strip()
    return _read_official(path, key) if first.isdigit() else read_csv(path, key)


def _read_official(path: Path, key: str) -> Columns:
    """The list with a count in its first line and the attributes' names in its second."""
    lines, collected, uneven = array("q"), [], []
    with open_text(path, key) as stream:
        count = int(stream.readline())
        header = stream.readline().split()
        for number, line in enumerate(stream, 3):
            row = line.split()
            if len(row) == len(header) + 1:
                collected.append(tuple(map(sys.intern, row)))
                lines.append(number)
            elif row:
                uneven.append(number)
    if uneven or not header:
        raise DataError(
            f"{path}: {rows(uneven or [2])}: a picture and {len(header)} values are expected, "
            f"one for each name in line 2."
        )
    if len(set(header)) < len(header):
        raise DataError(f"{path}, line 2: two attributes have one name.")
    if len(collected) != count:
        raise DataError(
            f"{path}: line 1 says {count:,} pictures, but {len(collected):,} follow. "
            "Was it cut short? A list shortened on purpose needs its own count there."
        )
    if not collected:
        raise DataError(f"{path} lists no pictures.")
    columns = dict(zip(["image_id", *header], zip(*collected, strict=True), strict=True))
    return Columns(path, columns, lines)


def _file_column(table: Columns) -> str:
    found = next((name for name in _FILE_COLUMNS if name in table.columns), None)
    if found is None:
        raise DataError(
            f"{table.file}: a column image_id or filename is expected. Columns found: "
            f"{listed(list(table.columns))}. For any other CSV: dataset=csv dataset.file=..."
        )
    return found


def _read_pairs(path: Path, key: str) -> Mapping[str, str]:
    """Picture -> value, from a list of two columns: blanks without a header, or a CSV."""
    with open_text(path, key) as stream:
        is_csv = "," in stream.readline()
    if is_csv:
        table = read_csv(path, key)
        if len(table.columns) != 2:
            raise DataError(
                f"{key}={path}: two columns are expected. Columns found: "
                f"{listed(list(table.columns))}."
            )
        return dict(zip(*table.columns.values(), strict=True))
    pairs, uneven = {}, []
    with open_text(path, key) as stream:
        for number, line in enumerate(stream, 1):
            row = line.split()
            if len(row) == 2:
                pairs[row[0]] = sys.intern(row[1])
            elif row:
                uneven.append(number)
    if uneven:
        raise DataError(f"{path}: {rows(uneven)}: a picture and one value are expected.")
    return pairs


def _join(
    table: Columns, file: str, name: str, values: Mapping[str, str], source: Path, is_used: bool
) -> Columns:
    """The table with one more column, looked up by picture; a list may hold more than the table."""
    pictures = table.columns[file]
    missing = [i for i, picture in enumerate(pictures) if picture not in values]
    if missing and is_used:
        key = "dataset.group" if name == "identity" else "dataset.split"
        raise DataError(
            f"{source} does not say the {name} of {listed([pictures[i] for i in missing])} "
            f"({table.file}: {rows(table.lines[i] for i in missing)}). {key}=null does without."
        )
    column = tuple(values.get(picture, "") for picture in pictures)
    return dataclasses.replace(table, columns={**table.columns, name: column})
