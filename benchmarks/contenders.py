"""What is compared: a sweep as plain_loop.py trains it, plain and tuned, and as graft does."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pictures
from measure import Ended, GraftSweep, Places, environment, graft, note, process, script


@dataclass(frozen=True)
class Work:
    """A sweep, in words that graft and the loops understand.

    Attributes:
        overrides, arguments: dataset and network, for graft and for plain_loop.py.
        loop_epochs, loop_rates: what the loops are measured on.
    """

    overrides: tuple[str, ...]
    arguments: tuple[str, ...]
    strategies: tuple[str, ...]
    rates: tuple[str, ...]
    epochs: int
    loop_epochs: int
    loop_rates: tuple[str, ...]

    @property
    def num_runs(self) -> int:
        return len(self.strategies) * len(self.rates)

    @property
    def scale(self) -> str:
        """What of the loops' times is measured and what is counted, in words."""
        runs = len(self.strategies) * len(self.loop_rates)
        if (runs, self.loop_epochs) == (self.num_runs, self.epochs):
            return "loops: every run and epoch measured"
        return (
            f"loops: {runs} of {self.num_runs} runs and {self.loop_epochs} of {self.epochs} "
            "epochs measured, the others counted at the same price"
        )


@dataclass(frozen=True)
class Loop:
    """A loop that ended, counted as if it had trained all runs and epochs of its work."""

    process: Ended
    work: Work

    @property
    def run_s(self) -> float:
        """One run, on average, without decoding once."""
        runs = self.process.results
        return sum(map(self._scaled, runs)) / len(runs)

    @property
    def first_to_last_s(self) -> float:
        decoding = sum(run["decode_s"] for run in self.process.results)
        return decoding + self.work.num_runs * self.run_s

    @property
    def whole_s(self) -> float:
        measured = sum(run["run_s"] for run in self.process.results)
        return self.process.seconds - measured + self.first_to_last_s

    def _scaled(self, run: dict[str, Any]) -> float:
        epochs = run["epoch_s"]
        missing = self.work.epochs - len(epochs)
        return float(run["run_s"] - run["decode_s"] + missing * sum(epochs) / len(epochs))


@dataclass(frozen=True)
class Bench:
    """What every scenario needs."""

    options: argparse.Namespace
    places: Places
    folder: Path

    def emoji(
        self, strategies: tuple[str, ...], rates: tuple[str, ...], loop_rates: tuple[str, ...] = ()
    ) -> Work:
        """A sweep over the built-in pictures, or over `--limit` of them."""
        overrides, arguments = ["dataset=emoji"], []
        if self.options.limit:
            folder = self.folder / "some"
            limit = str(self.options.limit)
            process(script("pictures.py", "emoji", str(folder), "--limit", limit), self._plain)
            overrides = [*pictures.overrides(folder), "image_size=128"]
            arguments = ["--dataset", "random", "--folder", str(folder), "--image-size", "128"]
        return self.work(overrides, arguments, strategies, rates, loop_rates=loop_rates)

    def made(self, name: str, counts: str, size: str) -> tuple[list[str], list[str]]:
        """Made pictures, for `work`."""
        folder = self.folder / name
        process(
            script("pictures.py", "random", str(folder), "--counts", counts, "--size", size),
            self._plain,
        )
        return pictures.overrides(folder), ["--dataset", "random", "--folder", str(folder)]

    def work(
        self,
        overrides: Sequence[str],
        arguments: Sequence[str],
        strategies: tuple[str, ...],
        rates: tuple[str, ...],
        *,
        epochs: int | None = None,
        loop_rates: tuple[str, ...] = (),
    ) -> Work:
        epochs = epochs or self.options.epochs
        loop_epochs = epochs if self.options.full else min(epochs, self.options.baseline_epochs)
        if self.options.full or not loop_rates:
            loop_rates = rates
        return Work(
            tuple(overrides), tuple(arguments), strategies, rates, epochs, loop_epochs, loop_rates
        )

    def loop(self, work: Work, *, tuned: bool) -> Loop:
        command = script(
            "plain_loop.py", *work.arguments, "--strategies", ",".join(work.strategies),
            "--rates", ",".join(work.loop_rates), "--epochs", str(work.loop_epochs),
            *(["--tuned"] if tuned else []),
        )  # fmt: skip
        return Loop(process(command, self._plain if not tuned else self._tuned), work)

    def graft(self, work: Work, places: dict[str, Path], name: str = "sweep") -> GraftSweep:
        return graft(
            *work.overrides, f"strategy={','.join(work.strategies)}",
            f"optimizer.lr={','.join(work.rates)}", f"epochs={work.epochs}", **places, name=name,
        )  # fmt: skip

    @property
    def _plain(self) -> dict[str, str]:
        cache = str(self.folder / "pictures")
        return environment(sleeps=self.options.plain_sleeps, GRAFT_CACHE=cache)

    @property
    def _tuned(self) -> dict[str, str]:
        return environment(sleeps=True, GRAFT_CACHE=str(self.folder / "pictures"))


# --- rounds ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """Every contender once."""

    plain: Loop
    tuned: Loop
    sweep: GraftSweep
    places: dict[str, Path]


def rounds_of(bench: Bench, work: Work, repeats: int) -> list[Round]:
    return [one_round(bench, work, number) for number in range(repeats)]


def one_round(bench: Bench, work: Work, number: int, *, keeps: bool = False) -> Round:
    """Another one comes first in every round. `keeps`: graft's folders stay for the caller."""
    places = bench.places.fresh()
    contenders: dict[str, Callable[[], Loop | GraftSweep]] = {
        "plain": lambda: bench.loop(work, tuned=False),
        "tuned": lambda: bench.loop(work, tuned=True),
        "sweep": lambda: bench.graft(work, places),
    }
    names = list(contenders)
    found: dict[str, Any] = {}
    for name in names[number % 3 :] + names[: number % 3]:
        found[name] = contenders[name]()
        said = "graft" if name == "sweep" else f"{name} loop"
        note(f"round {number + 1}: {said}, {found[name].process.seconds:.1f} s")
    if not keeps:
        bench.places.forget(places)
    return Round(**found, places=places)


def with_loop_epochs(work: Work, epochs: int) -> Work:
    return replace(work, loop_epochs=epochs)
