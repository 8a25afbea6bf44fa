"""Graft's sweeps against the same sweeps as a plain loop: the tables of docs/performance.md.

    python benchmarks/sweep.py demo heads again memory vgg16 stack [--repeats 3] [--json out.json]
    python benchmarks/sweep.py fill

    demo    2 strategies x 2 rates, 10 epochs, the built-in pictures
    heads   8 rates of head_only; what a ninth adds
    again   a second sweep over the same pictures: how long until its first epoch
    memory  peak memory, and the activations that are part of it
    vgg16   a network whose head has 103 M weights, 224 px, made pictures, both strategies
    stack   a step of K small heads, one by one and stacked
    fill    the activations of 50,000 pictures, and of 5,000: is memory bounded? (slow)

plain, tuned   plain_loop.py: its docstring says what each does
graft          `graft -m`, with MLflow and the report, and nothing stored from before

What is measured, unless a table says otherwise:

    first picture to last epoch
        Loops: of every run, from its network's building to the end of its last epoch, with
        validation, and with the tuned loop's decoding. Graft: `prepare`, `trunk` and `fit` of all
        runs' records: networks built and cut, pictures decoded, trunk computed and stored, epochs
        with validation. Without: imports, graft's check of table and pictures, the test of each
        run (which the loops leave out), figures, report, MLflow.
    start to last epoch
        From the process's start to there; for graft less the tests between arrays.
    whole process
        From its start to its end, all of that included.
    peak
        The largest resident memory of the process, mapped activations included.

Each round measures every contender once, in another order each time. Tables give medians, with the
least and the largest; ratios are of the same round. Loops may train fewer epochs than graft: what
an epoch takes is then counted for the missing ones (`--baseline-epochs`, `--full`).
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from comparison import against, judged, where
from contenders import Bench, Round, one_round, rounds_of, with_loop_epochs
from measure import (
    GraftSweep,
    Places,
    Sample,
    Table,
    conditions,
    environment,
    note,
    process,
    sample,
    script,
)

STRATEGIES, RATES = ("head_only", "fine_tune"), ("1e-3", "1e-4")
EIGHT = ("1e-1", "3e-2", "1e-2", "3e-3", "1e-3", "3e-4", "1e-4", "3e-5")
NINTH = "1e-5"


# --- scenarios ------------------------------------------------------------------------------


def demo(bench: Bench) -> list[Table]:
    """2 strategies x 2 rates."""
    work = bench.emoji(STRATEGIES, RATES)
    rounds = rounds_of(bench, work, bench.options.repeats)
    return [
        against("demo: the built-in pictures, 2 x 2", work, rounds, goals=(20, 12, 4)),
        where("demo: where graft's time goes, seconds", rounds),
    ]


def heads(bench: Bench) -> list[Table]:
    """Eight rates of head_only, and a ninth."""
    eight = bench.emoji(("head_only",), EIGHT, loop_rates=EIGHT[4:5])
    nine = bench.emoji(("head_only",), (*EIGHT, NINTH), loop_rates=EIGHT[4:5])
    rounds, wholes, added = [], [], []
    for number in range(bench.options.repeats):
        rounds.append(one_round(bench, eight, number, keeps=True))
        places = bench.places.fresh()
        wholes.append(bench.graft(nine, places))
        note(f"heads: nine rates, {wholes[-1].process.seconds:.1f} s")
        bench.places.forget(places)
        added.append(bench.graft(nine, rounds[-1].places))
        note(f"heads: a ninth added, {added[-1].process.seconds:.1f} s")
        bench.places.forget(rounds[-1].places)
    return [
        against("heads: head_only, 8 rates", eight, rounds, goals=(100, 40, None)),
        where("heads: where graft's time goes, seconds", rounds),
        _ninth(rounds, wholes, added),
    ]


def again(bench: Bench) -> list[Table]:
    """A second sweep over the same pictures."""
    first = bench.emoji(STRATEGIES, RATES[:1])
    second = bench.emoji(STRATEGIES, ("3e-4",))
    sweeps = []
    for number in range(bench.options.repeats):
        places = bench.places.fresh()
        found = (bench.graft(first, places, "first"), bench.graft(second, places, "second"))
        note(f"again: round {number + 1}, {found[1].process.seconds:.1f} s")
        sweeps.append([_waits(one) for one in found])
        bench.places.forget(places)
    rows = []
    for title, goal in _WAITS.items():
        before, after = (sample([pair[k][title] for pair in sweeps]) for k in (0, 1))
        rows.append([title, before, after, *judged(after, goal, less=True)])
    head = ["seconds until an epoch begins", "first sweep", "second sweep", "goal", ""]
    notes = ["Both are 2 strategies x 1 rate, as whole processes; the second has another rate."]
    return [Table("again: a second sweep over the same pictures", head, rows, notes)]


def memory(bench: Bench) -> list[Table]:
    """Peaks, and what of graft's is activations. One epoch shows it as well as ten."""
    work = bench.emoji(STRATEGIES, RATES)
    overrides, arguments = list(work.overrides), list(work.arguments)
    short = bench.work(overrides, arguments, STRATEGIES, RATES, epochs=1, loop_rates=RATES[:1])
    rounds = rounds_of(bench, short, bench.options.slow_repeats)
    plain = sample([one.plain.process.peak_mb for one in rounds])
    tuned = sample([one.tuned.process.peak_mb for one in rounds])
    whole = sample([one.sweep.process.peak_mb for one in rounds])
    stored = sample([one.sweep.stored_mb for one in rounds])
    beyond = whole.less(stored)
    rows: list[list[object]] = [
        ["plain loop", plain, "", "", ""],
        ["tuned loop", tuned, tuned.over(plain), "", ""],
        ["graft", whole, whole.over(plain), "", ""],
        ["  stored activations", stored, "", "", ""],
        ["  beyond them", beyond, (ratio := beyond.over(plain)), *judged(ratio, 1.5, less=True)],
    ]
    head = ["peak memory of the process", "MB", "x plain", "goal", ""]
    return [Table("memory: the sweep of demo, one epoch", head, rows)]


def vgg16(bench: Bench) -> list[Table]:
    """VGG-16 with random weights on a few made pictures of CelebA's size."""
    limit = bench.options.limit or 200
    counts = f"{limit * 8 // 10},{limit // 10},{limit // 10}"
    overrides, arguments = bench.made("made", counts, "178x218")
    work = bench.work(
        [*overrides, "model=vgg16", "model.weights=none", "image_size=224"],
        [*arguments, "--model", "vgg16", "--weights", "none", "--image-size", "224"],
        STRATEGIES, RATES[1:], epochs=min(3, bench.options.epochs),
    )  # fmt: skip
    if not bench.options.full:
        work = with_loop_epochs(work, 1)
    rounds = rounds_of(bench, work, bench.options.slow_repeats)
    title = f"vgg16: {limit} made pictures at 224 px, 2 strategies x 1 rate, {work.epochs} epochs"
    return [
        against(title, work, rounds, goals=(None, None, None)),
        where("vgg16: where graft's time goes, seconds", rounds),
    ]


def stack(bench: Bench) -> list[Table]:
    """Small heads, one by one and stacked."""
    ended = process(script("stacks.py"), environment(sleeps=True))
    rows = []
    for one in ended.results:
        looped, stacked = sample(one["looped_ms"]), sample(one["stacked_ms"])
        gain = looped.over(stacked)
        shape = [one["head"], f"{one['weights']:,}", one["heads"]]
        rows.append([*shape, looped, stacked, f"{gain.median:.2f}"])
    head = ["head", "weights", "heads", "one by one, ms", "stacked, ms", "times faster"]
    notes = ["A step of all heads on a batch of 32; medians of 5 measurements, least and largest."]
    return [Table("stack: heads trained side by side", head, rows, notes)]


def fill(bench: Bench) -> list[Table]:
    """The memory that filling a large entry takes."""
    rows = []
    limit = max(500, bench.options.limit or 50_000)
    for count in (limit // 10, limit):
        overrides, arguments = bench.made(f"fill-{count}", f"{count * 8 // 10},{count // 10},"
                                          f"{count // 10}", "64x64")  # fmt: skip
        overrides += ["model=mobilenet_v3_small", "model.weights=none", "image_size=64"]
        work = bench.work(overrides, arguments, ("head_only",), RATES[:1], epochs=1)
        places = bench.places.fresh()
        found = bench.graft(work, places)
        note(f"fill: {count:,} pictures, {found.process.seconds:.0f} s")
        bench.places.forget(places)
        rows.append(
            [f"{count:,}", sample([found.process.peak_mb]), sample([found.stored_mb]),
             sample([found.before_s]), sample([found.spent("trunk")]),
             sample([found.process.seconds])]
        )  # fmt: skip
    head = ["pictures", "peak, MB", "stored, MB", "start and checks, s", "trunk, s", "whole, s"]
    notes = ["mobilenet_v3_small at 64 px, random weights, head_only, two views, one epoch."]
    return [Table("fill: activations of many pictures", head, rows, notes)]


SCENARIOS: dict[str, Callable[[Bench], list[Table]]] = {
    one.__name__: one for one in (demo, heads, again, memory, vgg16, stack, fill)
}


# --- one more rate, the first epoch ----------------------------------------------------------


def _ninth(
    rounds: Sequence[Round], wholes: Sequence[GraftSweep], added: Sequence[GraftSweep]
) -> Table:
    """What one more rate costs, in seconds and as a share of one run of the plain loop."""
    run = sample([one.plain.run_s for one in rounds])
    eight, nine = (
        sample([one.process.seconds for one in sweeps])
        for sweeps in ([one.sweep for one in rounds], wholes)
    )
    inside = sample([b.first_to_last_s - a.sweep.first_to_last_s
                     for a, b in zip(rounds, wholes, strict=True)])  # fmt: skip
    alone = sample([one.runs[-1]["timings_s"]["total"] for one in added])
    logged = sample([_logged(one) for one in added])
    medians = Sample((nine.median - eight.median,))
    found = {
        "nine rates less eight, whole processes, of medians": medians,
        "nine rates less eight, whole processes, in pairs": nine.less(eight),
        "nine rates less eight, first picture to last epoch": inside,
        "added to a finished sweep: the run's record": alone,
        "added to a finished sweep: the run in the log": logged,
        "added to a finished sweep: the whole process": sample(
            [one.process.seconds for one in added]
        ),
    }
    rows = []
    for name, seconds in found.items():
        share = Sample(tuple(100 * value / run.median for value in seconds.values))
        is_judged = seconds in (medians, logged)
        rows.append([name, seconds, share, *judged(share, 1 if is_judged else None, less=True)])
    head = ["a ninth rate", "seconds", "% of a plain run", "goal", ""]
    return Table("heads: one more rate", head, rows, [f"One run of the plain loop: {run} s."])


def _logged(one: GraftSweep) -> float:
    """From the line that announces the last run to the one that says how it ended."""
    return one.process.said(r"best epoch") - one.process.said(r"^run \d+ of \d+")


_WAITS: dict[str, float | None] = {
    "head_only: from the plan of the runs": 2,
    "head_only: from the process's start": None,
    "fine_tune: from its announcement": None,
    "the process's start to the plan": None,
}


def _waits(one: GraftSweep) -> dict[str, float]:
    """Seconds until the first epochs; keys as in `_WAITS`."""
    plan = one.process.said(r"^\d+ runs in \d+ arrays")
    second = one.process.said(r"^run 2 of 2")
    head, tuned = (one.first_epoch(run["run"]) for run in one.runs)
    values = (head - plan, head - one.process.started, tuned - second, plan - one.process.started)
    return dict(zip(_WAITS, values, strict=True))


# --- command --------------------------------------------------------------------------------


def main() -> None:
    options = _options()
    print(conditions() + "\n")
    kept: dict[str, Any] = {"conditions": conditions(), "options": vars(options), "tables": []}
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as name:
        bench = _bench(options, Path(name))
        for scenario in options.scenarios:
            note(scenario)
            for table in SCENARIOS[scenario](bench):
                print(table, flush=True)
                kept["tables"].append(table.plain())
            if options.json:
                text = json.dumps(kept, indent=1, default=str)
                options.json.write_text(text, encoding="utf-8")
    print(conditions())


def _bench(options: argparse.Namespace, folder: Path) -> Bench:
    """With the built-in pictures drawn, so that they are there for everybody."""
    drawn = folder / "pictures"
    ended = process(script("pictures.py", "drawn", str(drawn)), environment(sleeps=True))
    note(f"the built-in pictures drawn in {ended.seconds:.1f} s")
    return Bench(options, Places(folder / "sweeps", drawn), folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("scenarios", nargs="+", choices=[*SCENARIOS], metavar="scenario")
    add("--repeats", type=int, default=3, help="rounds")
    add("--slow-repeats", type=int, default=1, help="rounds of memory and vgg16")
    add("--epochs", type=int, default=10, help="of graft's runs (vgg16: 3 at most)")
    add("--baseline-epochs", type=int, default=2, help="that the loops really train (vgg16: 1)")
    add("--full", action="store_true", help="the loops train every epoch of every run")
    add("--plain-sleeps", action="store_true", help="so do the plain loop's waiting threads")
    add("--limit", type=int, help="use so many pictures: to try things out")
    add("--json", type=Path, help="write every measurement here, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
