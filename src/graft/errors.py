"""Every error this project raises on purpose.

GraftError
  BadRequest        the request cannot be carried out; said before any training, exit code 2
    ConfigError     a key or value of the configuration
    DataError       a table, a picture or a split is not what it claims to be
    WeightsError    a weights file cannot be used, or is not there
    RecordError     a run's folder is incomplete, of other settings, or of a newer version
  RunError          one run ended without a result; the others go on, exit code 1
    Diverged        its loss became NaN or infinite
    Pruned          its judge found it not worth going on: an early end, no failure
  CacheError        the trunk cache cannot be used here; it costs time, never a result
    NoRoom          an entry would not fit

`is_final`: whether the same request would only end the same way again. Who starts runs does not try
those a second time; any other error may have been the machine's.
"""


class GraftError(Exception):
    """An error whose message is written for the user: shown without a traceback."""

    is_final = False


class BadRequest(GraftError):
    """The request cannot be carried out; found before any training starts."""

    is_final = True


class ConfigError(BadRequest):
    """A key or value of the configuration cannot be used."""


class DataError(BadRequest):
    """A table, a picture or a split is not what it claims to be."""


class WeightsError(BadRequest):
    """A weights file cannot be used, or is not there."""


class RecordError(BadRequest):
    """A run's folder is incomplete, belongs to other settings, or is of a newer version."""


class RunError(GraftError):
    """One run ended without a result."""


class Diverged(RunError):
    """A loss became NaN or infinite."""

    is_final = True


class Pruned(RunError):
    """A run was not worth going on with, as its judge found; no failure.

    Attributes:
        epoch: after which it ended, 1-based.
        value: of the metric that selects, in that epoch.
        why: in the judge's words, in one line.
    """

    is_final = True

    def __init__(self, epoch: int, value: float, why: str) -> None:
        super().__init__(epoch, value, why)
        self.epoch, self.value, self.why = epoch, value, " ".join(why.split())

    @property
    def reason(self) -> str:
        """For a record, whose status says the rest."""
        return f"at epoch {self.epoch}: {self.why}"

    def __str__(self) -> str:
        return f"pruned {self.reason}"


class CacheError(GraftError):
    """The trunk cache cannot be used; whoever asked goes on without it."""


class NoRoom(CacheError):
    """An entry of the trunk cache would not fit its limit, or the disk."""
