"""The folder of one run and of one sweep: every file name, its format, and how it is written.

    <output_dir>/<sweep.name>/
    ├── sweep.json               what was asked for: command, axes, runs, tracking ids
    ├── results.csv              one row a run (written by the report)
    ├── report.html              (written by the report)
    ├── search.json              of a search: its trials, what they gave (written by the sweeper)
    ├── figures/                 of a search (written by the report)
    └── strategy=head_only,optimizer.lr=0.001/
        ├── run.json             status, identity, choices, classes, best epoch, counts, timings
        ├── config.yaml          the resolved configuration
        ├── metrics.csv          one row an epoch
        ├── predictions.parquet  validation and test examples: id, split, label, score(s)
        ├── examples.parquet     the table: id, path, label, split, group, every other column
        ├── model.safetensors    the whole network at the best epoch
        ├── environment.json     versions, device, git commit
        ├── train.log
        ├── resume/              checkpoints of a run that is not completed (fit/checkpoint.py)
        └── .lock                held by the process that trains the run (lock.py)

A file is written under another name in the same folder, flushed, then renamed: a reader sees a
whole file or none. `run.json` is written last, so a run that says "completed" has everything.
"""

import csv
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from graft.errors import RecordError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

log = logging.getLogger("graft")

FORMAT = 1

RUN, CONFIG, EPOCHS = "run.json", "config.yaml", "metrics.csv"
PREDICTIONS, EXAMPLES = "predictions.parquet", "examples.parquet"
CHECKPOINT, ENVIRONMENT, LOG = "model.safetensors", "environment.json", "train.log"
RESUME, LOCK = "resume", ".lock"
SWEEP, RESULTS, REPORT = "sweep.json", "results.csv", "report.html"
PLAN, SEARCH, BEST, FIGURES = "plan.json", "search.json", "experiment/best.yaml", "figures"

# A run ends in one of these. "running" is what a killed run leaves behind.
STATUSES = ("running", "completed", "pruned", "failed", "timed_out", "diverged", "skipped")

_NOT_CLASSES = ("id", "split", "label", "score")


@dataclass(frozen=True)
class Predictions:
    """What a run's best epoch says of every validation and test example.

    Attributes:
        ids: [N] names of the examples, as the dataset's table names them.
        splits: [N] "val" or "test".
        labels: [N] int64, positions in `classes`.
        scores: float32; [N] probability of `classes[1]` where there are two classes,
            else [N, C], one probability per class.
        classes: C names, as the table writes them.
    """

    ids: "NDArray[np.object_]"
    splits: "NDArray[np.object_]"
    labels: "NDArray[np.int64]"
    scores: "NDArray[np.float32]"
    classes: tuple[str, ...]

    def of(self, split: str) -> "Predictions":
        """Those of one split, in the stored order."""
        keep = self.splits == split
        return Predictions(
            self.ids[keep], self.splits[keep], self.labels[keep], self.scores[keep], self.classes
        )

    @property
    def predicted(self) -> "NDArray[np.int64]":
        """[N] positions in `classes`: the highest score, or score >= 0.5 for two classes."""
        import numpy as np

        if self.scores.ndim == 1:
            return np.asarray(self.scores >= 0.5, dtype=np.int64)
        return np.asarray(self.scores.argmax(axis=1), dtype=np.int64)


class RunFolder:
    """Writes one run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def remove_parts(self) -> None:
        """Remove what an earlier start was writing when it was killed."""
        remove_parts(self.path)

    def remove_results(self) -> None:
        """Of another run that was here: nothing of it may be taken for this one's.

        Raises:
            OSError: the folder cannot be written.
        """
        for name in (EPOCHS, PREDICTIONS, EXAMPLES, CHECKPOINT):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / FIGURES, ignore_errors=True)

    def remove_checkpoints(self) -> None:
        """What of them cannot be removed is in nobody's way."""
        shutil.rmtree(self.path / RESUME, ignore_errors=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        text = without_password(text)
        write_whole(self.path / CONFIG, lambda part: part.write_text(text, encoding="utf-8"))

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        write_json(self.path / ENVIRONMENT, environment)

    def write_epochs(self, rows: "Sequence[Mapping[str, float]]") -> None:
        """`rows`: one mapping an epoch, its first key `epoch` (1-based). NaN is an empty cell."""
        names = list(dict.fromkeys(name for row in rows for name in row))

        def write(part: Path) -> None:
            with part.open("w", encoding="utf-8", newline="") as stream:
                table = csv.DictWriter(stream, names, lineterminator="\n")
                table.writeheader()
                for row in rows:
                    table.writerow({k: "" if v != v else v for k, v in row.items()})

        write_whole(self.path / EPOCHS, write)

    def write_checkpoint(self, state: "Mapping[str, torch.Tensor]") -> None:
        from safetensors.torch import save_file

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        write_whole(self.path / CHECKPOINT, lambda part: save_file(tensors, part))

    def write_predictions(self, predictions: Predictions) -> None:
        """Two classes: `score`, and `label` 0 or 1. More: a column per class, and its name."""
        table: dict[str, Sequence[object] | NDArray[Any]]
        table = {"id": predictions.ids, "split": predictions.splits}
        if predictions.scores.ndim == 1:
            table |= {"label": predictions.labels, "score": predictions.scores}
        else:
            table["label"] = [predictions.classes[i] for i in predictions.labels]
            for i, name in enumerate(class_columns(predictions.classes)):
                table[name] = predictions.scores[:, i]
        write_whole(self.path / PREDICTIONS, lambda part: _write_parquet(table, part))

    def write_examples(self, table: Mapping[str, Sequence[object]]) -> None:
        """`table`: columns id, path, label, split, group, then every other column as text."""
        write_whole(self.path / EXAMPLES, lambda part: _write_parquet(table, part))

    def write_run(self, info: Mapping[str, Any]) -> None:
        write_json(self.path / RUN, {"format": FORMAT, "run": self.path.name, **info})


def _write_parquet(table: Mapping[str, "Sequence[object] | NDArray[Any]"], path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = [_column(cells) for cells in table.values()]
    parquet.write_table(pa.Table.from_arrays(columns, names=list(table)), path)


def _column(cells: "Sequence[object] | NDArray[Any]") -> "pa.Array":
    """Numbers of an array as they are, others as text.

    From their bytes: `pyarrow.array` imports pandas, which takes a training process 0.4 seconds.
    """
    import numpy as np
    import pyarrow as pa

    if isinstance(cells, np.ndarray) and cells.dtype != object:
        numbers = np.ascontiguousarray(cells)
        kind = pa.from_numpy_dtype(numbers.dtype)
        return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])
    texts = [str(cell).encode() for cell in cells]
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return pa.LargeStringArray.from_buffers(
        len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(texts))
    )


@dataclass(frozen=True)
class Record:
    """Reads one run's folder. Each part is read when it is first asked for.

    `info` is run.json: run, status, reason, identity, choices (key -> value as typed), classes,
    metric, best_epoch, parameters {total, trainable}, split {name: {class: count}}, notes and
    skipped pictures of the data, attempts, resumed_after (epochs), timings_s.
    """

    path: Path
    info: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_completed(self) -> bool:
        return bool(self.info["status"] == "completed")

    @cached_property
    def config(self) -> Mapping[str, Any]:
        path = self._file(CONFIG)
        found = None
        with suppress(UnicodeDecodeError, yaml.YAMLError):
            found = _loaded(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise RecordError(f"{path} is damaged.")
        return found

    @cached_property
    def epochs(self) -> "pd.DataFrame":
        """One row an epoch: epoch (1-based), train_loss, train_accuracy, val_loss, ..."""
        import pandas as pd

        return pd.read_csv(self._file(EPOCHS))

    @cached_property
    def examples(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.read_parquet(self._file(EXAMPLES))

    @cached_property
    def predictions(self) -> Predictions:
        import numpy as np
        import pandas as pd

        table = pd.read_parquet(self._file(PREDICTIONS))
        classes = tuple(self.info["classes"])
        ids = table["id"].to_numpy(dtype=object)
        splits = table["split"].to_numpy(dtype=object)
        if "score" in table.columns and len(classes) == 2:
            labels = table["label"].to_numpy(dtype=np.int64)
            return Predictions(
                ids, splits, labels, table["score"].to_numpy(dtype=np.float32), classes
            )
        position = {name: i for i, name in enumerate(classes)}
        labels = np.array([position[name] for name in table["label"]], dtype=np.int64)
        scores = table[list(class_columns(classes))].to_numpy(dtype=np.float32)
        return Predictions(ids, splits, labels, scores, classes)

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise RecordError(f"{self.path} has no {name}: this run is not complete.")
        return path


def _loaded(text: str) -> Any:
    # In C where PyYAML was built with it: ten times as fast, and a sweep has many of them. It does
    # not know the names of files that are not UTF-8, as Python writes them.
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(text, Loader=fast)
    except yaml.YAMLError:
        return yaml.safe_load(text)


def read_run(path: Path) -> Record:
    """The record in a run's folder.

    Raises:
        RecordError: there is none, it cannot be read, or a newer version wrote it.
    """
    known = read_json(path / RUN) or {}
    number = known.get("format", 0)
    if isinstance(number, int) and number > FORMAT:
        raise RecordError(f"{path / RUN} was written by a newer version of Graft.")
    if not isinstance(number, int) or known.get("status") not in STATUSES:
        inside = sorted(found.parent.name for found in path.glob(f"*/{RUN}"))
        hint = f" It has runs inside, such as {path / inside[0]}." if inside else ""
        raise RecordError(f"{path} holds no run: {RUN} is missing or damaged.{hint}")
    return Record(path, known)


def readable_runs(sweep: Path) -> list[Record]:
    """The records of a sweep's folder that can be read, by name; others may be half replaced."""
    found = []
    for file in sorted(sweep.glob(f"*/{RUN}")):
        with suppress(RecordError):
            found.append(read_run(file.parent))
    return found


def read_runs(sweep: Path) -> list[Record]:
    """The records of a sweep's folder, in the order in which they were asked for.

    One that cannot be read is left out, with a warning.
    """
    found = {}
    for file in sorted(sweep.glob(f"*/{RUN}")):
        try:
            found[file.parent.name] = read_run(file.parent)
        except RecordError as error:
            log.warning("%s", error)
    asked = [run["run"] for run in (read_json(sweep / SWEEP) or {}).get("runs", [])]
    return [
        found[name] for name in [*asked, *(n for n in found if n not in asked)] if name in found
    ]


def is_complete(statuses: Collection[str]) -> bool:
    """Whether a sweep has all that it will get, its runs having ended so.

    Nothing is missing of a run that was pruned; runs that all were have given nothing.
    """
    return "completed" in statuses and {"completed", "pruned"}.issuperset(statuses)


def class_columns(classes: Sequence[str]) -> tuple[str, ...]:
    """Column names of the classes' scores: their own, unless a fixed column has that name."""
    return tuple(f"class {name}" if name in _NOT_CLASSES else name for name in classes)


def without_password(text: str) -> str:
    """`text` with the password of every address in it (scheme://user:password@host) masked."""
    return re.sub(r"(\w+://[^\s:/@]+):[^\s/@]+@", r"\1:***@", text)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place, flushed to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what somebody was writing with `write_whole` when he was killed: nobody writes now."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False)
    write_whole(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file, or None where it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
