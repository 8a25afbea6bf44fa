"""What one run is made of: typed, frozen, checked.

The classes below are what the YAML files of `conf/` are turned into. Every value is checked where
it enters, by `from_dict`, which collects everything that is wrong and says it at once, spelled as
the user typed it. After that, the code trusts it.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from graft.errors import ConfigError
from graft.strategies import FineTune, Full, HeadOnly, Strategy

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """What a value must fulfil beyond its type, in code and in words."""

    holds: Callable[[Any], bool]
    words: str


def _checked(rule: Rule, **kwargs: Any) -> Any:
    return field(metadata={"rule": rule}, **kwargs)


POSITIVE = Rule(lambda v: v > 0, "a number above 0")
NOT_NEGATIVE = Rule(lambda v: v >= 0, "0 or more")
SEED = Rule(lambda v: 0 <= v < 2**32, "a whole number, 0 to 4294967295")  # as scikit-learn takes
RUN_SEED = Rule(lambda v: 0 <= v < 2**63, "a whole number, 0 to 9223372036854775807")  # PyTorch's
COUNT = Rule(lambda v: v >= 1, "a whole number of at least 1")
FRACTION = Rule(lambda v: 0 <= v < 1, "a fraction, 0 or more and below 1")
SPLIT_FRACTIONS = Rule(
    lambda v: len(v) == 3 and all(0 < x < 1 for x in v) and abs(sum(v) - 1) <= 1e-6,
    "three fractions (train, validation, test), each above 0, that add up to 1",
)


# --- datasets -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What every dataset can be told. Columns are named as the table's header names them."""

    target: str
    group: str | None = None
    split: str | None = None
    classes: tuple[str, ...] | None = None
    positive: str | None = None
    fractions: tuple[float, ...] = _checked(SPLIT_FRACTIONS, default=(0.8, 0.1, 0.1))
    split_seed: int = _checked(SEED, default=42)
    min_class: Literal["error", "drop"] = "error"
    on_bad_image: Literal["error", "skip"] = "error"
    on_leak: Literal["error", "warn"] = "error"
    max_pixels: int = _checked(COUNT, default=64_000_000)
    min_side: int = _checked(COUNT, default=2)
    absolute_paths: bool = False

    @property
    def own_image_size(self) -> int | None:
        """Side in pixels at which these pictures are meant to be seen, if they have one."""
        return None


@dataclass(frozen=True, kw_only=True)
class EmojiDataset(Dataset):
    """970 OpenMoji drawings of men and women, rendered from the colour font of a package."""

    target: str = "Male"
    group: str | None = "role"

    @property
    def own_image_size(self) -> int | None:
        return 128


@dataclass(frozen=True, kw_only=True)
class CelebaDataset(Dataset):
    """CelebA's own lists, their comma-separated mirrors, or a CSV like `filename,Male`.

    `root` is a folder in CelebA's own layout; `csv` and `images` name its parts one by one.
    `group="auto"` and `split="auto"` use the identity and partition lists where they are there.
    """

    root: str | None = None
    csv: str | None = None
    images: str | None = None
    identities: str | None = None
    partition: str | None = None
    target: str = "Male"
    group: str | None = "auto"
    split: str | None = "auto"


@dataclass(frozen=True, kw_only=True)
class CsvDataset(Dataset):
    """Any CSV with one row a picture, and the folder that its file names start from."""

    csv: str
    images: str
    file: str = "filename"


@dataclass(frozen=True, kw_only=True)
class ImageFolderDataset(Dataset):
    """One folder per class, with or without train/, val/ and test/ above."""

    root: str
    target: str = "folder"


# --- network, optimisation ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Model:
    """A pretrained network by name. `weights` is "imagenet", "none" or a file's path.

    `head_seed` gives the first values of the head; None: the run's seed.
    """

    name: str
    weights: str = "imagenet"
    dropout: float | None = _checked(FRACTION, default=None)
    head_seed: int | None = _checked(RUN_SEED, default=None)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Adam:
    lr: float = _checked(POSITIVE, default=1e-3)
    weight_decay: float = _checked(NOT_NEGATIVE, default=0.0)


@dataclass(frozen=True, kw_only=True)
class AdamW:
    lr: float = _checked(POSITIVE, default=1e-3)
    weight_decay: float = _checked(NOT_NEGATIVE, default=0.01)


@dataclass(frozen=True, kw_only=True)
class SGD:
    lr: float = _checked(POSITIVE, default=1e-2)
    weight_decay: float = _checked(NOT_NEGATIVE, default=0.0)
    momentum: float = _checked(FRACTION, default=0.9)
    nesterov: bool = False


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same rate throughout, after `warmup_epochs` of linear growth from 0."""

    warmup_epochs: float = _checked(NOT_NEGATIVE, default=0.0)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from the rate down to `final_fraction` of it, after a linear warm-up."""

    warmup_epochs: float = _checked(NOT_NEGATIVE, default=0.0)
    final_fraction: float = _checked(FRACTION, default=0.0)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Cross-entropy on one logit (two classes) or on one logit per class.

    `class_weights="balanced"` weighs each class by the inverse of its share of the training set.
    """

    class_weights: Literal["none", "balanced"] = "none"
    label_smoothing: float = _checked(FRACTION, default=0.0)


@dataclass(frozen=True, kw_only=True)
class NoAugmentation:
    """Every epoch sees the same pictures."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A horizontal flip, with probability one half: two views of a picture."""


@dataclass(frozen=True, kw_only=True)
class Dihedral:
    """A quarter turn and a flip at random: eight views, for pictures without an up."""


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """A random part of the picture, resized, and a flip: a new view every time."""

    min_area: float = _checked(
        Rule(lambda v: 0 < v <= 1, "a fraction, above 0 and at most 1"), default=0.5
    )


Augmentation = NoAugmentation | Flip | Dihedral | RandomCrop


# --- where things go ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """MLflow: any tracking URI; null is SQLite in the output folder; "off" is none."""

    uri: str | None = None
    experiment: str = "graft"


# What a run may be selected by, with the direction that is better.
METRICS: dict[str, Literal["max", "min"]] = {
    "val_accuracy": "max",
    "val_loss": "min",
    "val_balanced_accuracy": "max",
    "val_f1": "max",
    "val_auroc": "max",
}
# What a search can look for: a metric at a run's best epoch, or what the run takes.
OBJECTIVES: dict[str, Literal["max", "min"]] = {
    **METRICS,
    "seconds": "min",
    "trainable_parameters": "min",
}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What its runs belong to.

    Attributes:
        default_name: what `name` stands for where it is not given.
        axes: the keys that differ between the runs: they name the runs' folders.
        overwrite: whether runs in its folder that have other settings, or were trained on other
            data or from other weights, may be replaced.
        dry_run: whether the plan is to be shown and nothing done.
        objectives: what a search looks for, names of `OBJECTIVES`; none: the metric that selects.
    """

    name: str = "single"
    default_name: str = "single"
    axes: tuple[str, ...] = ()
    overwrite: bool = False
    dry_run: bool = False
    objectives: tuple[str, ...] = _checked(
        Rule(
            lambda names: set(names) <= set(OBJECTIVES) and len(set(names)) == len(names),
            f"a list of different ones of {', '.join(OBJECTIVES)}",
        ),
        default=(),
    )


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The trunk cache. It changes how long a run takes, never its numbers."""

    enabled: bool = True
    limit_gb: float = _checked(POSITIVE, default=20.0)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, whole. Values of None are filled in by `graft.train.resolve`."""

    dataset: EmojiDataset | CelebaDataset | CsvDataset | ImageFolderDataset
    model: Model
    strategy: Strategy
    optimizer: Adam | AdamW | SGD
    schedule: Constant | Cosine = Constant()
    loss: CrossEntropy = CrossEntropy()
    augmentation: Augmentation = Flip()
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    seed: int = _checked(RUN_SEED, default=0)
    epochs: int = _checked(COUNT, default=10)
    batch_size: int = _checked(COUNT, default=32)
    image_size: int | None = _checked(
        Rule(lambda v: 8 <= v <= 4096, "a side in pixels, 8 to 4096"), default=None
    )
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    activations: Literal["float32", "bfloat16"] = "float32"
    metric: str = _checked(Rule(lambda v: v in METRICS, f"one of {', '.join(METRICS)}"),
                           default="val_accuracy")  # fmt: skip
    patience: int | None = _checked(COUNT, default=None)
    device: str = "auto"
    cuda_graphs: bool = True
    workers: int | None = _checked(NOT_NEGATIVE, default=None)
    output_dir: str = "outputs"
    cache: Cache = Cache()
    tracking: Tracking = Tracking()
    sweep: Sweep = Sweep()


# The only classes that a configuration can build: `_target_` elsewhere is refused, never imported.
TARGETS: dict[str, tuple[type, ...]] = {
    "dataset": (EmojiDataset, CelebaDataset, CsvDataset, ImageFolderDataset),
    "strategy": (HeadOnly, FineTune, Full),
    "optimizer": (Adam, AdamW, SGD),
    "schedule": (Constant, Cosine),
    "loss": (CrossEntropy,),
    "augmentation": (NoAugmentation, Flip, Dihedral, RandomCrop),
}
_PARTS: dict[str, type] = {"model": Model, "cache": Cache, "tracking": Tracking, "sweep": Sweep}


# --- plain values <-> typed config ----------------------------------------------------------


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The typed configuration of one run.

    Args:
        values: nested plain values (strings, numbers, lists, mappings), as YAML gives them.

    Raises:
        ConfigError: everything that is wrong, one line each: the key as the user types it, the
            value that is there, and what is allowed.
    """
    problems: list[str] = []
    config = _build(RunConfig, values, "", problems)
    if problems:
        raise ConfigError("\n".join(problems))
    assert config is not None
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """The plain values of a typed configuration; `from_dict` is its inverse."""
    out: dict[str, Any] = {}
    if any(type(config) in classes for classes in TARGETS.values()):
        out["_target_"] = _path(type(config))
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        out[item.name] = value
    return out


def keys() -> list[str]:
    """Every key that some configuration has, as it is typed."""
    found: list[str] = []
    for item in dataclasses.fields(RunConfig):
        found.append(item.name)
        classes = {**TARGETS, **{k: (v,) for k, v in _PARTS.items()}}.get(item.name, ())
        found += [f"{item.name}.{f.name}" for cls in classes for f in dataclasses.fields(cls)]
    return list(dict.fromkeys(found))


def nearest(word: str, known: Iterator[str] | list[str] | tuple[str, ...]) -> str:
    """ " Did you mean ...?" for the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _build(cls: type[T], values: Any, key: str, problems: list[str]) -> T | None:
    if not isinstance(values, Mapping):
        problems.append(f"{key}={values!r}: expected keys below it, such as {key}.{_first(cls)}.")
        return None
    before = len(problems)
    known = {f.name: f for f in dataclasses.fields(cast(Any, cls))}
    hints = typing.get_type_hints(cls)
    prefix = f"{key}." if key else ""
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name == "_target_":
            continue
        if name not in known:
            names = ", ".join(known) or "none"
            problems.append(
                f"{prefix}{name} is not a key of {key or 'the configuration'}."
                f"{nearest(str(name), list(known))} Keys: {names}."
            )
        elif name in TARGETS and not key:
            built[name] = _build_choice(name, value, problems)
        elif name in _PARTS and not key:
            built[name] = _build(_PARTS[name], value, name, problems)
        else:
            built[name] = _value(
                value, hints[name], known[name].metadata.get("rule"), prefix + name, problems
            )
    for name, item in known.items():
        if name not in values and item.default is dataclasses.MISSING:
            problems.append(f"{prefix}{name} is missing. Give it: {prefix}{name}=...")
    return cls(**built) if len(problems) == before else None


def _first(cls: type) -> str:
    fields = dataclasses.fields(cls)
    return fields[0].name if fields else "_target_"


def _build_choice(group: str, values: Any, problems: list[str]) -> Any:
    """One of several classes, named by `_target_`; nothing outside TARGETS is ever imported."""
    classes = {_path(cls): cls for cls in TARGETS[group]}
    target = values.get("_target_") if isinstance(values, Mapping) else None
    if target not in classes:
        problems.append(
            f"{group}._target_={target!r} is not allowed. Allowed: {', '.join(classes)}."
        )
        return None
    return _build(classes[target], values, group, problems)


def _value(value: Any, hint: Any, rule: Rule | None, key: str, problems: list[str]) -> Any:
    try:
        converted = _convert(value, hint)
        if rule is not None and converted is not None and not rule.holds(converted):
            raise ValueError(rule.words)
    except ValueError as error:
        allowed = rule.words if rule is not None else str(error)
        near = ""
        if typing.get_origin(hint) is Literal:
            near = nearest(str(value), [str(a) for a in typing.get_args(hint)])
        elif key == "metric":
            near = nearest(str(value), list(METRICS))
        problems.append(f"{key}={_shown(value)}: expected {allowed}.{near}")
        return None
    return converted


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; ValueError says in words what was expected."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (inner,) = (a for a in args if a is not type(None))
        return _convert(value, inner)
    if value == "???":
        raise ValueError("a value: it was left open (???)")
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(f"one of {', '.join(map(str, args))}")
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(item, args[0]) for item in value)
        raise ValueError(f"a list, such as [{', '.join(['...'] * 2)}]")
    return _CONVERTERS[hint](value)


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def _to_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("a whole number")


def _to_float(value: Any) -> float:
    # NaN fails every comparison, so a rule alone could let it pass.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError("a finite number")


def _to_str(value: Any) -> str:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError("text")


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: _to_str,
}
