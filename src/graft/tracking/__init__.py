"""MLflow: a parent run per sweep, a child per run, and a view that is ready to read.

The record folders are the truth and MLflow gets a copy. Nothing here raises or keeps training
waiting: an outage costs one warning, and what could not be sent is sent at the end of the run, of
the sweep, or by `python -m graft.tracking outputs/<sweep>`.

    places.py   tracking URIs, whether something answers there
    client.py   calls to MLflow, in plain types: the one place that imports it
    apart.py    the process that makes them
    line.py     one background thread that waits for them
    letter.py   what one run has for MLflow, kept as a file beside the runs
    upload.py   what is written to MLflow, and what is there already
    view.py     the prepared view of MLflow's UI
    run.py      one run's letter, while it trains
    sweep.py    the sweep: sends the letters, ends, sends again
"""

from graft.tracking.apart import warm_up
from graft.tracking.places import default_uri
from graft.tracking.run import OffRun, RunTracking
from graft.tracking.sweep import Off, SweepTracking, run_tracking, sync

__all__ = [
    "Off",
    "OffRun",
    "RunTracking",
    "SweepTracking",
    "default_uri",
    "run_tracking",
    "sync",
    "warm_up",
]
