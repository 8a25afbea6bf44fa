"""Where the activations of a run came from: for the log, and for its record."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Origin:
    """Where activations came from: the `trunk` of a record.

    Attributes:
        at: the end of the trunk, in the network's own names; None where there is none.
        source: "built" or "reused": from the store; "memory": built, and kept by this process;
            "live": the trunk is run for every batch.
        views, pictures: what is stored.
        gigabytes: the size of it.
        seconds: what it took to have it.
        why: where something stood in the way, what.
        difference: on a GPU the largest difference that the number of pictures at a time made, as
            a share of the largest activation; on a CPU it is always 0.
    """

    at: str | None
    source: Literal["built", "reused", "memory", "live"]
    views: int = 0
    pictures: int = 0
    gigabytes: float = 0.0
    seconds: float = 0.0
    why: str = ""
    difference: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def line(self, trains: str) -> str:
        """One line for the log; `trains` says what does."""
        why = f"; {self.why}" if self.why else ""
        if self.at is None:
            return f"no trunk to share ({trains} train{'' if trains != 'head' else 's'}){why}"
        up_to = f"trunk: up to {self.at} ({trains} train{'' if trains != 'head' else 's'})"
        if self.source == "live":
            return f"{up_to}, run once a batch for all runs of an array{why}"
        how = {"built": f"built in {self.seconds:.1f} s", "reused": "reused"}.get(
            self.source, f"built in {self.seconds:.1f} s, kept in memory"
        )
        bound = f"; on another batch size within {self.difference:.0e}" if self.difference else ""
        num_views = f"{self.views} view{'s' if self.views > 1 else ''}"
        return (
            f"{up_to}, {num_views}, {self.pictures:,} pictures, {self.gigabytes:.2f} GB, "
            f"{how}{bound}{why}"
        )
