"""Where a batch comes from: pictures that are decoded now, or activations that are stored."""

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from graft.config import RunConfig
from graft.data import Examples
from graft.data.augment import PLAIN, drawn, fixed_views, views
from graft.data.pictures import Pictures, normalise
from graft.trunk.activations import Activations

Positions = NDArray[np.int64]


def as_input(pictures: torch.Tensor, config: RunConfig) -> torch.Tensor:
    """uint8 pictures [B, 3, S, S] as the network takes them: float32, normalised, channels last."""
    assert config.model.mean is not None and config.model.std is not None
    normalised = normalise(pictures, config.model.mean, config.model.std)
    return normalised.contiguous(memory_format=torch.channels_last)


def made_up(config: RunConfig, count: int, device: torch.device) -> torch.Tensor:
    """Noise instead of so many pictures, as the network takes it; the same each time."""
    assert config.image_size is not None
    random = torch.Generator().manual_seed(0)
    shape = (count, 3, config.image_size, config.image_size)
    noise = torch.randint(256, shape, dtype=torch.uint8, generator=random)
    return as_input(noise.to(device), config)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device; the copy runs beside what the device is doing."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Input:
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
    ) -> Generator[torch.Tensor]:
        """float32 [B, 3, S, S] of each chunk; `look` is given its number and its uint8 pictures."""
        for number, decoded in enumerate(self.pictures.batches(chunks)):
            yield as_input(look(number, moved(decoded, self.device)), self.config)


@functools.lru_cache(maxsize=2)
def _pictures(
    paths: tuple[Path, ...], digests: tuple[str, ...], size: int, workers: int | None
) -> Pictures:
    return Pictures(paths, size, workers=workers, digests=digests)


class FromPictures:
    """Each batch decoded (once only, if all fit in memory) and normalised."""

    def __init__(self, config: RunConfig, pictures: Input) -> None:
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


class FromStore:
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
        return self._activations.batches(
            [train_set[chunk] for chunk in chunks], self._names, [which[chunk] for chunk in chunks]
        )

    def plain(self, chunks: Sequence[Positions]) -> Iterator[tuple[torch.Tensor, ...]]:
        plain = [np.zeros(len(chunk), dtype=np.int64) for chunk in chunks]
        return self._activations.batches(chunks, (PLAIN,), plain)

    def close(self) -> None:
        self._activations.close()


def forget_pictures() -> None:
    """Give their memory back: nobody needs the pictures any more."""
    _pictures.cache_clear()
