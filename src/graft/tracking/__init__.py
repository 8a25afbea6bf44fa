"""MLflow: a parent run per sweep, a child per run, and a view that is ready to read.

The record folders are the truth and MLflow gets a copy. Nothing here raises or keeps training
waiting: an outage costs one warning, and what could not be sent is sent at the end of the run, of
the sweep, or by `python -m graft.tracking outputs/<sweep>`.

    client.py   calls to MLflow, in plain types: the one place that imports it
    line.py     one background thread that makes those calls
    letter.py   what one run has for MLflow, kept as a file beside the runs
    view.py     the prepared view of MLflow's UI
    sweep.py    the sweep, its runs, and sending again
"""

from graft.tracking.client import default_uri
from graft.tracking.sweep import Off, OffRun, RunTracking, SweepTracking, sync

__all__ = ["Off", "OffRun", "RunTracking", "SweepTracking", "default_uri", "sync"]
