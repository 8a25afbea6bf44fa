"""What several processes that track runs of one sweep make of them in MLflow."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from graft.config import Tracking
from graft.lock import Lock
from graft.record import LOCK, write_json
from graft.sweep.asked import Asked
from graft.sweep.follow import Follower
from graft.tracking import letter, run_tracking, upload
from graft.tracking.client import Store
from graft.tracking.sweep import first_letter


def test_a_run_that_another_process_trains_is_left_to_it(lab: Any) -> None:
    runs = [{"run": lab.run_folder(n).name, "choices": lab.choices[n]} for n in (0, 1, 2)]
    write_json(lab.folder / "sweep.json", {"runs": runs})
    sweep = lab.open()
    done = lab.train(sweep, 0)
    lab.begin(sweep, 1)
    lab.begin(sweep, 2)
    records = [done, lab.record(1, "running")]  # the third has no record yet
    held = [Lock(lab.run_folder(n) / LOCK) for n in (1, 2)]
    lab.run_folder(2).mkdir()
    for one in held:
        one.acquire()
    sweep.finish(records, None, None)
    seen = lab.seen()
    assert [run.info.status for run in seen.runs().values()] == ["FINISHED", "RUNNING", "RUNNING"]
    assert seen.parent.info.status == "RUNNING"
    assert [one.end_ms is None for one in letter.read_letters(lab.folder)] == [False, True, True]
    for one in held:
        one.release()
    sweep.finish(records, None, None)
    seen = lab.seen()
    assert [run.info.status for run in seen.runs().values()] == ["FINISHED", "KILLED", "KILLED"]
    assert seen.parent.info.status == "KILLED"


def test_a_driver_beside_others_sends_its_own_runs(lab: Any) -> None:
    sweep = lab.open()
    own = [Asked(lab.run_folder(n).name, lab.choices[n], None) for n in (0, 1)]  # type: ignore[arg-type]
    asked = own[:1]
    follower = Follower(lab.folder, sweep, asked)
    asked += own[1:]  # a launcher of others may run several jobs in one process
    for n in (0, 1, 2):  # they are trained elsewhere
        run = run_tracking(lab.folder, Tracking(uri=lab.uri), n, lab.titles[n], lab.choices[n])
        run.epochs(lab.rows(n))
        run.finish(lab.record(n), "completed", None, {})
    follower.stop()
    assert tuple(lab.seen().runs()) == lab.titles[:2]
    drawn = [(lab.run_folder(n) / "figures").exists() for n in (0, 1, 2)]
    assert drawn == [True, True, False]


def test_two_processes_that_send_one_run_make_one_child(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{shutil.copy(tables, tmp_path / 'mlflow.db')}"
    info = upload.SweepInfo("s-1", "s", "graft", ("seed",), "graft", 0)
    stores = [Store(uri), Store(uri)]
    parent = upload.open_parent(stores[0], info, tmp_path / "files")
    create = Store.create

    def slow(self: Store, *args: Any) -> str:
        time.sleep(0.5)  # the other looks for it meanwhile
        return create(self, *args)

    monkeypatch.setattr(Store, "create", slow)
    one = first_letter(0, "00", {"seed": "0"})
    threads = [
        threading.Thread(
            target=upload.Child(tmp_path / "lock").follow, args=(store, info, parent, one)
        )
        for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores[0].find(parent.experiment, {"run.key": one.key})) == 1
