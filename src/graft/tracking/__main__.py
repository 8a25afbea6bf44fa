"""python -m graft.tracking outputs/<sweep>: send to MLflow what an outage kept back."""

import argparse
import logging
import sys
from pathlib import Path

from graft.tracking import sync


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m graft.tracking", description=__doc__)
    parser.add_argument("sweep", type=Path, help="the sweep's folder, such as outputs/demo")
    parser.add_argument("--uri", help="a tracking URI; by default the one of the sweep")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    if not arguments.sweep.is_dir():
        parser.error(f"{arguments.sweep} is not a folder.")
    link = sync(arguments.sweep, arguments.uri)
    print(link or "Not everything was sent; the same command tries again.")
    return 0 if link else 1


if __name__ == "__main__":
    sys.exit(main())
