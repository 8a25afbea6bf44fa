"""The pictures of a table, decoded in parallel, each once if all fit in memory.

N examples of the table, B examples of a batch, S the side in pixels. decode.py has the rule by
which a file becomes pixels.
"""

import functools
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from graft import machine
from graft.data.decode import Unreadable, decode_all
from graft.data.decoders import Decoders


def normalise(pictures: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 [B, 3, S, S] -> float32, (x / 255 - mean) / std for each channel.

    In this order of operations it is bit for bit torchvision's ToTensor, then Normalize.
    """
    means, stds = (_channels(tuple(values), pictures.device) for values in (mean, std))
    return pictures.to(torch.float32).div_(255).sub_(means).div_(stds)


@functools.lru_cache(maxsize=4)
def _channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """float32 [C, 1, 1]; made once, as to make it on a GPU waits for what that is doing."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


class Pictures:
    """The pictures of a table, each decoded once if all fit in memory, else when asked for.

    May be used from several threads. Close it, or use it in a `with` statement.
    """

    # Batches decoded ahead of the one in use: enough to hide decoding, small beside the model.
    AHEAD = 3

    def __init__(
        self,
        paths: Sequence[Path],
        size: int,
        *,
        workers: int | None = None,
        memory_limit_bytes: int | None = None,
        max_pixels: int | None = None,
        digests: Sequence[str] | None = None,
    ) -> None:
        """Nothing is decoded yet.

        Args:
            paths: files of the N examples, in the table's order.
            size: S, the side in pixels.
            workers: who decode (see decoders.py); None: one per core; 0: the calling thread.
            memory_limit_bytes: keep the decoded pictures if they need no more than this;
                None: a quarter of the memory that is available now.
            max_pixels: as `decode`; None: not checked again, since `check` has been there.
            digests: [N] of the files' bytes; a file that has changed since is not used.
        """
        self._paths, self._size, self._max_pixels = paths, size, max_pixels
        self._digests = digests
        limit = machine.available_bytes() // 4 if memory_limit_bytes is None else memory_limit_bytes
        shape = (len(paths), 3, size, size)
        # Pages of an empty array are taken only when they are written.
        self._kept = np.empty(shape, dtype=np.uint8) if np.prod(shape) <= limit else None
        self._is_kept = np.zeros(len(paths), dtype=np.bool_)
        self._workers, self._lock = workers, threading.Lock()
        self._decoders: Decoders | None = None  # until there is something to decode

    @property
    def is_kept(self) -> bool:
        """Whether every picture is decoded once only."""
        return self._kept is not None

    def kept_in_words(self) -> str:
        """Whether each picture is decoded once, and what that takes."""
        size = f"{len(self._paths) * 3 * self._size**2 / 1e9:.2f} GB"
        if self.is_kept:
            return f"decoded pictures are kept in memory, {size}"
        return f"pictures are decoded in every epoch: memory for {size} is not free"

    def batch(self, examples: NDArray[np.int64]) -> torch.Tensor:
        """uint8 [B, 3, S, S] of `examples` [B], positions in the table; repeats are allowed.

        Raises:
            Unreadable: a file cannot be decoded (any more).
        """
        return self._finish(examples, self._start(examples))

    def batches(self, orders: Iterable[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        """`batch` of each of `orders`, in turn, with the next ones being decoded meanwhile."""
        ahead: deque[tuple[NDArray[np.int64], _Pending]] = deque()
        try:
            for examples in orders:
                ahead.append((examples, self._start(examples)))
                if len(ahead) > self.AHEAD:
                    yield self._finish(*ahead.popleft())
            while ahead:
                yield self._finish(*ahead.popleft())
        finally:
            for _, pending in ahead:
                for _, future in pending:
                    future.cancel()

    def close(self) -> None:
        """End who decodes; what they have not begun is dropped."""
        if self._decoders is not None:
            self._decoders.close()

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, examples: NDArray[np.int64]) -> "_Pending":
        missing = np.unique(examples[~self._is_kept[examples]])
        if not len(missing):
            return []
        decoders = self._who_decode()
        parts = np.split(missing, range(decoders.at_a_time, len(missing), decoders.at_a_time))
        return [(part, decoders.submit(self._decode, decoders, part)) for part in parts]

    def _finish(self, examples: NDArray[np.int64], pending: "_Pending") -> torch.Tensor:
        decoded = [future.result() for _, future in pending]
        if self._kept is not None:
            if self._is_kept.all() and self._decoders is not None:
                self._decoders.end_processes()
            return torch.from_numpy(self._kept[examples])
        if not decoded:
            return torch.empty((0, 3, self._size, self._size), dtype=torch.uint8)
        where = np.searchsorted(np.concatenate([part for part, _ in pending]), examples)
        return torch.from_numpy(np.concatenate(decoded)[where])

    def _decode(self, decoders: Decoders, part: NDArray[np.int64]) -> NDArray[np.uint8]:
        digests = self._digests
        files = [(self._paths[i], digests[i] if digests is not None else None) for i in part]
        found, why_not = decoders.call(decode_all, files, self._size, self._max_pixels)
        if why_not:
            raise Unreadable(self._paths[part[len(found)]], why_not)
        pictures: NDArray[np.uint8] = found
        if self._kept is not None:
            # Two threads may both write a picture, the same bytes; it counts once it is whole.
            self._kept[part] = pictures
            self._is_kept[part] = True
        return pictures

    def _who_decode(self) -> Decoders:
        with self._lock:
            if self._decoders is None:
                count = int((~self._is_kept).sum())
                self._decoders = Decoders("decode", self._workers, count)
            return self._decoders


_Pending = list[tuple[NDArray[np.int64], "Future[NDArray[np.uint8]]"]]
