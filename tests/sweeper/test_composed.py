"""Jobs are copied where that is safe, and are what Hydra's own loader composes in every case."""

import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.types import HydraContext, RunMode
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer

from hydra_plugins.gpu_launcher import _composed
from hydra_plugins.gpu_launcher._composed import compose_once

CONFIG = """\
defaults:
  - schema
  - group: one
  - other@backup: first
  - optional ${group}_extra: more
  - nothing: null
  - _self_
a: 10
b: ${a}
c: ${oc.env:HOME}
missing: ???
none: null
list: [1, {x: 2}, 3]
map: {x: 1, y: {z: 2}}
links: {x: "${a}", y: "${map}", l: ["${a}"]}
link: ${map}
into_hydra: ${hydra.runtime}
separator: "="
hydra:
  run: {dir: "here/${a}"}
  job:
    env_copy: [COPIED]
    config: {override_dirname: {exclude_keys: [a], kv_sep: "${separator}", item_sep: "__"}}
"""

FILES = {
    "config.yaml": CONFIG,
    "group/one.yaml": "name: one\nsize: 1\n",
    "group/two.yaml": "# @package _global_\ngroup: {name: two}\na: 20\n",
    "group/three.yaml": "defaults: [/other: second]\nname: three\n",
    "other/first.yaml": "name: first\n",
    "other/second.yaml": "name: second\n",
    "one_extra/more.yaml": "more: true\n",
    "nothing/some.yaml": "x: 1\n",
    "hydra/job_logging/quiet.yaml": "version: 1\nroot: null\n",
}


class Kind(Enum):
    FAST = 1
    SLOW = 2


@dataclass
class Typed:
    number: int = 1
    share: float = 0.5
    flag: bool = False
    word: str | None = None
    kind: Kind = Kind.FAST
    either: int | float = 1
    path: Path = Path("x")
    numbers: list[int] = field(default_factory=lambda: [1, 2])
    by_name: dict[str, float] = field(default_factory=lambda: {"x": 1.0})
    later: int = MISSING


@dataclass
class Outer:
    several: list[Typed] = field(default_factory=lambda: [Typed()])
    maybe: Typed | None = None


class Loaders:
    """Hydra's own loader, and ours over it; `asked` counts how often Hydra's composed a job."""

    def __init__(self, *fixed: str) -> None:
        self.own = GlobalHydra.instance().config_loader()
        assert isinstance(self.own, ConfigLoaderImpl)
        self._compose = self.own.load_sweep_config
        self.own.load_sweep_config = self._counted  # type: ignore[method-assign, assignment]
        self.asked = 0
        self.master = self.own.load_configuration("config", list(fixed), RunMode.MULTIRUN)
        self.context = HydraContext(self.own, None)  # type: ignore[arg-type]
        compose_once(self.context)

    def _counted(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        self.asked += 1
        return self._compose(master, overrides)

    def hydras(self, *overrides: str) -> DictConfig:
        return self._compose(self.master, list(overrides))

    def ours(self, *overrides: str) -> DictConfig:
        return self.context.config_loader.load_sweep_config(self.master, list(overrides))

    def copies(self, *overrides: str) -> bool:
        """Whether the job, asked for again, is made without Hydra's loader."""
        before = self.asked
        outcome(self.ours, *overrides)
        return self.asked == before


Enter = Callable[..., Loaders]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Enter]:
    """`app("fixed=override", ..., version_base=...)`: the loaders of a small application."""
    monkeypatch.setenv("COPIED", "first")
    ConfigStore.instance().store("schema", {"typed": Typed, "outer": Outer})
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    setup_globals()
    OmegaConf.register_new_resolver(
        "kept", lambda: os.urandom(4).hex(), use_cache=True, replace=True
    )

    def enter(*fixed: str, version_base: str = "1.3") -> Loaders:
        initialize_config_dir(str(tmp_path), "app", version_base)
        return Loaders(*fixed)

    yield enter
    OmegaConf.clear_resolver("kept")


def outcome(make: Callable[..., DictConfig], *overrides: str) -> Any:
    """Everything that can be seen of a configuration, or of the error in its place."""
    try:
        config = make(*overrides)
    except Exception as error:
        cause = error.__cause__
        return type(error), str(error), type(cause), str(cause)
    yaml, plain = OmegaConf.to_yaml(config), OmegaConf.to_container(config, resolve=False)
    return yaml, repr(plain), list(nodes(config, None)), OmegaConf.get_cache(config)


def nodes(node: Any, parent: Any) -> Iterator[Any]:
    assert node._get_parent() is parent
    flags = [node._get_flag(name) for name in ("struct", "readonly", "allow_objects")]
    yield type(node), vars(node._metadata), flags, node._get_full_key(None)
    below = node.__dict__.get("_content")
    if isinstance(below, dict | list):
        for child in below.values() if isinstance(below, dict) else below:
            yield from nodes(child, node)
    elif isinstance(below, BaseContainer) or hasattr(below, "_metadata"):
        yield from nodes(below, node)
    else:
        yield type(node._value()), repr(node._value())


COPIED = [
    [],
    ["a=1"],
    ["a=1", "b=2"],
    ["b=2", "a=1"],
    ["a=1", "a=2"],
    ["a="],
    ["a=null"],
    ["a=???"],
    ["a=nan"],
    ["a=1e-3"],
    ["a='quoted, with = and \\' in it'"],
    ['a="1"'],
    ["a=${map.x}"],
    ["a=x_${oc.env:HOME}"],
    ["a=${hydra.job.num}"],
    ["a=int(1.0)"],
    ["a=str(1)"],
    ["b=${c}"],
    ["missing=1"],
    ["none=1"],
    ["separator=_", "b=3"],
    ["list=[4,5]"],
    ["list=[]"],
    ["list=3"],
    ["list.0=7"],
    ["list.1.x=7"],
    ["map.y.z=3"],
    ["map={x:5}"],
    ["map={y:{z:6}}", "map.y.z=7"],
    ["map.y.z=7", "map={y:{z:6}}"],
    ["map=null"],
    ["map=3"],
    ["links.x=1"],
    ["links=3", "links={x:1}"],
    ["link=1"],
    ["link=null"],
    ["+new=1"],
    ["+new.deep.key=1"],
    ["+new={x:1,y:[2]}"],
    ["+new=[1,2]"],
    ["+map.new=1"],
    ["+map={new:1}"],
    ["+none=1"],
    ["+missing=1"],
    ["++new.key=1"],
    ["++a=1"],
    ["++b=1"],
    ["group=two"],
    ["group=two", "a=1"],
    ["a=1", "group=two"],
    ["group='two'", "a=1"],
    ["group=[one]"],
    ["group.name=x"],
    ["group=one", "group.name=x"],
    ["group.name=x", "group=one"],
    ["group={name:y}"],
    ["group=three", "other@backup=second"],
    ["+other=second"],
    ["+other@more=second", "more.name=x"],
    ["other@backup=second", "backup.name=3"],
    ["~group"],
    ["~group=one"],
    ["~other@backup", "a=2"],
    ["nothing=some", "nothing.x=2"],
    ["hydra/job_logging=quiet", "a=1"],
    ["typed.number=3"],
    ["typed.share=3"],
    ["typed.flag=yes"],
    ["typed.flag=3"],
    ["typed.word=null"],
    ["typed.word=3"],
    ["typed.kind=SLOW"],
    ["typed.kind=2"],
    ["typed.either=0.5"],
    ["typed.path=a/b"],
    ["typed.numbers=[3]"],
    ["typed.numbers.0=3"],
    ["+typed.by_name.y=2"],
    ["typed.later=2"],
    ["typed={number:2}"],
    ["typed=null"],
    ["typed=3"],
    ["typed.number=${a}"],
    ["typed.number=???"],
    ["outer.several.0.number=4"],
    ["outer.several=[{number:3}]"],
    ["outer.maybe=null"],
]

COMPOSED = [
    ["~a"],
    ["~a=10"],
    ["~map.y"],
    ["+a=1"],
    ["+b=1"],
    ["links={x:1}"],
    ["links.y.x=5"],
    ["link.x=5"],
    ["link={x:5}"],
    ["into_hydra.version=x"],
    ["a=${hydra.runtime}", "a.version=x"],
    ["map={x:${a}}"],
    ["list=[${a}]"],
    ["hydra.job.env_set.X=1"],
    ["+hydra.job.env_set.X=1"],
    ["hydra.job.env_copy=[HOME]"],
    ["hydra.runtime.cwd=x"],
    ["hydra={verbose:true}"],
    ["hydra.job.num=3", "a=1"],
    ["hydra.searchpath=[file:///nowhere]"],
]

REFUSED = [
    ["outer.maybe={number:3}"],
    ["typed.by_name={y:2}"],
    ["nothing=null"],
    ["nowhere=1"],
    ["map.nowhere=1"],
    ["a.b.c=1"],
    ["a=1,2"],
    ["a=range(3)"],
    ["group=one,two"],
    ["hydra.job.name=x,y"],
    ["a=[1"],
    ["=1"],
    ["nonsense"],
    ["a={x:"],
    ["+a=1"],
    ["~nowhere"],
    ["~a=11"],
    ["~nothing=some"],
    ["list.9=1"],
    ["list.x=1"],
    ["a=${"],
    ["group=none"],
    ["group=1"],
    ["++group=one"],
    ["+group=two"],
    ["other=second"],
    ["other@elsewhere=second"],
    ["a@b=1"],
    ["map/x=1"],
    ["~other@elsewhere"],
    ["typed=[1]"],
    ["typed.number=x"],
    ["typed.number=null"],
    ["typed.number=0.5"],
    ["typed.number=[1]"],
    ["typed.kind=OTHER"],
    ["typed.either=x"],
    ["typed.numbers=[x]"],
    ["typed.numbers=3"],
    ["typed.by_name={y:x}"],
    ["typed.nowhere=1"],
    ["outer.several=[3]"],
    ["outer.maybe.number=3"],
    ["hydra.job.num=x"],
]


@pytest.mark.filterwarnings("ignore:provider=hydra.searchpath in command-line")
@pytest.mark.filterwarnings("ignore::hydra.errors.Hydra14MigrationWarning")
@pytest.mark.parametrize(
    ("version_base", "every"),
    [
        pytest.param("1.3", 1, marks=pytest.mark.slow),
        ("1.3", 9),
        pytest.param("1.1", 9, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("cases", "are_copied"),
    [(COPIED, True), (COMPOSED, False), (REFUSED, False)],
    ids=["copied", "composed", "refused"],
)
def test_every_job_is_what_hydra_composes(
    app: Enter, version_base: str, every: int, cases: list[list[str]], are_copied: bool
) -> None:
    loaders = app(version_base=version_base)
    loaders.ours("a=5")
    for overrides in cases[::every]:
        expected = outcome(loaders.hydras, *overrides)
        assert outcome(loaders.ours, *overrides) == expected, overrides
        asked = loaders.asked
        assert outcome(loaders.ours, *overrides) == expected, overrides
        assert (loaders.asked == asked) is are_copied, overrides


@pytest.mark.slow
def test_what_the_command_fixes_is_kept(app: Enter) -> None:
    fixed = ["hydra/job_logging=quiet", "hydra.sweep.dir=x_${a}", "hydra.job.name=its"]
    loaders = app(*fixed)
    jobs = [["a=1"], ["a=2", "group=two"], ["a=3", "hydra.job.name=other"], ["hydra.job.name=x"]]
    for overrides in [*jobs, *jobs]:
        expected = outcome(loaders.hydras, *overrides)
        assert outcome(loaders.ours, *overrides) == expected
    assert loaders.copies("a=4", "group=two")
    assert not loaders.copies("a=4", "hydra.job.name=other")


@pytest.mark.slow
def test_another_sweep_with_other_settings_has_other_templates(app: Enter) -> None:
    loaders = app()
    loaders.ours("a=1")
    for fixed in (["hydra.job.name=other"], ["hydra.verbose=true"], []):
        loaders.master = loaders.own.load_configuration("config", fixed, RunMode.MULTIRUN)
        assert outcome(loaders.ours, "a=2") == outcome(loaders.hydras, "a=2")


def test_what_surrounds_a_job_is_of_its_own_time(
    app: Enter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaders = app()
    loaders.ours("a=1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COPIED", "second")
    assert loaders.copies("a=2")
    job = loaders.ours("a=2").hydra
    assert job.runtime.cwd == str(tmp_path) and job.job.env_set.COPIED == "second"
    monkeypatch.delenv("COPIED")
    assert outcome(loaders.ours, "a=2") == outcome(loaders.hydras, "a=2")


def test_what_the_sweep_has_resolved_its_jobs_resolve_alike(app: Enter) -> None:
    loaders = app("+hydra.job.env_set.ID=${kept:}")
    known = loaders.master.hydra.job.env_set.ID
    first, second = loaders.ours("a=1"), loaders.ours("a=2")
    assert first.hydra.job.env_set.ID == second.hydra.job.env_set.ID == known


@pytest.mark.parametrize("place", ["job: ${elsewhere}", "job: {env_copy: ['${a}']}"])
def test_a_section_that_stands_elsewhere_is_left_to_hydra(
    app: Enter, tmp_path: Path, place: str
) -> None:
    loaders = app()
    text = f"a: COPIED\nelsewhere: {{name: x, env_set: {{}}}}\nhydra: {{{place}}}\n"
    (tmp_path / "config.yaml").write_text(text)
    for overrides in (["a=HOME"], ["a=COPIED"]):
        expected = outcome(loaders.hydras, *overrides)
        assert outcome(loaders.ours, *overrides) == expected
        assert not loaders.copies(*overrides)


def test_jobs_do_not_know_each_other(app: Enter) -> None:
    loaders = app()
    loaders.ours("a=5")
    one, other = loaders.ours("a=5"), loaders.ours("a=5")
    untouched = outcome(lambda: other)
    with open_dict(one):
        one.hydra.job.num = 3
        one.hydra.overrides.task.append("x=1")
        one.typed.by_name.new = 1.0
        one.list[1].x = 0
        del one.map
    OmegaConf.set_readonly(one, True)
    OmegaConf.set_struct(one.typed, False)
    one.hydra.job.env_set._metadata.key = "other"
    assert outcome(lambda: other) == untouched == outcome(loaders.ours, "a=5")


@pytest.mark.slow
def test_no_job_is_kept(app: Enter) -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(thing) is DictConfig for thing in gc.get_objects())

    loaders = app()
    for num in range(10):
        loaders.ours(f"a={num}", "group=two")
    before = alive()
    for num in range(2000):
        loaders.ours(f"a={num}", f"+only_here_{num}={num}", "group=two")
    assert alive() <= before


def test_few_templates_are_kept(app: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_composed, "MAX_TEMPLATES", 2)
    loaders = app()
    for group in ("one", "two", "one", "three"):
        loaders.ours(f"group={group}")
    assert loaders.copies("group=one", "a=1") and loaders.copies("group=three")
    assert not loaders.copies("group=two")
    assert loaders.copies("group=two") and not loaders.copies("group=one")


@pytest.mark.slow
def test_copies_are_much_cheaper(app: Enter) -> None:
    def seconds(make: Callable[..., DictConfig], times: int) -> float:
        taken = []
        for num in range(times):
            start = time.perf_counter()
            make(f"a={num}", "typed.share=0.25")
            taken.append(time.perf_counter() - start)
        return median(taken)

    loaders = app()
    assert seconds(loaders.ours, 200) < seconds(loaders.hydras, 10) / 5


def test_a_hydra_that_completes_jobs_otherwise_composes_them_itself(app: Enter) -> None:
    loaders = app()
    compose = loaders._compose

    def completed(master: DictConfig, overrides: list[str]) -> DictConfig:
        config = compose(master, overrides)
        config.hydra.help.header = " and ".join(overrides)
        return config

    loaders._compose = completed  # type: ignore[assignment]
    for num in range(3):
        assert loaders.ours(f"a={num}").hydra.help.header == f"a={num}"
    assert not loaders.copies("a=1")


def test_an_unknown_hydra_or_loader_is_left_alone(
    app: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaders = app()
    ours = loaders.context.config_loader
    compose_once(loaders.context)  # a second launcher of the same sweep
    assert loaders.context.config_loader is ours
    loaders.context.config_loader = loaders.own
    monkeypatch.setattr(hydra, "__version__", "1.4.0")
    compose_once(loaders.context)
    assert loaders.context.config_loader is loaders.own


def test_the_loader_is_the_plain_one_for_everything_else_and_elsewhere(app: Enter) -> None:
    loaders = app()
    del loaders.own.load_sweep_config
    ours: Any = loaders.context.config_loader
    assert ours.list_groups("") == loaders.own.list_groups("")
    made, of = ours.__reduce__()
    assert type(made(*of)) is ConfigLoaderImpl


def test_grafts_own_jobs_are_what_hydra_composes() -> None:
    from graft.app import conf_dir

    setup_globals()
    initialize_config_dir(conf_dir(), "graft", "1.3")
    loaders = Loaders()
    common = ["sweep.name=s", "sweep.axes=[strategy,optimizer.lr,seed]"]
    axes = [["strategy=head_only", "strategy=fine_tune"], ["optimizer.lr=1e-3"], ["seed=1"]]
    axes[1].append("optimizer.lr=0.0001")
    axes[2].append("seed=2")
    for job in product(*axes):
        expected = outcome(loaders.hydras, *job, *common)
        assert outcome(loaders.ours, *job, *common) == expected
    assert loaders.asked == 3  # a template for each strategy, and the first job
