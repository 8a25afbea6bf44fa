"""What one run has for MLflow: a file beside the runs, written before anything is sent.

    <sweep>/.tracking/<key>.json

So nothing depends on a server: what it missed is still here, with the times at which it happened.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from graft.naming import option
from graft.record import Record, read_json, write_json
from graft.tracking.client import Point, now_ms

FOLDER = ".tracking"

# Okabe and Ito's palette without yellow: told apart with any kind of colour vision.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")

# MLflow's limits are 250 for names, 6000 for parameters, 8000 for tags.
_MAX_NAME, MAX_PARAM, MAX_TAG = 250, 6000, 8000
# Of a run; its number may grow by a digit or two.
MAX_TITLE = _MAX_NAME - 5

# Our word for how a run ended -> MLflow's. What is "running" after the end was killed.
MLFLOW_STATUS = {
    "completed": "FINISHED",
    "pruned": "KILLED",  # as MLflow's own storage for Optuna has it
    "failed": "FAILED",
    "timed_out": "FAILED",
    "diverged": "FAILED",
    "skipped": "KILLED",
    "running": "KILLED",
}

# Settings that are worth a column even where a sweep keeps them fixed.
_SETTINGS = (
    "dataset.target", "model.weights", "strategy.depth", "optimizer.lr", "optimizer.weight_decay",
    "sampling", "seed", "epochs", "batch_size", "image_size", "precision", "metric",
)  # fmt: skip
_COMPARED = ("train/loss", "val/loss", "val/accuracy")
_GROUPS = ("dataset", "strategy", "optimizer", "schedule", "loss", "augmentation")


@dataclass(frozen=True)
class Letter:
    """All that MLflow gets of one run, the files of its record aside.

    `rows` holds one entry an epoch: {"step": 1, "time_ms": ..., "values": {"val/loss": ...}}.
    `identity` is that of the run's settings; None: not known yet.
    """

    number: int
    title: str
    choices: Mapping[str, str]
    start_ms: int
    end_ms: int | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[Mapping[str, Any], ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    status: str = "running"
    reason: str | None = None
    folder: str | None = None
    attempt: int = 1
    identity: str | None = None

    @property
    def key(self) -> str:
        return key_of(self.choices)

    @property
    def is_killed(self) -> bool:
        """Whether it is over and did not say how."""
        return self.status == "running" and self.end_ms is not None

    def with_settings(self, identity: str, params: Mapping[str, str]) -> "Letter":
        """Of a run with these settings. What is here of other settings is another attempt's."""
        if self.identity not in (None, identity):
            return dataclasses.replace(
                self, identity=identity, params=params, rows=(), scores={}, start_ms=now_ms(),
                attempt=self.attempt + 1,
            )  # fmt: skip
        return dataclasses.replace(self, identity=identity, params={**params, **self.params})

    def with_row(self, row: Mapping[str, float], time_ms: int) -> "Letter":
        """One more epoch. The same numbers again (a run that resumed) keep their first time.

        Other numbers for an epoch that is here are another run: MLflow's points cannot be
        replaced, so this becomes a new attempt, and what was sent of the old one is set aside.
        """
        step = int(row["epoch"])
        values = {
            metric_key(name): float(value)
            for name, value in row.items()
            if name != "epoch" and is_finite(value)
        }
        entry = {"step": step, "time_ms": time_ms, "values": values}
        known = next((old for old in self.rows if old["step"] == step), None)
        if known is None:
            return dataclasses.replace(self, rows=(*self.rows, entry))
        if _is_same(known["values"], values):
            return self
        kept = tuple(old for old in self.rows if old["step"] < step)
        return dataclasses.replace(self, rows=(*kept, entry), attempt=self.attempt + 1)

    def with_record(self, record: Record) -> "Letter":
        """Complete by what the run's folder says: all epochs, scores if there are none, its end."""
        letter = dataclasses.replace(
            self,
            folder=record.name,
            status=str(record.info.get("status", "running")),
            reason=record.info.get("reason"),
        )
        path = record.path / "metrics.csv"
        if path.is_file():
            time_ms = int(path.stat().st_mtime * 1000)
            for row in record.epochs.to_dict(orient="records"):
                letter = letter.with_row({str(k): v for k, v in row.items()}, time_ms)
        return letter

    def points(self) -> list[Point]:
        found = [
            Point(key, value, row["time_ms"], row["step"])
            for row in self.rows
            for key, value in row["values"].items()
        ]
        if self.end_ms is not None:
            found += [Point(key, value, self.end_ms, 0) for key, value in self.scores.items()]
        return found

    def tags(self) -> dict[str, str]:
        known = {
            "role": "run",
            "run.key": self.key,
            "attempt": str(self.attempt),
            "job.num": str(self.number),
            "status": "killed" if self.is_killed else self.status,
            "mlflow.source.name": "graft",
            "mlflow.source.type": "LOCAL",
            # The UI's own choice, from the run's id, may give two runs of four one colour.
            "mlflow.runColor": _COLORS[self.number % len(_COLORS)],
        }
        if self.folder:
            known["folder"] = shorten(self.folder, MAX_TAG)
        if self.reason:
            known["reason"] = shorten(self.reason, MAX_TAG)
            known["mlflow.note.content"] = shorten(f"**{self.status}**: {self.reason}", MAX_TAG)
        return known

    def write(self, sweep: Path) -> None:
        write_json(sweep / FOLDER / f"{self.key}.json", dataclasses.asdict(self))


def read_letter(sweep: Path, key: str) -> Letter | None:
    """The letter of a run, or None where there is none that can be read."""
    values = read_json(sweep / FOLDER / f"{key}.json")
    try:
        return Letter(**{**values, "rows": tuple(values["rows"])}) if values else None
    except (TypeError, KeyError):
        return None


def read_letters(sweep: Path) -> list[Letter]:
    """All letters of a sweep, by the number of their job."""
    found = [read_letter(sweep, path.stem) for path in (sweep / FOLDER).glob("*.json")]
    return sorted((one for one in found if one is not None), key=lambda one: one.number)


def letter_of(record: Record, number: int) -> Letter:
    """A letter for a run that wrote none: it ran while tracking was off."""
    choices = {str(k): str(v) for k, v in record.info.get("choices", {}).items()}
    words = [
        value if key in _GROUPS else f"{key.split('.')[-1]}={number_or_text(value)}"
        for key, value in choices.items()
    ]
    written_ms = int((record.path / "run.json").stat().st_mtime * 1000)
    title = " ".join([f"{number:02d}", *words])[:MAX_TITLE]
    letter = Letter(number, title, choices, written_ms)
    try:
        params = params_of(choices, record.config)
    except Exception:  # a run that failed before it wrote its configuration
        params = {}
    return dataclasses.replace(letter, params=params, end_ms=written_ms)


def scores_of(record: Record) -> dict[str, float]:
    """Scores of a completed run from its own files: the validation at its best epoch, the test."""
    best = record.epochs[record.epochs["epoch"] == record.info["best_epoch"]]
    scores = {f"best/{name}": float(best[name].iloc[0]) for name in best if name.startswith("val_")}
    test = record.predictions.of("test")
    if len(test.labels):
        scores["test/accuracy"] = float((test.predicted == test.labels).mean())
    return {key: value for key, value in scores.items() if is_finite(value)}


# --- names and values -----------------------------------------------------------------------


def key_of(choices: Mapping[str, str]) -> str:
    """What tells the runs of a sweep apart, however their numbers were typed."""
    values = {key.lstrip("+~"): number_or_text(plain(text)) for key, text in choices.items()}
    canonical = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()


def params_of(choices: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, str]:
    """Parameters: what the sweep varies, as it was typed, and the settings that matter."""
    found = {
        group: option(str(config[group].get("_target_", "")))
        for group in _GROUPS
        if group in config
    }
    if "model" in config:
        found["model"] = str(config["model"]["name"])
    for key in _SETTINGS:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            found[key] = number_or_text(str(value))
    found |= {key.lstrip("+~"): number_or_text(text) for key, text in choices.items()}
    return {name_of(key): shorten(value, MAX_PARAM) for key, value in found.items()}


def metric_key(column: str) -> str:
    """`val_balanced_accuracy` -> `val/balanced_accuracy`: the UI makes a section of each prefix."""
    split, _, rest = column.partition("_")
    return name_of(f"{split}/{rest}" if split in ("train", "val", "test") and rest
                   else f"train/{column}")  # fmt: skip


def name_of(text: str) -> str:
    """`text` as MLflow takes names: letters, digits, `_ - . : /` and blanks, like a path."""
    parts = re.sub(r"[^\w\-. :/]", "_", text).split("/")
    kept = "/".join(part for part in parts if part not in ("", ".", ".."))
    return kept[:_MAX_NAME] or "_"


def number_or_text(text: str) -> str:
    """Numbers with a point or an exponent in one spelling: 1e-3 is 0.001; all else as typed."""
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?", text):
        return repr(float(text))
    return text


def shorten(text: str, limit: int) -> str:
    """`text` for a database, cut with a mark if too long."""
    text = plain(text)
    if len(text) <= limit:
        return text
    mark = f"... (cut; {len(text)} characters, whole in config.yaml)"
    return text[: limit - len(mark)] + mark


def plain(text: str) -> str:
    """`text` without what no file or database takes: NUL, half characters (bytes from a shell)."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def is_finite(value: object) -> bool:
    """A value that is not finite would spoil MLflow's charts; the files have it."""
    return isinstance(value, Real) and math.isfinite(value)


def _is_same(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether two rows are of the same run; timings may differ, and a CSV rounds the last digit."""
    shared = [key for key in _COMPARED if key in one and key in other]
    return all(math.isclose(one[key], other[key], rel_tol=1e-9) for key in shared)


def finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name_of(key): float(value) for key, value in values.items() if is_finite(value)}


def ended(letter: Letter, status: str, reason: str | None, scores: Mapping[str, float]) -> Letter:
    """The same letter, closed now; a letter that was closed keeps its time."""
    same = letter.end_ms is not None and letter.status == status
    end_ms = letter.end_ms if same else now_ms()
    return dataclasses.replace(
        letter, status=status, reason=reason, end_ms=end_ms, scores=finite(scores) or letter.scores
    )


def renumbered(letter: Letter, number: int) -> Letter:
    """The same letter under the number that its run has now."""
    if letter.number == number:
        return letter
    title = re.sub(r"^\d+ ", f"{number:02d} ", letter.title)
    return dataclasses.replace(letter, number=number, title=title)


def digest(letter: Letter, files: Sequence[Path]) -> str:
    """What a whole upload consists of: equal digests, nothing to send."""
    sizes = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    content = dataclasses.asdict(letter)
    # A sweep with one more value numbers its runs anew.
    content.pop("number"), content.pop("title")
    content.pop("identity")  # its parameters tell
    text = json.dumps([content, sizes], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
