"""What a search raises on purpose."""

# Hydra executes public files a second time, which would make two classes of each.
from hydra_plugins.study_sweeper._errors import BadSearch, SearchFailed

__all__ = ["BadSearch", "SearchFailed"]
