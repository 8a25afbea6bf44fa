"""`graft-predict <run> <pictures or folder>`: scores of a finished run for any pictures.

The run's own size, mean and deviation are used, and the same sizes of batch, so that the test
predictions of the run come out the same.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from graft.errors import DataError, GraftError, RecordError
from graft.record import CHECKPOINT, Record, class_columns, read_run, write_whole

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from graft.data.pictures import Pictures

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script: 0, or 2 with a message where something cannot be used."""
    options = _parser().parse_args(argv)
    try:
        record = read_run(options.run)
        if not record.is_completed:
            raise RecordError(f"{options.run} is {record.info['status']}: it has no network.")
        pictures = find_pictures(options.pictures)
        rows = list(predict(record, pictures, device=options.device))
    except GraftError as error:
        print(f"graft-predict: {error}", file=sys.stderr)
        return 2
    header = ["file", "predicted", *_score_columns(record)]
    if options.out is None:
        _write(header, rows, sys.stdout)
        return 0

    def save(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as stream:
            _write(header, rows, stream)

    write_whole(options.out, save)
    print(f"{len(rows):,} predictions: {options.out}", file=sys.stderr)
    return 0


def find_pictures(places: Sequence[Path]) -> list[Path]:
    """The pictures named, and those in the folders named, at any depth, sorted.

    Raises:
        DataError: a place is not there, or there is no picture at all.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = (p for p in place.rglob("*") if p.suffix.lower() in EXTENSIONS)
            found += sorted(p for p in inside if p.is_file())
        elif place.exists():
            found.append(place)
        else:
            raise DataError(f"{place} does not exist. Give pictures, or a folder of pictures.")
    if not found:
        raise DataError(f"{', '.join(map(str, places))}: no picture ({', '.join(EXTENSIONS)}).")
    return found


def predict(
    record: Record, paths: Sequence[Path], *, device: str = "auto"
) -> Iterator[list[str | float]]:
    """Rows of file, predicted class and score(s): one score, of the second class, for two classes.

    Raises:
        DataError: pictures that cannot be read, all of them named.
        WeightsError: the run's checkpoint is damaged.
    """
    from dataclasses import replace

    import torch

    from graft import train
    from graft.config import from_dict
    from graft.data.pictures import Pictures
    from graft.fit.losses import predicted, scores
    from graft.supply import as_input

    config = train.resolve(replace(from_dict(record.config), device=device))
    classes = tuple(record.info["classes"])
    # The checkpoint holds every value: what the backbone began with is not needed again.
    bare = replace(config, model=replace(config.model, weights="none"))
    network = train.build_network(bare, classes, torch.device(config.device))
    _verify(record)
    network.restore(record.path / CHECKPOINT)
    network.eval()
    assert config.image_size is not None
    _check(paths, config.dataset.max_pixels, config.dataset.min_side)
    pictures = Pictures(paths, config.image_size, workers=config.workers, memory_limit_bytes=0)
    for chunk, batch in _chunks(pictures, len(paths), config.batch_size):
        x = as_input(batch.to(config.device), config)
        alone = len(x) == 1  # kernels for a batch of one round differently
        with torch.no_grad():
            logits = network.module(x.repeat(2, 1, 1, 1) if alone else x).float().cpu()
        logits = logits[: len(chunk)]
        values = scores(logits).numpy()
        for path, label, score in zip(
            (paths[i] for i in chunk), predicted(logits).tolist(), values, strict=True
        ):
            yield [str(path), classes[label], *(float(s) for s in score.reshape(-1))]


def _verify(record: Record) -> None:
    """A flipped bit in a checkpoint loads without a word: only its digest tells."""
    from graft import weights

    path = record.path / CHECKPOINT
    expected = record.info["checkpoint_digest"]
    if not path.is_file() or weights.digest(path) != expected:
        raise RecordError(
            f"{path} is not the file that this run wrote (digest {expected}). Train the run again."
        )


def _chunks(
    pictures: "Pictures", count: int, size: int
) -> "Iterator[tuple[NDArray[np.int64], torch.Tensor]]":
    import numpy as np

    from graft.data.batches import batches

    chunks = batches(np.arange(count), size)
    return zip(chunks, pictures.batches(chunks), strict=True)


def _check(paths: Sequence[Path], max_pixels: int, min_side: int) -> None:
    import tempfile

    from graft.data.check import check, message

    names = [str(path) for path in paths]
    with tempfile.TemporaryDirectory() as cache:
        found = check(
            names, paths, None, Path(cache), max_pixels=max_pixels, min_side=min_side, workers=None
        )
    if found.bad:
        raise DataError(message(found.bad, len(paths), "error"))


def _score_columns(record: Record) -> Sequence[str]:
    classes = tuple(record.info["classes"])
    return ("score",) if len(classes) == 2 else class_columns(classes)


def _write(header: Sequence[str], rows: Sequence[Sequence[object]], stream: TextIO) -> None:
    writer = csv.writer(stream)
    writer.writerow(header)
    writer.writerows(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft-predict",
        description="Scores of a finished run for any pictures, as CSV.",
        epilog="Two classes: `score` is the probability of the second class of the run.",
    )
    parser.add_argument("run", type=Path, help="a run's folder: outputs/<sweep>/<run>")
    parser.add_argument("pictures", type=Path, nargs="+", help="pictures, or folders of pictures")
    parser.add_argument("--out", type=Path, help="the CSV to write (default: the terminal)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    return parser


if __name__ == "__main__":
    sys.exit(main())
