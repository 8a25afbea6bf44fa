"""The first sweep: really pretrained weights on the built-in drawings, as a newcomer sees it."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest


@pytest.mark.slow
def test_the_demo_teaches_that_fine_tuning_beats_a_head_at_a_low_rate(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "graft", "-m", "strategy=head_only,fine_tune",
            "optimizer.lr=1e-3,1e-4", "sweep.name=demo", "device=cpu",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "outputs/demo/results.csv")
    accuracy = table.set_index(["strategy", "optimizer.lr"])["val_accuracy"]
    assert accuracy.max() >= 0.80
    assert accuracy["fine_tune"].max() > accuracy["head_only", 1e-4] + 0.10
