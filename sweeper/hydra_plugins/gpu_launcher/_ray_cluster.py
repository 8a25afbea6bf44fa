"""A Ray cluster: one of our own for the length of a launch, or somebody's."""

import importlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hydra.errors import HydraException

log = logging.getLogger(__name__)

# How long a cluster may take to answer.
ANSWER_S = 20.0
# Ray itself waits for minutes where nobody answers, and cannot be interrupted.
_PROBE = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
"""
# A cluster of ours lets nobody else in. Left to itself, Ray would keep a token in the user's home.
_TOKEN = secrets.token_hex(32)
_QUIET = {"log_to_driver": False, "logging_level": "ERROR"}
_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

Close = Callable[[], None]


@dataclass(frozen=True)
class Demand:
    """What is asked of a cluster: see `SlotsRayConf`."""

    address: str | None = None
    num_gpus: float | None = None
    num_cpus: float = 1.0
    slots: int | None = None
    runtime_env: Mapping[str, Any] | None = None
    init: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The options that decide how it is connected to, as they are typed."""
        keys = ("address", "init", "runtime_env")
        return " ".join(f"hydra.launcher.{k}={v}" for k in keys if (v := getattr(self, k)))

    def __post_init__(self) -> None:
        """Refuse what no cluster can give."""
        if self.slots is not None and self.slots < 1:
            raise HydraException(f"hydra.launcher.slots={self.slots}: at least one is needed.")
        for key, value in {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus}.items():
            if value is not None and (value < 0 or (value > 1 and value != int(value))):
                raise HydraException(
                    f"hydra.launcher.{key}={value:g}: 0 to 1, or a whole number above."
                )
        if self.address is not None and self.init:
            raise HydraException(
                "hydra.launcher.init is for a cluster of the launcher's own, "
                f"and hydra.launcher.address={self.address} is another."
            )


def the_ray() -> Any:
    """The module.

    Raises:
        HydraException: it is not installed.
    """
    # Ray asks for leave to report on its use, and says aloud how it hides GPUs.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise HydraException(
            "hydra/launcher=slots_ray needs Ray: pip install graft-sweeps[ray]"
        ) from error


def connect(demand: Demand) -> Close:
    """Connect this process to the cluster; what is returned ends that.

    A connection that the application has made itself is used, and left.

    Raises:
        HydraException: there is no such cluster, or none can be started.
    """
    ray = the_ray()
    if ray.is_initialized():
        if demand.address is not None or demand.init:
            raise HydraException(
                "This process is connected to a Ray cluster already: leave "
                "hydra.launcher.address and hydra.launcher.init out."
            )
        return lambda: None
    _hush()
    if demand.address is None:
        return _own(ray, demand)
    _probe(demand.address)
    try:
        with _same_signals():
            ray.init(demand.address, **_QUIET, runtime_env=demand.runtime_env)
    except Exception as error:
        raise HydraException(f"{demand} cannot be used: {error}") from error
    close: Close = ray.shutdown
    return close


def _own(ray: Any, demand: Demand) -> Close:
    settings = {"include_dashboard": False, **_QUIET, **demand.init}
    # Its logs go with it, unless they are wanted.
    folder = None if "_temp_dir" in settings else tempfile.mkdtemp(prefix="ray-")

    def close() -> None:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    settings.setdefault("_temp_dir", folder)
    try:
        with _same_signals(), _with_token():
            ray.init("local", **settings, runtime_env=demand.runtime_env)
    except BaseException as error:
        close()
        if isinstance(error, Exception):
            raise HydraException(f"No Ray cluster can be started. {demand}: {error}") from error
        raise
    return close


def _probe(address: str) -> None:
    command = [sys.executable, "-c", _PROBE, address]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        why = f"nobody answered in {ANSWER_S:g} s"
    else:
        if tried.returncode == 0:
            return
        lines = tried.stderr.strip().splitlines()
        why = lines[-1] if lines else f"exit code {tried.returncode}"
    raise HydraException(
        f"hydra.launcher.address={address} cannot be used: {why}\n"
        "Give host:port of a cluster to whose nodes this machine belongs, ray://host:port of any "
        "other, auto for the one that runs here, or null for one of the launcher's own."
    )


@contextmanager
def _with_token() -> Iterator[None]:
    """A token for a cluster that is started; what the user has chosen stays.

    Where nothing is chosen, Ray turns the use of tokens on, which is meant for that cluster alone.
    """
    is_chosen = any(os.environ.get(key) for key in _AUTHENTICATION)
    if not is_chosen:
        os.environ["RAY_AUTH_TOKEN"] = _TOKEN
    try:
        yield
    finally:
        if not is_chosen:
            for key in _AUTHENTICATION:
                os.environ.pop(key, None)


@contextmanager
def _same_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself; the application may have a use for it."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _hush() -> None:
    """Keep what Ray says of dead workers and nodes off the terminal: we say it in our words."""
    worker: Any = importlib.import_module("ray._private.worker")
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, *_, **__: log.debug("Ray: %s", data.get("lines"))
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
