"""The command, as a user types it: one sweep looked at from all sides, and bad requests."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from graft import metrics
from graft.record import read_run, read_runs

TINY = (
    "model=mobilenet_v3_small", "model.weights=none", "image_size=32", "epochs=2",
    "batch_size=16", "device=cpu", "dataset=csv", "dataset.target=Male",
    "hydra/launcher=graft_inline",  # without another process that imports PyTorch
)  # fmt: skip


def graft(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "graft", *arguments], cwd=cwd, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tiny_pictures: Path) -> tuple[str, ...]:
    return (f"dataset.csv={tiny_pictures / 'labels.csv'}", f"dataset.images={tiny_pictures}")


@pytest.fixture(scope="module")
def swept(
    data: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """The seed's sweep on a small data set, by the command line."""
    home = tmp_path_factory.mktemp("swept")
    done = graft(
        "-m", "strategy=head_only,fine_tune", "optimizer.lr=1e-2,1e-3", "sweep.name=s",
        *TINY, *data, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return home / "outputs" / "s", done


def test_a_sweep_leaves_the_files_that_scripts_rely_on(
    swept: tuple[Path, "subprocess.CompletedProcess[str]"],
) -> None:
    sweep, _ = swept
    assert (sweep / "report.html").is_file()
    table = pd.read_csv(sweep / "results.csv")
    assert set(table["run"]) == {
        f"strategy={s},optimizer.lr={lr}"
        for s in ("head_only", "fine_tune")
        for lr in (0.01, 0.001)
    }
    assert (table["status"] == "completed").all()
    for name in table["run"]:
        for file in ("config.yaml", "metrics.csv", "predictions.parquet", "model.safetensors"):
            assert (sweep / name / file).is_file(), (name, file)


def test_results_are_recomputed_from_the_stored_predictions(
    swept: tuple[Path, "subprocess.CompletedProcess[str]"],
) -> None:
    table = pd.read_csv(swept[0] / "results.csv").set_index("run")
    for run in read_runs(swept[0]):
        for split in ("val", "test"):
            expected = metrics.scores(run.predictions.of(split))["accuracy"]
            assert table.loc[run.name, f"{split}_accuracy"] == pytest.approx(expected, abs=1e-6)


def test_the_terminal_shows_the_table_and_where_things_are(
    swept: tuple[Path, "subprocess.CompletedProcess[str]"],
) -> None:
    shown = swept[1].stdout
    for word in ("head_only", "fine_tune", "report.html", "results.csv", "mlflow", "wins"):
        assert word in shown, word
    assert "16 val" not in shown and "train" in swept[1].stderr


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_again(
    swept: tuple[Path, "subprocess.CompletedProcess[str]"], data: tuple[str, ...]
) -> None:
    sweep, _ = swept
    before = {run.name: (run.path / "run.json").stat().st_mtime_ns for run in read_runs(sweep)}
    done = graft(
        "-m", "strategy=head_only,fine_tune", "optimizer.lr=1e-2,1e-3", "sweep.name=s",
        *TINY, *data, cwd=sweep.parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "All 4 runs are finished already" in done.stderr
    after = {run.name: (run.path / "run.json").stat().st_mtime_ns for run in read_runs(sweep)}
    assert after == before


@pytest.mark.slow
def test_changed_settings_are_not_mixed_into_a_sweep(
    swept: tuple[Path, "subprocess.CompletedProcess[str]"], data: tuple[str, ...]
) -> None:
    done = graft(
        "-m", "strategy=head_only,fine_tune", "optimizer.lr=1e-2,1e-3", "sweep.name=s",
        *TINY, *data, "epochs=3", cwd=swept[0].parents[1],
    )  # fmt: skip
    assert done.returncode == 2
    assert "epochs was 2, now 3" in done.stderr and "sweep.name=" in done.stderr


@pytest.mark.slow
def test_an_experiment_may_name_its_sweep(data: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nsweep: {name: of_mine}\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n"
    )
    asked = ("--config-dir=own", "experiment=mine", "sweep.dry_run=true", *TINY, *data)
    for typed, name in (((), "of_mine"), (("sweep.name=typed",), "typed")):
        done = graft(*asked, *typed, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"dry run of {tmp_path / 'outputs' / name}:" in done.stdout + done.stderr


def test_predict_gives_the_run_its_test_predictions_again(
    swept: tuple[Path, "subprocess.CompletedProcess[str]"], tiny_pictures: Path, tmp_path: Path
) -> None:
    run = read_run(swept[0] / "strategy=fine_tune,optimizer.lr=0.01")
    stored = run.predictions.of("test")
    pictures = [str(tiny_pictures / name) for name in stored.ids]
    done = subprocess.run(
        [sys.executable, "-m", "graft.predict", str(run.path), *pictures, "--out", "p.csv"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = pd.read_csv(tmp_path / "p.csv")
    assert again["score"].to_numpy() == pytest.approx(stored.scores, abs=1e-6)
    assert (again["predicted"] == [(-1, 1)[i] for i in stored.predicted]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["flip", *(pytest.param(one, marks=pytest.mark.slow) for one in ("cut", "remove"))]
)
def test_a_damaged_checkpoint_is_not_used(
    swept: tuple[Path, "subprocess.CompletedProcess[str]"],
    tiny_pictures: Path,
    tmp_path: Path,
    damage: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(swept[0] / "strategy=fine_tune,optimizer.lr=0.01", run)
    path = run / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "flip" else data[:1000])
    if damage == "remove":
        path.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "graft.predict", str(run), str(tiny_pictures)],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert "model.safetensors is not the file that this run wrote" in done.stderr


@pytest.mark.slow
def test_a_run_that_diverges_ends_alone_and_the_exit_code_tells(
    data: tuple[str, ...], tmp_path: Path
) -> None:
    done = graft(
        "-m", "optimizer.lr=1e30,1e-3", "sweep.name=d", "tracking.uri=off", *TINY, *data,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    table = pd.read_csv(tmp_path / "outputs/d/results.csv").set_index("optimizer.lr")
    assert table["status"].tolist() == ["diverged", "completed"]
    assert "diverged" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer.lrr=1"], "Did you mean optimizer.lr?"),
        (["strategy.depth=2"], "strategy.depth belongs to strategy=fine_tune. Choose that"),
        (["dataset.root=x"], "belongs to dataset=celeba and dataset=image_folder. Choose one"),
        (["-m", "optimizer.lr=1e-3,", "1e-4"], "optimizer.lr=1e-3, ends with a comma"),
        (["dataset.root=My", "pictures"], "pictures is not key=value"),
        (["dataset.root=Süßes"], "dataset.root=Süßes cannot be read"),
        (["dataset=pictures"], "Options: celeba, csv, emoji, image_folder."),
        (["strategy=fine_tun"], "Did you mean fine_tune?"),
        (["stratgy=full"], "stratgy"),
        (["hydra/launcher=sluts"], "hydra/launcher=sluts is not an option"),
        (["optimizer.lr=0"], "optimizer.lr=0: expected a number above 0"),
        pytest.param(["-m", "optimizer.lr=1e-3,nan"], "optimizer.lr=nan", marks=pytest.mark.slow),
        pytest.param(["-m", "optimizer.lr=1e-3,1e-3"], "asked for twice", marks=pytest.mark.slow),
        (["-m", "output_dir=a,b"], "one sweep has one folder"),
        (["+optimizer.typo=1"], "optimizer.typo is not a key of optimizer"),
        (["+typo=1"], "typo is not a key"),
        (["dataset=csv"], "dataset.csv"),
        (["seed=${nowhere}"], "nowhere"),
        (["metric=val_acc"], "metric=val_acc: expected one of val_accuracy"),
        (["strategy=fine_tune", "strategy.depth=99"], "strategy.depth=99"),
        (["model.name=vgg61"], "vgg61"),
        (["++optimizer._target_=os.system"], "not allowed"),
        (["+hydra.callbacks.x={_target_: builtins.open, file: canary, mode: w}"], "not allowed"),
        (["-m", "hydra.launcher.prepare=os.system", "seed=0,1"], "not allowed"),
        (["-m", "hydra.sweeper._target_=pip.main", "seed=0,1"], "not allowed"),
        (["dataset=image_folder", "dataset.root=nowhere"], "dataset.root=nowhere"),
        (["model.weights=nowhere.pth"], "nowhere.pth"),
        (["model=vgg16"], "model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_request_is_answered_by_name_with_exit_code_2(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    done = graft(*arguments, "device=cpu", "sweep.name=x", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 8, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_batch_larger_than_the_training_set_trains_with_a_warning(
    data: tuple[str, ...], tmp_path: Path
) -> None:
    done = graft(*TINY, *data, "batch_size=500", "tracking.uri=off", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "batch_size=500 is larger than the training set of 64" in done.stderr
    (run,) = tmp_path.rglob("metrics.csv")
    assert len(pd.read_csv(run)) == 2


def test_help_says_what_can_be_chosen_and_three_commands(tmp_path: Path) -> None:
    done = graft("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("  graft ") == 3
    for word in ("head_only", "vgg16", "image_folder", "celeba_gender", "optimizer:"):
        assert word in done.stdout, word


@pytest.mark.slow
def test_a_password_in_the_tracking_address_is_written_nowhere(
    data: tuple[str, ...], tmp_path: Path
) -> None:
    address = "http://user:s3cret-word@127.0.0.1:9/"
    done = graft(f"tracking.uri={address}", "epochs=1", *TINY[:3], *TINY[4:], *data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "s3cret-word" not in done.stdout + done.stderr
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert b"s3cret-word" not in path.read_bytes(), path


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_keeps_what_is_finished_and_goes_on(
    number: signal.Signals, code: int, data: tuple[str, ...], tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "graft", "-m", "optimizer.lr=1e-3,1e-2", "sweep.name=k",
        "tracking.uri=off", *TINY, *data, "epochs=200",
    ]  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=tmp_path, stderr=stream, stdout=stream, env=os.environ,
            # What starts in a shell's background inherits that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while "epoch 2/200" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(timeout=60) == code, log.read_text()
    table = pd.read_csv(tmp_path / "outputs/k/results.csv")
    assert table["status"].tolist() == ["skipped", "skipped"]
    info = json.loads((tmp_path / "outputs/k/optimizer.lr=0.001/run.json").read_text())
    assert info["status"] == "skipped" and "interrupted" in info["reason"]


@pytest.mark.parametrize("typed", ["dataset.csv=my labels (1).csv", "dataset.csv=it's.csv"])
def test_a_value_that_hydra_cannot_read_is_named_with_what_to_do(
    typed: str, tmp_path: Path
) -> None:
    done = graft("dataset=csv", typed, "dataset.images=.", "dataset.target=label", cwd=tmp_path)
    assert done.returncode == 2
    assert typed in done.stderr and "quotes within quotes" in done.stderr
    assert len(done.stderr.splitlines()) <= 3
