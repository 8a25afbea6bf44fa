"""The command `graft-cache`: it says what there is, finds damage, and removes what is unused."""

import os
import re
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graft import machine
from graft.cache import main
from graft.trunk.store import Store

KEYS = ("aa11" * 8, "aa22" * 8, "bb33" * 8)
ABOUT = {
    "network": "resnet18",
    "cut": "layer3",
    "view": "flip",
    "pictures": {"train": 1000, "val": 200},
}


def fill(store: Store, key: str, about: dict[str, Any], *, whole: bool = True) -> None:
    with store.fill(key, about, 300, 1000) as filler:
        filler.write(0, np.ones((256, 1000), np.uint8))
        if whole:
            filler.write(256, np.ones((44, 1000), np.uint8))
            filler.finish().close()


def age(store: Store, key: str, hours: float) -> None:
    then = time.time() - 3600 * hours
    os.utime(store.folder / key / "data.bin", (then, then))


def damage(store: Store, key: str, name: str = "data.bin") -> None:
    path = store.folder / key / name
    path.write_bytes(path.read_bytes().replace(b"\x01", b"\x02", 1)[:-1] + b"\x03")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Two complete entries and a half-built one, where the command looks for them."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
    store = Store(tmp_path / "activations")
    fill(store, KEYS[0], ABOUT)
    fill(store, KEYS[1], {})
    fill(store, KEYS[2], {"network": "vit_b_16", "pictures": 7}, whole=False)
    age(store, KEYS[0], 3.5)
    age(store, KEYS[1], 24 * 2 + 1)
    return store


def kept(store: Store) -> set[str]:
    return {entry.key for entry in store.entries()}


def test_list_shows_each_entry_and_the_total(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    found = store.find(KEYS[1])
    assert found is not None
    with closing(found):
        age(store, KEYS[1], 49)
        assert main(["list"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "key what size last use state"
    assert lines[2:] == [
        "bb33bb33bb33 vit_b_16, 7 pictures 300 kB just now half-built",
        "aa11aa11aa11 resnet18, layer3, flip, 1,200 pictures 300 kB 3 h ago complete",
        "aa22aa22aa22 300 kB 2 days ago in use",
        f"3 entries, 900 kB, in {store.folder}",
    ]


def test_list_says_what_is_being_built_and_what_is_damaged(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(store, KEYS[0], "header.json")
    with store.fill(KEYS[2], {}, 300, 1000):
        main(["list"])
    said = capsys.readouterr().out
    assert said.count("being built") == 1 and said.count("damaged") == 1


def test_list_of_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"0 entries, 0 bytes, in {tmp_path}\n"


def test_verify_is_content_with_sound_entries(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {entry.key: entry.last_use for entry in store.entries()}
    assert main(["verify"]) == 0
    said = capsys.readouterr().out
    assert said.count("sound") == 2 and "2 entries read, 0 damaged" in said
    # Being verified is no use: the least recently used go first.
    assert {entry.key: entry.last_use for entry in store.entries()} == before


@pytest.mark.parametrize("name", ["data.bin", "header.json"])
def test_verify_removes_what_is_damaged(
    store: Store, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    damage(store, KEYS[0], name)
    assert main(["verify"]) == 1
    said = capsys.readouterr().out
    assert "aa11aa11aa11" in said and f"damaged, and removed: {name}" in said
    assert kept(store) == set(KEYS[1:])
    assert main(["verify"]) == 0


def test_clear_removes_everything(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clear"]) == 0
    assert kept(store) == set()
    said = capsys.readouterr().out
    # The half-built one takes 256 of its 300 rows: what is freed is what it took.
    assert re.search("3 entries removed, 8[56][0-9] kB freed", said)


def test_clear_leaves_what_is_in_use(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    found = store.find(KEYS[0])
    assert found is not None
    with closing(found), store.fill(KEYS[2], {}, 300, 1000):
        assert main(["clear"]) == 0
        assert kept(store) == {KEYS[0], KEYS[2]}
    said = capsys.readouterr().out
    assert "aa11aa11aa11  is in use, and stays" in said
    assert "bb33bb33bb33  is in use, and stays" in said
    assert "1 entry removed, 300 kB freed" in said


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--older-than", "1"], {0, 2}),
        (["--older-than", "0.1"], {2}),
        (["--older-than", "3"], {0, 1, 2}),
        (["aa11"], {1, 2}),
        (["aa11", "bb"], {1}),
        (["aa11", KEYS[1], "--older-than", "1"], {0, 2}),
    ],
)
def test_clear_removes_what_is_asked_for(store: Store, options: list[str], left: set[int]) -> None:
    assert main(["clear", *options]) == 0
    assert kept(store) == {KEYS[i] for i in left}


@pytest.mark.parametrize("key", ["aa", "cc", ""])
def test_clear_of_a_key_that_names_no_one_entry_removes_nothing(
    store: Store, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    assert main(["clear", "bb33", key]) == 2
    assert "graft-cache list" in capsys.readouterr().err
    assert kept(store) == set(KEYS)


def test_clear_removes_what_a_killed_one_left_half_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["clear", "aa11"])
    assert list(store.folder.glob("*.gone")) and KEYS[0] not in kept(store)
    assert main(["clear", "aa22"]) == 0
    assert not list(store.folder.glob("*.gone")) and kept(store) == {KEYS[2]}


def test_who_stops_it_sees_no_traceback(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: Store, key: str) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "remove", stopped)
    assert main(["clear"]) == 130


def test_another_folder_may_be_named(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Store(tmp_path / "other")
    fill(other, KEYS[0], {})
    assert main(["clear", "--folder", str(other.folder)]) == 0
    assert kept(other) == set() and kept(store) == set(KEYS)
    assert main(["list", "--folder", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    (tmp_path / "notes.lock").touch()
    for command in ("verify", "clear"):
        assert main([command, "--folder", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.rglob("*")} == {"photos", "cat.png", "notes.lock"}


@pytest.mark.parametrize("days", ["-1", "nan", "soon"])
def test_an_age_that_is_none_is_refused(
    store: Store, capsys: pytest.CaptureFixture[str], days: str
) -> None:
    with pytest.raises(SystemExit):
        main(["clear", f"--older-than={days}"])
    assert "--older-than" in capsys.readouterr().err
    assert kept(store) == set(KEYS)


def test_a_folder_that_cannot_be_written_is_said_once_and_another_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "wanted"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "wanted")
    for _ in range(2):
        assert machine.cache_dir(tmp_path / "outputs") == tmp_path / "outputs" / ".cache"
    (said,) = [record.getMessage() for record in caplog.records]
    assert str(tmp_path / "wanted") in said and str(tmp_path / "outputs" / ".cache") in said


def test_help_needs_no_torch() -> None:
    code = "import sys, graft.cache\nprint('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
