"""A dataset, ready for training: read, every picture checked, split."""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

from graft import machine
from graft.config import Dataset, RunConfig
from graft.data import Examples, load
from graft.data.check import check, leaks, message
from graft.errors import DataError

log = logging.getLogger("graft")


@dataclass(frozen=True)
class LoadedDataset:
    """A dataset that was read, checked and split.

    Attributes:
        examples: the table.
        digest: of table and pictures.
        digests: [N] of the pictures' files, in the table's order.
        notes: what the user should know of it.
        skipped: pictures that were left out, each with its reason.
    """

    examples: Examples
    digest: str
    digests: tuple[str, ...]
    notes: tuple[str, ...]
    skipped: tuple[str, ...] = ()


def load_dataset(config: RunConfig) -> LoadedDataset:
    """Read the table, check every picture, split. Done once a process for each dataset.

    Raises:
        DataError: all that is wrong with table, pictures or split.
    """
    machine.keep_memory()  # before the threads that check the pictures
    return _load_dataset(config.dataset, machine.cache_dir(config.output_dir), config.workers)


@functools.lru_cache(maxsize=4)
def _load_dataset(config: Dataset, cache: Path, workers: int | None) -> LoadedDataset:
    examples = load(config, cache)
    checked = check(
        list(examples.ids), examples.paths, cache,
        max_pixels=config.max_pixels, min_side=config.min_side, workers=workers,
    )  # fmt: skip
    digests = list(checked.digests)
    if checked.bad:
        said = message(checked.bad, len(examples.ids), config.on_bad_image)
        if config.on_bad_image == "error":
            raise DataError(said)
        log.warning("%s", said)
        bad = {one.id for one in checked.bad}
        digests = [d for d, name in zip(digests, examples.ids, strict=True) if name not in bad]
        examples = load(config, cache, drop=bad)
    names = [examples.classes[label] for label in examples.labels]
    problems, notes = leaks(list(examples.ids), digests, names, list(examples.parts()))
    if problems and config.on_leak == "error":
        raise DataError(
            "\n".join([*problems, "dataset.on_leak=warn goes on, with a warning in the report."])
        )
    every = (*examples.notes, *checked.notes, *notes, *problems)
    skipped = tuple(f"{one.id}: {one.reason}" for one in checked.bad)
    return LoadedDataset(examples, examples.digest_with(digests), tuple(digests), every, skipped)
