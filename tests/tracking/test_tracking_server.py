"""A server that is away, goes away, hangs, or says no; PostgreSQL."""

import http.server
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graft.tracking import places, sync

POSTGRES = Path("/usr/lib/postgresql/15/bin")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.monotonic()
    return call(), time.monotonic() - start


@pytest.fixture
def closed(free_port: int) -> str:
    return f"http://127.0.0.1:{free_port}"


@pytest.fixture
def silent() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def answering() -> Iterator[Callable[[int, str], tuple[str, list[str]]]]:
    """A server that answers every call with one status and text; and what it was asked."""
    servers = []

    def start(status: int, text: str) -> tuple[str, list[str]]:
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.send_header("Retry-After", "3600")
                self.end_headers()
                self.wfile.write(text.encode())

            do_POST = do_GET

            def log_message(self, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_without_a_server_training_starts_at_once_and_later_all_is_sent(
    lab_at: Any, closed: str, warnings_of: Any, tmp_path: Path, tables: Path
) -> None:
    lab = lab_at(closed)
    sweep, open_s = timed(lab.open)
    records, train_s = timed(lambda: [lab.train(sweep, number) for number in range(4)])
    before_ms = time.time() * 1000
    assert sweep.finish(records, None, None) is None
    assert open_s < 5 and train_s < 5
    (warning,) = warnings_of()
    assert "Connection refused" in warning and "graft-sweep sync" in warning
    assert "send it later" in sweep.ui_lines()[0]

    shutil.copy(tables, tmp_path / "mlflow.db")
    lab.uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert sync(lab.folder, lab.uri) is not None
    runs = lab.seen().runs()
    assert tuple(runs) == lab.titles
    assert all(len(lab.seen().curve(run, "val/loss")) == 3 for run in runs.values())
    assert all(p[3] < before_ms for run in runs.values() for p in lab.seen().points(run))


def test_a_server_that_never_answers_holds_nobody_up(
    lab_at: Any, silent: str, warnings_of: Any
) -> None:
    lab = lab_at(silent)
    sweep, open_s = timed(lab.open)
    run, epochs_s = timed(lambda: lab.begin(sweep, 0))
    _, finish_s = timed(lambda: run.finish(None, "completed", None, {}))
    sweep.wait(120)
    assert max(open_s, epochs_s, finish_s) < 2  # as long as one call waits for an answer
    assert ["no answer within 2 s" in warning for warning in warnings_of()] == [True]


@pytest.mark.parametrize(("status", "num_asked"), [(403, 2), (401, 2)])
def test_a_refusal_is_said_once_and_not_asked_for_again(
    lab_at: Any, answering: Any, warnings_of: Any, status: int, num_asked: int
) -> None:
    uri, asked = answering(status, '{"error_code": "PERMISSION_DENIED", "message": "not you"}')
    lab = lab_at(uri)
    assert lab.train_all() is None
    assert len(asked) == num_asked  # is it there, and the first call
    (warning,) = warnings_of()
    assert "refuses us" in warning


@pytest.mark.parametrize(
    ("status", "text"),
    [(500, "oops"), (429, "slowly"), (200, "<html>no JSON</html>"), (404, "not here")],
)
def test_nonsense_from_a_server_costs_a_warning(
    lab_at: Any, answering: Any, warnings_of: Any, status: int, text: str
) -> None:
    uri, _ = answering(status, text)
    lab = lab_at(uri)
    sweep = lab.open()
    run = lab.begin(sweep, 0)
    _, finish_s = timed(lambda: run.finish(None, "completed", None, {}))
    assert finish_s < 2
    sweep.wait(60)
    assert len(warnings_of()) == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")
def test_a_server_whose_certificate_python_does_not_know_is_there(tmp_path: Path) -> None:
    """MLflow may: from REQUESTS_CA_BUNDLE, or from settings of its own."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    places.check_reachable(f"https://127.0.0.1:{server.server_address[1]}")
    server.shutdown()
    server.server_close()
    with pytest.raises(places.Away, match="refused"):
        places.check_reachable(f"https://127.0.0.1:{server.server_address[1]}")


def test_a_password_is_in_no_log_and_no_file(lab_at: Any, closed: str, warnings_of: Any) -> None:
    lab = lab_at(closed.replace("http://", "http://me:hunter2@"))
    lab.train_all()
    assert "hunter2" not in "".join(warnings_of())
    assert "me:***@" in (lab.folder / "tracking.json").read_text()
    written = [path.read_bytes() for path in lab.folder.rglob("*") if path.is_file()]
    assert not any(b"hunter2" in content for content in written)


def test_a_password_is_asked_for_when_it_is_needed_again(
    lab_at: Any, closed: str, warnings_of: Any, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, tables: Path,
) -> None:  # fmt: skip
    lab = lab_at(closed.replace("http://", "http://me:hunter2@"))
    lab.train_all()
    assert sync(lab.folder) is None
    assert "give --uri" in warnings_of()[-1]
    shutil.copy(tables, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert sync(lab.folder) is not None


@pytest.mark.slow
def test_a_server_that_dies_and_returns_misses_nothing_and_nobody_waits(
    lab_at: Any, server: Any, warnings_of: Any
) -> None:
    server.start()
    lab = lab_at(server.uri)
    sweep = lab.open()
    run = lab.begin(sweep, 0, num_epochs=1)
    first = points_when(lab, lambda points: len(points) == 5)
    server.kill()
    waits = [timed(lambda row=row: run.epochs([row]))[1] for row in lab.rows(0)[1:]]
    time.sleep(0.5)
    back_ms = time.time() * 1000
    server.start()
    run.finish(lab.record(0), "completed", None, lab.scores(0))
    assert sweep.finish([lab.record(0)], None, None) is not None

    assert max(waits) < 2
    assert len(warnings_of()) == 1
    (found,) = lab.seen().runs().values()
    points = lab.seen().points(found)
    assert set(first) <= set(points)
    assert lab.seen().curve(found, "val/loss") == [(r["epoch"], r["val_loss"]) for r in lab.rows(0)]
    assert all(ms < back_ms for key, step, _, ms in points if step > 0)
    assert found.info.status == "FINISHED"
    assert "model.safetensors" in lab.seen().files(found)


@pytest.mark.slow
def test_a_server_that_stays_away_gets_all_by_a_later_sync(lab_at: Any, server: Any) -> None:
    server.start()
    lab = lab_at(server.uri)
    sweep = lab.open()
    records = [lab.train(sweep, 0)]
    server.kill()
    records += [lab.train(sweep, number) for number in (1, 2, 3)]
    assert sweep.finish(records, None, None) is None
    server.start()
    assert sync(lab.folder) is not None
    before = {name: lab.seen().points(run) for name, run in lab.seen().runs().items()}
    assert sync(lab.folder) is not None
    assert {name: lab.seen().points(run) for name, run in lab.seen().runs().items()} == before
    assert tuple(before) == lab.titles
    assert {run.info.status for run in lab.seen().runs().values()} == {"FINISHED"}


@pytest.mark.slow
def test_a_server_that_freezes_holds_no_epoch_up(lab_at: Any, server: Any) -> None:
    import signal

    server.start()
    lab = lab_at(server.uri)
    sweep = lab.open()
    run = lab.begin(sweep, 0, num_epochs=1)
    points_when(lab, lambda points: len(points) == 5)
    server.signal(signal.SIGSTOP)
    waits = [timed(lambda row=row: run.epochs([row]))[1] for row in lab.rows(0)[1:]]
    _, finish_s = timed(lambda: run.finish(lab.record(0), "completed", None, {}))
    server.signal(signal.SIGCONT)
    assert max(waits) < 2 and finish_s < 25
    assert sync(lab.folder) is not None
    (found,) = lab.seen().runs().values()
    assert [step for step, _ in lab.seen().curve(found, "val/loss")] == [1, 2, 3]


@pytest.fixture
def postgres(free_port: int) -> Iterator[str]:
    """A database of its own; as the user `postgres` where we are root, which it refuses to be."""
    if not POSTGRES.is_dir():
        pytest.skip("needs Debian's postgresql package")
    pytest.importorskip("psycopg2", reason="needs psycopg2-binary")
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(subprocess.check_output([*as_user, "mktemp", "-d"], text=True, cwd="/").strip())
    control = [*as_user, POSTGRES / "pg_ctl", "-D", folder / "data", "-w", "-s"]
    options = f"-p {free_port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"

    def call(*command: Any) -> None:
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)

    call(*as_user, POSTGRES / "initdb", "-D", folder / "data", "-A", "trust", "-U", "graft")
    call(*control, "-o", options, "-l", folder / "log", "start")
    try:
        at = ["-h", "127.0.0.1", "-p", str(free_port), "-U", "graft"]
        call(*as_user, POSTGRES / "createdb", *at, "mlflow")
        yield f"postgresql://graft:hunter2@127.0.0.1:{free_port}/mlflow"
    finally:
        call(*control, "-m", "immediate", "stop")
        call(*as_user, "rm", "-r", folder)


@pytest.mark.slow
@pytest.mark.postgres
def test_a_sweep_on_postgresql(lab_at: Any, postgres: str) -> None:
    lab = lab_at(postgres)
    lab.config["tracking"] = {"uri": postgres}  # a configuration may hold the password
    assert lab.train_all() is not None
    lab.uri = places.resolve_uri(postgres, lab.output)
    runs = lab.seen().runs()
    assert tuple(runs) == lab.titles
    assert all(len(lab.seen().curve(run, "val/loss")) == 3 for run in runs.values())
    sent = lab.seen().client.download_artifacts(runs[lab.titles[0]].info.run_id, "config.yaml")
    assert "graft:***@" in Path(sent).read_text() and "hunter2" not in Path(sent).read_text()


def points_when(lab: Any, is_enough: Callable[[list[Any]], bool]) -> list[Any]:
    """The first run's values, once the background has sent enough of them."""
    for _ in range(100):
        found = list(lab.seen().runs().values())
        points = lab.seen().points(found[0]) if found else []
        if is_enough(points):
            return list(points)
        time.sleep(0.1)
    raise AssertionError("The epochs were not sent while the run was going on.")
