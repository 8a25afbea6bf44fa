"""Python's collector waits while libraries are imported, and then leaves them alone."""

import gc
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from graft.collector import importing, without_collector


@pytest.fixture(autouse=True)
def _unfrozen() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_is_imported_is_not_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "many_small_things.py").write_text("things = [[i] for i in range(100_000)]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    collected: list[str] = []

    def note(phase: str, info: object) -> None:
        collected.append(phase)

    gc.callbacks.append(note)
    try:
        with importing():
            importlib.import_module("many_small_things")
            assert not gc.isenabled() and not collected
        assert gc.isenabled() and gc.get_freeze_count() >= 100_000
    finally:
        gc.callbacks.remove(note)
        sys.modules.pop("many_small_things")


def test_where_nothing_is_imported_garbage_does_not_stay() -> None:
    with importing():
        importlib.import_module("json")
    assert gc.get_freeze_count() == 0


def test_an_import_that_fails_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(ModuleNotFoundError), importing():
        importlib.import_module("there_is_no_such_module")
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
