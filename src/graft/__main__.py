"""The command `graft`; `python -m graft` is the same."""

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from graft.collector import importing
from hydra_plugins.gpu_launcher import ahead

# These say that a sweep will run, and leave its launcher alone.
_SWEEPS = {"-m", "--multirun"}


def run() -> NoReturn:
    """Run the command, and end the process at once.

    Python would take every imported module apart first, PyTorch's for up to a second. What has
    registered itself for the end (`atexit`) is called, files are flushed.
    """
    # glibc reads this when a process starts: here, when a worker does, which has threads before
    # anything of ours could ask for it (see `machine.keep_memory`).
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    if _will_sweep(sys.argv[1:]):
        ahead.start("graft.app.warm_up", {"HYDRA_FULL_ERROR": "1"})
    with importing():
        from graft.app import main  # with Hydra, which takes a quarter of a second

    code = main()
    logging.shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more
            stream.flush()
    os._exit(code)


def _will_sweep(arguments: Sequence[str]) -> bool:
    """Whether the launcher that there is by default will need a worker, as far as this tells.

    What a file says otherwise costs a process that is not used.
    """
    options = {one for one in arguments if one.startswith("-")}
    others = ("hydra/launcher", "hydra.launcher", "sweep.dry_run")
    is_plain = not any(one.lstrip("+~").startswith(others) for one in arguments)
    return bool(options) and options <= _SWEEPS and is_plain


if __name__ == "__main__":
    run()
