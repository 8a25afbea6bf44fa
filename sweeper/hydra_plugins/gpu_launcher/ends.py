"""How a job can end without having said so itself.

    NoResult        the process ended, or was ended, before it gave a result
      WorkerDied      it was killed, crashed, or left without a word
      TimedOut        it said nothing for longer than `hydra.launcher.timeout_s`
      NotStarted      no process gets as far as to start the job
      Skipped         another job failed, and `hydra.launcher.fail_fast` is set
    Untold          what it raised or returned cannot be pickled, or not be read here: its words

An exception of the application whose class or instance has a true attribute `is_final` would only
be raised again: such a job is not retried.
"""

# Defined elsewhere: Hydra executes this file again when it looks for plugins, and there would be
# two classes of each name.
from hydra_plugins.gpu_launcher._ends import (
    NoResult,
    NotStarted,
    Skipped,
    TimedOut,
    Untold,
    WorkerDied,
)

__all__ = ["NoResult", "NotStarted", "Skipped", "TimedOut", "Untold", "WorkerDied"]
