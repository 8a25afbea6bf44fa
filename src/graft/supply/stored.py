"""Have the activations of an array: find them, compute them, or say why not."""

import functools
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch.fx import GraphModule

from graft import machine, plan
from graft.config import RunConfig
from graft.data.augment import FIXED, fixed_views
from graft.progress import Counter
from graft.supply.batches import Input
from graft.supply.origin import Origin
from graft.supply.shelf import Place, Shelf
from graft.trunk import exits, key
from graft.trunk.activations import Activations
from graft.trunk.cut import Cut
from graft.trunk.exits import Exit
from graft.trunk.fill import InMemory, Rows, Task, Wanted, fill_or_remember
from graft.trunk.held import Held, copy
from graft.trunk.rows import NotRows, RowFormat
from graft.trunk.run import Frozen, Pace
from graft.trunk.store import Store

PROBE = 16  # pictures that a trunk is tried on
# Of the memory that is available, what activations may take where there is no store.
MEMORY_SHARE = 4

Found = tuple[Activations, GraphModule | None, Origin]


def stored(
    config: RunConfig,
    pictures: Input,
    own: Cut,
    beside: Sequence[Cut],
    autocast: Callable[[], torch.autocast],
    pace: Pace,
) -> Found | str:
    """Stored activations, what of the trunk comes after them, and where from; or why there are
    none."""
    started = time.monotonic()
    if not config.cache.enabled:
        return "cache.enabled=false"
    if fixed_views(config.augmentation) is None:
        kind = type(config.augmentation).__name__
        return f"augmentation: there is no end to the views of {kind}"
    shelf = Shelf(pictures)
    place = place_of(own, own.exits)
    found = shelf.find(place)
    if found is not None:
        return _opened(shelf, *found, None, Origin(own.at, "reused"), started)
    probe = next(pictures.batches([np.arange(min(PROBE, len(pictures.examples.ids)))]))
    try:
        chosen = choose(config, shelf, own, probe, autocast)
    except NotRows as error:
        return str(error)
    if chosen.candidate is None:
        return chosen.why
    place = place_chosen(own, chosen)
    left = exits.rest(own.trunk, place.exit)
    found = shelf.find(place) if left is not None else None
    if found is not None:
        origin = Origin(own.at, "reused", why=chosen.why)
        return _opened(shelf, *found, left, origin, started)
    others = [place_of(cut, cut.exits) for cut in beside] if left is None else []
    filled = _filled(shelf, [place, *others], probe, autocast, pace)
    if filled is None:
        return "neither the cache nor memory has room"
    source: Literal["built", "memory"] = "built" if filled.is_stored else "memory"
    origin = Origin(own.at, source, why=chosen.why, difference=pace.difference)
    return _opened(shelf, filled.format, filled.rows, left, origin, started, filled.held)


def _opened(
    shelf: Shelf,
    format: RowFormat,
    found: Mapping[str, Rows],
    left: GraphModule | None,
    origin: Origin,
    started: float,
    held: Held | None = None,
) -> Found:
    whole = replace(
        origin,
        views=len(shelf.names),
        pictures=len(shelf.input.examples.ids),
        gigabytes=round(shelf.num_rows * format.row_bytes / 1e9, 4),
        seconds=round(time.monotonic() - started, 2),
    )
    return shelf.activations(format, found, held), left, whole


def choose(
    config: RunConfig,
    shelf: Shelf,
    own: Cut,
    probe: torch.Tensor,
    autocast: Callable[[], torch.autocast],
) -> plan.Choice:
    """Where to store, by the sizes and times of a probe.

    Raises:
        NotRows: what the trunk gives cannot be stored.
    """
    examples = shelf.input.examples
    work = plan.Work(shelf.num_rows, len(examples.train) + len(examples.val), config.epochs)
    room = shelf.room_bytes()
    with torch.no_grad(), autocast():
        end = RowFormat.of(own.trunk(probe), config.activations, len(probe))
    if plan.fits(end.row_bytes, work, room):
        return plan.Choice(plan.Candidate(own.at, end.row_bytes, 0.0, 0.0))
    # An earlier place may be smaller; what it costs to go on from there is measured.
    places = [e for e in exits.frontiers(own.trunk) if e != own.exits] + [own.exits]
    with autocast():
        measured = exits.measure(own.trunk, places, probe)
    candidates = [
        plan.Candidate(
            own.at if e == own.exits else e[0],
            end.row_bytes if e == own.exits else measured[e].bytes,
            measured[e].before_s,
            measured[e].after_s,
        )
        for e in places
        if e in measured
    ]
    return plan.choose(candidates, work, room)


def place_chosen(own: Cut, chosen: plan.Choice) -> Place:
    """The place of a candidate: the end, or where it says why not."""
    assert chosen.candidate is not None
    return place_of(own, (chosen.candidate.name,) if chosen.why else own.exits)


def place_of(cut: Cut, exit: Exit) -> Place:
    at = cut.at if exit == cut.exits else exit[0]
    return Place(cut, exit, at, key.digest_of(exits.prefix(cut.trunk, [exit])))


@dataclass(frozen=True)
class _Filled:
    """What one place was filled with.

    Attributes:
        rows: of each view.
        held: where they are on the device already.
    """

    format: RowFormat
    rows: Mapping[str, Rows]
    is_stored: bool
    held: Held | None


def _filled(
    shelf: Shelf,
    places: Sequence[Place],
    probe: torch.Tensor,
    autocast: Callable[[], torch.autocast],
    pace: Pace,
) -> _Filled | None:
    """Fill the first place, and in the same pass the others as far as one trunk holds them all."""
    places, module = _together(places, probe, autocast)
    frozen = Frozen(module, autocast, pace, is_for_storing=True)
    tensors = iter(frozen(probe))
    formats = [
        RowFormat.of([next(tensors) for _ in place.exit], shelf.stored(place), len(probe))
        for place in places
    ]
    fitting = _fitting(shelf, places, formats)
    if len(fitting) < len(places):
        return _filled(shelf, fitting, probe, autocast, pace)
    held = Held.fitting(shelf.sizes, formats[0].row_bytes, shelf.input.device)
    try:
        return _filled_views(shelf, places, formats, frozen, held)
    except torch.OutOfMemoryError as error:
        if held is None:
            raise
        held = None  # the trunk needs its room
        machine.return_gpu_memory(error)
    return _filled_views(shelf, places, formats, frozen, None)  # goes on with what is stored


def _filled_views(
    shelf: Shelf,
    places: Sequence[Place],
    formats: Sequence[RowFormat],
    frozen: Frozen,
    held: Held | None,
) -> _Filled | None:
    memory = machine.available_bytes() // MEMORY_SHARE
    store: Store | None = shelf.store
    rows: dict[str, Rows] = {}
    every = {
        view: [
            Wanted(shelf.key(p, view), shelf.about(p, view, f), p.exit, f)
            for p, f in zip(places, formats, strict=True)
        ]
        for view in shelf.names
    }
    try:
        with Counter("trunk", shelf.num_rows) as counter:
            for view, wanted in _free_first(store, every):
                kept = held.of(view) if held is not None else None
                inputs = functools.partial(_inputs, shelf, view)
                task = Task(wanted, shelf.sizes[view], frozen, inputs, counter.advance, kept)
                found = fill_or_remember(store, task, memory * task.num_rows // shelf.num_rows)
                if found is None:
                    _close(rows)
                    return None
                rows[view], is_stored = found
                if not is_stored:
                    store = None  # it was said why: not once more for the next view
                if kept is not None and not isinstance(rows[view], InMemory):
                    copy(rows[view].rows(), kept)  # was there, or in parts
    except Exception:  # who interrupts does not wait for the disk
        _close(rows)
        raise
    return _Filled(formats[0], rows, store is not None, held)


def _close(rows: Mapping[str, Rows]) -> None:
    for one in rows.values():
        one.close()


def _free_first(
    store: Store | None, every: Mapping[str, Sequence[Wanted]]
) -> Iterator[tuple[str, Sequence[Wanted]]]:
    """Each view with what is wanted of it; first those that no other process is filling just now.

    So several processes that want the same share the work: each computes another view.
    """
    left = dict(every)
    while left:
        free = (
            view for view, wanted in left.items()
            if store is None or not any(store.is_being_filled(one.key) for one in wanted)
        )  # fmt: skip
        view = next(free, next(iter(left)))
        yield view, left.pop(view)


def _fitting(
    shelf: Shelf, places: Sequence[Place], formats: Sequence[RowFormat]
) -> Sequence[Place]:
    """The first place, and of the others those for which there is room beside it."""
    first, *others = zip(places, formats, strict=True)
    found, taken, room = [first[0]], shelf.num_rows * first[1].row_bytes, shelf.room_bytes()
    for place, format in others:
        size = shelf.num_rows * format.row_bytes
        if taken + size <= room:
            found.append(place)
            taken += size
    return found


def _together(
    places: Sequence[Place], probe: torch.Tensor, autocast: Callable[[], torch.autocast]
) -> tuple[list[Place], GraphModule]:
    """The first place and those that one pass can give as well, and that pass: exactly, or not."""
    deepest = max(places, key=lambda place: len(place.cut.trunk.graph.nodes)).cut.trunk
    first, *others = places
    if exits.holds(deepest, first.cut.trunk, first.exit):
        others = [p for p in others if exits.holds(deepest, p.cut.trunk, p.exit)]
        module = exits.prefix(deepest, [p.exit for p in (first, *others)])
        if others and _agree(module, [first, *others], probe[:2], autocast):
            return [first, *others], module
    return [first], exits.prefix(first.cut.trunk, [first.exit])


def _agree(
    module: GraphModule,
    places: Sequence[Place],
    probe: torch.Tensor,
    autocast: Callable[[], torch.autocast],
) -> bool:
    with torch.no_grad(), autocast():
        found = module(probe)
        alone = [exits.prefix(p.cut.trunk, [p.exit])(probe)[0] for p in places]
    return all(
        torch.equal(a, b)
        for ours, theirs in zip(found, alone, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def _inputs(shelf: Shelf, view: str, ranges: Sequence[tuple[int, int]]) -> Generator[torch.Tensor]:
    rows = shelf.rows[view]
    chunks = [rows[start:stop] for start, stop in ranges]
    return shelf.input.batches(chunks, lambda number, pictures: FIXED[view](pictures))
