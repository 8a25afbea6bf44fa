"""The command `graft`; `python -m graft` is the same."""

import atexit
import contextlib
import logging
import os
import sys
from typing import NoReturn

from graft.app import main


def run() -> NoReturn:
    """Run the command, and end the process at once.

    Python would take every imported module apart first, PyTorch's for up to a second. What has
    registered itself for the end (`atexit`) is called, files are flushed.
    """
    code = main()
    logging.shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
