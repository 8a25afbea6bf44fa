"""Calls to an MLflow store, in plain types. Here alone mlflow is imported, in apart.py's process.

Everything here may raise and may block; `line.py` makes both harmless.
"""

import getpass
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from graft.collector import importing, without_collector
from graft.tracking.places import sqlite_path

if TYPE_CHECKING:
    from mlflow.entities import Run

# A dead server otherwise holds a client for four minutes, once a call.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # A busy server may ask for an hour; line.py has its own pause.
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
# A file that nobody has written to for so long was left by a process that was killed.
LEFT_S = 600.0
# MLflow takes 1000 metrics, 100 parameters and 100 tags a call.
_BATCH_METRICS, _BATCH_OTHERS = 1000, 100
# MLflow does without these, as mlflow-skinny has to; they are a fifth of its memory and import.
_UNNEEDED = {"pandas", "scipy"}


class Point(NamedTuple):
    """One value of a metric; `time_ms` since 1970."""

    key: str
    value: float
    time_ms: int
    step: int


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class StoredRun(NamedTuple):
    """A run as the store has it; of metrics their names."""

    id: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: tuple[str, ...]


class StoreError(Exception):
    """What MLflow raised, in words.

    Attributes:
        status: of HTTP, where the error has one.
    """

    def __init__(self, text: str, status: int | None) -> None:
        super().__init__(text, status)
        self.text, self.status = text, status

    def __str__(self) -> str:
        return self.text


def http_status(error: BaseException) -> int | None:
    """The HTTP status of one of MLflow's own errors."""
    found: Any = getattr(error, "get_http_status_code", lambda: None)
    status: int | None = found()
    return status


def is_refusal(error: BaseException) -> bool:
    """Whether the server knows us and says no: asking again is useless."""
    return isinstance(error, StoreError) and error.status in (401, 403)


def is_rejection(error: BaseException) -> bool:
    """Whether one request was wrong in itself; others may be right."""
    status = error.status if isinstance(error, StoreError) else None
    return status is not None and 400 <= status < 500 and status not in (401, 403, 408, 429)


def import_mlflow() -> None:
    """Import it, which takes seconds, with settings that it reads then."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A run id in the environment would make MLflow reopen that run.
    os.environ.pop("MLFLOW_RUN_ID", None)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    with importing(), _hidden(_UNNEEDED):
        import_module("mlflow")
        import_module("mlflow.store.tracking.sqlalchemy_store")  # MLflow leaves it for later
    logging.getLogger("mlflow").setLevel(logging.ERROR)


@contextmanager
def _hidden(packages: set[str]) -> Iterator[None]:
    """Packages that are not imported yet are not installed, as far as this process can see."""

    class Hidden(MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] in packages:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    finder = Hidden()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


# --- calls ----------------------------------------------------------------------------------


class Store:
    """An open MLflow store."""

    def __init__(self, uri: str) -> None:
        import_mlflow()
        from mlflow import MlflowClient

        path = sqlite_path(uri)
        with without_collector():  # tables are made of many small objects
            if path is not None and not path.exists():
                _make_database(path)
            self._client = MlflowClient(tracking_uri=uri)
        self._is_local = path is not None
        self._roots: dict[str, str] = {}  # where the files of runs that are open go
        # The first call makes the tables of a server's database.
        self._client.search_experiments(max_results=1)

    def experiment(self, name: str, artifacts: Path, note: str) -> str:
        """The id of an experiment, made where it is missing (its files beside a local database)."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = artifacts.resolve().as_uri() if self._is_local else None
            try:
                made = self._client.create_experiment(
                    name, artifact_location=location, tags={"mlflow.note.content": note}
                )
                return str(made)
            except Exception:
                # Someone on another machine may have been faster.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def find(self, experiment: str, tags: Mapping[str, str]) -> list[StoredRun]:
        """The runs of an experiment that carry all of `tags`, oldest first."""
        conditions = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found: list[StoredRun] = []
        token = None
        while True:
            page = self._client.search_runs(
                [experiment],
                conditions,
                order_by=["attributes.start_time ASC"],
                max_results=1000,
                page_token=token,
            )
            found += [_stored(run) for run in page]
            token = page.token
            if not token:
                return found

    def create(self, experiment: str, name: str, start_ms: int, tags: Mapping[str, str]) -> str:
        made = self._client.create_run(
            experiment, start_time=start_ms, run_name=name, tags={"mlflow.user": _user(), **tags}
        )
        self._roots[made.info.run_id] = made.info.artifact_uri
        return str(made.info.run_id)

    def reopen(self, run: str) -> None:
        self._client.update_run(run, status="RUNNING")

    def rename(self, run: str, name: str) -> None:
        self._client.update_run(run, name=name)

    def untag(self, run: str, keys: Sequence[str]) -> None:
        for key in keys:
            self._client.delete_tag(run, key)

    def end(self, run: str, status: str, end_ms: int) -> None:
        """`status`: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run, status, end_ms)
        self._roots.pop(run, None)

    def log(
        self,
        run: str,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Points that are there already, with the same time, are not doubled."""
        from mlflow.entities import Metric, Param, RunTag

        for start in range(0, len(points), _BATCH_METRICS):
            metrics = [
                Metric(p.key, p.value, p.time_ms, p.step)
                for p in points[start : start + _BATCH_METRICS]
            ]
            self._client.log_batch(run, metrics=metrics)
        pairs = list((params or {}).items())
        labels = list((tags or {}).items())
        for start in range(0, max(len(pairs), len(labels)), _BATCH_OTHERS):
            part = slice(start, start + _BATCH_OTHERS)
            self._client.log_batch(
                run,
                params=[Param(k, v) for k, v in pairs[part]],
                tags=[RunTag(k, v) for k, v in labels[part]],
            )

    def steps(self, run: str, key: str) -> set[int]:
        return {int(metric.step) for metric in self._client.get_metric_history(run, key)}

    def log_dataset(self, run: str, dataset: Mapping[str, str]) -> None:
        """`dataset`: name, digest, source, schema and profile, the last three as JSON."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        made = Dataset(source_type="local", **dataset)
        context = [InputTag("mlflow.data.context", "training")]
        self._client.log_inputs(run, [DatasetInput(made, context)])

    def log_file(self, run: str, path: Path, folder: str | None = None) -> None:
        """Store one file. In a local store it is a second name of the same bytes, where it can be:
        record files are replaced whole and never changed, and a checkpoint may be large."""
        if (target := self._local_target(run, path, folder)) is not None and _link(path, target):
            return
        with _patience(path.stat().st_size):
            self._client.log_artifact(run, str(path), folder)

    def log_text(self, run: str, text: str, name: str) -> None:
        self._client.log_text(run, text, name)

    def set_experiment_tag(self, experiment: str, key: str, value: str) -> None:
        self._client.set_experiment_tag(experiment, key, value)

    def _local_target(self, run: str, path: Path, folder: str | None) -> Path | None:
        if run not in self._roots:  # a run's files stay in one place: it is asked for once
            self._roots[run] = self._client.get_run(run).info.artifact_uri
        root = urlsplit(self._roots[run])
        if root.scheme != "file":
            return None
        return Path(unquote(root.path)) / (folder or "") / path.name


# --- for another process: see apart.py ------------------------------------------------------

_here: list[Store] = []


def open_here(uri: str) -> None:
    """Open a store that stays in this process, instead of the one before."""
    _here.clear()
    try:
        _here.append(Store(uri))
    except Exception as error:
        raise StoreError(str(error) or repr(error), http_status(error)) from error


def call_here(name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the store that was opened here."""
    try:
        return getattr(_here[0], name)(*args, **kwargs)
    except Exception as error:
        raise StoreError(str(error) or repr(error), http_status(error)) from error


# --- parts ----------------------------------------------------------------------------------


def _put_in_place(part: Path, path: Path) -> None:
    """Never over one that another has made meanwhile."""
    try:
        with suppress(FileExistsError):
            os.link(part, path)
    except OSError:  # a file system without hard links
        if not path.exists():
            part.rename(path)


def _make_database(path: Path) -> None:
    """A SQLite file with all of MLflow's tables, or none: who is killed meanwhile, or makes it at
    the same time, would leave one with some of them, which MLflow can neither use nor mend."""
    from mlflow import MlflowClient

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        MlflowClient(tracking_uri=f"sqlite:///{part}").search_experiments(max_results=1)
        _put_in_place(part, path)
    finally:
        part.unlink(missing_ok=True)
    for left in path.parent.glob(f".{path.name}.*.part"):
        if time.time() - left.stat().st_mtime > LEFT_S:
            left.unlink(missing_ok=True)


def _stored(run: "Run") -> StoredRun:
    info, data = run.info, run.data
    return StoredRun(
        str(info.run_id), info.run_name, info.status, dict(data.tags), dict(data.params),
        tuple(data.metrics),
    )  # fmt: skip


def _link(path: Path, target: Path) -> bool:
    if path.suffix == ".log":  # grows in place
        return False
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        os.link(path, part)
        part.replace(target)
        # Renaming one name of a file over another name of the same file leaves both.
        part.unlink(missing_ok=True)
    except OSError:
        return False
    return True


@contextmanager
def _patience(size_bytes: int) -> Iterator[None]:
    """A server may store a large file before it answers: wait for 1 MB/s."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    os.environ[name] = str(int(before or 5) + size_bytes // 1_000_000)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"
