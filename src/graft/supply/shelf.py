"""The entries of the trunk cache that one dataset needs, seen as one configuration sees it."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
from PIL import features

from graft import machine
from graft.data import decode
from graft.data.augment import PLAIN, fixed_views
from graft.errors import CacheError
from graft.supply.batches import Input
from graft.trunk import key
from graft.trunk.activations import Activations, View
from graft.trunk.cut import Cut
from graft.trunk.exits import Exit
from graft.trunk.fill import Rows
from graft.trunk.held import Held
from graft.trunk.rows import RowFormat, Stored
from graft.trunk.store import Store

# What Pillow decodes with where files are not exact: it is built with several versions of them.
_LOSSY = ("jpg", "libjpeg_turbo", "webp")


@dataclass(frozen=True)
class Place:
    """An exit of a trunk, with what names its entries."""

    cut: Cut
    exit: Exit
    at: str
    digest: str  # of the part of the network that leads there


class Shelf:
    """The entries of one dataset, seen as one configuration sees it."""

    def __init__(self, pictures: Input) -> None:
        self.input, config = pictures, pictures.config
        examples = pictures.examples
        self.names = fixed_views(config.augmentation) or ()
        every = np.arange(len(examples.ids))
        # Only training examples are seen in another view than as they are.
        self.rows = {n: every if n == PLAIN else np.sort(examples.train) for n in self.names}
        self.store = Store(
            machine.cache_dir(config.output_dir) / "activations", int(config.cache.limit_gb * 1e9)
        )
        self._settings = {
            "image_size": config.image_size,
            "mean": config.model.mean,
            "std": config.model.std,
            "precision": config.precision,
            "decoding": [decode.FORMAT, PIL.__version__, *map(features.version, _LOSSY)],
            **key.machine(pictures.device),
        }

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each view."""
        return {view: len(rows) for view, rows in self.rows.items()}

    @property
    def num_rows(self) -> int:
        return sum(self.sizes.values())

    def key(self, place: Place, view: str) -> str:
        digests = [self.input.digests[i] for i in self.rows[view]]
        settings = self._settings | {"activations": self.stored(place)}
        return key.key(trunk=place.digest, pictures=digests, view=view, settings=settings)

    def stored(self, place: Place) -> Stored:
        """The type to store: only what a tail sees may be rounded, not what is gone on from."""
        is_end = place.exit == place.cut.exits
        return self.input.config.activations if is_end else "float32"

    def about(self, place: Place, view: str, format: RowFormat) -> dict[str, Any]:
        return {
            "network": self.input.config.model.name,
            "cut": place.at,
            "view": view,
            "pictures": len(self.rows[view]),
            "format": format.to_dict(),
        }

    def find(self, place: Place) -> tuple[RowFormat, dict[str, Rows]] | None:
        """The entries of every view, if all are there."""
        found = {}
        for view in self.names:
            entry = self.store.find(self.key(place, view))
            if entry is not None:
                found[view] = entry
        if len(found) == len(self.names):
            return RowFormat.from_dict(found[PLAIN].about["format"]), dict(found)
        for entry in found.values():
            entry.close()
        return None

    def room_bytes(self) -> int:
        """What may be stored at all: the limit, and what the disk has free or could have."""
        with suppress(OSError, CacheError):
            folder = next(p for p in (self.store.folder, *self.store.folder.parents) if p.exists())
            free = shutil.disk_usage(folder).free + self.store.size()
            return min(int(0.9 * free), self.store.limit_bytes or free)
        return self.store.limit_bytes or 0

    def activations(
        self, format: RowFormat, found: Mapping[str, Rows], held: Held | None = None
    ) -> Activations:
        """`held`: where the rows are on the device already."""
        count = len(self.input.examples.ids)
        seen = {}
        for view, rows in found.items():
            position = np.full(count, -1, dtype=np.int64)
            position[self.rows[view]] = np.arange(len(self.rows[view]))
            seen[view] = View(rows, position)
        return Activations(format, seen, self.input.device, held)
