"""Whole processes, timed from outside, and plain tables of what they took."""

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
Run = Mapping[str, Any]


# --- processes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """A process that ended well.

    Attributes:
        started: when, in seconds since 1970.
        seconds: from its start to its end.
        peak_mb: the largest memory of it, or of any one process that it started and waited for.
        lines: what it wrote, each with when, in seconds since 1970.
    """

    started: float
    seconds: float
    peak_mb: float
    lines: Sequence[tuple[float, str]]

    def said(self, pattern: str) -> float:
        """When it first wrote a line in which `pattern` is found.

        Raises:
            ValueError: it never did.
        """
        for at, line in self.lines:
            if re.search(pattern, line):
                return at
        raise ValueError(f"No line has {pattern!r}:\n" + "\n".join(line for _, line in self.lines))

    @property
    def results(self) -> list[dict[str, Any]]:
        """The lines that are JSON."""
        return [json.loads(line) for _, line in self.lines if line.startswith("{")]


def process(command: Sequence[str], environment: Mapping[str, str]) -> Ended:
    """Run a command to its end.

    Raises:
        SystemExit: it failed; what it wrote is shown.
    """
    started, clock = time.time(), time.perf_counter()
    child = subprocess.Popen(
        command, cwd=ROOT, env=dict(environment), text=True, encoding="utf-8",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert child.stdout is not None
    lines: list[tuple[float, str]] = []
    reader = threading.Thread(target=_read, args=(child.stdout, lines), daemon=True)
    reader.start()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - clock
    child.returncode = os.waitstatus_to_exitcode(status)
    reader.join(timeout=5)
    if child.returncode:
        said = "\n".join(line for _, line in lines)
        raise SystemExit(f"{' '.join(command)}\nfailed ({child.returncode}):\n{said}")
    return Ended(started, seconds, usage.ru_maxrss / 1e3, lines)


def _read(stream: IO[str], lines: list[tuple[float, str]]) -> None:
    for line in stream:
        lines.append((time.time(), line.rstrip("\n")))


def note(text: str) -> None:
    """What is being measured, on the terminal, beside the tables."""
    print(f"{datetime.now():%H:%M:%S}  {text}", file=sys.stderr, flush=True)


def script(name: str, *arguments: str) -> list[str]:
    """The command of a script beside this one."""
    return [sys.executable, str(HERE / name), *arguments]


def environment(*, sleeps: bool, **more: str) -> dict[str, str]:
    """This process's environment for another one.

    Args:
        sleeps: whether PyTorch's waiting threads sleep: as graft sets it, or as PyTorch does.
    """
    # Compiled modules are kept, as they are where nobody has forbidden it.
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "PYTHONDONTWRITEBYTECODE")
    values = {key: value for key, value in os.environ.items() if key not in ours}
    wait = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"} if sleeps else {}
    return values | wait | more


# --- a sweep of graft's ---------------------------------------------------------------------


@dataclass(frozen=True)
class GraftSweep:
    """A sweep that `graft -m` ran, and the records that it left in `folder`."""

    process: Ended
    folder: Path

    @cached_property
    def runs(self) -> list[Run]:
        """Every run.json, in the order in which the runs were asked for."""
        asked = json.loads((self.folder / "sweep.json").read_text(encoding="utf-8"))["runs"]
        return [self.run(one["run"]) for one in asked]

    def run(self, name: str) -> Run:
        run: Run = json.loads((self.folder / name / "run.json").read_text(encoding="utf-8"))
        if run["status"] != "completed":
            raise SystemExit(f"{self.folder / name}: {run['status']}: {run['reason']}")
        return run

    def spent(self, *parts: str) -> float:
        """Seconds of the parts of all runs. What runs do together is shared out evenly among them
        in their records, so the sum is the time by the clock."""
        return sum(run["timings_s"].get(part, 0.0) for run in self.runs for part in parts)

    @property
    def first_to_last_s(self) -> float:
        """From the first picture to the last epoch: networks built and cut, pictures decoded,
        trunk computed and stored, epochs with their validation.

        Not the imports, the check of table and pictures, the test at each run's best epoch, the
        figures, the report and MLflow."""
        return self.spent("prepare", "trunk", "fit")

    @property
    def before_s(self) -> float:
        """From the process's start to the first run: imports, composing, every picture checked."""
        return self.process.said(r"^runs? \d+.* of \d+") - self.process.started

    @property
    def stored_mb(self) -> float:
        """Of activations: once for every place at which they were stored."""
        places = {run["trunk"]["at"]: run["trunk"]["gigabytes"] for run in self.runs}
        return 1e3 * sum(places.values())

    def first_epoch(self, name: str) -> float:
        """When a run's first epoch began, in seconds since 1970, to a hundredth or so.

        The time of the log's line at its end, less what the epoch took."""
        text = (self.folder / name / "train.log").read_text(encoding="utf-8")
        found = re.search(r"^\[([^]]+)\].*  epoch 1/", text, flags=re.MULTILINE)
        assert found is not None
        ended = datetime.strptime(found.group(1), "%Y-%m-%d %H:%M:%S,%f").timestamp()
        return ended - self.epochs(name)[0]

    def epochs(self, name: str) -> list[float]:
        """Seconds of each epoch of a run."""
        text = (self.folder / name / "metrics.csv").read_text(encoding="utf-8")
        header, *rows = (line.split(",") for line in text.splitlines())
        return [float(row[header.index("seconds")]) for row in rows]


def graft(*overrides: str, output: Path, cache: Path, name: str = "sweep") -> GraftSweep:
    """`graft -m` with these overrides, as one process; results and cache where it is told."""
    command = [sys.executable, "-m", "graft", "-m", *overrides,
               f"output_dir={output}", f"sweep.name={name}"]  # fmt: skip
    ended = process(command, environment(sleeps=True, GRAFT_CACHE=str(cache)))
    sweep = GraftSweep(ended, output / name)
    assert sweep.runs  # read now: the folder may be gone later
    return sweep


class Places:
    """Fresh folders for every sweep below one temporary one.

    Args:
        pictures: a cache folder with nothing but the built-in pictures, which every fresh cache
            begins with: they are there for the baselines, too.
    """

    def __init__(self, folder: Path, pictures: Path | None = None) -> None:
        self._folder, self._pictures, self._count = folder, pictures, 0

    def fresh(self) -> dict[str, Path]:
        """An empty output folder and a cache without activations or checks: for `graft`."""
        self._count += 1
        folder = self._folder / str(self._count)
        cache = folder / "cache"
        if self._pictures is not None:
            shutil.copytree(self._pictures, cache)
        cache.mkdir(parents=True, exist_ok=True)
        return {"output": folder / "outputs", "cache": cache}

    @staticmethod
    def forget(places: Mapping[str, Path]) -> None:
        """Give the disk back."""
        shutil.rmtree(places["cache"].parent, ignore_errors=True)


# --- tables ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        """Median, and the least and the largest where there are several."""
        low, high = min(self.values), max(self.values)
        spread = f" ({_short(low)} to {_short(high)})" if len(self.values) > 1 else ""
        return _short(self.median) + spread

    def paired(self, other: "Sample", combine: Callable[[float, float], float]) -> "Sample":
        """Of measurements made in the same round."""
        return Sample(tuple(map(combine, self.values, other.values)))

    def over(self, other: "Sample") -> "Sample":
        return self.paired(other, lambda a, b: a / b)

    def less(self, other: "Sample") -> "Sample":
        return self.paired(other, lambda a, b: a - b)


def sample(values: Iterator[float] | Sequence[float]) -> Sample:
    return Sample(tuple(values))


def _short(value: float) -> str:
    """Three digits or so."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


@dataclass(frozen=True)
class Table:
    """A title, a head, rows of cells, and sentences that say what was counted."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        cells = [[str(cell) for cell in row] for row in (self.head, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(_aligned(row, widths)).rstrip() for row in cells]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([self.title, "", lines[0], rule, *lines[1:], *self.notes, ""])

    def plain(self) -> dict[str, Any]:
        """For JSON: samples keep every value."""
        rows = [
            [list(cell.values) if isinstance(cell, Sample) else str(cell) for cell in row]
            for row in self.rows
        ]
        return {"title": self.title, "head": list(self.head), "rows": rows, "notes": [*self.notes]}


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """The first cell to the left, the others to the right."""
    yield row[0].ljust(widths[0])
    for cell, width in zip(row[1:], widths[1:], strict=True):
        yield cell.rjust(width)


def conditions() -> str:
    """What the numbers depend on, in one line."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{datetime.now():%Y-%m-%d %H:%M}, {_processor()}, {os.cpu_count()} cores, "
        f"torch {version('torch')}, Python {platform.python_version()}, load {load}"
    )


def _processor() -> str:
    found = None
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        found = re.search(r"^model name\s*: (.*)$", text, flags=re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()
