"""Calls to an MLflow store, in plain types. The one place that imports mlflow.

Everything here may raise and may block; `line.py` makes both harmless.
"""

import fcntl
import importlib.util
import logging
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from mlflow.entities import Run

# A dead server otherwise holds a client for four minutes, once a call.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
PROBE_S = 2.0
_LOCK_S = 60.0
# MLflow takes 1000 metrics, 100 parameters and 100 tags a call.
_BATCH_METRICS, _BATCH_OTHERS = 1000, 100
_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


class Away(Exception):
    """The store does not answer now; it may later."""


class Point(NamedTuple):
    """One value of a metric; `time_ms` since 1970."""

    key: str
    value: float
    time_ms: int
    step: int


# --- where ----------------------------------------------------------------------------------


def default_uri(output_dir: Path) -> str:
    """SQLite in the output folder, as an absolute URI: jobs may run in other folders."""
    return f"sqlite:///{output_dir.resolve() / 'mlflow.db'}"


def resolve_uri(uri: str | None, output_dir: Path) -> str:
    """What `tracking.uri` means: absolute, and with a database driver that is installed."""
    if uri is None:
        return default_uri(output_dir)
    if (path := sqlite_path(uri)) is not None:
        return f"sqlite:///{path.expanduser().resolve()}"
    # SQLAlchemy 2.1 takes the plain name for psycopg 3; many have its predecessor.
    if uri.startswith(("postgresql://", "postgres://")) and not importlib.util.find_spec("psycopg"):
        return "postgresql+psycopg2" + uri[uri.index("://") :]
    return uri


def sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def mask(uri: str) -> str:
    """`uri` with a password replaced by ***, for logs and files."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


def secret(uri: str) -> str | None:
    """The password in a URI, as it is spelled there."""
    return urlsplit(uri).password or None


def web_address(uri: str) -> str:
    """Where the UI is: the server itself, or the one that the user starts for a database."""
    if not uri.startswith("http"):
        return "http://127.0.0.1:5000"
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")


# --- connecting -----------------------------------------------------------------------------


def check_reachable(uri: str) -> None:
    """Raise Away where nothing answers within PROBE_S; no MLflow is imported for that."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        _check_http(web_address(uri))
    elif parts.hostname:
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme.partition("+")[0])
        if port is not None:
            _check_socket(parts.hostname, port)


def _check_http(address: str) -> None:
    try:
        urllib.request.urlopen(f"{address}/health", timeout=PROBE_S).close()
    except urllib.error.HTTPError as error:
        error.close()  # it speaks: what it says is heard by the first real call
    except urllib.error.URLError as error:
        raise Away(_words(error.reason)) from error
    except (OSError, ValueError) as error:
        raise Away(_words(error)) from error
    except Exception as error:  # http.client's errors for what is no HTTP
        raise Away(f"it does not speak HTTP: {_words(error)}") from error


def _check_socket(host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=PROBE_S).close()
    except OSError as error:
        raise Away(_words(error)) from error


def _words(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {PROBE_S:g} s"
    return str(error) or repr(error)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the first use of an empty database is not safe in parallel.

    Raises:
        Away: another process held it for a minute.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _LOCK_S
    with path.open("a") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Away(f"{path} is locked by another process") from None
                time.sleep(0.05)
        yield


def is_refusal(error: BaseException) -> bool:
    """Whether the server knows us and says no: asking again is useless."""
    status = getattr(error, "get_http_status_code", None)
    return status is not None and status() in (401, 403)


def is_rejection(error: BaseException) -> bool:
    """Whether one request was wrong in itself; others may be right."""
    status = getattr(error, "get_http_status_code", None)
    return status is not None and 400 <= status() < 500 and status() not in (401, 403, 408, 429)


# --- calls ----------------------------------------------------------------------------------


class Store:
    """An open MLflow store."""

    def __init__(self, uri: str) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # A run id in the environment would make MLflow reopen that run.
        os.environ.pop("MLFLOW_RUN_ID", None)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        self._client = MlflowClient(tracking_uri=uri)
        self._is_local = sqlite_path(uri) is not None
        # The first call makes the tables.
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

    def find(self, experiment: str, tags: Mapping[str, str]) -> "list[Run]":
        """The runs of an experiment that carry all of `tags`, oldest first."""
        conditions = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs(
                [experiment],
                conditions,
                order_by=["attributes.start_time ASC"],
                max_results=1000,
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                return found

    def get(self, run: str) -> "Run":
        return self._client.get_run(run)

    def create(self, experiment: str, name: str, start_ms: int, tags: Mapping[str, str]) -> str:
        made = self._client.create_run(
            experiment, start_time=start_ms, run_name=name, tags=dict(tags)
        )
        return str(made.info.run_id)

    def reopen(self, run: str, name: str) -> None:
        self._client.update_run(run, status="RUNNING", name=name)

    def end(self, run: str, status: str, end_ms: int) -> None:
        """`status`: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run, status, end_ms)

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
        root = urlsplit(self.get(run).info.artifact_uri)
        if root.scheme != "file":
            return None
        return Path(unquote(root.path)) / (folder or "") / path.name


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


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def describe(error: BaseException, hidden: str | None) -> str:
    """One line for a warning, without the password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else repr(error)
    if hidden:
        text = text.replace(hidden, "***").replace(unquote(hidden), "***")
    return text if len(text) <= 300 else f"{text[:300]}..."
