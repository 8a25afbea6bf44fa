"""Who may import whom, and what starting costs."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _best_seconds(*command: str, tries: int = 5) -> float:
    """The fastest of a few starts: what it costs, not what else the machine does."""
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        done = _run(*command)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    return min(seconds)


def test_the_import_arrows_hold() -> None:
    done = _run(str(BIN / "lint-imports"), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_graft_takes_less_than_0_3_seconds() -> None:
    empty = _best_seconds(sys.executable, "-c", "pass")
    assert _best_seconds(sys.executable, "-c", "import graft") - empty < 0.3


def test_help_takes_less_than_2_seconds() -> None:
    # Twice as long where the machine is busy, as with other tests: importing Hydra takes 0.2
    # seconds on a quiet one.
    hydra = _best_seconds(sys.executable, "-c", "import hydra.main, hydra._internal.hydra")
    assert _best_seconds(str(BIN / "graft"), "--help", tries=3) < max(2.0, min(4.0, 14 * hydra))


@pytest.mark.parametrize("module", ["graft", "graft.app", "graft.config", "graft.record"])
def test_heavy_libraries_are_imported_only_where_they_are_used(module: str) -> None:
    heavy = {"torch", "torchvision", "pandas", "sklearn", "mlflow", "matplotlib", "PIL"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    assert _run(sys.executable, "-c", code).stdout.split() == []


def test_a_sweep_is_checked_without_what_only_its_workers_and_its_end_need() -> None:
    heavy = {"torch", "torchvision", "pandas", "sklearn", "mlflow", "matplotlib"}
    code = f"import sys, graft.sweep; print(*sorted({heavy!r} & set(sys.modules)))"
    assert _run(sys.executable, "-c", code).stdout.split() == []
