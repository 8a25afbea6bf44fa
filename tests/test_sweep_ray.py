"""The command on a Ray cluster: the same runs, the same report."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from graft.record import read_runs

pytest.importorskip("ray")

SWEEP = (
    "model=mobilenet_v3_small", "model.weights=none", "image_size=32", "epochs=2",
    "batch_size=16", "device=cpu", "dataset=csv", "dataset.target=Male", "tracking=off",
    "sweep.name=s", "strategy=head_only,fine_tune", "optimizer.lr=1e-2,1e-3",
)  # fmt: skip


def swept(folder: Path, pictures: Path, *arguments: str) -> pd.DataFrame:
    data = (f"dataset.csv={pictures / 'labels.csv'}", f"dataset.images={pictures}")
    command = [sys.executable, "-m", "graft", "-m", *SWEEP, *data, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRAFT_CACHE": str(folder / "cache")}
    folder.mkdir()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "outputs" / "s" / "report.html").is_file()
    assert all(run.is_completed for run in read_runs(folder / "outputs" / "s"))
    assert "raylet" not in done.stdout + done.stderr
    results = pd.read_csv(folder / "outputs" / "s" / "results.csv")
    return results[[name for name in results if "acc" in name or "loss" in name]]


@pytest.mark.slow
def test_a_sweep_on_ray_gives_the_numbers_of_one_in_processes(
    tmp_path: Path, tiny_pictures: Path
) -> None:
    near = swept(tmp_path / "near", tiny_pictures, "hydra.launcher.cpu_slots=2")
    ray = ("hydra/launcher=graft_ray", "hydra.launcher.init={num_cpus: 2}")
    far = swept(tmp_path / "far", tiny_pictures, *ray)
    (tmp_path / "code").mkdir()
    # Nothing of the sweep's folder is seen there: all of it comes home.
    apart = f"hydra.launcher.runtime_env={{working_dir: {tmp_path / 'code'}}}"
    alone = swept(tmp_path / "alone", tiny_pictures, *ray, apart)
    pd.testing.assert_frame_equal(near, far)
    pd.testing.assert_frame_equal(near, alone)
