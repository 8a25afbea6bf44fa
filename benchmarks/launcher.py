"""What the launcher costs: the table "The launcher" of docs/performance.md.

    python benchmarks/launcher.py [--repeats 3] [--jobs 64]

For an application whose jobs do nothing but write down when they began and ended:

    ms a run        from the first job's beginning to the last one's end, divided by their number
    first job       from the process's start until the first job begins
    import torch    of a process that does nothing else, for comparison
    whole           from the process's start to its end

Launchers take turns, in another order each round. `basic` is Hydra's own: in one process, one job
after the other. At the end, 1,000 runs of graft's are planned (`sweep.dry_run=true`).
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

APP = """
import time
import hydra


@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    began = time.time()
    with open(f"{cfg.times}/{cfg.x}", "w") as stream:
        print(began, time.time(), file=stream)


if __name__ == "__main__":
    main()
"""
LAUNCHERS: Mapping[str, Sequence[str]] = {
    "basic": ["hydra/launcher=basic"],
    "slots_inline": ["hydra/launcher=slots_inline"],
    "slots, 2": ["hydra/launcher=slots", "hydra.launcher.cpu_slots=2"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=64)
    asked = parser.parse_args()
    names = list(LAUNCHERS)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for number in range(asked.repeats):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(_measured(LAUNCHERS[name], asked.jobs))
    print(f"| {asked.jobs} runs that do nothing | ms a run | first job, s | whole, s |")
    print("|---|---|---|---|")
    for name, rows in found.items():
        cells = [_spread(column) for column in zip(*rows, strict=True)]
        print(f"| `{name}` | {' | '.join(cells)} |")
    torch = [_timed([sys.executable, "-c", "import torch"]) for _ in range(asked.repeats)]
    print(f"\nimport torch: {_spread(torch)} s")
    print(f"1,000 runs of graft's planned: {_planned():.1f} s as a whole process")


def _measured(options: Sequence[str], jobs: int) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "app.py").write_text(APP)
        (home / "times").mkdir()
        values = ",".join(map(str, range(jobs)))
        command = [sys.executable, "app.py", "-m", *options, f"+x={values}", "+times=times"]
        started = time.time()
        _run(command, home)
        whole = time.time() - started
        times = [tuple(map(float, p.read_text().split())) for p in (home / "times").iterdir()]
    first, last = min(t[0] for t in times), max(t[1] for t in times)
    return 1000 * (last - first) / jobs, first - started, whole


def _planned() -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "graft", "-m", "optimizer.lr=range(0.001,1.0005,0.001)",
            "epochs=1", "tracking=off", "sweep.dry_run=true",
        ]  # fmt: skip
        return _timed(command, Path(folder))


def _timed(command: Sequence[str], home: Path | None = None) -> float:
    started = time.time()
    _run(command, home)
    return time.time() - started


def _run(command: Sequence[str], home: Path | None) -> None:
    done = subprocess.run(command, cwd=home, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... failed:\n{done.stderr[-2000:]}")


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
