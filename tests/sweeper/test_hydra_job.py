"""A job run by us is, for all that can be seen of it, a job run by Hydra's own `run_job`."""

import logging
import os
import random
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import pytest
import yaml
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core import utils
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper

from hydra_plugins.gpu_launcher import _hydra_job, _yaml
from hydra_plugins.gpu_launcher._template import same
from hydra_plugins.gpu_launcher._yaml import to_yaml

pytestmark = pytest.mark.skipif(
    not hydra.__version__.startswith("1.3."), reason="other versions run their own"
)

CONFIG = """\
defaults: [schema, _self_]
a: 10
b: ${a}
missing: ???
none: null
empty: {d: {}, l: []}
list: [1, {x: 2, y: {z: [3]}}, "3", [4, 5]]
words: {yes: "no", one: "1", long: "LONG", lines: "two\\n  lines\\n", odd: "- é: #"}
own: ${hydra:job.num}
folder: ${hydra:runtime.output_dir}
""".replace("LONG", "word " * 40)


class Kind(Enum):
    FAST = 1


@dataclass
class Typed:
    share: float = 0.5
    kind: Kind = Kind.FAST
    path: Path = Path("x")
    data: bytes = b"\xff"
    numbers: list[int] = field(default_factory=lambda: [1, 2])


class Witness:
    """A callback, and a task: notes all that it can see."""

    def __init__(self, config: DictConfig, does: Callable[[Any], Any]) -> None:
        self.config, self.does, self.seen = config, does, list[Any]()

    def task(self, cfg: DictConfig) -> Any:
        own = HydraConfig.instance().cfg
        assert own is not None and own.hydra._get_parent() is self.config  # type: ignore[attr-defined]
        handlers = [
            (type(h), h.level, getattr(h, "baseFilename", "")) for h in logging.root.handlers
        ]
        folders = (os.getcwd(), sorted(os.listdir()), HydraConfig.get().runtime.output_dir)
        self.seen.append((cfg.copy(), own.copy(), handlers, logging.root.level))  # type: ignore[attr-defined]
        self.seen.append((folders, dict(os.environ)))
        logging.getLogger("app").info("at work")
        return self.does(cfg)

    def on_job_start(self, config: DictConfig, **others: Any) -> None:
        assert config is self.config and others["task_function"] == self.task
        self.seen.append(("start", config.copy(), os.getcwd(), os.environ.get("KEY")))

    def on_job_end(self, config: DictConfig, **others: Any) -> None:
        assert config is self.config
        self.result = others["job_return"]
        self.seen.append(("end", config.copy(), os.getcwd(), os.environ.get("KEY")))


Compose = Callable[..., DictConfig]
Run = Callable[[DictConfig, Any, HydraContext], Any]


def hydras(config: DictConfig, task: Any, context: HydraContext) -> Any:
    return utils.run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)


def ours(config: DictConfig, task: Any, context: HydraContext) -> Any:
    return _hydra_job.run_job(config, task, context)


@pytest.fixture
def compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compose]:
    """`compose("a=1", ...)`: the configuration of job 7."""
    monkeypatch.chdir(tmp_path)
    ConfigStore.instance().store("schema", {"typed": Typed})
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text(CONFIG)
    setup_globals()

    def make(*overrides: str, version_base: str = "1.3") -> DictConfig:
        GlobalHydra.instance().clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            initialize_config_dir(str(tmp_path / "conf"), "app", version_base)
        app = GlobalHydra.instance().hydra
        assert app is not None
        # Two jobs are compared, and configurations keep the time for which they have asked.
        OmegaConf.register_new_resolver("now", lambda _: "now", use_cache=True, replace=True)
        fixed = ["hydra.job.num=7", "hydra.sweep.dir=out", "hydra.sweep.subdir=${hydra.job.num}"]
        return app.compose_config("config", [*fixed, *overrides], RunMode.MULTIRUN)

    yield make


def life(run: Run, config: DictConfig, does: Callable[[Any], Any]) -> dict[str, Any]:
    """All that can be seen of a job's life."""
    witness = Witness(config, does)
    callbacks = Callbacks()
    callbacks.callbacks.append(witness)
    context = HydraContext(GlobalHydra.instance().config_loader(), callbacks)
    found: dict[str, Any] = {"seen": witness.seen}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            result = run(config, witness.task, context)
            assert result is witness.result
            found |= vars(result) | {"_return_value": repr(result._return_value)}
        except BaseException as error:
            found["raised"] = repr(error)
    found["warned"] = [(str(one.message), one.category, one.filename) for one in warned]
    found["config"] = config.copy()
    found["after"] = (os.getcwd(), dict(os.environ), HydraConfig.instance().cfg is None)
    _close_logs()
    found["files"] = _files(Path("out"))
    return found


def _close_logs() -> None:
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("app").setLevel(logging.NOTSET)
    logging.getLogger("hydra").setLevel(logging.NOTSET)
    for handler in logging.root.handlers[:]:
        if isinstance(handler, logging.FileHandler) and "pytest" not in type(handler).__module__:
            logging.root.removeHandler(handler)
            handler.close()
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False  # which "disabled" means for all that there are


def _files(folder: Path) -> dict[str, str]:
    found = {str(p): p.read_text("utf-8") for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: re.sub(r"^\[[-\d]+ [:,\d]+\]", "[then]", text) for name, text in found.items()}


def equal(one: Any, other: Any) -> bool:
    """Configurations are compared to the last flag."""
    if type(one) is not type(other):
        return False
    if isinstance(one, DictConfig):
        return same(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def fails(cfg: Any) -> None:
    raise ValueError("in the task")


def exits(cfg: Any) -> None:
    raise SystemExit(3)


def changes(cfg: Any) -> Any:
    cfg.a = 11
    cfg.list.append(1)
    os.environ["LEFT"] = "behind"
    return cfg.b


def looks(cfg: Any) -> Any:
    return cfg.own, cfg.folder, cfg.typed.kind, OmegaConf.is_missing(cfg, "missing")


CASES: list[tuple[list[str], Callable[[Any], Any], str]] = [
    *[([], does, "1.3") for does in (looks, fails, exits, changes)],
    (["a=1", "b=[x,{y: z}]", "typed.share=3", "+new={k: [1, 2]}", "none='${a}'"], looks, "1.3"),
    (["hydra.output_subdir=null"], looks, "1.3"),
    (["hydra.output_subdir=deep/er"], looks, "1.3"),
    (["hydra.job.chdir=true"], looks, "1.3"),
    (["hydra.job.chdir=true"], fails, "1.3"),
    (["hydra.job.chdir=false"], looks, "1.1"),
    ([], looks, "1.1"),
    ([], exits, "1.1"),
    (["+hydra.job.env_set.KEY=of job ${hydra.job.num}", "+hydra.job.env_set.HOME=x"], looks, "1.3"),
    (["+hydra.job.env_set.KEY=${a}"], looks, "1.3"),
    (["+hydra.job.env_set.KEY=${nothing}"], looks, "1.3"),
    (["hydra.sweep.subdir=${nothing}"], looks, "1.3"),
    (["hydra.sweep.subdir=${a}/${hydra:job.name}/${now:%Y}"], looks, "1.3"),
    (["hydra.sweep.subdir=in the way"], looks, "1.3"),
    (["hydra.job_logging.root.level=DEBUG"], looks, "1.3"),
    (["hydra.verbose=true"], looks, "1.3"),
    (["hydra.verbose=[app, hydra]"], looks, "1.3"),
    (["hydra/job_logging=none"], looks, "1.3"),
    (["hydra/job_logging=disabled"], looks, "1.3"),
    (["hydra.job_logging.handlers.file.filename=/no/such/place"], looks, "1.3"),
]


@pytest.mark.parametrize(("overrides", "does", "base"), CASES)
def test_a_job_is_seen_to_be_what_hydra_makes_of_it(
    compose: Compose, overrides: list[str], does: Callable[[Any], Any], base: str
) -> None:
    lives = []
    for run in (hydras, ours):
        config = compose(*overrides, version_base=base)
        os.environ.pop("LEFT", None)
        shutil.rmtree("out", ignore_errors=True)
        Path("out").mkdir()
        Path("out/in the way").write_text("")
        lives.append(life(run, config, does))
    os.environ.pop("LEFT", None)
    expected, found = lives
    assert list(found) == list(expected)
    for key in expected:
        assert equal(found[key], expected[key]), (key, expected[key], found[key])


# --- YAML -------------------------------------------------------------------------------------

WORDS = [
    *("", "yes", "no", "~", "null", "1", "1.0", "1e3", "0o7", "-", "- a", "a: b", "# c", "=", "<<"),
    *(
        "12:30:45",
        "2001-01-01",
        ".inf",
        "???",
        "a  b",
        "word " * 30,
        "w" * 200,
        "q'uote",
        '"',
        "tab\t",
    ),
    *(
        "é" * 90 + " é",
        "a\nb\n",
        "  lead",
        "trail  ",
        "\n",
        "\x07",
        "\u2028",
        "\ufeff",
        "😀",
        "{}",
        "[]",
    ),
]
OTHERS: list[Any] = [
    0,
    1,
    True,
    False,
    None,
    1.0,
    -0.0,
    0.0,
    float("inf"),
    float("nan"),
    10**20,
    -3,
    {},
    [],
]


def tree(chance: random.Random, depth: int) -> Any:
    kind = chance.random()
    if depth == 0 or kind < 0.4:
        return copy(chance.choice(WORDS if chance.random() < 0.6 else OTHERS))
    several = range(chance.randrange(5))
    if kind < 0.8:
        return {chance.choice(WORDS): tree(chance, depth - 1) for _ in several}
    return [tree(chance, depth - 1) for _ in several]


@pytest.mark.parametrize("seed", range(3))
def test_yaml_is_omegaconfs_to_the_byte(seed: int) -> None:
    chance = random.Random(seed)
    written = 0
    for content in (tree(chance, 5) for _ in range(1500)):
        if not isinstance(content, (dict, list)):
            continue
        lines = _yaml._of_dict if isinstance(content, dict) else _yaml._of_list
        try:
            found = "".join(lines(content, 0)) or f"{content!r}\n"  # type: ignore[arg-type]
        except _yaml._Unusual:
            continue
        assert found == yaml.dump(
            content,
            default_flow_style=False,
            allow_unicode=True,
            sort_keys=False,
            Dumper=get_omega_conf_dumper(),
        )
        written += 1
    assert written > 400


def test_yaml_that_is_unusual_is_left_to_omegaconf() -> None:
    path = Path("x")
    contents: list[Any] = [
        {"a": [[1, 2], [3]]},
        {1: 2, "1": 3, 1.5: 4, False: 5},
        {"a": {Kind.FAST: Kind.FAST}},
        {"p": path, "q": path, "b": b"\xff"},
        {"k" * 200: {"a": 1}, "two\nlines": [1]},
        [],
        {},
    ]
    for content in contents:
        config = OmegaConf.create(content)
        assert to_yaml(config) == OmegaConf.to_yaml(config)
    assert to_yaml(OmegaConf.structured(Typed)) == OmegaConf.to_yaml(Typed)
    assert to_yaml(DictConfig(None)) == OmegaConf.to_yaml(DictConfig(None))


# --- what it is for ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_costs_less_than_half_of_hydras(compose: Compose) -> None:
    def cost(run: Run) -> float:
        config = compose("~typed")
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
        began = time.process_time()
        run(config, lambda cfg: None, context)
        spent = time.process_time() - began
        _close_logs()
        return spent

    costs = [(cost(hydras), cost(ours)) for _ in range(9)]
    assert median(own for _, own in costs) < median(its for its, _ in costs) / 2
