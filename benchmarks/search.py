"""What the search saves: the tables of docs/performance.md, "The search".

    python benchmarks/search.py busy [--official FOLDER] [--repeats 3]
    python benchmarks/search.py pruning [--seeds 5] [--trials 40]
    python benchmarks/search.py rates [--repeats 3]

    busy      4 slots, 40 trials of uneven length (0.3 to 3 s of sleep): the share of the slots'
              time, from the first job's beginning to the last one's end, in which a job runs.
              --official: a folder with the official sweeper, beside it:
                  pip install --target FOLDER --no-deps hydra-core==1.4.0rc3 omegaconf==2.4.1rc1 \
                      hydra-optuna-sweeper==1.4.0rc3 hydra-joblib-launcher==1.4.0rc3 joblib
    pruning   the demo's pictures, head only, random learning rates: the same trials without a
              pruner and with the median pruner; epochs run, and whether the same trial wins. By
              the validation loss: of 98 pictures, the accuracy has many ties
    rates     40 learning rates of the demo's head by TPE, as a whole process, once the trunk is
              there
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SLOTS, TRIALS = 4, 40

APP = """
import random, time
import hydra
from omegaconf import OmegaConf


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    began = time.time()
    # By the trial's number, so that every sweeper has jobs of the same lengths.
    number = int(hydra.core.hydra_config.HydraConfig.get().job.num)
    time.sleep(random.Random(number).choice([0.3, 0.5, 0.7, 1.0, 3.0]))
    with open(f"{cfg.times}/{number}", "w") as stream:
        print(began, time.time(), file=stream)
    return (cfg.x - 1) ** 2


if __name__ == "__main__":
    main()
"""
CONFIG = "x: 0.0\ntimes: times\nhydra: {sweep: {dir: out}, job: {chdir: false}}\n"

# The demo's, and its head alone.
STRATEGIES = ("head_only", "head_only,fine_tune")
OURS = [
    "hydra/sweeper=search", "hydra/launcher=slots", f"hydra.launcher.cpu_slots={SLOTS}",
    "hydra/sweeper/pruner=none",
]  # fmt: skip
OFFICIAL = [
    "hydra/sweeper=optuna", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={SLOTS}",
    f"hydra.sweeper.n_jobs={SLOTS}",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=["busy", "pruning", "rates"])
    parser.add_argument("--official", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=40)
    asked = parser.parse_args()
    if "busy" in asked.what:
        busy(asked.official, asked.repeats)
    if "pruning" in asked.what:
        pruning(asked.seeds, asked.trials)
    if "rates" in asked.what:
        rates(asked.repeats)


# --- busy ------------------------------------------------------------------------------------


def busy(official: Path | None, repeats: int) -> None:
    contenders: dict[str, tuple[Sequence[str], Path | None]] = {"search, `slots`": (OURS, None)}
    if official is not None:
        contenders["official 1.4.0rc3, joblib, batches of 4"] = (OFFICIAL, official)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, (options, path) in contenders.items():
            found[name].append(_busy(options, path))
    heads = "busy while trials are left, % | busy in all, % | jobs, first to last, s"
    print(f"| {TRIALS} trials on {SLOTS} slots | {heads} |")
    print("|---|---|---|---|")
    for name, rows in found.items():
        cells = [_spread(column) for column in zip(*rows, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


def _busy(options: Sequence[str], path: Path | None) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "app.py").write_text(APP)
        (home / "config.yaml").write_text(CONFIG)
        (home / "times").mkdir()
        command = [
            sys.executable, "app.py", "-m", *options, "x=interval(-5,5)",
            f"hydra.sweeper.n_trials={TRIALS}", "hydra.sweeper.sampler.seed=1",
        ]  # fmt: skip
        environment = {} if path is None else {"PYTHONPATH": str(path)}
        _run(command, home, environment)
        times = [tuple(map(float, p.read_text().split())) for p in (home / "times").iterdir()]
    assert len(times) == TRIALS
    first, last = min(begin for begin, _ in times), max(end for _, end in times)
    until = max(begin for begin, _ in times)  # then there is nothing to hand out any more
    early = sum(min(end, until) - begin for begin, end in times if begin < until)
    worked = sum(end - begin for begin, end in times)
    whole = last - first
    return 100 * early / (SLOTS * (until - first)), 100 * worked / (SLOTS * whole), whole


# --- pruning ---------------------------------------------------------------------------------


def pruning(seeds: int, trials: int) -> None:
    print(f"{trials} random trials of 10 epochs, by the validation loss; none and median pruner\n")
    print("| strategies | seed | epochs without | with | saved | winner's loss without | with |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        home, summaries = Path(folder), []
        for strategies in STRATEGIES:
            shares, num_same = [], 0
            for seed in range(seeds):
                plain, pruned = (
                    _searched(home, strategies, seed, trials, pruner)
                    for pruner in ("none", "median")
                )
                before, after = _epochs(plain), _epochs(pruned)
                shares.append(1 - after / before)
                losses = _best_loss(plain), _best_loss(pruned)
                num_same += losses[0] == losses[1]
                counts = f"{before} | {after} | {shares[-1]:.0%}"
                row = f"{strategies} | {seed} | {counts} | {losses[0]:.4f} | {losses[1]:.4f}"
                print(f"| {row} |", flush=True)
            low, middle, high = min(shares), statistics.median(shares), max(shares)
            saved = f"saved {low:.0%} to {high:.0%}, median {middle:.0%}"
            summaries.append(f"{strategies}: {saved}; same winner {num_same} of {seeds}")
    print("", *summaries, sep="\n")


def _searched(home: Path, strategies: str, seed: int, trials: int, pruner: str) -> dict[str, Any]:
    """The same points in the same order, whatever the pruner: they are random."""
    name = f"{strategies.count(',')}_{pruner}_{seed}"
    _graft(
        home, f"sweep.name={name}", f"strategy={strategies}", f"hydra.sweeper.n_trials={trials}",
        "hydra/sweeper/sampler=random", f"hydra.sweeper.sampler.seed={seed}", "metric=val_loss",
        f"hydra/sweeper/pruner={pruner}",
    )  # fmt: skip
    found: dict[str, Any] = json.loads((home / "outputs" / name / "search.json").read_text())
    return found


def _best_loss(search: Mapping[str, Any]) -> float:
    return min(trial["values"][0] for trial in search["trials"] if trial["state"] == "completed")


def _epochs(search: Mapping[str, Any]) -> int:
    return sum(len(trial["steps"]) or 10 for trial in search["trials"])


# --- rates -----------------------------------------------------------------------------------


def rates(repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        _graft(home, "sweep.name=first", "hydra.sweeper.n_trials=1")
        seconds = []
        for number in range(repeats):
            started = time.time()
            _graft(home, f"sweep.name=again_{number}", "hydra.sweeper.n_trials=40",
                   f"hydra.sweeper.sampler.seed={number}")  # fmt: skip
            seconds.append(time.time() - started)
    print(f"40 learning rates, head only, 10 epochs, whole process: {_spread(seconds)} s")


def _graft(home: Path, *options: str) -> None:
    command = [
        sys.executable, "-m", "graft", "-m", "hydra/sweeper=search",
        "optimizer.lr=tag(log,interval(1e-5,1e-1))", "tracking=off", *options,
    ]  # fmt: skip
    _run(command, home, {"GRAFT_CACHE": str(home / "cache")})


def _run(command: Sequence[str], home: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, cwd=home, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])} ... failed:\n{done.stderr[-3000:]}")


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
