"""What many tests need: a cache of their own, and a small real data set."""

import csv
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graft.config import RunConfig, from_dict

# What starts in a shell's background ignores Ctrl-C, and so would the commands that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest-xdist sets a width of 80 for its workers; what is no terminal has none.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from or left in the user's cache; within a session it is shared."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def tiny_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 80 pictures, 24 px, dark or bright, and `labels.csv`: filename,Male,person."""
    folder = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(0)
    rows = []
    for i in range(80):
        level = 80 + 90 * (i % 2)
        pixels = np.clip(random.normal(level, 40, (24, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        rows.append([f"{i:03d}.png", "1" if i % 2 else "-1", f"p{i // 4}"])
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["filename", "Male", "person"], *rows])
    return folder


@pytest.fixture
def tiny_values(tiny_pictures: Path, tmp_path: Path) -> dict[str, Any]:
    """Plain values of a run that takes a second: a small network without pretrained weights."""
    return {
        "dataset": {
            "_target_": "graft.config.CsvDataset",
            "csv": str(tiny_pictures / "labels.csv"),
            "images": str(tiny_pictures),
            "target": "Male",
        },
        "model": {"name": "mobilenet_v3_small", "weights": "none"},
        "strategy": {"_target_": "graft.strategies.FineTune"},
        "optimizer": {"_target_": "graft.config.Adam", "lr": 1e-2},
        "image_size": 32,
        "epochs": 2,
        "batch_size": 16,
        "device": "cpu",
        "output_dir": str(tmp_path),
        "tracking": {"uri": "off"},
    }


@pytest.fixture
def tiny_config(tiny_values: dict[str, Any]) -> RunConfig:
    return from_dict(tiny_values)
