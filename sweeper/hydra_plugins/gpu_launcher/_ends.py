"""See ends.py."""


class NoResult(RuntimeError):
    """The job's process ended, or was ended, before it gave a result."""


class WorkerDied(NoResult):
    """The process was killed, crashed, or left without a word."""


class TimedOut(NoResult):
    """The process said nothing for longer than `hydra.launcher.timeout_s`, and was ended."""


class NotStarted(NoResult):
    """The job was never started: no process comes as far as that, however often it is tried."""

    is_final = True


class Skipped(NoResult):
    """The job was never started: another one failed, and `hydra.launcher.fail_fast` is set."""


class Untold(RuntimeError):
    """What a job raised or returned, in words: it cannot be pickled, or not be read elsewhere."""
