"""Addresses of storages, and the file that SQLite has: made whole, in one piece, by one process."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from hydra_plugins.study_sweeper import _storage
from hydra_plugins.study_sweeper.errors import BadSearch


def mode_of(path: Path) -> str:
    with closing(sqlite3.connect(path)) as base:
        return str(base.execute("PRAGMA journal_mode").fetchone()[0])


def made(path: Path) -> None:
    storage = _storage.opened(f"sqlite:///{path}")
    optuna.create_study(study_name="one", storage=storage, load_if_exists=True)
    _storage.closed(storage)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("postgresql://me@host/base", "postgresql://me@host/base"),
        ("postgresql://me:secret@host:5/base", "postgresql://me:***@host:5/base"),
        ("postgresql+psycopg2://me:sec:ret@host/base?x=1", "postgresql+psycopg2://me:***@host/base?x=1"),
        ("mysql://me:sec@ret@host/base", "mysql://me:***@host/base"),
        ("postgresql://me:secret@host:port/base", "postgresql://me:***@host:port/base"),
        ("postgresql://host/base?user=me&password=secret", "postgresql://host/base?user=me&password=***"),
        ("sqlite:////data:1@a@b/study.db", "sqlite:////data:1@a@b/study.db"),
        ("grpc://host:13000", "grpc://host:13000"),
    ],
)  # fmt: skip
def test_an_address_is_shown_without_its_password(address: str, shown: str) -> None:
    assert _storage.in_words(address) == shown


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("sqlite:////a/b.db", Path("/a/b.db")),
        ("sqlite:////a/b.db?timeout=1", Path("/a/b.db")),
        ("journal:////a/b.log", Path("/a/b.log")),
        ("sqlite:///:memory:", None),
        ("postgresql://me@host/base", None),
    ],
)
def test_the_file_of_an_address(address: str, path: Path | None) -> None:
    assert _storage.file_of(address) == path


def test_a_database_is_one_file_when_nobody_has_it_open(tmp_path: Path) -> None:
    made(tmp_path / "study.db")
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]
    assert mode_of(tmp_path / "study.db") == "wal"


def test_a_database_that_other_machines_may_see_has_no_log_in_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_storage, "_LOCAL", ())
    made(tmp_path / "study.db")
    assert mode_of(tmp_path / "study.db") == "delete"


def test_what_sqlite_had_beside_one_that_was_moved_away_does_not_get_into_the_new_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "study.db"
    first = _storage.opened(f"sqlite:///{path}")
    study = optuna.create_study(study_name="old", storage=first)
    for _ in range(20):
        study.tell(study.ask(), 1.0)
    assert (tmp_path / "study.db-wal").stat().st_size > 0
    path.rename(tmp_path / "old.db")  # as after a kill: the log is still there
    made(path)
    with closing(sqlite3.connect(path)) as base:
        assert base.execute("SELECT study_name FROM studies").fetchall() == [("one",)]
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    _storage.closed(first)


def test_what_a_killed_process_had_begun_to_make_is_cleared_away(tmp_path: Path) -> None:
    for name in (".study.db.1234.part", ".study.db.1234.part-journal", ".other.db.1.part"):
        (tmp_path / name).write_text("half")
    made(tmp_path / "study.db")
    assert {path.name for path in tmp_path.iterdir()} == {"study.db", ".other.db.1.part"}


def test_a_database_is_made_where_files_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(_storage.os, "link", link)
    made(tmp_path / "study.db")
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]


def test_many_make_one_database_at_once(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    together = threading.Barrier(6)

    def one() -> None:
        together.wait()
        try:
            made(tmp_path / "study.db")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    storage = _storage.opened(f"sqlite:///{tmp_path / 'study.db'}")
    assert optuna.study.get_all_study_names(storage) == ["one"]
    _storage.closed(storage)


def test_a_storage_that_must_be_there_is_not_made(tmp_path: Path) -> None:
    for scheme in ("sqlite", "journal"):
        with pytest.raises(FileNotFoundError):
            _storage.opened(f"{scheme}:///{tmp_path / 'study'}", is_new_allowed=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine\n")
    with pytest.raises(BadSearch, match="not a journal"):
        _storage.opened(f"journal:///{path}")
    assert path.read_text() == "mine\n"


def test_an_error_of_something_else_is_left_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), _storage.explained("sqlite:////a/b.db"):
        raise ZeroDivisionError


def test_a_server_that_is_away_is_waited_for_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sqlalchemy.exc

    monkeypatch.setattr(_storage.time, "sleep", lambda _: None)
    tries = 0

    def call() -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise sqlalchemy.exc.OperationalError("select 1", {}, Exception("refused"))
        return tries

    assert _storage.awaited(call) == 3
    monkeypatch.setattr(_storage, "AWAY_S", 0.0)
    tries = -100
    with pytest.raises(sqlalchemy.exc.OperationalError):
        _storage.awaited(call)


def test_a_locked_file_has_been_waited_for_already() -> None:
    import sqlalchemy.exc

    tries = 0

    def call() -> None:
        nonlocal tries
        tries += 1
        locked = sqlite3.OperationalError("database is locked")
        raise sqlalchemy.exc.OperationalError("select 1", {}, locked)

    with pytest.raises(sqlalchemy.exc.OperationalError):
        _storage.awaited(call)
    assert tries == 1
