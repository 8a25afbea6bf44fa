"""See errors.py."""

from hydra.errors import CompactHydraException


class BadSearch(CompactHydraException):
    """The search cannot be carried out as it was asked for."""


class SearchFailed(CompactHydraException):
    """The search ran and has nothing to show, or more trials failed than it allows."""
