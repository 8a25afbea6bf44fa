"""`graft-cache list | verify | clear`: the trunk cache, which every sweep on this machine shares.

What is removed is computed again when it is needed: the cache costs time, never a result.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.errors import BadRequest, CacheError, GraftError

if TYPE_CHECKING:
    from graft.trunk.store import Store
    from graft.trunk.store.listing import Listed

# Of a key, on the terminal; any beginning that no other key has names an entry.
_SHORT = 12
# How wide a table is that no terminal limits.
_WIDTH = 120
_DAY = 24 * 3600


def main(argv: Sequence[str] | None = None) -> int:
    """The console script: 0; 1 where `verify` found damage; 2 with a message; 130 by Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        store = _store(options.folder)
        if options.command == "list":
            return _list(store)
        if options.command == "verify":
            return _verify(store)
        return _clear(store, options.keys, options.older_than)
    except (GraftError, ValueError) as error:
        print(f"graft-cache: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _store(folder: Path | None) -> "Store":
    from graft.trunk.store import Store

    if folder is None:
        from graft import machine

        return Store(machine.cache_dir() / "activations")
    if not folder.is_dir():
        raise BadRequest(f"--folder {folder} is no folder.")
    return Store(folder)


def _list(store: "Store") -> int:
    from rich.console import Console

    entries = store.entries()
    if entries:
        console = Console(highlight=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Console(highlight=False, width=_WIDTH)
        console.print(_table(entries))
    total = _size(sum(entry.num_bytes for entry in entries))
    print(f"{_count(len(entries))}, {total}, in {store.folder}")
    return 0


def _table(entries: "Sequence[Listed]") -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in ("key", "what", "size", "last use", "state"):
        is_number = head in ("size", "last use")
        table.add_column(Text(head), justify="right" if is_number else "left", overflow="fold")
    for entry in entries:
        state = _state(entry)
        cells = (
            entry.key[:_SHORT], _what(entry.about or {}), _size(entry.num_bytes),
            _ago(time.time() - entry.last_use), state,
        )  # fmt: skip
        table.add_row(*map(Text, cells), style="red" if state == "damaged" else "")
    return table


def _verify(store: "Store") -> int:
    entries = [entry for entry in store.entries() if entry.is_complete]
    bad = 0
    for entry in entries:
        try:
            why = store.damage(entry.key)
            said = "sound" if why is None else f"damaged, and removed: {why}"
        except CacheError as error:
            why = said = str(error)
        bad += why is not None
        print(f"{entry.key[:_SHORT]}  {_size(entry.num_bytes):>8}  {said}")
    print(f"{_count(len(entries))} read, {bad} damaged, in {store.folder}")
    return 1 if bad else 0


def _clear(store: "Store", keys: Sequence[str], older_than: float | None) -> int:
    entries = store.entries()
    chosen = _named(entries, keys) if keys else entries
    if older_than is not None:
        chosen = [e for e in chosen if time.time() - e.last_use > older_than * _DAY]
    freed = count = 0
    for entry in chosen:
        if store.remove(entry.key):
            freed, count = freed + entry.num_bytes - entry.num_missing, count + 1
        else:
            print(f"{entry.key[:_SHORT]}  is in use, and stays")
    store.remove_gone()
    print(f"{_count(count)} removed, {_size(freed)} freed, in {store.folder}")
    return 0


def _named(entries: "Sequence[Listed]", keys: Sequence[str]) -> "list[Listed]":
    """The entries that the keys begin.

    Raises:
        BadRequest: a key begins none, or several.
    """
    chosen: dict[tuple[str, bool], Listed] = {}
    for key in keys:
        found = {(e.key, e.is_complete): e for e in entries if e.key.startswith(key)}
        if not key or len({e.key for e in found.values()}) != 1:
            raise BadRequest(
                f"{key!r} begins the key of {_count(len(found))}, not of one. "
                "`graft-cache list` shows what there is."
            )
        chosen.update(found)
    return list(chosen.values())


def _what(about: Mapping[str, Any]) -> str:
    """ "efficientnet_lite0, blocks.6, flip, 2,000 pictures", as far as `about` says so."""
    said = [str(about[key]) for key in ("network", "cut", "view") if key in about]
    pictures = about.get("pictures")
    if isinstance(pictures, Mapping):  # of each split
        pictures = sum(n for n in pictures.values() if isinstance(n, int))
    if isinstance(pictures, int):
        said.append(f"{pictures:,} pictures")
    return ", ".join(said)


def _state(entry: "Listed") -> str:
    if not entry.is_complete:
        return "being built" if entry.in_use else "half-built"
    if entry.about is None:
        return "damaged"
    return "in use" if entry.in_use else "complete"


def _count(number: int) -> str:
    return "1 entry" if number == 1 else f"{number:,} entries"


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} GB"


def _ago(seconds: float) -> str:
    for length, unit in ((_DAY, "days"), (3600, "h"), (60, "min")):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {'day' if (number, unit) == (1, 'days') else unit} ago"
    return "just now"


def _days(text: str) -> float:
    days = float(text)
    if not days >= 0:
        raise ValueError
    return days


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft-cache",
        description="What sweeps keep to compute it only once. All of it can be made again.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--folder", type=Path, help="the entries' folder (default: activations in the cache)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", parents=[common], help="what there is")
    said = "read every entry; remove what is damaged, with exit code 1"
    commands.add_parser("verify", parents=[common], help=said)
    clear = commands.add_parser("clear", parents=[common], help="remove what is not in use")
    clear.add_argument("keys", metavar="KEY", nargs="*", help="only these; a beginning will do")
    clear.add_argument(
        "--older-than", type=_days, metavar="DAYS", help="only what was not used for so long"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
