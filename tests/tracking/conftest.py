"""A small sweep with real records, and a real MLflow to look into."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graft.config import Tracking
from graft.record import Predictions, Record, RunFolder, read_run, write_json
from graft.tracking import RunTracking, SweepTracking, apart, default_uri
from graft.tracking.client import Store

AXES = ("strategy", "optimizer.lr")
CHOICES = [
    {"strategy": strategy, "optimizer.lr": lr}
    for strategy in ("head_only", "fine_tune")
    for lr in ("1e-3", "1e-4")
]
TITLES = (
    "00 head_only lr=0.001",
    "01 head_only lr=0.0001",
    "02 fine_tune lr=0.001",
    "03 fine_tune lr=0.0001",
)
# Of 100 examples of a split, how many each run gets right at its best epoch.
RIGHT = (70, 65, 90, 80)


class Lab:
    """A sweep of four runs: what training writes down, and what MLflow has of it."""

    choices, titles = CHOICES, TITLES

    def __init__(self, output: Path, uri: str | None = None) -> None:
        self.output, self.folder = output, output / "demo"
        self.uri = uri
        self.config: dict[str, Any] = {}
        self.opened: list[SweepTracking] = []

    def open(self) -> SweepTracking:
        opened = SweepTracking.open(
            self.folder,
            Tracking(uri=self.uri),
            name="demo",
            command="graft -m strategy=head_only,fine_tune optimizer.lr=1e-3,1e-4",
            axes=AXES,
            output_dir=self.output,
        )
        assert isinstance(opened, SweepTracking)
        self.opened.append(opened)
        return opened

    def close(self) -> None:
        """Free the processes that talk to MLflow: each takes seconds to start."""
        for sweep in self.opened:
            sweep.close()

    def seen(self) -> "Seen":
        """What MLflow has, once all that was given to it has been sent."""
        for sweep in self.opened:
            sweep.wait(30)
        return Seen(self.uri or default_uri(self.output))

    def ask_for(self, *numbers: int) -> None:
        runs = [{"run": self.run_folder(number).name} for number in numbers]
        write_json(self.folder / "sweep.json", {"runs": runs})

    def run_folder(self, number: int) -> Path:
        chosen = CHOICES[number]
        return self.folder / (
            f"strategy={chosen['strategy']},optimizer.lr={float(chosen['optimizer.lr'])}"
        )

    def rows(self, number: int, num_epochs: int = 3) -> list[dict[str, float]]:
        best = RIGHT[number] / 100
        return [
            {
                "epoch": epoch,
                "train_loss": 0.7 / epoch + number / 30,
                "train_accuracy": best - 0.05,
                "val_loss": 0.8 / epoch + number / 30,
                "val_accuracy": best - 0.01 * (num_epochs - epoch),
                "lr": 1e-3,
            }
            for epoch in range(1, num_epochs + 1)
        ]

    def record(self, number: int, status: str = "completed", reason: str | None = None) -> Record:
        """The folder that training leaves."""
        folder = RunFolder(self.run_folder(number))
        chosen = CHOICES[number]
        folder.write_config(self.run_config(chosen))
        folder.write_epochs(self.rows(number))
        folder.write_environment({"python": "3.11"})
        folder.write_checkpoint({"head.weight": torch.zeros(4, 4)})
        folder.write_predictions(predictions(RIGHT[number]))
        folder.write_examples(examples())
        folder.write_run(
            {
                "status": status,
                "reason": reason,
                "choices": chosen,
                "classes": ["-1", "1"],
                "metric": "val_accuracy",
                "best_epoch": 3,
            }
        )
        return read_run(folder.path)

    def scores(self, number: int) -> dict[str, float]:
        share = RIGHT[number] / 100
        return {"best/val_accuracy": share, "test/accuracy": share, "seconds": 30.0 + number}

    def run_config(self, chosen: Mapping[str, str]) -> dict[str, Any]:
        strategy = "HeadOnly" if chosen["strategy"] == "head_only" else "FineTune"
        return {
            "dataset": {"_target_": "graft.config.EmojiDataset", "target": "Male"},
            "model": {"name": "efficientnet_lite0", "weights": "imagenet"},
            "strategy": {"_target_": f"graft.strategies.{strategy}"},
            "optimizer": {"_target_": "graft.config.Adam", "lr": float(chosen["optimizer.lr"])},
            "epochs": 3,
            "batch_size": 32,
            "seed": 0,
            "image_size": 128,
            **self.config,
        }

    def begin(self, sweep: SweepTracking, number: int, num_epochs: int = 3) -> RunTracking:
        run = sweep.run(number, TITLES[number], CHOICES[number])
        run.params(CHOICES[number], self.run_config(CHOICES[number]))
        for row in self.rows(number)[:num_epochs]:
            run.epochs([row])
        return run

    def train(self, sweep: SweepTracking, number: int) -> Record:
        run = self.begin(sweep, number)
        record = self.record(number)
        run.finish(record, "completed", None, self.scores(number))
        return record

    def train_all(self) -> str | None:
        """The whole sweep; the link to its view."""
        sweep = self.open()
        records = [self.train(sweep, number) for number in range(4)]
        (self.folder / "report.html").write_text("<p>the report</p>")
        (self.folder / "results.csv").write_text("run,status\n")
        return sweep.finish(records, self.folder / "report.html", self.folder / "results.csv")


def predictions(num_right: int) -> Predictions:
    """100 validation and 100 test examples of two classes."""
    labels = np.arange(200) % 2
    is_right = np.arange(200) % 100 < num_right
    predicted = np.where(is_right, labels, 1 - labels)
    return Predictions(
        ids=np.array([f"{i}.png" for i in range(200)], dtype=object),
        splits=np.array(["val"] * 100 + ["test"] * 100, dtype=object),
        labels=labels,
        scores=np.where(predicted == 1, 0.9, 0.1).astype(np.float32),
        classes=("-1", "1"),
    )


def examples() -> dict[str, list[str]]:
    return {
        "id": [f"{i}.png" for i in range(300)],
        "path": [f"/pictures/{i}.png" for i in range(300)],
        "label": [["-1", "1"][i % 2] for i in range(300)],
        "split": ["val"] * 100 + ["test"] * 100 + ["train"] * 100,
        "group": ["someone"] * 300,
    }


class Seen:
    """What is in a store, read by MLflow's own client."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        experiment = self.client.get_experiment_by_name("graft")
        assert experiment is not None
        self.experiment = experiment

    def runs(self, role: str = "run") -> dict[str, Any]:
        found = self.client.search_runs([self.experiment.experiment_id], f"tags.role = '{role}'")
        assert len({run.info.run_name for run in found}) == len(found), "a run is there twice"
        return {run.info.run_name: run for run in sorted(found, key=lambda r: r.info.run_name)}

    @property
    def parent(self) -> Any:
        (parent,) = self.runs("sweep").values()
        return parent

    def points(self, run: Any) -> list[tuple[str, int, float, int]]:
        """Every value of every metric: key, step, value, time."""
        return sorted(
            (metric.key, metric.step, metric.value, metric.timestamp)
            for key in run.data.metrics
            for metric in self.client.get_metric_history(run.info.run_id, key)
        )

    def curve(self, run: Any, key: str) -> list[tuple[int, float]]:
        return [(step, value) for name, step, value, _ in self.points(run) if name == key]

    def files(self, run: Any, folder: str | None = None) -> set[str]:
        return {file.path for file in self.client.list_artifacts(run.info.run_id, folder)}


@pytest.fixture(autouse=True)
def _no_mlflow_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store sets MLflow's variables where they are not set; no test sees another's."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with MLflow's tables: making them takes seconds."""
    from graft.tracking.client import Store

    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    Store(f"sqlite:///{path}")
    return path


@pytest.fixture
def lab_at(tmp_path: Path) -> Iterator[Callable[[str], Lab]]:
    """A sweep that is tracked elsewhere than in its own folder."""
    made: list[Lab] = []

    def make(uri: str) -> Lab:
        made.append(Lab(tmp_path / "outputs", uri))
        return made[-1]

    yield make
    for lab in made:
        lab.close()


@pytest.fixture
def lab(tmp_path: Path, tables: Path) -> Iterator[Lab]:
    output = tmp_path / "outputs"
    output.mkdir()
    shutil.copy(tables, output / "mlflow.db")
    lab = Lab(output)
    yield lab
    lab.close()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is called here, which takes no other process to start, and can be patched."""
    monkeypatch.setattr(apart, "open_store", Store)
    monkeypatch.setattr(apart, "give_back", lambda store: None)


class Server:
    """`mlflow server` on a loopback port, its database in a folder; can be killed and restarted."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.uri = f"http://127.0.0.1:{port}"
        self.command = (
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --workers 1 --port "
            f"{port} --backend-store-uri sqlite:///{folder}/mlflow.db "
            f"--artifacts-destination {folder}/files"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binaries = Path(sys.executable).parent
        environment = {
            **os.environ,
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                shell=True,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait()

    def signal(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail((self.folder / "server.log").read_text()[-2000:])


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path, tables: Path, free_port: int) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(tables, folder / "mlflow.db")
    one = Server(folder, free_port)
    yield one
    one.kill()


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Any:
    return lambda: [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
