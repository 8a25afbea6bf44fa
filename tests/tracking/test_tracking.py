"""What a sweep leaves in MLflow on SQLite, and what happens when it is opened again."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from graft.config import Tracking
from graft.record import read_json, read_runs
from graft.sweep.follow import Follower
from graft.tracking import (
    Off,
    SweepTracking,
    default_uri,
    letter,
    places,
    run_tracking,
    sync,
    upload,
)
from graft.tracking.client import Store, StoreError
from graft.tracking.sweep import first_letter


def test_a_sweep_is_a_parent_with_a_child_per_run(lab: Any) -> None:
    lab.train_all()
    seen = lab.seen()
    parent = seen.parent
    assert tuple(seen.runs()) == lab.titles
    assert {r.data.tags["mlflow.parentRunId"] for r in seen.runs().values()} == {parent.info.run_id}
    assert "graft -m strategy=head_only,fine_tune" in parent.data.tags["mlflow.note.content"]
    assert seen.files(parent) == {"report.html", "results.csv"}
    assert {r.info.status for r in [parent, *seen.runs().values()]} == {"FINISHED"}


def test_what_varies_and_what_matters_are_parameters_with_numbers_in_one_spelling(lab: Any) -> None:
    lab.train(lab.open(), 3)
    (run,) = lab.seen().runs().values()
    assert run.data.params.items() >= {
        "strategy": "fine_tune", "optimizer.lr": "0.0001", "optimizer": "adam", "dataset": "emoji",
        "dataset.target": "Male", "model": "efficientnet_lite0", "epochs": "3", "batch_size": "32",
        "seed": "0", "image_size": "128",
    }.items()  # fmt: skip


def test_every_epoch_is_there_once_and_so_is_every_score(lab: Any) -> None:
    lab.train(lab.open(), 2)
    (run,) = lab.seen().runs().values()
    rows = lab.rows(2)
    for key, column in [("train/loss", "train_loss"), ("val/accuracy", "val_accuracy")]:
        assert lab.seen().curve(run, key) == [(row["epoch"], row[column]) for row in rows]
    for key, value in lab.scores(2).items():
        assert lab.seen().curve(run, key) == [(0, value)]


def test_the_files_of_the_record_are_artifacts(lab: Any) -> None:
    figures = lab.run_folder(0) / "figures"
    figures.mkdir(parents=True)
    (figures / "curves.svg").write_text("<svg/>")
    (lab.run_folder(0) / "train.log").write_text("epoch 1\n")
    lab.train(lab.open(), 0)
    (run,) = lab.seen().runs().values()
    assert lab.seen().files(run) == {
        "config.yaml", "metrics.csv", "predictions.parquet", "model.safetensors",
        "environment.json", "run.json", "train.log", "figures",
    }  # fmt: skip
    assert lab.seen().files(run, "figures") == {"figures/curves.svg"}


def test_what_a_search_leaves_are_artifacts_of_the_parent(lab: Any) -> None:
    (lab.folder / "figures").mkdir(parents=True)
    (lab.folder / "experiment").mkdir()
    (lab.folder / "experiment" / "best.yaml").write_text("epochs: 3")
    (lab.folder / "search.json").write_text("{}")
    (lab.folder / "figures" / "search_history.png").write_bytes(b"png")
    lab.train_all()
    seen = lab.seen()
    assert seen.files(seen.parent) == {
        "report.html", "results.csv", "search.json", "best.yaml", "figures",
    }  # fmt: skip
    assert seen.files(seen.parent, "figures") == {"figures/search_history.png"}


def test_a_checkpoint_takes_no_disk_twice(lab: Any) -> None:
    record = lab.train(lab.open(), 0)
    lab.seen()
    (copy,) = (lab.output / "mlartifacts").rglob("model.safetensors")
    assert copy.samefile(record.path / "model.safetensors")


def test_where_the_files_of_a_run_go_is_asked_once(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server would be asked for each file of each run."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{shutil.copy(tables, tmp_path / 'mlflow.db')}"
    store = Store(uri)
    experiment = store.experiment("files", tmp_path / "files", "")
    made = store.create(experiment, "made", 0, {})
    asked: list[str] = []
    ask = MlflowClient.get_run

    def get_run(self: MlflowClient, run: str) -> Any:
        asked.append(run)
        return ask(self, run)

    monkeypatch.setattr(MlflowClient, "get_run", get_run)
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text(name)
        store.log_file(made, tmp_path / name)
    assert asked == []
    found = Store(uri)  # a run that was there before
    for name in ("one.csv", "two.csv"):
        found.log_file(made, tmp_path / name, "again")
    assert asked == [made]
    assert len(list((tmp_path / "files").glob("*/artifacts/**/*.csv"))) == 4


def test_the_dataset_is_an_input_with_a_digest_of_its_examples(lab: Any) -> None:
    lab.train(lab.open(), 0)
    (run,) = lab.seen().runs().values()
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name == "emoji"
    assert '"num_rows": 300' in used.dataset.profile
    assert used.dataset.digest == upload.dataset_of(lab.record(1))["digest"]


@pytest.mark.slow
def test_opening_a_sweep_again_finds_its_parent(lab: Any) -> None:
    lab.train_all()
    first = lab.seen().parent.info.run_id
    lab.train_all()
    assert lab.seen().parent.info.run_id == first
    assert tuple(lab.seen().runs()) == lab.titles


def test_two_sweeps_of_one_name_in_other_folders_are_two(lab: Any, tmp_path: Path) -> None:
    uri = default_uri(lab.output)
    for place in ("here", "there"):
        sweep = SweepTracking.open(tmp_path / place / "demo", Tracking(uri=uri), name="demo",
                                   command="", axes=[], output_dir=tmp_path / place)  # fmt: skip
        sweep.wait(30)
    found = lab.seen().client.search_runs([lab.seen().experiment.experiment_id])
    assert len({run.data.tags["sweep.id"] for run in found}) == 2


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_where_it_was(lab: Any) -> None:
    lab.begin(lab.open(), 1, num_epochs=2)
    before = wait_for_points(lab, 1, num_epochs=2)
    lab.train(lab.open(), 1)
    (run,) = lab.seen().runs().values()
    points = lab.seen().points(run)
    assert set(before) <= set(points)  # with their first times
    assert lab.seen().curve(run, "val/loss") == [(r["epoch"], r["val_loss"]) for r in lab.rows(1)]


@pytest.mark.slow
def test_other_numbers_for_a_run_are_another_run(lab: Any) -> None:
    lab.train(lab.open(), 0)
    lab.seen()
    run = lab.begin(lab.open(), 0, num_epochs=0)
    run.epochs([{"epoch": 1, "train_loss": 9.0, "val_loss": 9.0, "val_accuracy": 0.1}])
    run.finish(None, "failed", "on purpose", {})
    (kept,) = lab.seen().runs().values()
    assert lab.seen().curve(kept, "val/loss") == [(1, 9.0)]
    (old,) = lab.seen().runs("superseded").values()
    assert len(lab.seen().curve(old, "val/loss")) == 3


@pytest.mark.usefixtures("in_this_process")
def test_a_run_with_other_settings_takes_nothing_over_of_the_one_that_it_replaces(lab: Any) -> None:
    """As with sweep.overwrite=true. A rate of its schedule, say: the first epochs are the same."""
    lab.train(lab.open(), 0)
    lab.seen()
    lab.config = {"epochs": 2, "patience": 1}
    run = lab.begin(lab.open(), 0, num_epochs=2)
    run.finish(None, "completed", None, {})
    (kept,) = lab.seen().runs().values()
    assert kept.data.params["epochs"] == "2"
    assert [step for step, _ in lab.seen().curve(kept, "val/loss")] == [1, 2]
    (old,) = lab.seen().runs("superseded").values()
    assert (old.info.status, old.data.params["epochs"]) == ("FINISHED", "3")


@pytest.mark.slow
def test_a_sweep_that_grew_numbers_its_runs_anew_and_sends_nothing_again(lab: Any) -> None:
    lab.ask_for(2, 3)
    sweep = lab.open()
    records = [lab.train(sweep, number) for number in (2, 3)]
    sweep.finish(records, None, None)
    assert tuple(lab.seen().runs()) == ("00 fine_tune lr=0.001", "01 fine_tune lr=0.0001")
    lab.ask_for(0, 1, 2, 3)
    before = written(lab)
    sweep.finish(records, None, None)
    assert tuple(lab.seen().runs()) == lab.titles[2:]
    assert written(lab) == before


# --- how runs end ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "shown"),
    [("completed", "FINISHED"), ("failed", "FAILED"), ("timed_out", "FAILED"),
     ("diverged", "FAILED"), ("skipped", "KILLED"), ("pruned", "KILLED")],
)  # fmt: skip
def test_the_status_tells_the_truth(lab: Any, status: str, shown: str) -> None:
    run = lab.begin(lab.open(), 0)
    run.finish(lab.record(0, status, "the reason"), status, "the reason", {})
    (found,) = lab.seen().runs().values()
    assert found.info.status == shown
    assert (found.data.tags["status"], found.data.tags["reason"]) == (status, "the reason")


def test_a_run_that_failed_and_then_completed_has_no_reason_left(lab: Any) -> None:
    lab.begin(lab.open(), 0).finish(lab.record(0, "failed", "a flaw"), "failed", "a flaw", {})
    lab.seen()
    lab.train(lab.open(), 0)
    (found,) = lab.seen().runs().values()
    assert found.info.status == "FINISHED"
    assert not {"reason", "mlflow.note.content"} & found.data.tags.keys()


def test_children_of_killed_processes_do_not_stay_running(lab: Any) -> None:
    lab.ask_for(0, 1, 2)
    sweep = lab.open()
    done = lab.train(sweep, 0)
    lab.begin(sweep, 1)  # its process ends without a word
    lab.begin(sweep, 2)
    closed = lab.record(2, "failed", "killed by signal 9")  # the launcher says so in its record
    sweep.finish([done, closed], None, None)
    runs = lab.seen().runs()
    assert [runs[t].info.status for t in lab.titles[:3]] == ["FINISHED", "KILLED", "FAILED"]
    assert [runs[t].data.tags["status"] for t in lab.titles[1:3]] == ["killed", "failed"]
    assert lab.seen().parent.info.status == "FAILED"


def test_a_sweep_with_runs_that_never_began_is_not_finished(lab: Any) -> None:
    lab.ask_for(0, 1, 2, 3)
    sweep = lab.open()
    sweep.finish([lab.train(sweep, 0)], None, None)
    assert lab.seen().parent.info.status == "KILLED"


@pytest.mark.slow
def test_a_run_that_was_pruned_is_not_missing_from_a_sweep(lab: Any) -> None:
    lab.ask_for(0, 1)
    sweep = lab.open()
    pruned = lab.record(0, "pruned", "at epoch 3: worse")
    sweep.finish([pruned], None, None)
    assert lab.seen().parent.info.status == "KILLED"
    sweep.finish([pruned, lab.train(sweep, 1)], None, None)
    assert lab.seen().parent.info.status == "FINISHED"
    found = lab.seen().runs()[lab.titles[0]]
    assert found.info.status == "KILLED"
    tags = found.data.tags
    assert (tags["status"], tags["reason"]) == ("pruned", "at epoch 3: worse")
    assert tags["mlflow.note.content"] == "**pruned**: at epoch 3: worse"
    assert len(lab.seen().curve(found, "val/loss")) == 3


def test_a_run_that_is_pruned_ends_in_mlflow_while_others_are_trained(lab: Any) -> None:
    sweep = lab.open()
    follower = Follower(lab.folder, sweep)
    # Another process trains it, and leaves files alone.
    run = run_tracking(lab.folder, Tracking(uri=lab.uri), 0, lab.titles[0], lab.choices[0])
    run.epochs(lab.rows(0))
    run.finish(lab.record(0, "pruned", "at epoch 3: worse"), "pruned", "at epoch 3: worse", {})
    deadline = time.monotonic() + 30
    while [one.info.status for one in lab.seen().runs().values()] != ["KILLED"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    follower.stop()


def test_what_is_not_finite_stays_out_of_the_charts(lab: Any) -> None:
    run = lab.begin(lab.open(), 0, num_epochs=1)
    run.epochs([{"epoch": 2, "train_loss": float("nan"), "val_loss": float("inf")}])
    run.finish(None, "diverged", "the loss is NaN", {"best/val_f1": float("nan")})
    (found,) = lab.seen().runs().values()
    assert {step for _, step, _, _ in lab.seen().points(found)} == {1}


# --- sending again --------------------------------------------------------------------------


@pytest.mark.slow
def test_sending_twice_changes_nothing(lab: Any) -> None:
    link = lab.train_all()
    before = written(lab)
    assert sync(lab.folder) == link
    assert sync(lab.folder) == link
    assert written(lab) == before


def test_a_sweep_that_was_not_tracked_is_sent_from_its_records(lab: Any) -> None:
    for number in range(4):
        lab.record(number)
    lab.ask_for(0, 1, 2, 3)
    assert sync(lab.folder) is not None
    runs = lab.seen().runs()
    assert tuple(runs) == lab.titles
    best = runs[lab.titles[2]]
    assert best.data.metrics.items() >= {"best/val_accuracy": 0.9, "test/accuracy": 0.9}.items()
    assert len(lab.seen().curve(best, "val/loss")) == 3
    assert best.data.params["optimizer.lr"] == "0.001"


def test_a_damaged_record_does_not_keep_the_others_from_being_sent(
    lab: Any, warnings_of: Any
) -> None:
    for number in range(2):
        lab.record(number)
    lab.ask_for(0, 1)
    (lab.run_folder(1) / "run.json").write_text('{"status": "compl')
    assert sync(lab.folder) is not None
    assert tuple(lab.seen().runs()) == lab.titles[:1]
    assert lab.seen().parent.info.status == "KILLED"
    assert any("holds no run" in said for said in warnings_of())


@pytest.mark.parametrize("text", ["", "x,y\n1,2\n"])
@pytest.mark.usefixtures("in_this_process")
def test_damaged_epochs_of_one_run_do_not_keep_the_others_from_being_sent(
    lab: Any, warnings_of: Any, text: str
) -> None:
    for number in range(2):
        lab.record(number)
    lab.ask_for(0, 1)
    (lab.run_folder(0) / "metrics.csv").write_text(text)
    assert sync(lab.folder) is not None
    assert tuple(lab.seen().runs()) == lab.titles[1:2]
    assert lab.seen().parent.info.status == "KILLED"
    (warning,) = warnings_of()
    assert f"{lab.run_folder(0)} cannot be sent to MLflow" in warning


@pytest.mark.usefixtures("in_this_process")
def test_files_that_mlflow_cannot_store_keep_nothing_else_from_it(
    lab: Any, monkeypatch: pytest.MonkeyPatch, warnings_of: Any
) -> None:
    for number in range(2):
        lab.record(number)
    lab.ask_for(0, 1)
    (lab.folder / "report.html").write_text("<p>the report</p>")
    send = Store.log_file

    def full(self: Any, run: str, path: Path, folder: str | None = None) -> None:
        if path in (lab.run_folder(0) / "predictions.parquet", lab.folder / "report.html"):
            raise StoreError("No space left", None)
        send(self, run, path, folder)

    monkeypatch.setattr(Store, "log_file", full)
    assert sync(lab.folder) is None
    assert "No space left" in warnings_of()[0]
    seen = lab.seen()
    assert tuple(seen.runs()) == lab.titles[:2]
    assert {run.info.status for run in (seen.parent, *seen.runs().values())} == {"FINISHED"}
    assert any(key.startswith("mlflow.sharedViewState.") for key in seen.experiment.tags)
    monkeypatch.setattr(Store, "log_file", send)
    assert sync(lab.folder) is not None
    assert "predictions.parquet" in lab.seen().files(lab.seen().runs()[lab.titles[0]])


@pytest.mark.usefixtures("in_this_process")
def test_a_parent_that_somebody_deleted_is_made_anew_and_gets_its_children(lab: Any) -> None:
    lab.record(0)
    lab.ask_for(0)
    assert sync(lab.folder) is not None
    seen = lab.seen()
    seen.client.delete_run(seen.parent.info.run_id)
    assert sync(lab.folder) is not None
    seen = lab.seen()
    (run,) = seen.runs().values()
    assert run.data.tags["mlflow.parentRunId"] == seen.parent.info.run_id


@pytest.mark.slow
def test_another_store_gets_the_same_with_the_same_times(
    lab: Any, tables: Path, tmp_path: Path
) -> None:
    lab.train_all()
    points = {name: lab.seen().points(run) for name, run in lab.seen().runs().items()}
    (tmp_path / "other").mkdir()
    shutil.copy(tables, tmp_path / "other")
    lab.uri = f"sqlite:///{tmp_path}/other/mlflow.db"
    assert sync(lab.folder, lab.uri) is not None
    assert {name: lab.seen().points(run) for name, run in lab.seen().runs().items()} == points
    assert len(list((tmp_path / "other").rglob("model.safetensors"))) == 4


@pytest.mark.slow
def test_the_command_of_the_warning_sends_what_is_missing(lab: Any) -> None:
    lab.record(0)
    command = [sys.executable, "-m", "graft.tracking", str(lab.folder)]
    sent = subprocess.run(command, capture_output=True, text=True)
    assert (sent.returncode, sent.stderr) == (0, "")
    assert sent.stdout.startswith("http://127.0.0.1:5000/#/experiments/")
    assert tuple(lab.seen().runs()) == lab.titles[:1]


def test_a_prepared_view_that_fails_harms_nothing(
    lab: Any, monkeypatch: pytest.MonkeyPatch, warnings_of: Any
) -> None:
    monkeypatch.setattr(upload, "write_view", lambda *_: 1 / 0)
    assert lab.train_all() is not None
    assert lab.seen().parent.info.status == "FINISHED"
    (warning,) = warnings_of()
    assert "no prepared view" in warning


# --- values, places, secrets ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "name", "stored"),
    [
        ("+model.odd key=ü", "Zeile 1\nZeile 2 ☂", "model.odd key_ü", "Zeile 1\nZeile 2 ☂"),
        ("a//../b", "nul\0byte", "a/b", "nulbyte"),
        ("half", "\ud800", "half", "?"),
    ],
)
def test_odd_parameters_arrive(lab: Any, key: str, value: str, name: str, stored: str) -> None:
    run = lab.open().run(0, "00", {key: value})
    run.params({key: value}, {})
    run.finish(None, "completed", None, {})
    (found,) = lab.seen().runs().values()
    assert found.data.params == {name: stored}


def test_a_long_parameter_is_cut_with_a_mark(lab: Any) -> None:
    run = lab.open().run(0, "00", {"note": "x" * 7000})
    run.params({"note": "x" * 7000}, {})
    run.finish(None, "completed", None, {})
    (found,) = lab.seen().runs().values()
    assert len(found.data.params["note"]) == 6000
    assert found.data.params["note"].endswith("... (cut; 7000 characters, whole in config.yaml)")


def test_a_title_is_no_longer_than_mlflows_tables_take() -> None:
    """250 characters on PostgreSQL, which says no; SQLite takes any."""
    long = letter.renumbered(first_letter(9, "09 " + "a" * 400, {}), 1000)
    assert len(long.title) <= 250 and long.title.startswith("1000 aaa")


@pytest.mark.parametrize("text", ["0.001", "1e-3", "1E-3", ".001", "+0.0010"])
def test_equal_numbers_are_one_run(text: str) -> None:
    assert letter.key_of({"optimizer.lr": text}) == letter.key_of({"optimizer.lr": "0.001"})


@pytest.mark.parametrize("text", ["007", "1e", "e5", "1.2.3", "10", "true"])
def test_what_is_no_decimal_number_stays_as_typed(text: str) -> None:
    assert letter.number_or_text(text) == text


def test_a_relative_database_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = places.resolve_uri("sqlite:///runs/mlflow.db", Path("outputs"))
    assert uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert default_uri(Path("outputs")) == f"sqlite:///{tmp_path}/outputs/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://graft:pa%40ss@db:5432/mlflow", "postgresql://graft:***@db:5432/mlflow"),
        ("http://me:secret@host/path?x=1", "http://me:***@host/path?x=1"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_passwords_are_masked(uri: str, shown: str) -> None:
    assert places.mask(uri) == shown
    assert places.secret(uri) not in (places.describe(ValueError(f"at {uri}"), uri),)
    if secret := places.secret(uri):
        assert secret not in places.describe(ValueError(f"cannot reach {uri}"), uri)


def test_a_run_id_in_the_environment_is_not_taken_up(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    lab.train(lab.open(), 0)
    assert tuple(lab.seen().runs()) == lab.titles[:1]


def test_off_is_off(tmp_path: Path) -> None:
    sweep = SweepTracking.open(tmp_path / "demo", Tracking(uri="off"), name="demo", command="",
                               axes=[], output_dir=tmp_path)  # fmt: skip
    assert isinstance(sweep, Off)
    run = sweep.run(0, "00", {})
    run.params({}, {})
    run.epochs([{"epoch": 1}])
    run.finish(None, "completed", None, {})
    assert sweep.finish([], None, None) is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path, warnings_of: Any) -> None:
    (tmp_path / "demo").write_text("a file where the folder should be")
    sweep = SweepTracking.open(tmp_path / "demo", Tracking(), name="demo", command="", axes=[],
                               output_dir=tmp_path)  # fmt: skip
    assert isinstance(sweep, Off)
    assert len(warnings_of()) == 1


def test_a_damaged_letter_is_written_anew(lab: Any) -> None:
    lab.train_all()
    for path in (lab.folder / letter.FOLDER).glob("*.json"):
        path.write_text(path.read_text()[:40])
    (lab.folder / "tracking.json").write_text("{")
    assert sync(lab.folder) is not None
    found = lab.seen().client.search_runs([lab.seen().experiment.experiment_id])
    assert len([run for run in found if run.data.tags["role"] == "sweep"]) == 2
    assert {run.info.status for run in found} == {"FINISHED"}


# --- several processes ----------------------------------------------------------------------

OPEN = """
import sys
from pathlib import Path
from graft.config import Tracking
from graft.tracking import SweepTracking
output, number = Path(sys.argv[1]), int(sys.argv[2])
sweep = SweepTracking.open(output / "demo", Tracking(), name="demo", command="", axes=["a"],
                           output_dir=output)
run = sweep.run(number, f"{number:02d}", {"a": str(number)})
for epoch in range(1, int(sys.argv[3]) + 1):
    run.epochs([{"epoch": epoch, "val_loss": 1 / epoch}])
run.finish(None, "completed", None, {"best/val_accuracy": 0.5})
sweep.wait(60)
assert sweep.link is not None
"""


def together(output: Path, num_processes: int, num_epochs: int) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(output), str(number), str(num_epochs)],
            stderr=subprocess.PIPE,
        )
        for number in range(num_processes)
    ]
    ends = [(process.communicate()[1].decode(), process.returncode) for process in started]
    assert ends == [("", 0)] * num_processes


@pytest.mark.slow
def test_four_processes_may_start_on_an_empty_folder_at_once(lab_at: Any) -> None:
    lab = lab_at(None)
    together(lab.output, num_processes=4, num_epochs=1)
    assert len(lab.seen().runs()) == 4
    assert lab.seen().parent.info.run_name == "demo"


@pytest.mark.slow
def test_eight_runs_that_write_at_once_lose_nothing(lab: Any) -> None:
    together(lab.output, num_processes=8, num_epochs=40)
    for run in lab.seen().runs().values():
        assert lab.seen().curve(run, "val/loss") == [(e, 1 / e) for e in range(1, 41)]
        assert run.info.status == "FINISHED"


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, graft.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def wait_for_points(lab: Any, number: int, num_epochs: int) -> list[Any]:
    """What is in MLflow once the background has sent so many epochs."""
    import time

    for _ in range(100):
        run = lab.seen().runs().get(lab.titles[number])
        if run is not None and len(lab.seen().curve(run, "val/loss")) == num_epochs:
            return list(lab.seen().points(run))
        time.sleep(0.05)
    raise AssertionError("The epochs were not sent while the run was going on.")


def written(lab: Any) -> Any:
    """All values and all files, with when they were written."""
    seen = lab.seen()
    files = {p: p.stat().st_ctime_ns for p in (lab.output / "mlartifacts").rglob("model.*")}
    points = {run.info.run_id: seen.points(run) for run in seen.runs().values()}
    return files, points, len(read_runs(lab.folder)), read_json(lab.folder / "tracking.json")
