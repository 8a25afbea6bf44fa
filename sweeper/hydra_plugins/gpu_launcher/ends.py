"""How a job can end without having said so itself.

An exception of the application whose class or instance has a true attribute `is_final` would only
be raised again: such a job is not retried.
"""


class NoResult(RuntimeError):
    """The job's process ended, or was ended, before it gave a result."""


class WorkerDied(NoResult):
    """The process was killed, crashed, or left without a word."""


class TimedOut(NoResult):
    """The process said nothing for longer than `hydra.launcher.timeout_s`, and was ended."""


class Skipped(NoResult):
    """The job was never started: another one failed, and `hydra.launcher.fail_fast` is set."""
