"""Random numbers of one run, whatever draws beside it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# torch draws from one generator a device, whichever thread asks.
_DRAWING = threading.Lock()


class RandomNumbers:
    """A stream of a device's random numbers, beginning as a seed says."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._own = torch.Generator(device).manual_seed(seed)
        self._state: torch.Tensor = self._own.get_state()

    @property
    def state(self) -> torch.Tensor:
        """uint8, on the CPU: where the stream stands."""
        return self._own.get_state() if self._device.type == "cuda" else self._state

    @state.setter
    def state(self, value: torch.Tensor) -> None:
        if self._device.type == "cuda":
            self._own.set_state(value)
        else:
            self._state = value

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """What is random in here draws from this stream: one at a time."""
        with _DRAWING:
            if self._device.type == "cuda":
                yield from self._lent()
            else:
                yield from self._put_in_place()

    def _lent(self) -> Iterator[None]:
        """A GPU's generator is lent this one's state itself: what is recorded (see recorded.py)
        reads where the stream stands from the device, each stream at its own place there."""
        number = self._device.index
        default = torch.cuda.default_generators[
            torch.cuda.current_device() if number is None else number
        ]
        before = default.graphsafe_get_state()
        default.graphsafe_set_state(self._own)
        try:
            yield
        finally:
            default.graphsafe_set_state(before)

    def _put_in_place(self) -> Iterator[None]:
        of = torch.mps if self._device.type == "mps" else torch
        before = of.get_rng_state()
        of.set_rng_state(self._state)
        try:
            yield
        finally:
            self._state = of.get_rng_state()
            of.set_rng_state(before)
