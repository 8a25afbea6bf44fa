"""Checkpoints of a run that trains: what it takes to go on behind an epoch as if nothing happened.

    <the run's folder>/resume/epoch-0003-6f1c0e5b8d2a9f47.safetensors

The digits are a digest of the file's bytes: one that was cut short or changed is found out. A file
gets its name when it is whole and on the disk; the newest two are kept. They are safetensors, with
plain values as JSON in the header: nothing in them is run.
"""

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from graft import weights
from graft.fit.tensors import Tensors, write

log = logging.getLogger("graft")

# Raised when the meaning of these files changes: older ones are then left out.
FORMAT = 1
# Not more often than this, and so that writing takes a twentieth of the time.
EVERY_S = 2.0
REST = 20.0
# What a plain disk takes, for the first one; then it has been measured.
_BYTES_S = 200e6

_NAME = re.compile(r"epoch-(\d{4,})-([0-9a-f]{16})\.safetensors")
_PART = "next.part"
_VALUES = "graft"


@dataclass(frozen=True)
class State:
    """All that a run has become by the end of an epoch.

    Attributes:
        history: a row of metrics an epoch.
        best_epoch: 1-based; 0: none yet.
        steps: of the optimizer.
        scaler: of float16's gradients; else empty.
        trained: what training changes, as it is now.
        best: the same as it was at the end of the best epoch; empty where that is the last one.
        moments: what the optimizer keeps of each parameter, "<parameter>/<its own word>".
        random: the state of the run's random numbers, uint8.
    """

    history: list[dict[str, float]]
    best_epoch: int
    steps: int
    scaler: Mapping[str, Any]
    trained: Tensors
    best: Tensors
    moments: Tensors
    random: torch.Tensor


@dataclass(frozen=True)
class Found:
    """A checkpoint that is whole: the epoch after which it goes on, and what was spent till then.

    Attributes:
        seconds: by what they were spent on.
    """

    path: Path
    epoch: int
    seconds: Mapping[str, float]

    def load(self) -> State:
        """On the CPU."""
        with safe_open(self.path, framework="pt") as file:
            values = json.loads(file.metadata()[_VALUES])
            parts: dict[str, dict[str, torch.Tensor]] = {"trained": {}, "best": {}, "moments": {}}
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                part, _, name = key.partition("/")
                if name:
                    parts[part][name] = file.get_tensor(key)
            return State(
                values["history"], values["best_epoch"], values["steps"], values["scaler"],
                **parts, random=file.get_tensor("random"),
            )  # fmt: skip


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: theirs.
        of: what must be equal for a run to go on: a checkpoint of anything else is left out.
    """

    def __init__(self, folder: Path, of: Mapping[str, Any]) -> None:
        self._folder, self._of = folder, {"format": FORMAT, **of}
        self._last: Path | None = None
        self._has_warned = False

    def newest(self, trained: Mapping[str, torch.Size]) -> Found | None:
        """The newest that is whole, of this very run and of these tensors; or None."""
        files = ((int(match[1]), path, match[2]) for path, match in self._files() if match)
        for epoch, path, digest in sorted(files, reverse=True):
            values = self._values(path, trained) if _is_whole(path, digest) else None
            if values is not None:
                self._last = path
                return Found(path, epoch, values["seconds"])
        return None

    def write(self, state: State, seconds: Mapping[str, float]) -> None:
        """Keep a state. Where that fails the run goes on without, and one warning says so."""
        part = self._folder / _PART
        try:
            self._folder.mkdir(exist_ok=True)
            values = {
                "of": self._of, "seconds": dict(seconds), "history": state.history,
                "best_epoch": state.best_epoch, "steps": state.steps, "scaler": dict(state.scaler),
            }  # fmt: skip
            with part.open("wb") as stream:
                digest = write(stream, _flat(state), {_VALUES: json.dumps(values)})
            path = self._folder / f"epoch-{len(state.history):04d}-{digest}.safetensors"
            part.replace(path)
            self._remove_all_but({path, self._last or path})
            self._last = path
        except OSError as error:
            self._warn(error)
            _remove(part)  # it may be what fills the disk

    # --- inside ---------------------------------------------------------------------------

    def _files(self) -> Iterator[tuple[Path, re.Match[str] | None]]:
        try:
            found = list(self._folder.iterdir())
        except OSError:
            return
        for path in found:
            yield path, _NAME.fullmatch(path.name)

    def _values(self, path: Path, trained: Mapping[str, torch.Size]) -> dict[str, Any] | None:
        """Its plain values, if it is of this very run."""
        try:
            with safe_open(path, framework="pt") as file:
                values = json.loads((file.metadata() or {})[_VALUES])
                names = [key for key in file.keys() if key.startswith("trained/")]  # noqa: SIM118
                shapes = {
                    name.removeprefix("trained/"): tuple(file.get_slice(name).get_shape())
                    for name in names
                }
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        expected = {name: tuple(shape) for name, shape in trained.items()}
        return values if values.get("of") == self._of and shapes == expected else None

    def _remove_all_but(self, kept: set[Path]) -> None:
        for path, match in self._files():
            if match and path not in kept:
                _remove(path)

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            log.warning(
                "No checkpoint can be written to %s (%s). The run goes on; if it is killed, it "
                "starts again from an earlier epoch.",
                self._folder, error.strerror or error,
            )  # fmt: skip
        self._has_warned = True


class Pace:
    """When checkpoints are due: seldom enough to cost little.

    Args:
        num_bytes: about how many will be written at a time.
    """

    def __init__(self, num_bytes: int) -> None:
        self._rest(num_bytes / _BYTES_S)

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    @contextmanager
    def writing(self) -> Iterator[None]:
        """They are written in here."""
        started = time.monotonic()
        yield
        self._rest(time.monotonic() - started)

    def _rest(self, took_s: float) -> None:
        self._due = time.monotonic() + max(EVERY_S, REST * took_s)


def _is_whole(path: Path, digest: str) -> bool:
    try:
        if weights.digest(path) == digest:
            return True
        why = "it is damaged"
    except OSError as error:
        why = str(error.strerror)
    log.warning("%s is left out (%s): the run goes on from an earlier epoch.", path, why)
    return False


def _flat(state: State) -> dict[str, torch.Tensor]:
    parts = {"trained": state.trained, "best": state.best, "moments": state.moments}
    flat = {f"{part}/{key}": t for part, tensors in parts.items() for key, t in tensors.items()}
    return {**flat, "random": state.random}


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        log.debug("%s cannot be removed", path, exc_info=True)
