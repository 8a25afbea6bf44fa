"""Where a study is kept: any storage of Optuna's, by its address.

null                            study.db in the sweep's folder
sqlite:///a.db                  a file
postgresql://user@host/db       a server; anything else that SQLAlchemy takes
journal:///shared/study.log     Optuna's journal, a file that several machines may share
grpc://host:13000               Optuna's proxy
"""

import contextlib
import errno
import fcntl
import glob
import json
import logging
import os
import re
import sqlite3
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy.exc
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig
from optuna.storages import BaseStorage, RDBStorage

from hydra_plugins.study_sweeper._errors import BadSearch

log = logging.getLogger(__name__)

Result = TypeVar("Result")

FILE = "study.db"
BESIDE = ("-wal", "-shm", "-journal")  # what SQLite has beside its file
# How long a database that another process holds is waited for.
LOCKED_S = 20
# How long a server that has gone away is waited for.
AWAY_S = 60.0
_TRIES = 5  # to make the tables, while others make them
_NO_JOURNAL = ("Invalid log format.", "Should not reach.")
_LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "jfs",
          "reiserfs", "bcachefs")  # fmt: skip


def address(storage: Any, sweep_dir: Path, cwd: Path | None = None) -> str | DictConfig:
    """Of the study of a sweep: what `hydra.sweeper.storage` says.

    Args:
        cwd: where the command was given; None: here.
    """
    if storage is None:
        return f"sqlite:///{(sweep_dir / FILE).absolute()}"
    if isinstance(storage, DictConfig):
        return storage
    text = str(storage)
    for scheme in ("sqlite:///", "journal:///"):
        # Three slashes and a name: relative to where the command was given, which jobs may leave.
        if text.startswith(scheme) and ":memory:" not in text:
            return scheme + str((cwd or Path()).absolute() / text.removeprefix(scheme))
    return text


def in_words(storage: "str | DictConfig") -> str:
    """The address without its password."""
    if isinstance(storage, DictConfig):
        return str(storage.get("_target_"))
    password = _password(storage)
    shown = storage.replace(f":{password}@", ":***@") if password else storage
    return re.sub(r"(?<=[?&]password=)[^&]*", "***", shown)


def _password(storage: "str | DictConfig") -> str:
    """What stands between the user's name and the last @; empty if there is none."""
    if isinstance(storage, DictConfig) or file_of(storage) is not None:
        return ""
    whom = storage.partition("://")[2].rpartition("@")[0]
    return whom.partition(":")[2]


def file_of(storage: "str | DictConfig") -> Path | None:
    """The file of a storage that is one."""
    for scheme in ("sqlite:///", "journal:///"):
        is_one = isinstance(storage, str) and ":memory:" not in storage
        if is_one and storage.startswith(scheme):
            return Path(storage.removeprefix(scheme).partition("?")[0])
    return None


def opened(storage: "str | DictConfig", *, is_new_allowed: bool = True) -> BaseStorage:
    """The storage.

    Args:
        is_new_allowed: whether it may be made if it is not there.

    Raises:
        BadSearch: it cannot be used; the message says why.
        FileNotFoundError: it is not there, and may not be made.
    """
    path = file_of(storage)
    if path is not None and not path.exists() and not is_new_allowed:
        raise FileNotFoundError(path)
    if "@" in _password(storage):
        raise BadSearch("hydra.sweeper.storage: an @ in a user's name or password is written %40.")
    kinds = (ImportError, RuntimeError, AssertionError, ValueError, OSError, HydraException)
    try:
        with explained(storage):
            return _opened(storage, path)
    except BadSearch:
        raise
    except kinds as error:
        text = _first_line(error)
        if password := _password(storage):
            text = text.replace(password, "***")
        raise BadSearch(
            f"hydra.sweeper.storage={in_words(storage)} cannot be used: {text}."
        ) from error


@contextlib.contextmanager
def explained(storage: "str | DictConfig") -> Iterator[None]:
    """What a storage raises, in a sentence that says what to do."""
    try:
        yield
    except Exception as error:
        text = problem(error, storage)
        if text is None:
            raise
        raise BadSearch(
            f"hydra.sweeper.storage={in_words(storage)} cannot be used: {text}. "
            f"{_advice(text, storage)}"
        ) from error


def awaited(call: Callable[[], Result]) -> Result:
    """What a call gives that asks the storage. A server that is started anew is waited for; a file
    that another process has locked has been waited for already."""
    until = None
    while True:
        try:
            return call()
        except Exception as error:
            if not _is_away(error) or (until is not None and time.monotonic() > until):
                raise
            if until is None:
                log.warning("The study's storage is away; it is waited for, %g s at most.", AWAY_S)
                until = time.monotonic() + AWAY_S
            time.sleep(1)


def _is_away(error: Exception) -> bool:
    if type(error).__module__.partition(".")[0] == "grpc":
        return "UNAVAILABLE" in str(error)
    is_of_optuna = isinstance(error, optuna.exceptions.StorageInternalError)
    cause = error.__cause__ if is_of_optuna else error
    kinds = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
    return isinstance(cause, kinds) and not isinstance(cause.orig, sqlite3.Error)


def problem(error: Exception, storage: "str | DictConfig") -> str | None:
    """What is the matter with the storage; None: the error is of something else."""
    text = _told(error, storage)
    password = _password(storage)
    return text.replace(password, "***") if text and password else text


def _told(error: Exception, storage: "str | DictConfig") -> str | None:
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        return _first_line(getattr(error.__cause__, "orig", None) or error.__cause__)
    if isinstance(error, (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error)):
        return _first_line(getattr(error, "orig", None) or error)
    if isinstance(error, optuna.exceptions.StorageInternalError):
        return _first_line(error)
    if isinstance(error, ImportError) and error.name == "grpc":
        return "it needs the packages grpcio and protobuf (pip install grpcio protobuf)"
    if type(error).__module__.partition(".")[0] == "grpc":
        details = getattr(error, "details", None)
        return str(details() if callable(details) else error)
    if isinstance(storage, str) and storage.startswith("journal:"):
        if isinstance(error, json.JSONDecodeError) or str(error) in _NO_JOURNAL:
            return "it is not a journal of Optuna's, or corrupt"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return _first_line(error)
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0].rstrip(".")


def _advice(text: str, storage: "str | DictConfig") -> str:
    if "locked" in text:
        return "Another process has held it for long; try again when it is done."
    if "malformed" in text or "not a database" in text or "corrupt" in text:
        return (
            "It is damaged. Move it away and give the same command: what the sweep's folder knows "
            "of the trials is put into a new one."
        )
    if "readonly" in text or "unable to open" in text or "disk" in text or "space left" in text:
        path = file_of(storage)
        return f"See that {path.parent if path else 'it'} can be written and has room."
    return "The jobs' own results are untouched."


def _opened(storage: "str | DictConfig", path: Path | None) -> BaseStorage:
    if isinstance(storage, DictConfig):
        made: BaseStorage = instantiate(storage)
        return made
    if storage.startswith("journal:"):
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        if path is None:
            raise ValueError("a journal is journal:///and its path, with three slashes")
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_is_journal(path)
        return JournalStorage(JournalFileBackend(str(path)))
    if storage.startswith("grpc://"):
        return _proxy(storage)
    if path is not None:
        return _sqlite(storage, path)
    # A connection that a server has closed meanwhile is opened again.
    options = {"pool_pre_ping": True}
    return _patiently(lambda: RDBStorage(_with_driver(storage), engine_kwargs=options))


def _check_is_journal(path: Path) -> None:
    """Optuna would append to whatever there is.

    Raises:
        ValueError: it is something else.
    """
    if path.exists():
        with path.open("rb") as stream:
            first = stream.readline(1_000_000)
        if first and not first.startswith(b'{"op_code"'):
            raise ValueError(_NO_JOURNAL[0])


def _proxy(storage: str) -> BaseStorage:
    from optuna.storages import GrpcStorageProxy

    host, _, port = storage.removeprefix("grpc://").partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        proxy = GrpcStorageProxy(host=host, port=int(port or 13000))
    proxy.wait_server_ready(timeout=LOCKED_S)
    return proxy


def _sqlite(storage: str, path: Path) -> BaseStorage:
    options = {} if "timeout=" in storage else {"connect_args": {"timeout": LOCKED_S}}
    is_local = _is_local(path.parent)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent) as is_alone:
            if not path.exists():
                _make(path, options, is_local, is_alone)
    found = RDBStorage(storage, engine_kwargs=options)
    if is_local:
        sqlalchemy.event.listen(found.engine, "connect", _relaxed)
        found.engine.dispose()  # connections from before
    return found


def _make(path: Path, options: dict[str, Any], is_local: bool, is_alone: bool) -> None:
    """A file is made whole aside, then put in place: a process that is killed while it makes the
    tables leaves none that is half made, and of two the later one finds it there."""
    if is_alone:
        # Of one that was moved away: SQLite would take them for the new one's.
        for suffix in BESIDE:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        for litter in path.parent.glob(f".{glob.escape(path.name)}.*.part*"):
            litter.unlink(missing_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        made = RDBStorage(f"sqlite:///{part}", engine_kwargs=options)
        if is_local:
            with made.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        closed(made)
        try:
            os.link(part, path)
        except FileExistsError:
            pass
        except OSError:  # not every file system has links
            if not path.exists():
                os.rename(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """No other process on this machine makes a storage there; False: that cannot be had."""
    file = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            is_alone = True
        except OSError:
            is_alone = False
        yield is_alone
    finally:
        os.close(file)


def _relaxed(connection: Any, record: Any) -> None:
    """A write need not wait for the disk: a crash of the machine may cost the last ones, which the
    sweep's folder tells of, and no more than these."""
    with contextlib.closing(connection.cursor()) as cursor:
        # One that was made otherwise, and is in use, stays so.
        with contextlib.suppress(sqlite3.OperationalError):
            cursor.execute("PRAGMA journal_mode=WAL")
        mode = cursor.execute("PRAGMA journal_mode").fetchone()[0]
        if mode == "wal":
            cursor.execute("PRAGMA synchronous=NORMAL")


def _is_local(folder: Path) -> bool:
    """Whether other machines cannot see the same files: they would not see the memory that
    processes share over a write-ahead log, and spoil the database."""
    while not folder.exists():
        folder = folder.parent
    place = f"{folder.resolve()}/"
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
            _, mount, own_kind, *_ = line.split(" ")
            mount = mount.encode().decode("unicode_escape").rstrip("/") + "/"
            if place.startswith(mount) and len(mount) >= len(best):
                best, kind = mount, own_kind
    return kind in _LOCAL


def closed(storage: BaseStorage) -> None:
    """Let go of it; a SQLite file is then one file again."""
    engine = getattr(getattr(storage, "_backend", storage), "engine", None)
    if engine is not None:
        storage.remove_session()
        engine.dispose()


def _patiently(make: Callable[[], BaseStorage]) -> BaseStorage:
    """Of several that make the tables of a server at once, all but one fail at first."""
    for wait_s in (0.2 * 2**k for k in range(_TRIES)):
        try:
            return make()
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
            time.sleep(wait_s)
    return make()


def _with_driver(storage: str) -> str:
    """SQLAlchemy takes psycopg 3 for PostgreSQL; where only psycopg 2 is there, that will do."""
    scheme, found, rest = storage.partition("://")
    if found and scheme == "postgresql" and not find_spec("psycopg") and find_spec("psycopg2"):
        return f"postgresql+psycopg2://{rest}"
    return storage
