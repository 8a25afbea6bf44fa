"""Hydra's overrides and Optuna's distributions: each of them as the other, and nothing lost."""

import math
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from optuna.distributions import CategoricalDistribution as Choices
from optuna.distributions import FloatDistribution as Float
from optuna.distributions import IntDistribution as Int
from optuna.trial import FixedTrial

from hydra_plugins.study_sweeper._errors import BadSearch
from hydra_plugins.study_sweeper._space import Param, Space, identity, space
from hydra_plugins.study_sweeper._text import written

PARSER = OverridesParser.create()


def param(typed: str) -> Param:
    (found,) = space([f"key={typed}"]).params
    return found


def read(override: str) -> Any:
    """What Hydra takes an override for."""
    return PARSER.parse_override(override).value()


# --- one translation -------------------------------------------------------------------------

TABLE = [
    ("interval(1e-5,1e-1)", Float(1e-5, 1e-1)),
    ("interval(1,5)", Float(1.0, 5.0)),
    ("interval(-2,-1)", Float(-2.0, -1.0)),
    ("interval(2,2)", Float(2.0, 2.0)),
    ("tag(log,interval(1e-5,1e-1))", Float(1e-5, 1e-1, log=True)),
    ("int(interval(1,8))", Int(1, 8)),
    ("tag(int,interval(1,8))", Int(1, 8)),
    ("tag(log,int(interval(1,8)))", Int(1, 8, log=True)),
    ("int(tag(log,interval(1,8)))", Int(1, 8, log=True)),
    ("tag(int,log,interval(1,8))", Int(1, 8, log=True)),
    ("float(interval(1,8))", Float(1.0, 8.0)),
    # Hydra's range leaves its end out; the official plugin's does not.
    ("range(1,4)", Int(1, 3)),
    ("range(3)", Int(0, 2)),
    ("range(1,2)", Int(1, 1)),
    ("range(0,10,5)", Int(0, 5, step=5)),
    ("range(0,11,5)", Int(0, 10, step=5)),
    ("range(5,1,-1)", Int(2, 5)),
    ("range(9,0,step=-4)", Int(1, 9, step=4)),
    ("shuffle(range(1,4))", Int(1, 3)),
    ("tag(log,range(1,9))", Int(1, 8, log=True)),
    ("tag(int,range(1.0,3.0))", Int(1, 2)),
    ("int(range(0.5,3.5))", Int(0, 2)),
    ("range(0.1,0.5,0.1)", Float(0.1, 0.4, step=0.1)),
    ("range(0,1,0.25)", Float(0.0, 0.75, step=0.25)),
    ("range(0,1,0.3)", Float(0.0, 0.9, step=0.3)),
    ("range(0.5,5.5,step=1)", Float(0.5, 4.5, step=1.0)),
    ("range(1,0,-0.25)", Float(0.25, 1.0, step=0.25)),
    ("float(range(1,4))", Float(1.0, 3.0, step=1.0)),
    ("a,b", Choices(["a", "b"])),
    ("choice(a,b)", Choices(["a", "b"])),
    ("choice(a)", Choices(["a"])),
    ("tag(x,choice(a,b))", Choices(["a", "b"])),
    ("1,2", Choices([1, 2])),
    ("1e-3,0.001,1e-4", Choices([0.001, 0.0001])),
    ("true,FALSE", Choices([True, False])),
    ("bool(1,0)", Choices([True, False])),
    ("null,1", Choices([None, 1])),
    ("a,null,7,0.5,true", Choices(["a", None, 7, 0.5, True])),
    # These are equal to Python, and to Optuna.
    ("1,1.0,true,2", Choices(["1", "1.0", "true", 2])),
    ("'1',2", Choices(["'1'", 2])),
    ("007,010", Choices(["007", "010"])),
    ("inf,nan", Choices(["inf", "nan"])),
    ("'hello',\"world\"", Choices(["hello", "world"])),
    ("two words,'a,b'", Choices(["two words", "'a,b'"])),
    ("'',x", Choices(["", "x"])),
    ("${x},b", Choices(["${x}", "b"])),
    ("[1,2],[3]", Choices(["[1,2]", "[3]"])),
    ("{a:1},{a:2}", Choices(["{a:1}", "{a:2}"])),
    ("sort(3,1,2)", Choices([1, 2, 3])),
    ("sort(range(3,0,-1))", Int(1, 3)),
]


@pytest.mark.parametrize(("typed", "expected"), TABLE, ids=[typed for typed, _ in TABLE])
def test_an_override_is_a_distribution(typed: str, expected: Any) -> None:
    assert param(typed).distribution == expected


@pytest.mark.parametrize(("typed", "expected"), TABLE, ids=[typed for typed, _ in TABLE])
def test_so_it_is_as_text_in_yaml(typed: str, expected: Any) -> None:
    (found,) = space([], {"key": typed}).params
    assert found.distribution == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([2, 2.5, True, None, "a"], Choices([2, 2.5, True, None, "a"])),
        ([1e-5, "1e-4"], Choices([1e-5, 1e-4])),
        (["two words", "a,b", "it's"], Choices(["two words", "'a,b'", r"'it\'s'"])),
        (["grün", "rot"], Choices(["'grün'", "rot"])),
        ([[1, 2], [3, 4]], Choices(["[1,2]", "[3,4]"])),
        ([["a b", "c,d"], []], Choices(["[a b,'c,d']", "[]"])),
        ([{"a": 1}, {"a": {"b": "x, y"}}], Choices(["{a:1}", "{a:{b:'x, y'}}"])),
    ],
    ids=str,
)
def test_a_list_in_yaml_is_choices(given: Sequence[Any], expected: Any) -> None:
    (found,) = space([], {"key": given}).params
    assert found.distribution == expected


def test_choices_keep_their_order_where_hydra_shuffles_them() -> None:
    """A study refuses choices in another order."""
    for _ in range(5):
        assert param("shuffle(a,b,c,d,e)").distribution == Choices(["a", "b", "c", "d", "e"])


def test_a_range_has_the_values_that_hydra_has() -> None:
    source = random.Random(0)
    ends = [0, 1, 7, -3, 0.1, 0.25, 1.5, -0.7, 100]
    steps = [1, 2, 3, -1, -2, 0.1, 0.2, 0.25, -0.3, 1.5]
    for _ in range(300):
        start, stop, step = source.choice(ends), source.choice(ends), source.choice(steps)
        typed = f"range({start},{stop},{step})"
        theirs = sorted(PARSER.parse_override(f"key={typed}").sweep_iterator())
        # Their sums of decimals may miss the end, which is left out, by a rounding.
        theirs = [one for one in theirs if not math.isclose(one, stop, abs_tol=1e-9)]
        if theirs:
            assert param(typed).values() == pytest.approx(theirs, abs=1e-9), typed
        else:
            with pytest.raises(BadSearch, match="the range is empty"):
                param(typed)


def test_values_of_a_range_of_fractions_are_written_without_a_rests_of_sums() -> None:
    found = param("range(0.1,1,0.1)")
    assert [found.override(value) for value in found.values() or ()] == [
        f"key=0.{tenths}" for tenths in range(1, 10)
    ]
    assert found.override(0.1 + 0.2) == "key=0.3"


BAD = {
    "interval(2,1)": "the interval is empty: 2 is above 1",
    "interval(0,inf)": "an interval's ends are finite numbers",
    "interval(-inf,0)": "an interval's ends are finite numbers",
    "interval(nan,1)": "an interval's ends are finite numbers",
    "tag(log,interval(0,1))": "with the tag log it begins above 0, not at 0",
    "tag(log,int(interval(-1,1)))": "with the tag log it begins above 0, not at -1",
    "tag(log,range(0,9))": "with the tag log it begins above 0, not at 0",
    "tag(log,range(1,9,2))": "a range with the tag log has a step of 1; use an interval",
    "tag(log,range(0.5,9))": "a range with the tag log has integers; use an interval",
    "tag(int,interval(0.5,3))": "an interval of integers has integers as its ends",
    "tag(int,interval(1,3.5))": "an interval of integers has integers as its ends",
    "tag(int,range(0.5,3.5))": "a range of integers has integers as its start, end and step",
    "tag(cube,interval(0,1))": "the tag cube is not known here; log and int are",
    "tag(cube,range(0,9))": "the tag cube is not known here; log and int are",
    "range(4,4)": "the range is empty: its end, 4, is left out",
    "range(4,1)": "the range is empty: its end, 1, is left out",
    "range(1,4,-1)": "the range is empty: its end, 4, is left out",
    "range(0.5,4,0)": "a range needs a start, an end and a step that is not 0",
    "range(1,4,0)": "a range needs a start, an end and a step that is not 0",
    "range(1,inf)": "a range's start, end and step are finite numbers",
    "range(nan,2)": "a range's start, end and step are finite numbers",
    "{lr:interval(0,1)}": "a range or choices within a list or a dictionary cannot be searched; "
    "give them a key of their own: key.key=interval(0,1)",
    "[interval(0,1),2]": "a range or choices within a list or a dictionary cannot be searched; "
    "give them a key of their own: key.key=interval(0,1)",
}


@pytest.mark.parametrize("typed", BAD)
def test_what_cannot_be_searched_is_refused_with_the_override_and_a_reason(typed: str) -> None:
    with pytest.raises(BadSearch, match=f"^{re.escape(f'key={typed}: {BAD[typed]}.')}$"):
        space(["a=1,2", f"key={typed}"])


def test_an_empty_list_in_yaml_is_refused() -> None:
    with pytest.raises(BadSearch, match=r"params\.key: there is nothing to choose from"):
        space([], {"key": []})


# --- back again ------------------------------------------------------------------------------


def test_every_value_of_a_number_comes_back_as_itself() -> None:
    source = random.Random(0)
    for _ in range(300):
        low = source.choice([-1, 1]) * 10 ** source.uniform(-12, 12)
        value = low + source.random() * 10 ** source.uniform(-12, 12)
        found = read(Param("key", Float(low, math.inf)).override(value))
        assert (type(found), found) == (float, value)
        whole = source.randint(-(10**15), 10**15)
        again = read(Param("key", Int(-(10**15), 10**15)).override(whole))
        assert (type(again), again) == (int, whole)


@pytest.mark.parametrize("value", [True, False, None, 0, -1, 1e22, 1e-7, 0.1, 3.0])
def test_every_plain_choice_comes_back_as_itself(value: Any) -> None:
    found = param(f"{written(value)},other")
    again = read(found.override((found.values() or [])[0]))
    assert (type(again), again) == (type(value), value)


ALPHABET = [*"ab1 e-.,:=+'\"\\[]{}()$@/?!#%&*~ü\t\n|;<>^`_", "null", "true", "1e5", "${x}", "(1,3)"]


@pytest.mark.parametrize("quote", Quote, ids=lambda quote: quote.name)
def test_every_string_comes_back_as_itself(quote: Quote) -> None:
    source = random.Random(quote.value)
    for _ in range(200):
        text = "".join(source.choices(ALPHABET, k=source.randint(0, 6)))
        typed = QuotedString(text, quote).with_quotes()
        alone, in_list = param(f"{typed},zzz"), param(f"[{typed},1],zzz")
        assert read(alone.override((alone.values() or [])[0])) == text
        assert read(in_list.override((in_list.values() or [])[0])) == [text, 1]


def test_lists_and_dictionaries_come_back_as_themselves() -> None:
    for value in ([], [1, 2.5, True, None], [[1], ["a b", "c,d"]], {}, {"a": {"b": ["x: y", 0.1]}}):
        found = param(f"{written(value)},zzz")
        assert read(found.override((found.values() or [])[0])) == value


def test_a_raw_string_is_quoted_only_where_hydra_cannot_read_it() -> None:
    texts = ["a", "1", "null", "[1,2]", "${x}", "'a,b'", "a,b", "range(1,3)", "a]", "it's", "grün"]
    assert [written(text) for text in texts] == [
        *("a", "1", "null", "[1,2]", "${x}", "'a,b'"),
        *("'a,b'", "'range(1,3)'", "'a]'", r"'it\'s'", "'grün'"),
    ]


# --- which override counts -------------------------------------------------------------------


def test_what_is_not_swept_is_fixed_as_it_was_typed() -> None:
    found = space(["x=1,2", "+y=1e-3", "~z", "group@a.b=one", "++w='q'"])
    assert [one.key for one in found.params] == ["x"]
    assert list(found.fixed) == ["+y=1e-3", "~z", "group@a.b=one", "++w='q'"]


def test_the_command_line_comes_after_yaml_and_the_last_one_counts() -> None:
    params = {"x": "interval(0,1)", "y": [1, 2], "z": 3}
    found = space(["x=0.5", "z=4,5", "z=6,7"], params)
    assert {one.key: one.distribution for one in found.params} == {
        "y": Choices([1, 2]),
        "z": Choices([6, 7]),
    }
    assert list(found.fixed) == ["x=0.5"]


def test_a_plus_is_of_the_override_and_not_of_the_name() -> None:
    found = space(["+x=1,2", "++y=range(3)"])
    assert [(one.key, one.name) for one in found.params] == [("+x", "x"), ("++y", "y")]
    assert found.overrides({"x": 1, "y": 2}) == ["+x=1", "++y=2"]
    assert space(["+x=1,2", "x=3"]).params == []


def test_what_is_deleted_is_not_searched() -> None:
    found = space(["~x"], {"x": "interval(0,1)", "y": [1, 2]})
    assert [one.name for one in found.params] == ["y"]
    assert list(found.fixed) == ["~x"]


def test_sections_in_yaml_are_dotted_keys() -> None:
    found = space([], {"optimizer": {"lr": "interval(0,1)", "name": "adam"}, "a.b": [1, 2]})
    assert [one.key for one in found.params] == ["optimizer.lr", "a.b"]
    assert list(found.fixed) == ["optimizer.name=adam"]


# --- conditions ------------------------------------------------------------------------------

TREE = ["depth=range(1,4)", "strategy=head,tune,full", "warm=true,false"]


def conditional(*arguments: str, **conditions: Any) -> Space:
    return space(arguments or TREE, None, conditions)


def test_a_parameter_comes_after_those_that_it_depends_on() -> None:
    found = conditional(depth="strategy=tune,full", strategy="warm=true")
    assert [one.name for one in found.params] == ["warm", "strategy", "depth"]
    assert [dict(one.when) for one in found.params] == [
        {},
        {"warm": {"true"}},
        {"strategy": {"tune", "full"}},
    ]
    assert found.is_conditional() and not conditional().is_conditional()


def test_a_point_has_only_what_its_conditions_allow() -> None:
    found = conditional(depth="strategy=tune", strategy="warm=true")
    every = {"warm": True, "strategy": "tune", "depth": 2}
    assert found.suggested(FixedTrial(every)) == every  # type: ignore[arg-type]
    head = every | {"strategy": "head"}
    assert found.suggested(FixedTrial(head)) == {"warm": True, "strategy": "head"}  # type: ignore[arg-type]
    # What depends on something that is not there is not there either.
    assert found.suggested(FixedTrial(every | {"warm": False})) == {"warm": False}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ({"x": 0.001}, {"0.001"}),
        ({"x": [0.001, "a b", None, True, [1, 2]]}, {"0.001", "a b", "null", "true", "[1,2]"}),
        ("x=1e-3", {"0.001"}),
        ("x=1e-3,1e-2", {"0.001", "0.01"}),
        ("x='a b'", {"a b"}),
        ("x=[1, 2]", {"[1,2]"}),
        ("x=TRUE", {"true"}),
        ("x=null", {"null"}),
        ("+x=7", {"7"}),
        ("n=range(2,4)", {"2", "3"}),
    ],
)
def test_a_condition_names_values_as_an_override_does(typed: Any, wanted: set[str]) -> None:
    x = "x=0.001,0.01,'a b',[1,2],true,null,7"
    found = conditional(x, "n=range(9)", "y=1,2", y=typed)
    assert set(*next(one for one in found.params if one.name == "y").when.values()) == wanted


def test_several_conditions_must_all_hold() -> None:
    for when in (["strategy=tune,full", "warm=true"], {"strategy": ["tune", "full"], "warm": True}):
        assert_both(conditional(depth=when))


def assert_both(found: Space) -> None:
    points = [point for point in found.points() or () if "depth" in point]
    assert {(point["strategy"], point["warm"]) for point in points} == {
        ("tune", True),
        ("full", True),
    }


def test_a_condition_on_a_fixed_key_holds_for_all_points_or_none() -> None:
    when = {"depth": "strategy=tune", "rate": "depth=1"}
    assert [
        one.name for one in conditional(TREE[0], "rate=1,2", "strategy=head", **when).params
    ] == []
    found = conditional(TREE[0], "rate=1,2", "strategy=tune", **when)
    assert {one.name: dict(one.when) for one in found.params} == {
        "depth": {},
        "rate": {"depth": {"1"}},
    }


def test_a_condition_of_a_fixed_key_and_one_that_is_null_are_none() -> None:
    found = conditional("depth=2", *TREE[1:], depth="strategy=tune", warm=None)
    assert [dict(one.when) for one in found.params] == [{}, {}]


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        (
            {"depth": ["strategy=tune", "strategy=head"]},
            "conditions.depth: no strategy is all of these at once. One of several is strategy=a,b",
        ),
        ({"depht": "strategy=tune"}, "conditions: depht is not searched. Searched: depth, strat"),
        ({"depth": "strategie=tune"}, "depth=strategie=tune: name another searched key and its"),
        ({"depth": "strategy"}, "depth=strategy: name another searched key and its values"),
        ({"depth": "depth=1"}, "depth=depth=1: name another searched key and its values"),
        ({"depth": "~strategy"}, "depth=~strategy: name another searched key and its values"),
        ({"depth": 3}, "depth=3: name another searched key and its values"),
        ({"depth": {"strategy": "tuna"}}, "strategy is never tuna; it is one of head, tune, full"),
        ({"depth": {"strategie": "tune"}}, "strategie=tune: name another searched key and its val"),
        ({"depth": "strategy=tuna"}, "strategy is never tuna; it is one of head, tune, full"),
        ({"warm": "depth=4"}, "depth is never 4; it is one of 1, 2, 3"),
        ({"depth": "warm=true", "warm": "depth=1"}, "conditions: depth, warm depend on each other"),
        (
            {"depth": "warm=true", "warm": "strategy=tune", "strategy": "depth=1"},
            "conditions: depth, strategy, warm depend on each other",
        ),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused(conditions: Any, said: str) -> None:
    with pytest.raises(BadSearch, match=re.escape(said)):
        conditional(**conditions)


# --- every point -----------------------------------------------------------------------------


def test_a_finite_space_has_its_points_in_order() -> None:
    found = space(["a=range(2)", "b=x,y"])
    assert list(found.points() or ()) == [
        {"a": 0, "b": "x"},
        {"a": 0, "b": "y"},
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
    ]


def test_points_that_differ_in_what_does_not_belong_to_them_are_one() -> None:
    found = conditional(depth="strategy=tune", strategy="warm=true")
    points = list(found.points() or ())
    assert len(points) == 1 + 2 + 3
    assert len({identity(point) for point in points}) == 6


@pytest.mark.parametrize(
    ("typed", "count"),
    [
        ("interval(0,1)", None),
        ("interval(2,2)", 1),
        ("int(interval(1,8))", 8),
        ("range(0,1,0.1)", 10),
        ("range(0,1,1e-9)", None),
        ("range(20000)", None),
        ("a,b", 2),
    ],
)
def test_a_space_is_finite_where_its_points_can_be_counted(typed: str, count: int | None) -> None:
    points = space([f"key={typed}"]).points()
    assert (None if points is None else len(list(points))) == count
    both = space([f"key={typed}", "other=interval(0,1)"]).points()
    assert both is None


def test_many_finite_dimensions_are_too_many_points() -> None:
    assert space([f"key{i}=range(10)" for i in range(5)]).points() is None
    assert space(["x=1"]).points() is None


# --- points that somebody wrote down ---------------------------------------------------------

MIXED = [
    "lr=tag(log,interval(1e-4,1))",
    "n=range(0,10,2)",
    "step=range(0,1,0.1)",
    "c=a,'b c',true,null,2,0.001,[1,2],{k:v},007,'e,f'",
    "epochs=10",
    "+rate=1e-3",
]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lr": 0.01}, 0.01),
        ({"lr": "1e-2"}, 0.01),
        ({"lr": 1}, 1.0),
        ({"n": 4}, 4),
        ({"n": "4"}, 4),
        ({"n": 4.0}, 4),
        ({"step": 0.1 + 0.2}, 0.3),
        ({"step": "0.7"}, 0.7),
        ({"+c": "a"}, "a"),
        ({"c": "b c"}, "b c"),
        ({"c": "'b c'"}, "b c"),
        ({"c": True}, True),
        ({"c": "True"}, True),
        ({"c": None}, None),
        ({"c": "null"}, None),
        ({"c": 2}, 2),
        ({"c": "1e-3"}, 0.001),
        ({"c": [1, 2]}, "[1,2]"),
        ({"c": "[1, 2]"}, "[1,2]"),
        ({"c": {"k": "v"}}, "{k:v}"),
        ({"c": "007"}, "007"),
        ({"c": "e,f"}, "'e,f'"),
        ({"c": "'e,f'"}, "'e,f'"),
    ],
    ids=str,
)
def test_a_written_point_has_the_values_of_its_distributions(given: Any, expected: Any) -> None:
    ((_, value),) = space(MIXED).checked(given, "here").items()
    assert (type(value), value) == (type(expected), expected)


def test_a_written_point_may_repeat_what_is_fixed() -> None:
    given = {"lr": 1, "epochs": 10, "rate": 0.001}
    assert space(MIXED).checked(given, "here") == {"lr": 1.0}


def test_a_written_point_loses_what_does_not_belong_to_it() -> None:
    found = conditional(depth="strategy=tune", strategy="warm=true")
    assert found.checked({"strategy": "head", "depth": 2}, "here") == {"strategy": "head"}
    assert found.checked({"strategy": "tune", "depth": 2}, "here") == {
        "strategy": "tune",
        "depth": 2,
    }
    assert found.checked({"depth": 2}, "here") == {"depth": 2}
    gone = {"warm": False, "strategy": "tune", "depth": 2}
    assert found.checked(gone, "here") == {"warm": False}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr": 2}, "here: lr=2 is not in the space, 0.0001 to 1."),
        ({"lr": "much"}, "here: lr=much is not a number."),
        ({"lr": None}, "here: lr=None is not a number."),
        ({"lr": math.nan}, "here: lr=nan is not in the space"),
        ({"lr": math.inf}, "here: lr=inf is not in the space"),
        ({"n": 3}, "here: n=3 is not in the space, 0 to 8 in steps of 2."),
        ({"n": 2.5}, "here: n=2.5 is not in the space"),
        ({"n": math.inf}, "here: n=inf is not in the space"),
        ({"n": math.nan}, "here: n=nan is not in the space"),
        ({"step": 0.25}, "here: step=0.25 is not in the space, 0 to 0.9 in steps of 0.1."),
        ({"c": "z"}, "here: c=z: it is one of a, b c, true, null, 2, 0.001, [1,2], {k:v}, 007,"),
        ({"c": False}, "here: c=False: it is one of"),
        ({"x": 1}, "here: x is not searched. Searched: lr, n, step, c."),
        ({"epochs": 11}, "here: epochs is not searched."),
    ],
    ids=str,
)
def test_a_written_point_that_is_not_in_the_space_is_refused(given: Any, said: str) -> None:
    with pytest.raises(BadSearch, match=f"^{re.escape(said)}"):
        space(MIXED).checked(given, "here")


def test_equal_points_have_one_identity_in_whatever_order() -> None:
    assert identity({"a": 1, "b": "x"}) == identity({"b": "x", "a": 1})
    assert identity({"a": 1}) != identity({"a": 1.0}) != identity({"a": True})
