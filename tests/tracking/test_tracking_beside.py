"""What several processes that track runs of one sweep make of them in MLflow."""

from typing import Any

from graft.lock import Lock
from graft.record import LOCK, write_json
from graft.tracking import letter


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
