"""What would be stored for an array, without storing it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graft import plan
from graft.config import RunConfig
from graft.data import Examples
from graft.data.augment import fixed_views
from graft.fit.learner import autocast
from graft.supply.batches import Input, made_up
from graft.supply.shelf import Shelf
from graft.supply.stored import PROBE, choose, place_chosen, place_of
from graft.trunk.cut import Cut
from graft.trunk.rows import NotRows


@dataclass(frozen=True)
class Forecast:
    """What an array would be fed with.

    Attributes:
        at: the end of the trunk, in the network's own names; None where there is none.
        num_rows: to store, each view of a picture counted; 0 where nothing would be.
        num_bytes: of all of them.
        is_there: whether they are stored already.
        why: where nothing would be stored, or not at the end, why.
        live_share: of the trunk's time, what every batch would take again.
    """

    at: str | None
    views: int = 0
    num_rows: int = 0
    num_bytes: int = 0
    is_there: bool = False
    why: str = ""
    live_share: float = 1.0

    def line(self) -> str:
        if not self.num_rows:
            return f"no stored trunk: {self.why or 'everything trains'}"
        how = "stored already" if self.is_there else "to be stored"
        views = f"{self.views} view{'s' if self.views > 1 else ''}"
        why = f"; {self.why}" if self.why else ""
        return f"trunk: up to {self.at}, {views}, {plan.gigabytes(self.num_bytes)}, {how}{why}"


def forecast(
    config: RunConfig, examples: Examples, digests: Sequence[str], own: Cut | None
) -> Forecast:
    """See `Forecast`. Runs the trunk on a few made-up pictures, to see the size of what it gives,
    and where it does not fit, the times."""
    if own is None:
        return Forecast(None)
    if not config.cache.enabled:
        return Forecast(own.at, why="cache.enabled=false")
    if fixed_views(config.augmentation) is None:
        return Forecast(own.at, why="there is no end to the views of its augmentation")
    device = torch.device(config.device)
    shelf = Shelf(Input(config, examples, digests, device))
    found = shelf.find(place_of(own, own.exits))
    if found is not None:
        for rows in found[1].values():
            rows.close()
        size = shelf.num_rows * found[0].row_bytes
        return Forecast(own.at, len(shelf.names), shelf.num_rows, size, True, live_share=0.0)
    pictures = made_up(config, min(PROBE, len(examples.ids)), device)
    precision = functools.partial(autocast, config.precision, device)
    try:
        chosen = choose(config, shelf, own, pictures, precision)
    except NotRows as error:
        return Forecast(own.at, why=str(error))
    if chosen.candidate is None:
        return Forecast(own.at, why=chosen.why)
    one = chosen.candidate
    found = shelf.find(place_chosen(own, chosen)) if chosen.why else None
    for rows in found[1].values() if found is not None else ():
        rows.close()
    return Forecast(
        own.at, len(shelf.names), shelf.num_rows, shelf.num_rows * one.row_bytes,
        found is not None, chosen.why,
        one.after_s / (one.before_s + one.after_s) if chosen.why else 0.0,
    )  # fmt: skip
