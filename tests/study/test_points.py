"""Points to begin with: a grid, a file, the folder of a sweep; within the space, or refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hydra_plugins.study_sweeper._errors import BadSearch
from hydra_plugins.study_sweeper._points import points
from hydra_plugins.study_sweeper._space import space

SPACE = space(
    [
        "opt.lr=tag(log,interval(1e-4,1))",
        "name=adam,'sgd, nesterov',two words",
        "depth=range(1,4)",
        "size=[1,2],[3,4]",
        "aug={flip:true},{flip:false}",
        "epochs=10",
    ],
    conditions={"depth": "name=adam"},
)


def of_folder(folder: Path, *overrides: list[str]) -> Path:
    """A sweep of Hydra's own, with its jobs' overrides."""
    for num, own in enumerate(overrides):
        (folder / str(num) / ".hydra").mkdir(parents=True)
        (folder / str(num) / ".hydra" / "overrides.yaml").write_text(
            "".join(f"- {json.dumps(one)}\n" for one in own)
        )
    return folder


# --- as overrides ----------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, "", []])
def test_nothing_asked_is_no_point(nothing: Any) -> None:
    assert points(nothing, SPACE) == []


def test_overrides_are_a_grid_and_the_last_key_changes_first() -> None:
    assert points("opt.lr=1e-3,1e-2 name=adam,two\\ words", SPACE) == [
        {"opt.lr": 0.001, "name": "adam"},
        {"opt.lr": 0.001, "name": "two words"},
        {"opt.lr": 0.01, "name": "adam"},
        {"opt.lr": 0.01, "name": "two words"},
    ]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("depth=range(1,4)", [{"depth": 1}, {"depth": 2}, {"depth": 3}]),
        ("depth=2", [{"depth": 2}]),
        ("name='sgd, nesterov',adam", [{"name": "'sgd, nesterov'"}, {"name": "adam"}]),
        ('name="two words"', [{"name": "two words"}]),
        (
            "size=[1, 2],[3, 4] depth=1",
            [{"size": f"[{two}]", "depth": 1} for two in ("1,2", "3,4")],
        ),
        ("aug={flip: true}", [{"aug": "{flip:true}"}]),
        ("name=choice(adam, two\\ words)", [{"name": "adam"}, {"name": "two words"}]),
        ("  opt.lr=1\n\tdepth=1 ", [{"opt.lr": 1.0, "depth": 1}]),
        ("+depth=1 epochs=10", [{"depth": 1}]),
    ],
)
def test_overrides_are_read_as_hydra_reads_them(typed: str, expected: Any) -> None:
    assert points(typed, SPACE) == expected


def test_a_grid_leaves_out_what_does_not_belong_to_a_point() -> None:
    assert points("name=adam,two\\ words depth=1,2", SPACE) == [
        {"name": "adam", "depth": 1},
        {"name": "adam", "depth": 2},
        {"name": "two words"},
        {"name": "two words"},
    ]


def test_overrides_may_be_longer_than_any_name_of_a_file() -> None:
    rates = ",".join(f"{rate:.6f}" for rate in (0.001 + i / 1e5 for i in range(60)))
    assert len(points(f"opt.lr={rates}", SPACE)) == 60


def test_a_list_has_whatever_can_be_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "points.yaml"
    file.write_text("- {depth: 3}")
    asked = OmegaConf.create(["opt.lr=1e-3", {"opt": {"lr": 0.5}, "depth": 2}, str(file)])
    assert points(asked, SPACE) == [{"opt.lr": 0.001}, {"opt.lr": 0.5, "depth": 2}, {"depth": 3}]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("opt.lr=interval(1e-3,1e-2)", "enqueue: opt.lr=interval(1e-3,1e-2): list the values."),
        ("~depth", "enqueue=~depth: there is no such file or folder"),
        ("~depth=1", "enqueue: ~depth=1: list the values."),
        ("opt.lr=1e-3,", "enqueue=opt.lr=1e-3,: "),
        ("name='adam", "enqueue=name='adam: "),
        ("opt.lr=2", "enqueue: opt.lr=2 is not in the space, 0.0001 to 1."),
        ("lr=0.1", "enqueue: lr is not searched. Searched: opt.lr, name, depth, size, aug."),
        ("depth=range(3,3)", "depth=range(3,3): the range is empty"),
        ("nowhere.yaml", "enqueue=nowhere.yaml: there is no such file or folder. Give overrides"),
        (7, "enqueue=7: there is no such file or folder"),
        ([{"depth": 9}], "enqueue: depth=9 is not in the space, 1 to 3"),
    ],
)
def test_what_is_no_point_of_the_space_is_refused(asked: Any, said: str) -> None:
    with pytest.raises(BadSearch, match=re.escape(said)):
        points(asked, SPACE)


# --- a file ----------------------------------------------------------------------------------


def test_a_file_has_its_points_as_yaml_has_them(tmp_path: Path) -> None:
    file = tmp_path / "points.yaml"
    file.write_text("""
- {opt.lr: 1e-3, name: adam, depth: 2}
- opt: {lr: 0.5}
  name: two words
- {name: "sgd, nesterov", size: [1, 2]}
- aug: {flip: true}
- params: {depth: 1}
  value: 0.25
""")
    assert points(str(file), SPACE) == [
        {"opt.lr": 0.001, "name": "adam", "depth": 2},
        {"opt.lr": 0.5, "name": "two words"},
        {"name": "'sgd, nesterov'", "size": "[1,2]"},
        {"aug": "{flip:true}"},
        {"depth": 1},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("opt.lr: 1e-3", "it must hold a list of points: - {lr: 1e-3}"),
        ("- 7", "it must hold a list of points"),
        ("", "it must hold a list of points"),
        ("- {a: [1", "cannot be read"),
        ("- {opt.lr: 3}", "opt.lr=3 is not in the space"),
        ("- {model: a}", "model is not searched"),
    ],
)
def test_a_file_that_holds_no_points_of_the_space_is_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "points.yaml"
    file.write_text(text)
    with pytest.raises(BadSearch, match=f"enqueue={re.escape(str(file))}: {re.escape(said)}"):
        points(str(file), SPACE)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "points.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadSearch, match="cannot be read"):
        points(str(file), SPACE)


# --- a folder --------------------------------------------------------------------------------


def test_the_folder_of_a_search_has_the_points_of_its_trials(tmp_path: Path) -> None:
    trials = [
        {"params": {"opt.lr": 0.01, "name": "'sgd, nesterov'", "gone": 3}},
        {"params": {"size": "[1,2]", "depth": 2}},
        {"params": {"opt.lr": 5.0}},  # is not in this space
        {"params": {"gone": 1}},
        {"params": {}},
    ]
    (tmp_path / "search.json").write_text(json.dumps({"trials": trials}))
    assert points(str(tmp_path), SPACE) == [
        {"opt.lr": 0.01, "name": "'sgd, nesterov'"},
        {"size": "[1,2]", "depth": 2},
    ]


def test_the_folder_of_a_sweep_has_the_points_of_its_jobs(tmp_path: Path) -> None:
    sweep = of_folder(
        tmp_path / "a=b",
        ["opt.lr=1e-3", "name='sgd, nesterov'", "other=1"],
        ["+opt.lr=0.1", "name=two\\ words", "size=[1,2]"],
        ["opt.lr=7"],
        ["~depth"],
    )
    assert points(str(sweep), SPACE) == [
        {"opt.lr": 0.001, "name": "'sgd, nesterov'"},
        {"opt.lr": 0.1, "name": "two words", "size": "[1,2]"},
    ]


def test_runs_that_are_named_after_their_overrides_are_points(tmp_path: Path) -> None:
    for name in ("opt.lr=0.001,name=adam", "opt.lr=0.01", "best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("opt: {}")
    assert points(str(tmp_path), SPACE) == [{"opt.lr": 0.001, "name": "adam"}, {"opt.lr": 0.01}]


def test_a_folder_without_a_point_of_the_space_is_refused(tmp_path: Path) -> None:
    sweep = of_folder(tmp_path / "sweep", ["lr=1"], ["opt.lr=9"])
    with pytest.raises(BadSearch, match=r"no point of this space \(opt\.lr, name, depth, size"):
        points(str(sweep), SPACE)
    with pytest.raises(BadSearch, match="it holds no point of this space"):
        points(str(tmp_path), SPACE)


def test_a_damaged_file_of_a_search_is_passed_over(tmp_path: Path) -> None:
    sweep = of_folder(tmp_path, ["opt.lr=0.5"])
    (sweep / "search.json").write_text('{"trials": [')
    assert points(str(sweep), SPACE) == [{"opt.lr": 0.5}]
