"""Pictures for the benchmarks: made ones, and a part of the built-in ones.

    python benchmarks/pictures.py random FOLDER --counts 240,30,30 --size 178x218
    python benchmarks/pictures.py emoji FOLDER --limit 120
    python benchmarks/pictures.py drawn FOLDER

The last draws the built-in pictures into a cache folder, as graft does at first use. Each of the
others leaves FOLDER/labels.csv with the columns filename, label, split, which `dataset=csv` reads,
and the pictures beside it. A folder that has a labels.csv already is left as it is.

A made picture is a few random colours, blurred, and a little noise: a JPEG of the size that a
photograph of that many pixels has, so that decoding it costs what a photograph costs. Pictures of
class 1 are redder.
"""

import argparse
import csv
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

TABLE = "labels.csv"
PARTS = ("train", "val", "test")
Row = tuple[str, str, str]


def main() -> None:
    options = _options()
    if (options.folder / TABLE).exists():
        return
    if options.kind == "drawn":
        from graft.data.emoji import render

        render(options.folder)
    elif options.kind == "random":
        write_random(options.folder, options.counts, options.size)
    else:
        write_emoji(options.folder, options.limit)


def overrides(folder: Path) -> list[str]:
    """What tells graft of such a folder."""
    return [
        "dataset=csv",
        f"dataset.csv={folder / TABLE}",
        f"dataset.images={folder}",
        "dataset.target=label",
        "dataset.split=split",
    ]


def write_random(folder: Path, counts: Sequence[int], size: tuple[int, int]) -> None:
    """`counts` made pictures (training, validation, test) of `size` (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(sum(counts))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        names = list(pool.map(partial(_write_one, folder, size), numbers, chunksize=100))
    splits = [part for part, count in zip(PARTS, counts, strict=True) for _ in range(count)]
    labels = [str(number % 2) for number in numbers]
    _write_table(folder, zip(names, labels, splits, strict=True))


def write_emoji(folder: Path, limit: int) -> None:
    """About `limit` of the built-in pictures, each part and class in proportion."""
    from graft.config import EmojiDataset
    from graft.data import load
    from graft.machine import cache_dir

    folder.mkdir(parents=True, exist_ok=True)
    examples = load(EmojiDataset(), cache_dir())
    share, rows = limit / len(examples.ids), []
    for part in PARTS:
        for label, name in enumerate(examples.classes):
            positions = getattr(examples, part)
            own = positions[examples.labels[positions] == label]
            for i in own[: max(2, round(share * len(own)))]:
                shutil.copy(examples.paths[i], folder)
                rows.append((examples.paths[i].name, name, part))
    _write_table(folder, rows)


def _write_one(folder: Path, size: tuple[int, int], number: int) -> str:
    """The name of a new picture; the same number gives the same picture."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(number)
    coarse = random.integers(0, 200, (9, 7, 3), dtype=np.uint8)
    coarse[..., 0] += 50 * (number % 2)
    smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    noise = random.integers(0, 12, (size[1], size[0], 1), dtype=np.uint8)
    picture = np.minimum(np.asarray(smooth), 243) + noise
    name = f"{number:06d}.jpg"
    Image.fromarray(picture).save(folder / name, quality=85)
    return name


def _write_table(folder: Path, rows: Iterable[Row]) -> None:
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["filename", "label", "split"])
        writer.writerows(rows)


def parse_size(text: str) -> tuple[int, int]:
    """ "178x218" as (width, height)."""
    width, height = map(int, text.split("x"))
    return width, height


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["random", "emoji", "drawn"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", default="240,30,30",
                        type=lambda text: tuple(map(int, text.split(","))),
                        help="made pictures for training, validation and test")  # fmt: skip
    parser.add_argument("--size", type=parse_size, default="178x218", help="width x height")
    parser.add_argument("--limit", type=int, default=120, help="of the built-in pictures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
