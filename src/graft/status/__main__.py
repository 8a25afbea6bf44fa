"""The command `graft-sweep`: where a sweep stands, and sending MLflow what it has not got."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from graft.errors import RecordError
from graft.record import SWEEP
from graft.status.show import as_json, lines, summary, table
from graft.status.state import sweep_state

WATCH_S = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where something could not be sent; 2 with a message: there is no sweep."""
    parser = argparse.ArgumentParser(prog="graft-sweep", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="status|list|sync")
    status = commands.add_parser("status", help="each run's state, epoch, metric, slot, reason")
    status.add_argument("sweep", type=Path, help="the sweep's folder, such as outputs/demo")
    status.add_argument("--watch", action="store_true", help="again every two seconds")
    status.add_argument("--json", action="store_true", help="for a program")
    listed = commands.add_parser("list", help="the sweeps of an output folder, in a line each")
    listed.add_argument("outputs", type=Path, nargs="?", default=Path("outputs"))
    sync = commands.add_parser("sync", help="send MLflow what an outage kept back")
    sync.add_argument("sweep", type=Path)
    sync.add_argument("--uri", help="a tracking URI; by default the one of the sweep")
    asked = parser.parse_args(argv)
    try:
        if asked.command == "sync":
            return _sync(asked.sweep, asked.uri)
        if asked.command == "list":
            return _list(asked.outputs)
        return _status(asked.sweep, watch=asked.watch, as_text=not asked.json)
    except RecordError as error:
        print(f"graft-sweep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _status(folder: Path, *, watch: bool, as_text: bool) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    while True:
        found = sweep_state(folder)
        if watch and console.is_terminal:
            console.clear()
        if as_text:
            console.print(table(found))
            for line in lines(found):
                console.print(line, markup=False, soft_wrap=True)
        else:
            print(json.dumps(as_json(found), indent=2, ensure_ascii=False))
        if not watch:
            return 0
        time.sleep(WATCH_S)


def _list(outputs: Path) -> int:
    folders = sorted(path.parent for path in outputs.glob(f"*/{SWEEP}"))
    if not folders:
        raise RecordError(f"{outputs} holds no sweep.")
    for folder in folders:
        try:
            said = summary(sweep_state(folder))
        except RecordError:
            said = f"{SWEEP} is damaged, and there are no runs"
        print(f"{folder}: {said}")
    return 0


def _sync(folder: Path, uri: str | None) -> int:
    from graft.tracking import sync

    if not (folder / SWEEP).is_file():
        raise RecordError(f"{folder} holds no sweep: {SWEEP} is missing.")
    logging.basicConfig(format="%(message)s")
    link = sync(folder, uri)
    print(link or "Not everything was sent; the same command tries again.")
    return 0 if link else 1


if __name__ == "__main__":
    sys.exit(main())
