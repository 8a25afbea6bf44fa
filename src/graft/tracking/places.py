"""Where MLflow is: tracking URIs, whether something answers there, locks between processes.

No MLflow is imported here: a server that is away is found out in less time than that takes.
"""

import importlib.util
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from graft.lock import Lock, Locked

PROBE_S = 2.0
_LOCK_S = 60.0
_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


class Away(Exception):
    """The store does not answer now; it may later."""


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


def is_masked(uri: str) -> bool:
    return ":***@" in uri


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
        # A certificate that Python does not know: MLflow has settings of its own for those.
        if not isinstance(error.reason, ssl.SSLCertVerificationError):
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
    lock = Lock(path)
    try:
        lock.acquire(_LOCK_S)
    except Locked as holder:
        raise Away(f"{path} is locked by {holder}") from None
    with lock:
        yield


def without_secret(text: str, uri: str) -> str:
    """`text` with the password of `uri` replaced by ***."""
    if hidden := secret(uri):
        text = text.replace(hidden, "***").replace(unquote(hidden), "***")
    return text


def describe(error: BaseException, uri: str) -> str:
    """One line for a warning, without the password of `uri`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else repr(error)
    text = without_secret(text, uri)
    return text if len(text) <= 300 else f"{text[:300]}..."
