"""`graft-predict <run> <pictures or folder>`: scores of a finished run for any pictures.

The run's own size, mean, deviation and precision are used, and the same sizes of batch, so that the
test predictions of the run come out the same: but for activations that it had stored in bfloat16.
"""

import argparse
import csv
import functools
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from graft.data.places import EXTENSIONS
from graft.errors import ConfigError, DataError, GraftError, RecordError
from graft.record import CHECKPOINT, Record, class_columns, read_run, write_whole
from graft.report.results import cell

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from graft.config import RunConfig
    from graft.data.pictures import Pictures

# A name that is no UTF-8, such as an old disk's, is written all the same.
_ODD_NAMES = "backslashreplace"


def main(argv: Sequence[str] | None = None) -> int:
    """The console script: 0, or 2 with a message where something cannot be used.

    1 where whoever reads the rows has gone (`| head`), 130 after Ctrl-C.
    """
    options = _parser().parse_args(argv)
    try:
        record = read_run(options.run)
        if not record.is_completed:
            raise RecordError(f"{options.run} is {record.info['status']}: it has no network.")
        pictures, num_others = find_pictures(options.pictures)
        _check_out(options.out)
        skips_bad = options.on_bad_image == "skip"
        rows = list(predict(record, pictures, device=options.device, skips_bad=skips_bad))
        header = ["file", "predicted", *_score_columns(record)]
        _save(header, rows, options.out)
    except GraftError as error:
        print(f"graft-predict: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # What is still to be flushed when Python ends would be a traceback once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    others = f" ({num_others:,} files that are not pictures left out)" if num_others else ""
    print(f"{len(rows):,} predictions{others}: {options.out or 'above'}", file=sys.stderr)
    return 0


def find_pictures(places: Sequence[Path]) -> tuple[list[Path], int]:
    """The pictures named, and those in the folders named, at any depth, sorted; hidden ones not.

    Returns:
        (pictures, how many other files there are in the folders)

    Raises:
        DataError: a place is not there, or there is no picture at all.
    """
    found: list[Path] = []
    num_others = 0
    for place in places:
        if place.is_dir():
            files = sorted(p for p in place.rglob("*") if _is_shown(p, place) and p.is_file())
            inside = [p for p in files if p.name.lower().endswith(EXTENSIONS)]
            found += inside
            num_others += len(files) - len(inside)
        elif place.exists():
            found.append(place)
        else:
            raise DataError(f"{place} does not exist. Give pictures, or a folder of pictures.")
    if not found:
        raise DataError(f"{', '.join(map(str, places))}: no picture ({', '.join(EXTENSIONS)}).")
    return found, num_others


def _is_shown(path: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(folder).parts)


def predict(
    record: Record, paths: Sequence[Path], *, device: str = "auto", skips_bad: bool = False
) -> Iterator[list[str | float]]:
    """Rows of file, predicted class and score(s): one score, of the second class, for two classes.

    Args:
        skips_bad: whether pictures that cannot be read are named on stderr, and have no row.

    Raises:
        DataError: pictures that cannot be read, all of them named; with `skips_bad`, if no other
            is left.
        WeightsError: the run's checkpoint is damaged.
    """
    import torch

    from graft import machine, train
    from graft.data.pictures import Pictures
    from graft.fit.learner import autocast
    from graft.fit.losses import predicted, scores
    from graft.supply import as_input

    config = _config(record, device)
    machine.prepare_process(config)
    plainly = functools.partial(autocast, config.precision, torch.device(config.device))
    classes = tuple(record.info["classes"])
    # The checkpoint holds every value: what the backbone began with is not needed again.
    bare = replace(config, model=replace(config.model, weights="none"))
    network = train.build_network(bare, classes, torch.device(config.device))
    _verify(record)
    network.restore(record.path / CHECKPOINT)
    network.eval()
    assert config.image_size is not None
    paths = _usable(paths, config.dataset.max_pixels, config.dataset.min_side, skips_bad)
    with Pictures(
        paths, config.image_size, workers=config.workers, memory_limit_bytes=0
    ) as pictures:
        for chunk, batch in _chunks(pictures, len(paths), config.batch_size):
            x = as_input(batch.to(config.device), config)
            alone = len(x) == 1  # kernels for a batch of one round differently
            with torch.no_grad(), plainly():
                logits = network.module(x.repeat(2, 1, 1, 1) if alone else x).float().cpu()
            logits = logits[: len(chunk)]
            values = scores(logits).numpy()
            for path, label, score in zip(
                (paths[i] for i in chunk), predicted(logits).tolist(), values, strict=True
            ):
                yield [str(path), classes[label], *(float(s) for s in score.reshape(-1))]


def _config(record: Record, device: str) -> "RunConfig":
    """The run's own, on this device; in float32 where the device lacks the run's precision."""
    from graft.config import from_dict
    from graft.settings import resolve

    own = replace(from_dict(record.config), device=device)
    try:
        return resolve(own)
    except ConfigError:
        found = resolve(replace(own, precision="float32"))
    print(
        f"graft-predict: precision={own.precision} cannot be had on {found.device}: computed in "
        "float32, so scores may differ a little from the run's.",
        file=sys.stderr,
    )
    return found


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


def _usable(
    paths: Sequence[Path], max_pixels: int, min_side: int, skips_bad: bool
) -> Sequence[Path]:
    import tempfile

    from graft.data.check import check

    names = [str(path) for path in paths]
    with tempfile.TemporaryDirectory() as cache:
        found = check(names, paths, Path(cache), max_pixels=max_pixels, min_side=min_side)
    if not found.bad:
        return paths
    bad = {one.path for one in found.bad}
    left = [path for path in paths if path not in bad]
    said = [f"{len(found.bad):,} of {len(paths):,} pictures cannot be used:"]
    said += [f"  {one.path}: {one.reason}" for one in found.bad]
    if not (skips_bad and left):
        others = ", or leave them out: --on-bad-image skip" if left else ""
        raise DataError("\n".join([*said, f"Repair them, or move them elsewhere{others}."]))
    print("\n".join([f"graft-predict: {said[0]}", *said[1:]]), file=sys.stderr)
    return left


def _score_columns(record: Record) -> Sequence[str]:
    classes = tuple(record.info["classes"])
    return ("score",) if len(classes) == 2 else class_columns(classes)


def _check_out(out: Path | None) -> None:
    """What can be known to be wrong with it before pictures are looked at for hours."""
    if out is None:
        return
    if out.is_dir():
        raise DataError(f"--out {out} is a folder. Give the file to write, such as {out}/p.csv.")
    if out.exists() and not out.is_file():  # /dev/null, say, which a file would take the place of
        raise DataError(f"--out {out} is not a file. Without --out, rows go to the terminal.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out} cannot be written: {error.strerror}.") from None
    if not os.access(out.parent, os.W_OK):
        raise DataError(f"--out {out} cannot be written: {out.parent} is not writable.")


def _save(header: Sequence[str], rows: Sequence[Sequence[object]], out: Path | None) -> None:
    if out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors=_ODD_NAMES)
        _write(header, rows, sys.stdout)
        return

    def save(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8", errors=_ODD_NAMES) as stream:
            _write(header, rows, stream)

    try:
        write_whole(out.resolve(), save)  # what a link points to, not in place of the link
    except OSError as error:
        raise DataError(f"--out {out} cannot be written: {error.strerror}.") from None


def _write(header: Sequence[str], rows: Sequence[Sequence[object]], stream: TextIO) -> None:
    writer = csv.writer(stream)
    for row in (header, *rows):
        writer.writerow([cell(value) for value in row])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft-predict",
        description="Scores of a finished run for any pictures, as CSV.",
        epilog="Two classes: `score` is the probability of the second class of the run.",
    )
    parser.add_argument("run", type=Path, help="a run's folder: outputs/<sweep>/<run>")
    parser.add_argument("pictures", type=Path, nargs="+", help="pictures, or folders of pictures")
    parser.add_argument("--out", type=Path, help="the CSV to write (default: the terminal)")
    parser.add_argument(
        "--on-bad-image", choices=("error", "skip"), default="error",
        help="what a picture that cannot be read does: end it all, before any is scored (default), "
        "or have no row",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    return parser


if __name__ == "__main__":
    sys.exit(main())
