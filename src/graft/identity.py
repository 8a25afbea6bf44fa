"""The identity of a run: a digest of whatever changes its numbers, and of nothing else."""

import hashlib
import json
from typing import Any

from graft.config import RunConfig, to_dict

# Raised when the meaning of an unchanged configuration changes: old digests then match nothing.
FORMAT = 1

# Where things go and how fast they are computed. Rounding may differ between devices; the design
# allows that, so that a sweep can move to another machine and go on.
NOT_RESULT = ("device", "cuda_graphs", "workers", "output_dir", "cache", "tracking", "sweep")


def run_identity(config: RunConfig) -> str:
    """Digest of a resolved configuration: 16 hexadecimal digits, equal for equal results.

    The values are hashed as they stand, defaults included, so that a changed default is another
    run and not a silent new meaning of an old one.
    """
    return digest({k: v for k, v in to_dict(config).items() if k not in NOT_RESULT})


def digest(values: Any) -> str:
    """16 hexadecimal digits for plain values (JSON types), whatever the order of their keys."""
    canonical = json.dumps([FORMAT, values], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
