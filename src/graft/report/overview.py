"""What was swept: settings, data, environment."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from graft.errors import RecordError
from graft.naming import option
from graft.record import ENVIRONMENT, Record, read_json
from graft.report import words

# More classes than this are summed up.
MAX_CLASSES = 6
# Settings in the order in which they are read; a part without one stands by its `_target_`.
_SETTINGS = {
    "dataset": ("dataset", "dataset.target", "dataset.csv", "dataset.root", "dataset.group"),
    "model": ("model.name", "model.weights"),
    "training": ("strategy", "optimizer", "optimizer.lr", "schedule", "loss", "augmentation",
                 "sampling", "epochs", "patience", "batch_size", "image_size", "precision"),
    "selected by": ("metric",),
    "seeds": ("seed", "dataset.split_seed"),
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A line of settings: its name, and "key=value" texts."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """One of train, val, test: its size, and (class, count, share of the part)."""

    name: str
    total: int
    classes: tuple[tuple[str, int, float], ...]
    note: str = ""


def facts(records: Sequence[Record]) -> list[Fact]:
    """The settings of the runs, those that differ with every value."""
    flat = [dict(_flat(config)) for config in map(_config, records) if config]
    found = []
    for name, keys in _SETTINGS.items():
        values = [text for key in keys if (text := _values(key, flat))]
        found += [Fact(name, tuple(values))] if values else []
    return found


def parts(record: Record) -> list[Part]:
    """Sizes and class shares of the splits, as the run recorded them."""
    split: Mapping[str, Mapping[str, int]] = record.info.get("split") or {}
    return [_part(name, counts) for name, counts in split.items()]


def noticed(records: Sequence[Record], key: Literal["notes", "skipped"]) -> list[str]:
    """What the runs recorded of their data: things to know, or pictures that were left out."""
    return list(dict.fromkeys(text for r in records for text in r.info.get(key, ())))


def num_splits(records: Sequence[Record]) -> int:
    """How many different splits the runs were made on."""
    return len({repr(r.info["split"]) for r in records if r.info.get("split")})


def groups(record: Record, split: str) -> int | None:
    """How many groups the examples of a split come from; None where they have none."""
    try:
        table = record.examples
    except (RecordError, OSError, ValueError):
        return None
    if "group" not in table:
        return None
    return int(table.loc[table["split"] == split, "group"].nunique())


def environment(record: Record) -> list[Fact]:
    """Versions, device and commit, as the run recorded them."""
    known = read_json(record.path / ENVIRONMENT) or {}
    return [
        Fact(key, tuple(f"{k} {v}" for k, v in value.items()))
        if isinstance(value, dict)
        else Fact(key, (str(value),))
        for key, value in known.items()
        if value is not None
    ]


def num_environments(records: Sequence[Record]) -> int:
    return len({repr(e) for r in records if (e := read_json(r.path / ENVIRONMENT))})


def is_emoji(records: Sequence[Record]) -> bool:
    """Whether the page shows drawings whose licence asks for a credit."""
    configs = [_config(record) or {} for record in records]
    targets = [str((config.get("dataset") or {}).get("_target_")) for config in configs]
    return any(target.endswith(".EmojiDataset") for target in targets)


def _config(record: Record) -> Mapping[str, Any] | None:
    try:
        return record.config
    except (RecordError, OSError, ValueError):
        return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield prefix + key, option(str(value.get("_target_", "")))
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _values(key: str, flat: Sequence[Mapping[str, Any]]) -> str:
    """ "key=value", every value that occurs; nothing where none is set."""
    found = list(dict.fromkeys(str(one[key]) for one in flat if one.get(key) not in (None, "")))
    if not found:
        return ""
    more = f", ... ({len(found)} values)" if len(found) > 8 else ""
    return f"{key}={', '.join(found[:8])}{more}"


def _part(name: str, counts: Mapping[str, int]) -> Part:
    total = sum(counts.values())
    shares = [(c, n, n / max(total, 1)) for c, n in counts.items()]
    full = {"train": "training", **words.SPLITS}.get(name, name)
    if len(shares) <= MAX_CLASSES:
        return Part(full, total, tuple(shares))
    few, many = (pick(shares, key=lambda c: c[1]) for pick in (min, max))
    note = f"{len(shares)} classes, {few[1]:,} ({few[0]}) to {many[1]:,} ({many[0]}) examples each"
    return Part(full, total, (), note)
