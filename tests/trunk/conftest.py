"""What the tests of the store have in common."""

from pathlib import Path

import pytest

from graft.trunk.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache" / "activations")
