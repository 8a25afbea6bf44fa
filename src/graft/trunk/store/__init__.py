"""Rows of bytes on disk, under a key that names what determined them: the trunk cache.

store.py says what it is; entry.py a complete entry; filler.py one that is being filled; listing.py
what lies there and how it is removed; files.py how files are opened, so that nobody's link or file
is ever taken for ours.
"""

from graft.trunk.store.filler import Filler
from graft.trunk.store.store import Store

__all__ = ["Filler", "Store"]
