import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from graft.metrics import scores
from graft.record import EXAMPLES, PREDICTIONS, REPORT, read_runs
from graft.report import words
from graft.report.__main__ import write_report
from graft.report.comparison import grid
from graft.report.intervals import Estimate, wilson_interval
from graft.report.results import results
from graft.report.sweep import load


def _page(path: Path) -> str:
    write_report(path)
    return (path / REPORT).read_text(encoding="utf-8")


class _Cells(HTMLParser):
    """Texts of the cells with `data-column`, by the `data-run` or `data-class` of their row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, dict[str, str]] = {}
        self._row = self._column = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "tr":
            self._row = given.get("data-run") or given.get("data-class") or ""
        if tag == "td":
            self._column = given.get("data-column") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._column = ""

    def handle_data(self, data: str) -> None:
        if self._row and self._column:
            row = self.found.setdefault(self._row, {})
            row[self._column] = f"{row.get(self._column, '')} {data.strip()}".strip()


def _text(page: str) -> str:
    body = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", body).split()))


def _shares(correct: int, total: int) -> str:
    low, high = wilson_interval(correct, total)
    return f"{correct / total:.3f} {low:.2f} to {high:.2f}"


# --- the numbers ----------------------------------------------------------------------------


def test_every_figure_of_the_table_follows_from_the_stored_predictions(binary: Any) -> None:
    cells = _Cells(_page(binary.path)).found
    for run in binary.asked[:3]:
        path = binary.path / run["run"]
        table = pd.read_parquet(path / PREDICTIONS)
        is_right = (table["score"] >= 0.5).astype(int) == table["label"]
        for split in ("val", "test"):
            kept = is_right[table["split"] == split]
            shown = cells[run["run"]][f"{split}_accuracy"]
            assert shown == _shares(int(kept.sum()), len(kept))
        epochs = pd.read_csv(path / "metrics.csv")
        assert cells[run["run"]]["train_accuracy"] == f"{epochs['train_accuracy'].iloc[2]:.3f}"
        assert cells[run["run"]]["best_epoch"] == "3 of 4"


def test_figures_of_many_classes_follow_from_the_stored_predictions(digits: Any) -> None:
    cells = _Cells(_page(digits.path)).found
    table = pd.read_parquet(digits.path / "strategy=fine_tune" / PREDICTIONS)
    table = table[table["split"] == "test"]
    guess = table[list("0123456789")].idxmax(axis=1)
    for name in "0123456789":
        found, called = table["label"] == name, guess == name
        both = int((found & called).sum())
        assert cells[name]["n"] == str(found.sum())
        assert cells[name]["recall"] == _shares(both, int(found.sum()))
        assert cells[name]["precision"] == _shares(both, int(called.sum()))


def test_the_head_line_names_the_winner_and_its_accuracies(binary: Any) -> None:
    best = read_runs(binary.path)[2].predictions
    val, test = (scores(best.of(split))["accuracy"] for split in ("val", "test"))
    text = _text(_page(binary.path))
    assert f"fine_tune, lr=1e-3 wins on validation: accuracy {val:.3f} (" in text
    assert f"; test {test:.3f} (" in text


@pytest.mark.parametrize("skills", [(0.9, 0.89), (0.0, 2.0)])
def test_the_words_on_the_runner_up_follow_the_numbers(
    maker: Any, tmp_path: Path, skills: tuple[float, float]
) -> None:
    made = maker(tmp_path / "s")
    made.run({"strategy": "head_only"}, skills[0])
    made.run({"strategy": "full"}, skills[1])
    right = [r.predictions.predicted == r.predictions.labels for r in read_runs(made.path)]
    on_test = made.splits == "test"
    alone = [int((a & ~b)[on_test].sum()) for a, b in (right, right[::-1])]
    p = binomtest(alone[0], sum(alone)).pvalue
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.2f}"
    word = "clear" if p < 0.05 else "not distinguishable"
    assert f"on 60 test examples, McNemar {shown}: {word}." in _text(_page(made.path))


def test_a_winner_no_better_than_the_most_frequent_class_is_called_so(
    maker: Any, tmp_path: Path
) -> None:
    made = maker(tmp_path / "s")
    made.run({"strategy": "head_only"}, scores=np.full(120, 0.1))
    assert "the winner is not distinguishable from that" in _text(_page(made.path))


def test_a_winner_that_is_right_less_often_than_one_answer_is_called_so(
    maker: Any, tmp_path: Path
) -> None:
    """Who selects by balanced accuracy may want that, and is told."""
    made = maker(tmp_path / "s", sizes=(400, 60))
    made.labels[: made.sizes[0]] = np.arange(made.sizes[0]) % 20 == 0
    wrong = (np.arange(len(made.labels)) % 4 == 1) != made.labels
    made.run({"loss": "weighted"}, scores=0.1 + 0.8 * wrong, metric="val_balanced_accuracy")
    text = _text(_page(made.path))
    assert "would be right for 0.950 of validation: the winner is right less often." in text


def test_the_head_and_the_table_say_the_same_of_a_pair(maker: Any, tmp_path: Path) -> None:
    """Of many runs one beats another by chance: both adjust for how many there were."""
    made = maker(tmp_path / "s", sizes=(100, 100))
    made.labels[:] = np.arange(200) % 2
    for seed, num_wrong in enumerate((0, 6, 6, 6)):
        wrong = np.arange(200) % 100 < num_wrong
        made.run({"seed": str(seed)}, scores=0.1 + 0.8 * (wrong != made.labels))
    text = _text(_page(made.path))
    # 2 * 0.5**6 is 0.031: clear by itself, but not as one of three.
    head = "McNemar p = 0.094 (adjusted for 3 comparisons): not distinguishable"
    assert f"on 100 validation examples, {head}" in text
    assert "on 100 test examples, McNemar p = 0.031: clear" in text
    assert text.count("p = 0.094 not distinguishable") == 3  # of the table


def test_seeds_are_judged_by_what_selects_and_only_where_as_many_ran(
    maker: Any, tmp_path: Path
) -> None:
    made = maker(tmp_path / "s")
    for seed in range(3):
        ordered = 0.6 + 0.3 * made.labels  # in perfect order, on one side of 0.5
        own = {"metric": "val_auroc"}
        made.run({"strategy": "full", "seed": str(seed)}, scores=ordered, **own)
        made.run({"strategy": "head_only", "seed": str(seed)}, 0.9, **own)
        lucky = "completed" if seed == 0 else "diverged"
        made.run({"strategy": "fine_tune", "seed": str(seed)}, 5.0, status=lucky, **own)
    text = _text(_page(made.path))
    assert "best choice is full: val_auroc 1.000 (1.000 to 1.000, 3 seeds)" in text
    assert "full 3 1.000 1.000 to 1.000" in text
    assert text.count("By the mean over seeds") == 1


def test_of_runs_that_cannot_be_ranked_no_choice_is_the_best(maker: Any, tmp_path: Path) -> None:
    made = maker(tmp_path / "s")
    for seed in range(2):
        made.run({"strategy": "full", "seed": str(seed)}, 0.9)
        made.run({"strategy": "head_only", "seed": str(seed)}, 0.5, metric="val_auroc")
    text = _text(_page(made.path))
    assert "cannot be ranked" in text and "best choice" not in text and "Over seeds" in text
    assert "the best minus it" not in text


def test_seeds_are_shown_by_their_mean_lowest_and_highest(maker: Any, tmp_path: Path) -> None:
    made = maker(tmp_path / "s")
    for seed, skill in enumerate((0.5, 0.7, 0.9)):
        made.run({"strategy": "full", "seed": str(seed)}, skill)
        made.run({"strategy": "head_only", "seed": str(seed)}, skill / 5)
    of_full = [r for r in read_runs(made.path) if "full" in r.name]
    values = [scores(r.predictions.of("val"))["accuracy"] for r in of_full]
    mean, low, high = np.mean(values), min(values), max(values)
    text = _text(_page(made.path))
    assert f"full 3 {mean:.3f} {low:.3f} to {high:.3f}" in text
    assert f"best choice is full: validation accuracy {mean:.3f}" in text


def test_the_best_choice_is_held_against_the_others_seed_for_seed(
    maker: Any, tmp_path: Path
) -> None:
    made = maker(tmp_path / "s", sizes=(100, 100))
    made.labels[:] = np.arange(200) % 2
    num_wrong = {"full": (1, 5, 3), "head_only": (4, 6, 9), "fine_tune": (50, 3, 51)}
    for strategy, wrong in num_wrong.items():
        for seed, count in enumerate(wrong):
            scores_ = 0.1 + 0.8 * ((np.arange(200) % 100 < count) != made.labels)
            status = "diverged" if (strategy, seed) == ("fine_tune", 1) else "completed"
            made.run({"strategy": strategy, "seed": str(seed)}, scores=scores_, status=status)
    text = _text(_page(made.path))
    # 0.03, 0.01 and 0.06: mean 0.0333, deviation 0.0252, and t of two degrees of freedom is 4.303.
    found = f"+0.033 ({words.MINUS}0.029 to +0.096)"
    assert f"differs from head_only by {found}, and is better with 3 of 3." in text
    assert f"{found} 3 of 3" in text
    assert "+0.485 (+0.421 to +0.549) 2 of 2" in text  # of the seeds that both have
    # Another seed of the winner's answers nothing that was asked.
    assert "Against the best run of another choice, head_only, seed=0," in text


def test_of_one_choice_the_runner_up_is_another_seed(maker: Any, tmp_path: Path) -> None:
    made = maker(tmp_path / "s")
    for seed, skill in enumerate((0.5, 5.0)):
        made.run({"seed": str(seed)}, skill)
    text = _text(_page(made.path))
    assert "Against the runner-up, seed=0," in text and "Seed for seed" not in text


def test_slices_have_accuracy_and_count_for_each_value(binary: Any) -> None:
    record = read_runs(binary.path)[2]
    test = record.predictions.of("test")
    tones = record.examples.set_index("id").loc[list(test.ids), "skin_tone"].to_numpy()
    is_right = (test.predicted == test.labels)[tones == "dark"]
    assert f"dark {len(is_right)} {_shares(int(is_right.sum()), len(is_right))}" in _text(
        _page(binary.path)
    )


# --- what became of the runs ----------------------------------------------------------------


def test_runs_without_a_result_say_why(binary: Any) -> None:
    text = _text(_page(binary.path))
    assert "train_loss became nan in epoch 3 at optimizer.lr=1e+30." in text
    assert "OSError: No space left on device" in text
    assert "3 completed, 1 diverged, 1 failed" in text


def test_pruned_runs_are_neither_failures_nor_compared(pruned: Any) -> None:
    page = _page(pruned.path)
    text = _text(page)
    assert "Not every run completed" not in text and "4 runs: 2 completed, 2 pruned." in text
    assert text.count("at epoch 2: it is among the worse half") == 2
    assert 'class="pill bad"' not in page and page.count('class="pill">pruned<') == 2
    sweep = load(pruned.path)
    found = grid(sweep, results(sweep.records, sweep.asked), None)
    assert found is not None
    cells = {cell.note for row in found.cells for cell in row if cell.value is None}
    assert cells == {"pruned"}


def test_a_sweep_without_a_completed_run_has_a_page(maker: Any, tmp_path: Path) -> None:
    made = maker(tmp_path / "s")
    made.run({"strategy": "full"}, status="failed", reason="out of memory")
    made.ask({"strategy": "head_only"})
    text = _text(_page(made.path))
    assert "No run completed: 1 failed, 1 skipped." in text
    assert "out of memory" in text


def test_one_run_alone_has_a_page(maker: Any, tmp_path: Path) -> None:
    made = maker(tmp_path / "s")
    made.run({})
    assert "is the only completed run; on validation: accuracy" in _text(_page(made.path))


def test_runs_that_cannot_be_compared_stand_side_by_side(maker: Any, tmp_path: Path) -> None:
    made = maker(tmp_path / "s")
    made.run({"dataset.target": "Male"})
    other = maker(made.path, ("cat", "dog", "bird"), seed=3)
    other.asked = made.asked
    other.run({"dataset.target": "animal"})
    page = _page(made.path)
    assert "cannot be ranked: they tell different classes apart" in _text(page)
    assert set(_Cells(page).found) >= {"dataset.target=Male", "dataset.target=animal"}
    assert "pill good" not in page.partition("</style>")[2]


def test_the_table_of_examples_may_be_missing(binary: Any) -> None:
    for path in binary.path.glob(f"*/{EXAMPLES}"):
        path.unlink()
    assert "Its worst mistakes" in _page(binary.path)


def test_a_test_split_without_examples_is_not_needed(maker: Any, tmp_path: Path) -> None:
    made = maker(tmp_path / "s")
    made.splits[:] = "val"
    made.run({"strategy": "full"})
    made.run({"strategy": "head_only"}, 0.2)
    assert "On 120 validation examples" in _text(_page(made.path))


# --- the file -------------------------------------------------------------------------------


def test_mistakes_are_pictures_in_the_page_and_missing_ones_are_said(binary: Any) -> None:
    record = read_runs(binary.path)[2]
    test = record.predictions.of("test")
    wrong = [str(i) for i in test.ids[test.predicted != test.labels]]
    binary.draw(wrong[:-1])
    page = _page(binary.path)
    assert page.count('src="data:image/jpeg;base64,') == len(wrong) - 1
    assert page.count("<small>no picture</small>") == 1


def test_the_page_asks_for_nothing_outside_itself(binary: Any) -> None:
    page = _page(binary.path)
    assert "<script" not in page
    assert "default-src 'none'" in page
    places = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', page)
    assert {p.partition(":")[0] if ":" in p else p[0] for p in places} <= {"data", "#"}


def test_hostile_names_are_text(maker: Any, tmp_path: Path) -> None:
    names = (
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(2)>',
        "$\\frac{x}$ & {{ 7*7 }}",
    )
    made = maker(tmp_path / "a<b>&amp;", names)
    made.ids[:] = [f"<svg onload=alert({i})>.png" for i in range(len(made.ids))]
    hostile = "<iframe src=evil>"
    columns = {hostile: [f"<u>{i % 2}" for i in range(len(made.ids))]}
    made.run({"strategy": hostile}, 0.5, columns=columns)
    made.run({"strategy": "full"}, status="failed", reason="<script>alert(3)</script>")
    page = _page(made.path)
    for tag in ("<script", "<iframe", "<img src=x", "<svg onload", "<u>"):
        assert tag not in page
    text = _text(page)
    for name in (*names, "a<b>&amp;", "<svg onload=alert(", "<u>1"):
        assert name in text


@pytest.mark.slow
def test_many_runs_and_many_classes_are_capped(maker: Any, tmp_path: Path) -> None:
    made = maker(tmp_path / "s", tuple(f"class number {i}" for i in range(100)), (200, 200))
    for seed in range(12):
        made.run({"optimizer.lr": f"{seed + 1}e-5"}, 1 + seed / 30)
    page = _page(made.path)
    legend = page[page.index('<ul class="legend">') :].partition("</ul>")[0]
    assert legend.count("<li>") == 9
    assert "4 more runs" in legend
    assert "The 8 classes of 100 with the smallest area." in page
    assert len(page) < 1_000_000


def test_the_demo_credits_its_drawings(binary: Any) -> None:
    assert "CC BY-SA 4.0" in _page(binary.path)


# --- words and figures ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "total", "shown"),
    [(90, 96, "0.938 (0.87 to 0.97)"), (19_560, 19_900, "0.983 (0.981 to 0.985)")],
)
def test_an_interval_is_shown_with_digits_that_tell_its_ends_apart(
    correct: int, total: int, shown: str
) -> None:
    assert words.estimate(Estimate(correct, total)) == shown


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.0002, "p < 0.001"), (0.0496, "p = 0.0496"), (0.05, "p = 0.050"), (0.049, "p = 0.049"),
     (0.049999, "p = 0.049999"), (0.0504, "p = 0.050"), (0.123, "p = 0.12")],
)  # fmt: skip
def test_a_p_that_is_called_clear_is_shown_below_the_limit(p: float, shown: str) -> None:
    assert words.p_value(p) == shown


def test_a_run_without_a_choice_stands_under_none_of_its_values(maker: Any, tmp_path: Path) -> None:
    """As where a rate became an axis later."""
    made = maker(tmp_path / "s")
    for strategy in ("full", "head_only"):
        made.run({"strategy": strategy})
        made.run({"strategy": strategy, "optimizer.lr": "1e-4"})
    sweep = load(made.path)
    found = grid(sweep, results(sweep.records, sweep.asked), None)
    assert found is not None and found.across_values == (words.NOTHING, "1e-4")
