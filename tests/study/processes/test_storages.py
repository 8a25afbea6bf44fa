"""A study in each of the places where Optuna can keep one; by one driver and by two at once."""

import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hydra_plugins.study_sweeper import _storage

POSTGRES = Path("/usr/lib/postgresql/15/bin")
PASSWORD = "hunter2"

PROXY = """
import sys
from optuna.storages import run_grpc_proxy_server
from hydra_plugins.study_sweeper import _storage
run_grpc_proxy_server(_storage.opened(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """PostgreSQL with an empty database, as the user `postgres` where we are root."""

    def __init__(self, port: int) -> None:
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        made = subprocess.check_output([*self._as_user, "mktemp", "-d"], text=True, cwd="/")
        self._folder, self._port = Path(made.strip()), port
        self.uri = f"postgresql://graft:{PASSWORD}@127.0.0.1:{port}/studies"
        data = self._folder / "data"
        secret = self._folder / "secret"
        self._call("sh", "-c", f"umask 077; echo {PASSWORD} > {secret}")
        self._call(POSTGRES / "initdb", "-D", data, "-A", "scram-sha-256", "-U", "graft",
                   "--pwfile", secret)  # fmt: skip
        self.start()
        at = ["-h", "127.0.0.1", "-p", str(port), "-U", "graft"]
        subprocess.run([POSTGRES / "createdb", *at, "studies"], check=True,
                       env={**os.environ, "PGPASSWORD": PASSWORD})  # fmt: skip

    def start(self) -> None:
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._control("-o", options, "-l", self._folder / "log", "start")

    def stop(self) -> None:
        self._control("-m", "immediate", "stop")

    def remove(self) -> None:
        subprocess.run([*self._as_user, "rm", "-r", self._folder], check=True, cwd="/")

    def _control(self, *arguments: Any) -> None:
        self._call(POSTGRES / "pg_ctl", "-D", self._folder / "data", "-w", "-s", *arguments)

    def _call(self, *command: Any) -> None:
        subprocess.run([*self._as_user, *command], check=True, cwd="/", stdout=subprocess.DEVNULL)


@pytest.fixture
def server(free_port: int) -> Iterator[Server]:
    if not POSTGRES.is_dir():
        pytest.skip("needs Debian's postgresql package")
    pytest.importorskip("psycopg2", reason="needs psycopg2-binary")
    one = Server(free_port)
    try:
        yield one
    finally:
        one.stop()
        one.remove()


@pytest.fixture
def proxy(tmp_path: Path, free_port: int) -> Iterator[str]:
    pytest.importorskip("grpc", reason="needs grpcio")
    pytest.importorskip("google.protobuf", reason="needs protobuf")
    address = f"sqlite:///{tmp_path / 'behind.db'}"
    command = [sys.executable, "-c", PROXY, address, str(free_port)]
    process = subprocess.Popen(command)
    try:
        yield f"grpc://127.0.0.1:{free_port}"
    finally:
        process.kill()
        process.wait()


def trials_in(address: str, name: str = "one") -> list[optuna.trial.FrozenTrial]:
    storage = _storage.opened(address)
    try:
        return optuna.load_study(study_name=name, storage=storage).get_trials()
    finally:
        _storage.closed(storage)


def searched(app: Any, address: str, *, given: str | None = None) -> str:
    """A short search with pruning, killed and taken up again; returns all that it printed."""
    overrides = [
        given or f"hydra.sweeper.storage='{address}'", "hydra.sweeper.study_name=one",
        "hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.upper=1.9", "bad=[1,3]",
        "epochs=4", "seconds=0.4",
    ]  # fmt: skip
    first = app.run("hydra.sweeper.n_trials=3", *overrides)
    assert first.code == 0, first.said
    second = app.run("hydra.sweeper.n_trials=5", *overrides)
    assert second.code == 0, second.said
    trials = trials_in(address)
    states = [trial.state for trial in trials]
    assert [n for n, state in enumerate(states) if state == TrialState.PRUNED] == [1, 3]
    assert states.count(TrialState.COMPLETE) == 3
    assert sorted(app.nums("began")) == [0, 1, 2, 3, 4]
    assert all(set(trials[n].intermediate_values) == {1, 2, 3, 4} for n in (0, 2, 4))
    assert [one["state"] for one in app.search()["trials"]].count("pruned") == 2
    return str(first.said + second.said)


def shared(app: Any, until: Any, ended_whole: Any, address: str) -> None:
    """Two drivers at once, of which one is killed: exactly the total, none twice."""
    overrides = [f"hydra.sweeper.storage='{address}'", "hydra.sweeper.study_name=one",
                 "hydra.sweeper.n_trials=12", "seconds=0.2"]  # fmt: skip
    folders = [f"hydra.sweep.dir={app.folder / name}" for name in "ab"]
    drivers = [app.start(folder, *overrides) for folder in folders]
    assert until(lambda: len(app.notes("ended")) >= 3)
    drivers[0].kill()
    drivers[0].wait()
    said, _ = drivers[1].communicate(timeout=120)
    assert drivers[1].returncode == 0, said
    ended_whole(trials_in(address), 12)
    trials = [t for t in trials_in(address) if not {"same_as", "surplus"} & set(t.user_attrs)]
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    began = Counter(app.nums("began"))
    assert set(began) == {t.number for t in trials}
    again = {t.number for t in trials if t.user_attrs.get("deaths")}
    assert {number for number, count in began.items() if count > 1} <= again
    assert max(began.values()) <= 2


def nowhere(word: str, *folders: Path) -> None:
    """That no file has a word in it."""
    for folder in folders:
        for path in folder.rglob("*"):
            assert not path.is_file() or word.encode() not in path.read_bytes(), path


# --- one driver ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_search_in_a_file_of_sqlite(app: Any) -> None:
    searched(app, app.database)


@pytest.mark.slow
def test_a_search_in_a_journal(app: Any) -> None:
    searched(app, f"journal:///{app.folder / 'shared' / 'study.log'}")


@pytest.mark.slow
def test_a_search_in_a_file_named_from_where_the_command_is_given(app: Any) -> None:
    ended = app.run("hydra.sweeper.storage=sqlite:///here.db", "hydra.sweeper.n_trials=2",
                    "hydra/sweeper/pruner=median")  # fmt: skip
    assert ended.code == 0, ended.said
    assert "cannot be reached" not in ended.said
    assert (app.folder / "here.db").exists()
    assert all(len(t.intermediate_values) == 2 for t in
               trials_in(f"sqlite:///{app.folder / 'here.db'}", "app/out"))  # fmt: skip


@pytest.mark.slow
def test_a_search_in_a_storage_that_is_given_as_an_object(app: Any) -> None:
    path = app.folder / "object.log"
    given = (
        "hydra.sweeper.storage={_target_: optuna.storages.JournalStorage, log_storage: "
        "{_target_: optuna.storages.journal.JournalFileBackend, file_path: " + str(path) + "}}"
    )
    searched(app, f"journal:///{path}", given=given)


@pytest.mark.slow
def test_an_object_that_cannot_be_made_is_refused(app: Any) -> None:
    ended = app.run("hydra.sweeper.storage={_target_: optuna.storages.Nothing}")
    assert ended.code == 1 and "hydra.sweeper.storage" in ended.said, ended.said
    assert "Nothing" in ended.said and "Traceback" not in ended.said, ended.said
    assert app.notes() == []


@pytest.mark.slow
def test_a_search_over_the_proxy(app: Any, proxy: str) -> None:
    searched(app, proxy)


@pytest.mark.slow
def test_a_proxy_that_is_not_there_is_refused(app: Any, free_port: int) -> None:
    ended = app.run(f"hydra.sweeper.storage=grpc://127.0.0.1:{free_port}")
    assert ended.code == 1 and "cannot be used" in ended.said, ended.said
    assert "Traceback" not in ended.said and app.notes() == []
    if find_spec("grpc") is None:
        assert "grpcio" in ended.said, ended.said


@pytest.mark.slow
@pytest.mark.postgres
def test_a_search_in_postgresql_tells_its_password_nowhere(app: Any, server: Server) -> None:
    os.environ["STUDY_PASSWORD"] = PASSWORD
    try:
        address = server.uri.replace(PASSWORD, "${oc.env:STUDY_PASSWORD}")
        said = searched(app, server.uri, given=f"hydra.sweeper.storage='{address}'")
    finally:
        del os.environ["STUDY_PASSWORD"]
    assert PASSWORD not in said
    assert "graft:***@127.0.0.1" in app.search()["storage"]
    nowhere(PASSWORD, app.out)


@pytest.mark.slow
@pytest.mark.postgres
def test_errors_of_postgresql_are_said_without_the_password(app: Any, server: Server) -> None:
    wrong = app.run(f"hydra.sweeper.storage='{server.uri.replace(PASSWORD, 'n%40nter3')}'")
    bare = app.run(f"hydra.sweeper.storage='{server.uri.replace(PASSWORD, 'n@nter3')}'")
    missing = app.run(f"hydra.sweeper.storage='{server.uri}2'")
    unknown = app.run(f"hydra.sweeper.storage='{server.uri.replace('postgresql', 'nosql')}'")
    away = app.run(f"hydra.sweeper.storage='postgresql://graft:{PASSWORD}@127.0.0.1:1/studies'")
    odd = app.run(f"hydra.sweeper.storage='postgresql://graft:{PASSWORD}@127.0.0.1:port/studies'")
    for ended in (wrong, bare, missing, unknown, away, odd):
        assert ended.code == 1 and "hydra.sweeper.storage" in ended.said, ended.said
        assert PASSWORD not in ended.said and "nter3" not in ended.said, ended.said
        assert "Traceback" not in ended.said, ended.said
        assert ended.seconds < 60
    assert "password authentication failed" in wrong.said
    assert "written %40" in bare.said
    assert "does not exist" in missing.said
    assert "Connection refused" in away.said
    assert app.notes() == []


# --- two drivers -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.postgres
def test_two_drivers_share_a_study_in_postgresql(
    app: Any, until: Any, ended_whole: Any, server: Server
) -> None:
    shared(app, until, ended_whole, server.uri)


@pytest.mark.slow  # one that is killed may leave the journal locked, for half a minute
def test_two_drivers_share_a_study_in_a_journal(app: Any, until: Any, ended_whole: Any) -> None:
    shared(app, until, ended_whole, f"journal:///{app.folder / 'study.log'}")


@pytest.mark.slow
def test_two_drivers_share_a_study_over_the_proxy(
    app: Any, until: Any, ended_whole: Any, proxy: str
) -> None:
    shared(app, until, ended_whole, proxy)


@pytest.mark.slow
@pytest.mark.postgres
def test_two_drivers_make_the_tables_of_an_empty_server_together(
    app: Any, ended_whole: Any, server: Server
) -> None:
    for repeat in range(5):
        overrides = [f"hydra.sweeper.storage='{server.uri}'", f"hydra.sweeper.study_name={repeat}",
                     "hydra.sweeper.n_trials=6", "seconds=0.05"]  # fmt: skip
        here = app.folder / str(repeat)
        drivers = [app.start(f"hydra.sweep.dir={here / name}", *overrides) for name in "ab"]
        for driver in drivers:
            said, _ = driver.communicate(timeout=120)
            assert driver.returncode == 0, said
        ended_whole(trials_in(server.uri, str(repeat)), 6)
        drop_tables(server.uri)


def drop_tables(uri: str) -> None:
    import psycopg2

    connection = psycopg2.connect(uri)
    with connection, connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    connection.close()


# --- a server that goes away -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.postgres
def test_a_server_that_starts_anew_meanwhile_costs_no_trial(
    app: Any, until: Any, ended_whole: Any, server: Server
) -> None:
    driver = app.start(f"hydra.sweeper.storage='{server.uri}'", "hydra.sweeper.study_name=one",
                       "hydra.sweeper.n_trials=8", "seconds=1")  # fmt: skip
    assert until(lambda: len(app.notes("ended")) >= 2)
    server.stop()
    time.sleep(2)
    server.start()
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, said
    ended_whole(trials_in(server.uri), 8)
    assert {t.state for t in trials_in(server.uri)} == {TrialState.COMPLETE}


@pytest.mark.slow  # as long as it is waited for
@pytest.mark.postgres
def test_a_server_that_stays_away_ends_the_search_in_words(
    app: Any, until: Callable[..., bool], ended_whole: Any, server: Server
) -> None:
    overrides = [f"hydra.sweeper.storage='{server.uri}'", "hydra.sweeper.study_name=one",
                 "hydra.sweeper.n_trials=8", "seconds=0.5"]  # fmt: skip
    driver = app.start(*overrides)
    assert until(lambda: len(app.notes("ended")) >= 2)
    server.stop()
    said, _ = driver.communicate(timeout=150)
    server.start()
    assert driver.returncode == 1 and "Connection refused" in said, said
    assert "Traceback" not in said and PASSWORD not in said, said
    assert app.is_quiet()
    again = app.run(*overrides)
    assert again.code == 0, again.said
    ended_whole(trials_in(server.uri), 8)
    assert {t.state for t in trials_in(server.uri)} == {TrialState.COMPLETE}
