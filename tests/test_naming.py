"""Names of sweeps and runs: the same choice, the same name; safe in any path."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from graft.config import RunConfig
from graft.identity import NOT_RESULT
from graft.naming import MAX_LENGTH, is_bookkeeping, option, run_name, sweep_name

CONF = Path(__file__).parents[1] / "conf"


def test_a_run_is_named_after_its_choices() -> None:
    values = {"strategy": "head_only", "optimizer.lr": 1e-3}
    assert run_name(values) == "strategy=head_only,optimizer.lr=0.001"


def test_a_run_without_choices_has_a_name() -> None:
    assert run_name({}) == "defaults"


@pytest.mark.parametrize("value", ["../../etc", "/abs/path", "a b", "x\n", "ü", "~", "", "a/b"])
def test_a_name_never_leaves_its_folder(value: str) -> None:
    name = run_name({"dataset.csv": value})
    assert "/" not in name and name not in (".", "..") and name.isascii() and name.isprintable()


def test_values_that_clean_alike_keep_different_names() -> None:
    assert run_name({"k": "a/b"}) != run_name({"k": "a b"}) != run_name({"k": "a_b"})


def test_a_long_name_is_cut_and_stays_unique() -> None:
    first, second = (run_name({"k": "x" * 300 + end}) for end in "ab")
    assert len(first) <= MAX_LENGTH and first != second


def test_another_value_of_an_axis_is_the_same_sweep() -> None:
    fixed = {"epochs": "5", "output_dir": "/a", "device": "cpu"}
    name = sweep_name(["strategy", "optimizer.lr"], fixed)
    assert name.startswith("strategy_lr_")
    assert name == sweep_name(["strategy", "optimizer.lr"], fixed | {"output_dir": "/b"})
    assert name != sweep_name(["strategy", "optimizer.lr"], fixed | {"epochs": "6"})


def test_an_experiment_names_its_sweep() -> None:
    assert sweep_name([], {"experiment": "celeba_gender"}) == "celeba_gender"


def test_what_names_nothing_is_what_changes_no_result() -> None:
    """Three lists, in modules that do not know each other, and for the search in YAML."""
    keys = {field.name for field in fields(RunConfig)}
    assert {key for key in keys if is_bookkeeping(key)} == set(NOT_RESULT)
    search = yaml.safe_load((CONF / "hydra/sweeper/app/search.yaml").read_text())
    assert set(search["bookkeeping"]) == set(NOT_RESULT)


def test_a_part_is_called_as_it_is_chosen() -> None:
    """Or as another choice of the same kind: weighted is cross_entropy with weights."""
    named: dict[str, set[str]] = {}
    for file in CONF.glob("*/*.yaml"):
        found = re.search(
            r"^_target_: (graft\..+)$", file.read_text(encoding="utf-8"), re.MULTILINE
        )
        if found:
            named.setdefault(found.group(1), set()).add(file.stem)
    assert len(named) > 12
    assert [target for target, names in named.items() if option(target) not in names] == []
