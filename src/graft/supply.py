"""What the tails of an array are fed with: stored activations, or pictures through the trunk.

The same numbers either way. What is stored, where in the trunk, and why not, is decided here from
what `graft.plan` makes of sizes and times; it is said in one line, and kept in the runs' records.
"""

import functools
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import GraphModule

from graft import machine, plan
from graft.config import RunConfig, to_dict
from graft.data import Examples
from graft.data import pictures as pictures_
from graft.data.augment import FIXED, PLAIN, drawn, fixed_views, views
from graft.data.batches import batches, order
from graft.data.pictures import Pictures, available_bytes, normalise
from graft.fit.loop import Batch
from graft.progress import Counter
from graft.trunk import exits, key
from graft.trunk.activations import Activations, View
from graft.trunk.cut import Cut
from graft.trunk.exits import Exit
from graft.trunk.fill import Rows, Wanted, fill_or_remember
from graft.trunk.rows import NotRows, RowFormat
from graft.trunk.run import Frozen, Pace, Trunk
from graft.trunk.store import Store

log = logging.getLogger("graft")

PROBE = 16  # pictures that a trunk is measured with
# Of the memory that is available, what activations may take where there is no store.
MEMORY_SHARE = 4

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Origin:
    """Where activations came from: the `trunk` of a record.

    Attributes:
        at: the end of the trunk, in the network's own names; None where there is none.
        source: "built" or "reused": from the store; "memory": built, and kept by this process;
            "live": the trunk is run for every batch.
        views, pictures: what is stored.
        gigabytes: the size of it.
        seconds: what it took to have it.
        why: where something stood in the way, what.
        difference: on a GPU the largest difference that the number of pictures at a time made, as
            a share of the largest activation; on a CPU it is always 0.
    """

    at: str | None
    source: Literal["built", "reused", "memory", "live"]
    views: int = 0
    pictures: int = 0
    gigabytes: float = 0.0
    seconds: float = 0.0
    why: str = ""
    difference: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def line(self, trains: str) -> str:
        """One line for the log; `trains` says what does."""
        why = f"; {self.why}" if self.why else ""
        if self.at is None:
            return f"no trunk to share ({trains} train{'' if trains != 'head' else 's'}){why}"
        up_to = f"trunk: up to {self.at} ({trains} train{'' if trains != 'head' else 's'})"
        if self.source == "live":
            return f"{up_to}, run once a batch for all runs of an array{why}"
        how = {"built": f"built in {self.seconds:.1f} s", "reused": "reused"}.get(
            self.source, f"built in {self.seconds:.1f} s, kept in memory"
        )
        bound = f"; on another batch size within {self.difference:.0e}" if self.difference else ""
        num_views = f"{self.views} view{'s' if self.views > 1 else ''}"
        return (
            f"{up_to}, {num_views}, {self.pictures:,} pictures, {self.gigabytes:.2f} GB, "
            f"{how}{bound}{why}"
        )


class Supply:
    """Batches of one array, on the device: inputs of `trunk`, which gives the tails' inputs."""

    def __init__(
        self,
        config: RunConfig,
        examples: Examples,
        source: "_FromPictures | _FromStore",
        trunk: Trunk,
        origin: Origin,
    ) -> None:
        self.config, self.examples = config, examples
        self.trunk, self.origin = trunk, origin
        self._source = source

    @property
    def num_batches(self) -> int:
        """Of an epoch."""
        return len(batches(self.examples.train, self.config.batch_size))

    @property
    def is_complete(self) -> bool:
        """Whether the tails' inputs are stored: there is nothing left to share between runs."""
        return isinstance(self._source, _FromStore) and self.trunk.is_empty

    def train(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, 1-based."""
        config, train_set = self.config, self.examples.train
        positions = order(
            self.examples.labels[train_set],
            seed=config.seed,
            epoch=epoch,
            is_balanced=config.sampling == "balanced",
        )
        chunks = batches(positions, config.batch_size)
        return self._with_labels(
            [train_set[c] for c in chunks], self._source.drawn(epoch, train_set, chunks)
        )

    def of(self, examples: Positions) -> Iterator[Batch]:
        """Batches of some examples, in their order, as they are."""
        chunks = batches(examples, self.config.batch_size)
        return self._with_labels(chunks, self._source.plain(chunks))

    def close(self) -> None:
        self._source.close()

    def _with_labels(
        self, chunks: Sequence[Positions], stream: Iterator[tuple[torch.Tensor, ...]]
    ) -> Iterator[Batch]:
        for inputs, chunk in zip(stream, chunks, strict=True):
            labels = torch.from_numpy(self.examples.labels[chunk])
            yield Batch(inputs, _moved(labels, inputs[0].device))


def as_input(pictures: torch.Tensor, config: RunConfig) -> torch.Tensor:
    """uint8 pictures [B, 3, S, S] as the network takes them: float32, normalised, channels last."""
    assert config.model.mean is not None and config.model.std is not None
    normalised = normalise(pictures, config.model.mean, config.model.std)
    return normalised.contiguous(memory_format=torch.channels_last)


def supply(
    config: RunConfig,
    examples: Examples,
    digests: Sequence[str],
    network: nn.Module,
    own: Cut | None,
    *,
    autocast: Callable[[], torch.autocast],
    beside: Sequence[Cut] = (),
) -> Supply:
    """Have the activations of an array: find them, compute them, or say why not.

    Args:
        config: of one run of the array; the others differ in nothing that matters here.
        examples: of its dataset.
        digests: [N] of the pictures' files.
        network: the whole one, with the weights that it starts from.
        own: where it is cut; None: it has no trunk.
        autocast: makes the context that sets the precision.
        beside: cuts of the same network for other arrays of the sweep, which freeze more or less:
            their activations are computed in the same pass.
    """
    device = torch.device(config.device)
    pictures = _Input(config, examples, digests, device)
    live = _FromPictures(config, pictures)
    if own is None:
        why = "everything trains, or its graph cannot be followed"
        return Supply(config, examples, live, Trunk(None, "float32"), Origin(None, "live", why=why))
    pace = Pace.on(device)
    network.eval()  # nothing in a trunk is random or moves; what comes after it may
    found = _stored(config, pictures, own, beside, autocast, pace)
    if isinstance(found, str):
        trunk = Trunk(Frozen(own.trunk, autocast, pace), config.activations)
        why = f"{found}; {pictures.pictures.kept_in_words()}"
        return Supply(config, examples, live, trunk, Origin(own.at, "live", why=why))
    activations, left, origin = found
    rest = Frozen(left, autocast, pace) if left is not None else None
    if rest is None:
        _pictures.cache_clear()  # nobody needs the pictures any more
    trunk = Trunk(rest, config.activations)
    return Supply(config, examples, _FromStore(config, activations), trunk, origin)


# --- batches --------------------------------------------------------------------------------


class _Input:
    """Decoded pictures, in a view, as the network takes them."""

    def __init__(
        self, config: RunConfig, examples: Examples, digests: Sequence[str], device: torch.device
    ) -> None:
        self.config, self.examples, self.digests = config, examples, tuple(digests)
        self.device = device

    @property
    def pictures(self) -> Pictures:
        assert self.config.image_size is not None
        return _pictures(
            self.examples.paths, self.digests, self.config.image_size, self.config.workers
        )

    def batches(
        self,
        chunks: Sequence[Positions],
        look: Callable[[int, torch.Tensor], torch.Tensor] = lambda number, pictures: pictures,
    ) -> Iterator[torch.Tensor]:
        """float32 [B, 3, S, S] of each chunk; `look` is given its number and its uint8 pictures."""
        for number, decoded in enumerate(self.pictures.batches(chunks)):
            yield as_input(look(number, _moved(decoded, self.device)), self.config)


@functools.lru_cache(maxsize=2)
def _pictures(
    paths: tuple[Path, ...], digests: tuple[str, ...], size: int, workers: int | None
) -> Pictures:
    return Pictures(paths, size, workers=workers, digests=digests)


class _FromPictures:
    """Each batch decoded (once only, if all fit in memory) and normalised."""

    def __init__(self, config: RunConfig, pictures: _Input) -> None:
        self._config, self._input = config, pictures

    def drawn(
        self, epoch: int, train_set: Positions, chunks: Sequence[Positions]
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        look = views(
            self._config.augmentation,
            seed=self._config.seed,
            epoch=epoch,
            num_examples=len(train_set),
        )
        stream = self._input.batches(
            [train_set[c] for c in chunks], lambda number, found: look(found, chunks[number])
        )
        return ((batch,) for batch in stream)

    def plain(self, chunks: Sequence[Positions]) -> Iterator[tuple[torch.Tensor, ...]]:
        return ((batch,) for batch in self._input.batches(chunks))

    def close(self) -> None:
        pass


class _FromStore:
    """Each batch read."""

    def __init__(self, config: RunConfig, activations: Activations) -> None:
        self._config, self._activations = config, activations
        self._names = fixed_views(config.augmentation) or (PLAIN,)

    def drawn(
        self, epoch: int, train_set: Positions, chunks: Sequence[Positions]
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        which = drawn(
            self._config.augmentation,
            seed=self._config.seed,
            epoch=epoch,
            num_examples=len(train_set),
        )
        for chunk in chunks:
            yield self._activations.batch(train_set[chunk], self._names, which[chunk])

    def plain(self, chunks: Sequence[Positions]) -> Iterator[tuple[torch.Tensor, ...]]:
        for chunk in chunks:
            yield self._activations.batch(chunk, (PLAIN,), np.zeros(len(chunk), dtype=np.int64))

    def close(self) -> None:
        self._activations.close()


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device; the copy runs beside what the device is doing."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# --- what is stored -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """An exit of a trunk, with what names its entries."""

    cut: Cut
    exit: Exit
    at: str
    digest: str  # of the part of the network that leads there


class _Shelf:
    """The entries of one dataset, seen as one configuration sees it."""

    def __init__(self, pictures: _Input) -> None:
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
            "activations": config.activations,
            "decoding": [pictures_.FORMAT, PIL.__version__],
            **key.machine(pictures.device),
        }

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.rows.values()))

    def key(self, place: _Place, view: str) -> str:
        digests = [self.input.digests[i] for i in self.rows[view]]
        return key.key(trunk=place.digest, pictures=digests, view=view, settings=self._settings)

    def about(self, place: _Place, view: str, format: RowFormat) -> dict[str, Any]:
        return {
            "network": self.input.config.model.name,
            "cut": place.at,
            "view": view,
            "pictures": len(self.rows[view]),
            "format": format.to_dict(),
        }

    def find(self, place: _Place) -> tuple[RowFormat, dict[str, Rows]] | None:
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
        with suppress(OSError):
            folder = next(p for p in (self.store.folder, *self.store.folder.parents) if p.exists())
            free = shutil.disk_usage(folder).free + self.store.size()
            return min(int(0.9 * free), self.store.limit_bytes or free)
        return self.store.limit_bytes or 0

    def activations(self, format: RowFormat, found: Mapping[str, Rows]) -> Activations:
        count = len(self.input.examples.ids)
        seen = {}
        for view, rows in found.items():
            position = np.full(count, -1, dtype=np.int64)
            position[self.rows[view]] = np.arange(len(self.rows[view]))
            seen[view] = View(rows, position)
        return Activations(format, seen, self.input.device)


_Found = tuple[Activations, GraphModule | None, Origin]


def _stored(
    config: RunConfig,
    pictures: _Input,
    own: Cut,
    beside: Sequence[Cut],
    autocast: Callable[[], torch.autocast],
    pace: Pace,
) -> _Found | str:
    """Stored activations, what of the trunk comes after them, and where from; or why there are
    none."""
    started = time.monotonic()
    if not config.cache.enabled:
        return "cache.enabled=false"
    if fixed_views(config.augmentation) is None:
        kind = type(config.augmentation).__name__
        return f"augmentation: there is no end to the views of {kind}"
    shelf = _Shelf(pictures)
    place = _place(own, own.exits)
    found = shelf.find(place)
    if found is not None:
        return _opened(shelf, place, *found, None, Origin(own.at, "reused"), started)
    probe = next(pictures.batches([np.arange(min(PROBE, len(pictures.examples.ids)))]))
    try:
        chosen = _choose(config, shelf, own, probe, autocast)
    except NotRows as error:
        return str(error)
    if chosen.candidate is None:
        return chosen.why
    if chosen.why:
        place = _place(own, (chosen.candidate.name,))
    left = exits.rest(own.trunk, place.exit)
    found = shelf.find(place) if left is not None else None
    if found is not None:
        origin = Origin(own.at, "reused", why=chosen.why)
        return _opened(shelf, place, *found, left, origin, started)
    others = [_place(cut, cut.exits) for cut in beside] if left is None else []
    filled = _filled(shelf, [place, *others], probe, autocast, pace)
    if filled is None:
        return "neither the cache nor memory has room"
    format, rows, is_stored = filled
    origin = Origin(
        own.at, "built" if is_stored else "memory", why=chosen.why, difference=pace.difference
    )
    return _opened(shelf, place, format, rows, left, origin, started)


def _opened(
    shelf: _Shelf,
    place: _Place,
    format: RowFormat,
    found: Mapping[str, Rows],
    left: GraphModule | None,
    origin: Origin,
    started: float,
) -> _Found:
    whole = replace(
        origin,
        views=len(shelf.names),
        pictures=len(shelf.input.examples.ids),
        gigabytes=round(shelf.num_rows * format.row_bytes / 1e9, 4),
        seconds=round(time.monotonic() - started, 2),
    )
    return shelf.activations(format, found), left, whole


def _choose(
    config: RunConfig,
    shelf: _Shelf,
    own: Cut,
    probe: torch.Tensor,
    autocast: Callable[[], torch.autocast],
) -> plan.Choice:
    """Where to store, by the sizes and times of a probe."""
    examples = shelf.input.examples
    work = plan.Work(shelf.num_rows, len(examples.train) + len(examples.val), config.epochs)
    room = shelf.room_bytes()
    with torch.no_grad(), autocast():
        end = RowFormat.of(own.trunk(probe), config.activations)
    if plan.fits(end.row_bytes, work, room):
        return plan.Choice(plan.Candidate(own.at, end.row_bytes, 0.0, 0.0))
    # An earlier place may be smaller; what it costs to go on from there is measured.
    places = [e for e in exits.frontiers(own.trunk) if e != own.exits] + [own.exits]
    with autocast():
        measured = exits.measure(own.trunk, places, probe)
    kept = 0.5 if config.activations == "bfloat16" and config.precision == "float32" else 1.0
    candidates = [
        plan.Candidate(
            own.at if e == own.exits else e[0],
            int(measured[e].bytes * kept),
            measured[e].before_s,
            measured[e].after_s,
        )
        for e in places
        if e in measured
    ]
    return plan.choose(candidates, work, room)


def _place(cut: Cut, exit: Exit) -> _Place:
    at = cut.at if exit == cut.exits else exit[0]
    return _Place(cut, exit, at, key.digest_of(exits.prefix(cut.trunk, [exit])))


def _filled(
    shelf: _Shelf,
    places: Sequence[_Place],
    probe: torch.Tensor,
    autocast: Callable[[], torch.autocast],
    pace: Pace,
) -> tuple[RowFormat, dict[str, Rows], bool] | None:
    """Fill the first place, and in the same pass the others as far as one trunk holds them all.

    Returns:
        Of the first place: the format, each view's rows, whether they are stored.
    """
    places, module = _together(places, probe, autocast)
    frozen = Frozen(module, autocast, pace, is_for_storing=True)
    tensors = iter(frozen(probe))
    formats = [
        RowFormat.of([next(tensors) for _ in place.exit], shelf.input.config.activations)
        for place in places
    ]
    memory = available_bytes() // MEMORY_SHARE
    rows: dict[str, Rows] = {}
    store: Store | None = shelf.store
    with Counter("trunk", shelf.num_rows) as counter:
        for view in shelf.names:
            wanted = [
                Wanted(shelf.key(p, view), shelf.about(p, view, f), p.exit, f)
                for p, f in zip(places, formats, strict=True)
            ]
            found = fill_or_remember(
                store, wanted, len(shelf.rows[view]), frozen,
                functools.partial(_inputs, shelf, view), counter.advance, memory,
            )  # fmt: skip
            if found is None:
                return None
            rows[view] = found[0]
            for other in found[1:]:
                other.close()
    is_stored = all(hasattr(one, "about") for one in rows.values())
    return formats[0], rows, is_stored


def _together(
    places: Sequence[_Place], probe: torch.Tensor, autocast: Callable[[], torch.autocast]
) -> tuple[list[_Place], GraphModule]:
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
    places: Sequence[_Place],
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


def _inputs(shelf: _Shelf, view: str, ranges: Sequence[tuple[int, int]]) -> Iterator[torch.Tensor]:
    rows = shelf.rows[view]
    chunks = [rows[start:stop] for start, stop in ranges]
    return shelf.input.batches(chunks, lambda number, pictures: FIXED[view](pictures))


def trunk_settings(config: RunConfig) -> dict[str, Any]:
    """What two runs must agree in to be fed from the same pictures through the same weights."""
    values = to_dict(config)
    names = ("dataset", "image_size", "augmentation", "precision", "activations", "device", "cache")
    model = {k: v for k, v in values["model"].items() if k not in ("dropout", "head_seed")}
    return {**{name: values[name] for name in names}, "model": model}
