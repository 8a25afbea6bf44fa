"""A supply of batches for one array of runs, and the decision what it is made from."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from graft.config import RunConfig
from graft.data import Examples
from graft.data.batches import batches, order
from graft.fit.loop import Batch
from graft.supply.batches import FromPictures, FromStore, Input, Positions, forget_pictures, moved
from graft.supply.origin import Origin
from graft.supply.stored import stored
from graft.trunk.cut import Cut
from graft.trunk.run import Frozen, Pace, Trunk


class Supply:
    """Batches of one array, on the device: inputs of `trunk`, which gives the tails' inputs."""

    def __init__(
        self,
        config: RunConfig,
        examples: Examples,
        source: "FromPictures | FromStore",
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
        return isinstance(self._source, FromStore) and self.trunk.is_empty

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
        if not chunks:
            return
        # One copy to the device for all of them.
        every = torch.from_numpy(self.examples.labels[np.concatenate(list(chunks))])
        labels = moved(every, torch.device(self.config.device))
        parts = torch.split(labels, [len(chunk) for chunk in chunks])
        for inputs, own in zip(stream, parts, strict=True):
            yield Batch(inputs, own)


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
    pictures = Input(config, examples, digests, device)
    live = FromPictures(config, pictures)
    if own is None:
        why = "everything trains, or its graph cannot be followed"
        return Supply(config, examples, live, Trunk(None, "float32"), Origin(None, "live", why=why))
    network.eval()  # nothing in a trunk is random or moves; what comes after it may
    found = stored(config, pictures, own, beside, autocast, Pace.on(device, config.batch_size))
    # What runs for every batch has a pace of its own: no size was ever held against the usual one
    # for it, and how fast a fill was must not be seen in a run.
    pace = Pace.on(device, config.batch_size)
    if isinstance(found, str):
        trunk = Trunk(Frozen(own.trunk, autocast, pace), config.activations)
        why = f"{found}; {pictures.pictures.kept_in_words()}"
        return Supply(config, examples, live, trunk, Origin(own.at, "live", why=why))
    activations, left, origin = found
    rest = Frozen(left, autocast, pace) if left is not None else None
    if rest is None:
        forget_pictures()  # nobody needs the pictures any more
    trunk = Trunk(rest, config.activations)
    return Supply(config, examples, FromStore(config, activations), trunk, origin)
