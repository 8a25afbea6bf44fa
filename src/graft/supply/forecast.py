"""What would be stored for an array, without storing it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graft.config import RunConfig
from graft.data import Examples
from graft.data.augment import fixed_views
from graft.fit.learner import autocast
from graft.plan import gigabytes
from graft.supply.batches import Input, as_input
from graft.supply.shelf import Shelf
from graft.supply.stored import place_of
from graft.trunk.cut import Cut
from graft.trunk.rows import NotRows, RowFormat


@dataclass(frozen=True)
class Forecast:
    """What an array would be fed with.

    Attributes:
        at: the end of the trunk, in the network's own names; None where there is none.
        num_rows: to store, each view of a picture counted.
        num_bytes: of all of them.
        is_there: whether they are stored already.
        why: where nothing would be stored, why.
    """

    at: str | None
    views: int = 0
    num_rows: int = 0
    num_bytes: int = 0
    is_there: bool = False
    why: str = ""

    def line(self) -> str:
        if self.at is None or self.why:
            return f"no stored trunk: {self.why or 'everything trains'}"
        how = "stored already" if self.is_there else "to be stored"
        views = f"{self.views} view{'s' if self.views > 1 else ''}"
        return f"trunk: up to {self.at}, {views}, {gigabytes(self.num_bytes)}, {how}"


def forecast(
    config: RunConfig, examples: Examples, digests: Sequence[str], own: Cut | None
) -> Forecast:
    """See `Forecast`. Runs the trunk on two made-up pictures, to see the size of what it gives."""
    if own is None:
        return Forecast(None)
    if not config.cache.enabled:
        return Forecast(own.at, why="cache.enabled=false")
    if fixed_views(config.augmentation) is None:
        return Forecast(own.at, why="there is no end to the views of its augmentation")
    device = torch.device(config.device)
    shelf = Shelf(Input(config, examples, digests, device))
    assert config.image_size is not None
    shape = (2, 3, config.image_size, config.image_size)
    noise = torch.zeros(shape, dtype=torch.uint8, device=device)
    with torch.no_grad(), autocast(config.precision, device):
        tensors = own.trunk(as_input(noise, config))
    try:
        format = RowFormat.of(tensors, config.activations, 2)
    except NotRows as error:
        return Forecast(own.at, why=str(error))
    found = shelf.find(place_of(own, own.exits))
    for rows in found[1].values() if found is not None else ():
        rows.close()
    return Forecast(
        own.at, len(shelf.names), shelf.num_rows, shelf.num_rows * format.row_bytes,
        found is not None,
    )  # fmt: skip
