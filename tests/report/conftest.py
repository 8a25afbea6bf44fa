"""Sweeps as training leaves them, written through the same `RunFolder`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graft.config import CrossEntropy, RunConfig, from_dict, to_dict
from graft.record import SWEEP, Predictions, RunFolder, write_json

CLASSES = ("woman", "man")
TONES = ("light", "medium", "dark")


@dataclass
class SweepMaker:
    """Writes runs into a sweep's folder, one by one.

    Attributes:
        path: the sweep's folder.
        classes: names, two or more.
        sizes: number of validation and of test examples.
    """

    path: Path
    classes: tuple[str, ...] = CLASSES
    sizes: tuple[int, int] = (60, 60)
    seed: int = 0

    def __post_init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        random = np.random.default_rng(self.seed)
        total = sum(self.sizes)
        self.labels = random.integers(0, len(self.classes), total)
        self.labels[: len(self.classes)] = np.arange(len(self.classes))
        self.labels[-len(self.classes) :] = np.arange(len(self.classes))
        self.splits = np.array(["val"] * self.sizes[0] + ["test"] * self.sizes[1], dtype=object)
        self.ids = np.array([f"pictures/{i:04d}.png" for i in range(total)], dtype=object)

    def ask(self, choices: Mapping[str, str]) -> str:
        """Ask for a run, which need not exist."""
        name = ",".join(f"{key}={value}" for key, value in choices.items()) or "defaults"
        self.asked.append({"run": name, "choices": dict(choices)})
        write_json(self.path / SWEEP, {
            "format": 1, "name": self.path.name, "command": "graft -m strategy=head_only,fine_tune",
            "axes": list(choices), "runs": self.asked,
        })  # fmt: skip
        return name

    def run(
        self,
        choices: Mapping[str, str],
        skill: float = 1.0,
        *,
        status: str = "completed",
        reason: str | None = None,
        metric: str = "val_accuracy",
        epochs: int = 4,
        scores: Any = None,
        columns: Mapping[str, Sequence[str]] | None = None,
        loss: CrossEntropy | None = None,
    ) -> Path:
        """One run: `skill` is how far apart it puts the classes; 0 is guessing."""
        writer = RunFolder(self.path / self.ask(choices))
        predictions = self.predictions(skill, scores)
        self._write_epochs(writer, predictions, epochs, skill)
        writer.write_config(to_dict(replace(_config(), loss=loss or CrossEntropy())))
        if status == "completed":
            writer.write_predictions(predictions)
            writer.write_examples(self.examples(columns or {}))
        writer.write_environment({"python": "3.11.2", "versions": {"torch": "2.14.1"}})
        writer.write_run({
            "status": status, "reason": reason, "identity": "0", "choices": dict(choices),
            "classes": list(self.classes), "metric": metric,
            "best_epoch": epochs - 1 if status == "completed" else None,
            "parameters": {"total": 3_400_000, "trainable": 1281},
            "split": {part: self._shares(part) for part in ("train", "val", "test")},
            "timings_s": {"total": 75.2},
        })  # fmt: skip
        return writer.path

    def predictions(self, skill: float, scores: Any = None) -> Predictions:
        random = np.random.default_rng([self.seed, int(skill * 1000)])
        onehot = np.eye(len(self.classes))[self.labels]
        logits = skill * 2 * onehot + random.normal(size=onehot.shape)
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        found = chances[:, 1] if len(self.classes) == 2 else chances
        return Predictions(
            self.ids, self.splits, self.labels,
            np.asarray(found if scores is None else scores, dtype=np.float32), self.classes,
        )  # fmt: skip

    def examples(self, columns: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
        return {
            "id": [str(i) for i in self.ids], "path": [str(self.path / i) for i in self.ids],
            "label": [self.classes[i] for i in self.labels], "split": self.splits.tolist(),
            "skin_tone": [TONES[i % 3] for i in range(len(self.ids))], **columns,
        }  # fmt: skip

    def draw(self, names: Sequence[str]) -> None:
        """Make some of the pictures: the others stay missing."""
        for i, name in enumerate(names):
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (20 * i % 255, 120, 200)).save(path)

    def _shares(self, part: str) -> dict[str, int]:
        wanted = self.labels if part == "train" else self.labels[self.splits == part]
        counts = np.bincount(wanted, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def _write_epochs(
        self, writer: RunFolder, predictions: Predictions, epochs: int, skill: float
    ) -> None:
        val = predictions.of("val")
        accuracy = float((val.predicted == val.labels).mean())
        rows = []
        for epoch in range(1, epochs + 1):
            off = 0.5 ** min(epoch, epochs - 1) - 0.5 ** (epochs - 1)
            rows.append({
                "epoch": epoch, "train_loss": 0.9 * 0.7**epoch / (0.5 + skill),
                "train_accuracy": 1 - 0.5 / (epoch + skill),
                "val_loss": 0.4 / (0.4 + skill) + off, "val_accuracy": accuracy - off / 2,
                "lr": 0.001, "seconds": 1.0,
            })  # fmt: skip
        writer.write_epochs(rows)


def _config() -> RunConfig:
    return from_dict({
        "dataset": {"_target_": "graft.config.EmojiDataset"},
        "model": {"name": "efficientnet_lite0"},
        "strategy": {"_target_": "graft.strategies.FineTune", "depth": 1},
        "optimizer": {"_target_": "graft.config.Adam"},
    })  # fmt: skip


@pytest.fixture
def maker(tmp_path: Path) -> type[SweepMaker]:
    """The class itself: test modules cannot import from this file."""
    return SweepMaker


@pytest.fixture
def binary(tmp_path: Path) -> SweepMaker:
    """Strategy x rate: three completed, one diverged, and one failed beside them."""
    made = SweepMaker(tmp_path / "demo")
    made.run({"strategy": "head_only", "optimizer.lr": "1e-3"}, 0.6)
    made.run({"strategy": "head_only", "optimizer.lr": "1e-4"}, 0.3)
    made.run({"strategy": "fine_tune", "optimizer.lr": "1e-3"}, 0.9)
    made.run({"strategy": "fine_tune", "optimizer.lr": "1e30"}, status="diverged", epochs=2,
             reason="train_loss became nan in epoch 3 at optimizer.lr=1e+30.")  # fmt: skip
    made.run({"strategy": "fine_tune", "optimizer.lr": "1e-4"}, status="failed",
             reason="OSError: No space left on device")  # fmt: skip
    return made


@pytest.fixture
def pruned(tmp_path: Path) -> SweepMaker:
    """Strategy x rate: of four runs the second and the third were pruned."""
    made = SweepMaker(tmp_path / "search")
    why = "at epoch 2: it is among the worse half"
    made.run({"strategy": "head_only", "optimizer.lr": "1e-3"}, 0.6)
    made.run({"strategy": "head_only", "optimizer.lr": "1e-4"}, 9, status="pruned", reason=why,
             epochs=2)  # fmt: skip
    made.run({"strategy": "fine_tune", "optimizer.lr": "1e-3"}, 9, status="pruned", reason=why,
             epochs=2)  # fmt: skip
    made.run({"strategy": "fine_tune", "optimizer.lr": "1e-4"}, 0.9)
    return made


@pytest.fixture
def digits(tmp_path: Path) -> SweepMaker:
    """Ten classes, two runs."""
    made = SweepMaker(tmp_path / "digits", tuple("0123456789"), (200, 200))
    made.run({"strategy": "head_only"}, 0.8)
    made.run({"strategy": "fine_tune"}, 1.6)
    return made
