"""What the report says and draws of a search."""

import html
import json
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graft.errors import RecordError
from graft.record import FIGURES, REPORT, SEARCH
from graft.report import search_words
from graft.report.__main__ import main, write_report
from graft.report.chart import tick_texts
from graft.report.search import Parameter, best_so_far, epochs_run, read
from graft.report.search_figures import MAX_CURVES, MAX_PARAMETERS, charts
from graft.report.words import shortened

LR = {"kind": "float", "log": True, "low": 1e-5, "high": 0.1}
STRATEGY = {"kind": "categorical", "choices": ["head_only", "fine_tune"]}
DEPTH = {"kind": "int", "log": False, "low": 1, "high": 3}
FOLDERS = ("strategy=fine_tune,optimizer.lr=1e-3", "strategy=head_only,optimizer.lr=1e-3")


def _trial(number: int, *values: float, state: str = "completed", **more: Any) -> dict[str, Any]:
    strategy = ("head_only", "fine_tune")[number % 2]
    depth = {"strategy.depth": 1 + number % 3} if strategy == "fine_tune" else {}
    params = {"optimizer.lr": 10 ** -(1.5 + number % 3), "strategy": strategy, **depth}
    return {
        "number": number, "state": state, "params": params, "values": list(values) or None,
        "reason": None, "steps": {}, "seconds": 1.0, "same_as": None, "folder": None, **more,
    }  # fmt: skip


def _steps(*values: float) -> dict[str, float]:
    return {str(epoch): value for epoch, value in enumerate(values, start=1)}


def _write(folder: Path, trials: Sequence[Mapping[str, Any]], **more: Any) -> Path:
    """search.json of trials, best ones computed where they are not given."""
    aims = more.pop("aims", {"val_accuracy": "maximize"})
    found = {
        "format": 1, "study_name": "search", "storage": "postgresql://me:secret@host/studies",
        "sampler": "TPESampler", "pruner": "MedianPruner", "n_trials": len(trials),
        "objectives": [{"name": name, "direction": aim} for name, aim in aims.items()],
        "stopped": f"{len(trials)} trials", "trials": trials, "best": [], "importances": None,
        "params": {"optimizer.lr": LR, "strategy": STRATEGY, "strategy.depth": DEPTH},
        "best_command": None, "best_experiment": None, **more,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / SEARCH).write_text(json.dumps(found), encoding="utf-8")
    return folder


def _text(folder: Path) -> str:
    write_report(folder)
    page = (folder / REPORT).read_text(encoding="utf-8")
    body = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", body).split()))


def _drawn(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / FIGURES).glob("*"))


def _mixed(folder: Path) -> Path:
    """Completed, pruned, failed, repeated trials; two have runs, if the folder is `binary`'s."""
    trials = [
        _trial(0, 0.7, steps=_steps(0.5, 0.6, 0.7, 0.7), folder=FOLDERS[1]),
        _trial(1, state="pruned", steps=_steps(0.4, 0.45), reason="among the worse half"),
        _trial(2, state="failed", reason="train_loss became nan"),
        _trial(3, 0.9, steps=_steps(0.6, 0.8, 0.9, 0.88), folder=FOLDERS[0]),
        _trial(4, 0.9, same_as=3, params=_trial(3)["params"]),
        _trial(5, state="pruned", steps=_steps(0.4)),
    ]
    return _write(
        folder, trials, best=[3], importances=[{"optimizer.lr": 0.8, "strategy": 0.2}],
        best_command="graft strategy=fine_tune optimizer.lr=0.001",
        best_experiment="experiment/best.yaml",
    )  # fmt: skip


@pytest.fixture
def searched(binary: Any) -> Path:
    return _mixed(binary.path)


# --- the page -------------------------------------------------------------------------------


def test_the_page_tells_what_was_tried_and_what_is_best(searched: Path) -> None:
    text = _text(searched)
    assert "What the search learned" in text
    assert "5 trials: 2 completed, 2 pruned, 1 failed (1 more repeated an earlier point and" in text
    assert "epochs run 11 of 16 (31 % saved by pruning)" in text
    assert "3 0.9 0.03162 fine_tune 1 in All runs" in text
    assert "Chosen among 4 by the figures shown here" in text
    assert "graft strategy=fine_tune optimizer.lr=0.001" in text
    assert "experiment/best.yaml" in text
    assert "train_loss became nan" in text
    assert "secret" not in text


def test_what_repeats_a_pruned_point_has_not_failed(tmp_path: Path) -> None:
    trials = [_trial(0, 0.7), _trial(1, state="pruned"), _trial(2, state="failed", same_as=1)]
    search = read(_write(tmp_path, trials, best=[0]))
    assert search is not None and search.of("failed") == []
    said = "2 trials: 1 completed, 1 pruned (1 more repeated an earlier point and was not run)."
    assert search_words.tally(search) == said


def test_the_best_trial_links_to_its_run(searched: Path) -> None:
    write_report(searched)
    page = (searched / REPORT).read_text(encoding="utf-8")
    row = page[page.index('<tr data-trial="3"') :].partition("</tr>")[0]
    anchor = re.search(r'href="#(run-\d+)"', row)
    assert anchor is not None
    assert f'<tr id="{anchor[1]}" data-run="{FOLDERS[0]}"' in page


def test_figures_are_in_the_page_and_beside_it(searched: Path) -> None:
    write_report(searched)
    page = (searched / REPORT).read_text(encoding="utf-8")
    section = page[page.index('<section id="search">') :].partition("</section>")[0]
    assert section.count("<svg") == 6
    assert "#0100" not in section
    assert _drawn(searched) == [
        "search_curves.png", "search_history.png", "search_importance.png", "search_slices.png",
    ]  # fmt: skip
    for name in _drawn(searched):
        with Image.open(searched / FIGURES / name) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_without_a_search_nothing_is_said_or_drawn(binary: Any) -> None:
    assert "What the search learned" not in _text(binary.path)
    assert not (binary.path / FIGURES).exists()


@pytest.mark.slow
def test_figures_of_an_earlier_report_do_not_stay(searched: Path) -> None:
    write_report(searched)
    (searched / FIGURES / "other.png").write_bytes(b"")
    _write(searched, [_trial(0, 0.7)], best=[0])
    write_report(searched)
    assert _drawn(searched) == ["other.png", "search_history.png", "search_slices.png"]


def test_hostile_names_are_text(binary: Any) -> None:
    hostile = "<script>alert(1)</script>"
    trials = [_trial(i, 0.5 + i / 10, params={hostile: hostile}) for i in range(3)]
    params = {hostile: {"kind": "categorical", "choices": [hostile, "$\\frac{x}$"]}}
    _write(binary.path, trials, best=[2], params=params, best_command=hostile,
           aims={hostile: "maximize"}, importances=[{hostile: 1.0}])  # fmt: skip
    assert hostile in _text(binary.path)
    assert "<script" not in (binary.path / REPORT).read_text(encoding="utf-8")


# --- files that are not as they should be ---------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "objectives": []}'],
)
def test_a_damaged_file_leaves_the_section_out(
    binary: Any, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (binary.path / SEARCH).write_text(text, encoding="utf-8")
    assert main([str(binary.path)]) == 0
    assert "What the search learned Left out: search.json" in _text(binary.path)
    assert not (binary.path / FIGURES).exists()


@pytest.mark.parametrize("key", ["objectives", "params", "trials", "best", "importances"])
def test_whatever_is_in_it_it_is_read_or_refused(tmp_path: Path, key: str) -> None:
    whole = json.loads((_mixed(tmp_path) / SEARCH).read_text())
    for value in (None, 3, "text", [3], {"a": 3}, [{"name": "a"}], [{}], [[]]):
        (tmp_path / SEARCH).write_text(json.dumps({**whole, key: value}))
        try:
            search = read(tmp_path)
        except RecordError as error:
            assert SEARCH in str(error)
        else:
            assert search is not None
            charts(search)


def test_numbers_that_no_axis_holds_are_left_out(tmp_path: Path) -> None:
    nan, most = float("nan"), 1e300
    trials = [_trial(0, 0.5, steps=_steps(nan, 0.4, 0.5)), _trial(1, nan), _trial(2, most)]
    _write(tmp_path, [*trials, _trial(3, 0.7, params={"optimizer.lr": -1.0})], best=[3])
    search = read(tmp_path)
    assert search is not None
    assert [trial.number for trial in search.measured] == [0, 3]
    assert search.trials[0].steps == ((2, 0.4), (3, 0.5))
    assert [svg for chart in charts(search) for svg in chart.svgs()]


# --- what follows from the trials -----------------------------------------------------------


@pytest.mark.parametrize(
    ("aim", "expected"),
    [("maximize", [(0, 0.5), (2, 0.7)]), ("minimize", [(0, 0.5), (1, 0.3), (4, 0.2)])],
)
def test_the_best_so_far_follows_the_direction(
    tmp_path: Path, aim: str, expected: list[tuple[int, float]]
) -> None:
    values = [0.5, 0.3, 0.7, 0.6, 0.2]
    _write(tmp_path, [_trial(i, v) for i, v in enumerate(values)], aims={"val_loss": aim})
    search = read(tmp_path)
    assert search is not None
    assert best_so_far(search, 0) == expected


def test_the_table_of_a_loss_begins_with_the_lowest(tmp_path: Path) -> None:
    trials = [_trial(i, v) for i, v in enumerate([0.5, 0.3, 0.7, 0.6, 0.2, 0.9])]
    _write(tmp_path, trials, aims={"val_loss": "minimize"}, best=[4])
    search = read(tmp_path)
    assert search is not None
    assert [row.number for row in search_words.table(search).rows] == [4, 1, 0, 3, 2]
    assert dict(search_words.facts(search))["objective"] == "val_loss (lower is better)"


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        (([4, 4], [2]), (10, 12)),
        (([4, 4], []), None),  # nothing was pruned
        (([4, 3], [2]), None),  # some ended early by themselves
        (([], [2]), None),
        (([4], [0]), None),
    ],
)
def test_epochs_are_counted_where_the_trials_tell(
    tmp_path: Path, lengths: tuple[list[int], list[int]], expected: tuple[int, int] | None
) -> None:
    whole, cut = lengths
    trials = [_trial(i, 0.5, steps=_steps(*[0.5] * n)) for i, n in enumerate(whole)]
    trials += [_trial(9 + i, state="pruned", steps=_steps(*[0.5] * n)) for i, n in enumerate(cut)]
    search = read(_write(tmp_path, trials))
    assert search is not None
    assert epochs_run(search) == expected


def test_a_trial_may_lack_a_parameter(tmp_path: Path) -> None:
    search = read(_mixed(tmp_path))
    assert search is not None
    depth = search.parameters[2]
    assert [depth.place(trial) for trial in search.trials] == [None, 2, None, 1, 1, 3]
    (slices,) = (chart for chart in charts(search) if chart.name == "slices")
    assert "Not every trial has strategy.depth." in slices.caption


@pytest.mark.parametrize(("value", "place"), [(True, 0.0), (None, 1.0), (0.25, 2.0), ("x", None)])
def test_a_choice_may_be_of_any_kind(tmp_path: Path, value: object, place: float | None) -> None:
    params = {"a": {"kind": "categorical", "choices": [True, None, 0.25]}}
    search = read(_write(tmp_path, [_trial(0, 0.5, params={"a": value})], params=params))
    assert search is not None
    assert search.parameters[0].place(search.trials[0]) == place


def test_a_range_below_zero_is_not_logarithmic(tmp_path: Path) -> None:
    params = {"a": {"kind": "float", "log": True, "low": 0.0, "high": 1.0}}
    search = read(_write(tmp_path, [_trial(0, 0.5)], params=params))
    assert search is not None
    assert search.parameters == (Parameter("a", ends=(0.0, 1.0)),)


@pytest.mark.parametrize("stopped", [None, "40 trials"])
def test_a_search_that_goes_on_is_said_to(binary: Any, stopped: str | None) -> None:
    trials = [_trial(0, 0.5), _trial(1, state="running", steps=_steps(0.4)),
              _trial(2, state="waiting", params={})]  # fmt: skip
    _write(binary.path, trials, stopped=stopped, n_trials=40, best=[0])
    text = _text(binary.path)
    assert "3 trials: 1 completed, 1 running, 1 waiting." in text
    ended = "ended 40 trials" if stopped else "ended not yet (asked for 40 trials)"
    assert ended in text


@pytest.mark.parametrize("states", [[], ["failed", "waiting"]])
def test_without_a_completed_trial_there_is_nothing_to_draw(binary: Any, states: list[str]) -> None:
    _write(binary.path, [_trial(i, state=state) for i, state in enumerate(states)])
    text = _text(binary.path)
    assert "No trial has completed, so there is nothing to draw." in text
    assert "Chosen among" not in text
    assert _drawn(binary.path) == []


# --- several objectives ---------------------------------------------------------------------

AIMS = {
    "val_accuracy": "maximize",
    "seconds": "minimize",
    "parameters": "minimize",
    "x": "minimize",
}


@pytest.mark.parametrize(("count", "panels"), [(2, 1), (3, 3), (4, 3)])
def test_objectives_are_drawn_in_pairs(tmp_path: Path, count: int, panels: int) -> None:
    random = np.random.default_rng(0)
    trials = [_trial(i, *random.random(count).tolist()) for i in range(12)]
    aims = dict(list(AIMS.items())[:count])
    search = read(_write(tmp_path, trials, aims=aims, best=[2, 5, 7]))
    assert search is not None
    found = {chart.name: chart for chart in charts(search)}
    assert len(found["front"].panels) == panels
    assert len(found["history"].panels) == min(count, 3)
    assert "curves" not in found and "importance" not in found
    texts = "".join(ElementTree.fromstring(found["front"].svgs()[0]).itertext())
    assert "val_accuracy, higher is better" in texts
    assert "seconds, lower is better" in texts


def test_the_front_is_a_table_by_the_first_objective(binary: Any) -> None:
    trials = [_trial(0, 0.9, 60.0), _trial(1, 0.8, 9.5), _trial(2, 0.7, 30.0)]
    _write(binary.path, trials, aims=dict(list(AIMS.items())[:2]), best=[1, 0])
    text = _text(binary.path)
    assert "The front: no other trial beats these" in text
    assert text.index("0 0.9 60") < text.index("1 0.8 9.5")
    assert "2 0.7 30" not in text


def test_the_line_of_the_front_runs_on_the_side_where_trials_are(tmp_path: Path) -> None:
    """Maximized across, minimized up: from a point the line goes left, never right."""
    from matplotlib.figure import Figure

    from graft.report.canvas import PAPER

    trials = [_trial(0, 0.9, 60.0), _trial(1, 0.8, 10.0)]
    aims = dict(list(AIMS.items())[:2])
    search = read(_write(tmp_path, trials, aims=aims, best=[0, 1]))
    assert search is not None
    axes = Figure().add_subplot()
    charts(search)[0].panels[0](axes, PAPER)
    (line,) = (one for one in axes.lines if one.get_linestyle() == "-")
    assert line.get_drawstyle() == "steps-pre"
    assert np.asarray(line.get_xydata()).tolist() == [[0.8, 10.0], [0.9, 60.0]]


# --- size -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thousand_trials_are_quick_and_small(binary: Any) -> None:
    random = np.random.default_rng(0)
    trials = [
        _trial(i, float(random.random()), steps=_steps(*random.random(20).tolist()))
        if i % 3
        else _trial(i, state="pruned", steps=_steps(*random.random(4).tolist()))
        for i in range(1000)
    ]
    best = max((t for t in trials if t["values"]), key=lambda t: t["values"])["number"]
    params = {f"key.{i}": {"kind": "float", "log": False, "low": 0, "high": 1} for i in range(12)}
    for trial in trials:
        trial["params"] = dict(zip(params, random.random(12).tolist(), strict=True))
    _write(binary.path, trials, params=params, best=[best])
    begin = time.perf_counter()
    write_report(binary.path)
    assert time.perf_counter() - begin < 20  # takes 1.5 s
    page = (binary.path / REPORT).read_text(encoding="utf-8")
    assert len(page) < 1_500_000
    assert f"The {MAX_PARAMETERS} parameters of 12 in the order of the search." in page
    assert f"{MAX_CURVES} of 1,000 trials: the best, and others evenly by number." in page
    assert sum(path.stat().st_size for path in (binary.path / FIGURES).iterdir()) < 1_500_000


def test_the_same_search_is_the_same_drawing(tmp_path: Path) -> None:
    first, second = (read(_mixed(tmp_path)) for _ in range(2))
    assert first is not None and second is not None
    drawn = [[chart.svgs() for chart in charts(search)] for search in (first, second)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ([0.85, 0.875, 0.9], ["0.850", "0.875", "0.900"]),
        ([-1, 0, 1], ["\N{MINUS SIGN}1", "0", "1"]),
        ([0, 200000, 400000], ["0", "2e5", "4e5"]),
        ([0, 0.00005], ["0", "5e\N{MINUS SIGN}5"]),
    ],
)
def test_ticks_say_as_much_as_they_need(ticks: list[float], texts: list[str]) -> None:
    assert tick_texts(ticks) == texts


# --- numbers that nobody typed ------------------------------------------------------------------


def test_long_numbers_are_shown_with_as_few_digits_as_tell_them_apart() -> None:
    long = ["0.014567370961716473", "0.003988891555827398", "1.742979729817687e-05"]
    assert shortened([*long, "0.001", "head_only"]) == {
        "0.014567370961716473": "0.01457",
        "0.003988891555827398": "0.003989",
        "1.742979729817687e-05": "1.743e-05",
    }


def test_numbers_that_are_nearly_equal_stay_apart() -> None:
    short = shortened(["0.014567370961716473", "0.0145673709617165", "0.01457"])
    assert len({*short.values(), "0.01457"}) == 3


def test_what_a_person_typed_is_left_as_it_is() -> None:
    assert shortened(["1e-3", "0.00001", "1000000", "0.123456", "fine_tune"]) == {}
