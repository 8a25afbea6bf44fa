"""A sweep in MLflow: opened, ended, sent again."""

import dataclasses
import functools
import logging
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from graft.aside import Aside, Gone
from graft.config import Tracking
from graft.lock import held_by
from graft.record import LOCK, SWEEP, Record, is_complete, read_json, read_runs, write_json
from graft.tracking import letter, places, upload, view
from graft.tracking.client import Store, is_refusal, now_ms
from graft.tracking.letter import Letter
from graft.tracking.line import Line
from graft.tracking.run import FINISH_S, OffRun, RunTracking, harmless, upload_s

log = logging.getLogger("graft")

FILE = "tracking.json"
OFF = "off"


class SweepTracking:
    """A sweep in MLflow. Its calls return soon and never raise, whatever the server does."""

    def __init__(self, folder: Path, info: upload.SweepInfo, line: Line, artifacts: Path) -> None:
        self.folder, self.info = folder, info
        self._line, self._artifacts = line, artifacts
        self._lock = folder / letter.FOLDER / "children.lock"
        self._parent: upload.Parent | None = None
        self._children: dict[str, upload.Child] = {}

    @classmethod
    def open(
        cls,
        sweep_dir: Path,
        config: Tracking,
        *,
        name: str,
        command: str,
        axes: Sequence[str],
        output_dir: Path,
    ) -> "SweepTracking | Off":
        """Open a sweep's parent run, a new one or the one it had, in the background.

        Args:
            sweep_dir: the sweep's folder; keeps `tracking.json`, which tells the sweep from others.
            name: shown in MLflow.
            command: what was typed.
            axes: keys that differ between the runs.
            output_dir: where the default database and its files are.
        """
        if config.uri == OFF:
            return Off()
        opened = _open(sweep_dir, config, name, command, tuple(axes), output_dir)
        return opened or Off()

    def run(self, number: int, title: str, choices: Mapping[str, str]) -> "RunTracking":
        """The child of one run that this process trains: a new one, or the one it had."""
        return RunTracking(self.folder, first_letter(number, title, choices), self)

    # --- what others leave in the folder ------------------------------------------------------

    def letters(self) -> list[Path]:
        """Files of the letters that there are."""
        return sorted((self.folder / letter.FOLDER).glob("*.json"))

    @harmless
    def follow(self, path: Path) -> None:
        """Send what is new in a letter, in the background."""
        one = letter.read_letter(self.folder, path.stem)
        if one is not None and one.end_ms is None:
            self.take(one)

    @harmless
    def end(self, record: Record) -> None:
        """Send all that a run has, and end it, in the background."""
        one = _closed(self.folder, record, number=0)
        self.close_run(one, record)

    def take(self, one: Letter) -> None:
        """See `Reader`."""
        self._line.post(lambda store: self._child(one).follow(
            store, self.info, self.parent(store), one))  # fmt: skip

    def close_run(self, one: Letter, record: Record | None) -> None:
        """See `Reader`. Not waited for: what fails is sent at the end of the sweep."""
        self._line.post(lambda store: self._child(one).finish(
            store, self.info, self.parent(store), one, record, self._line.uri))  # fmt: skip

    def _child(self, one: Letter) -> upload.Child:
        return self._children.setdefault(one.key, upload.Child(self._lock))

    @harmless
    def finish(
        self, records: Sequence[Record], report: Path | None, results: Path | None
    ) -> str | None:
        """End the sweep: send what is missing, end what was killed, write the prepared view.

        Runs that some process still trains are left to it; it ends the sweep, too.

        Returns the link to the view, or None where MLflow could not be reached.
        """
        found = [path for path in (report, results) if path is not None and path.is_file()]
        found += upload.search_files(self.folder) + upload.figures(self.folder)
        letters = self._letters(records)
        sent = [path for record in records for path in upload.files(record)]
        wait_s = FINISH_S + 2 * len(letters) + upload_s(sent + found)
        job = functools.partial(self._finish, letters=letters, results=found)
        return self.link if self._line.ask(job, wait_s) else None

    def wait(self, wait_s: float) -> None:
        """Until all that was given so far has been tried, or the time is over."""
        self._line.wait(wait_s)

    @property
    def aside(self) -> Aside | None:
        """The process that talks to MLflow, once it does: it has time for other things."""
        return self._line.aside

    def close(self) -> None:
        """Nothing more will come. Returns soon."""
        self._line.close()

    @property
    def link(self) -> str | None:
        """Opens the prepared view, once there is a parent run."""
        if self._parent is None:
            return None
        address = places.web_address(self._line.uri)
        return view.link(address, self._parent.experiment, self.info.id)

    def ui_lines(self) -> list[str]:
        """Lines to print at the end: what starts the UI, and the link to the prepared view."""
        if self.link is None:
            return [f"was not reached; send it later with: {_sync_command(self.folder)}"]
        lines = []
        if not self._line.uri.startswith("http"):
            # Without the second setting and with the default of 4 workers it takes 3 GB.
            uri = shlex.quote(places.mask(self._line.uri))
            lines.append(
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false "
                f"{_mlflow()} ui --workers 1 --port 5000 --backend-store-uri {uri}"
            )
        return [*lines, self.link]

    def parent(self, store: Store) -> upload.Parent:
        """Ids of the parent run; found or made when first needed. In the line's thread only."""
        if self._parent is None:
            with places.locked(self._line.lock):
                self._parent = upload.open_parent(store, self.info, self._artifacts)
            with places.locked(self.folder / letter.FOLDER / "lock"):
                known = read_json(self.folder / FILE) or {}
                ids = {
                    "experiment_id": self._parent.experiment,
                    "parent_run_id": self._parent.run,
                }
                write_json(self.folder / FILE, {**known, **ids})
        return self._parent

    def _letters(self, records: Sequence[Record]) -> list[tuple[Letter, Record | None]]:
        """Every run's letter, closed, unless it is trained now; with its record, if it has one."""
        held = _held(self.folder)
        asked = [run.get("run") for run in (read_json(self.folder / SWEEP) or {}).get("runs", [])]
        closed: list[tuple[Letter, Record | None]] = []
        for i, record in enumerate(records):
            if record.name in held:
                continue
            try:
                one = _closed(self.folder, record, number=i)
            except Exception as error:  # damaged, most likely: the others are sent all the same
                self._line.say(record.name, f"{record.path} cannot be sent to MLflow ({error}).")
                continue
            if record.name in asked:  # the sweep may have grown since
                one = letter.renumbered(one, asked.index(record.name))
            closed.append((one, record))
        known = {one.key for one, _ in closed}.union(held.values())
        for one in letter.read_letters(self.folder):
            if one.key not in known:
                closed.append((_stopped(self.folder, one), None))
        return closed

    def _finish(
        self,
        store: Store,
        *,
        letters: Sequence[tuple[Letter, Record | None]],
        results: Sequence[Path],
    ) -> None:
        parent = self.parent(store)
        runs = store.find(parent.experiment, {"sweep.id": self.info.id, "role": "run"})
        by_key = {run.tags.get("run.key"): run for run in runs}
        problems: list[Exception] = []
        for one, record in letters:
            found = by_key.get(one.key)
            with self._keeping(problems):
                if found is not None and upload.is_complete(found, parent, one, record):
                    upload.rename(store, found, one)
                else:
                    child = upload.Child(self._lock)
                    child.finish(store, self.info, parent, one, record, self._line.uri)
        if not _held(self.folder):  # more may be trained now than then
            upload.close_rest(store, self.info, parent)
            status = _status(self.folder, letters)
            with self._keeping(problems):
                upload.end_parent(store, parent, status, results, self._line.uri)
        try:
            upload.write_view(store, self.info, parent, _metric(letters))
        except Exception as error:
            self._line.say("view", f"MLflow took no prepared view ({error}); the runs are there.")
        if problems:
            raise problems[0]

    @contextmanager
    def _keeping(self, problems: list[Exception]) -> Iterator[None]:
        """What goes wrong with one part of a sweep, such as its files, keeps no other from MLflow.

        Raises:
            Exception: it would go wrong with every part: nobody is there, or says no to us.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, Gone) or is_refusal(error):
                raise
            places.check_reachable(self._line.uri)
            problems.append(error)


class Off:
    """`tracking.uri=off`: the same calls, nothing done."""

    link: str | None = None
    aside: Aside | None = None

    def run(self, number: int, title: str, choices: Mapping[str, str]) -> "OffRun":
        return OffRun()

    def letters(self) -> list[Path]:
        return []

    def follow(self, path: Path) -> None:
        pass

    def end(self, record: Record) -> None:
        pass

    def finish(
        self, records: Sequence[Record], report: Path | None, results: Path | None
    ) -> str | None:
        return None

    def wait(self, wait_s: float) -> None:
        pass

    def close(self) -> None:
        pass

    def ui_lines(self) -> list[str]:
        return []


def run_tracking(
    sweep_dir: Path, config: Tracking, number: int, title: str, choices: Mapping[str, str]
) -> "RunTracking | OffRun":
    """The letter of a run, for the process that trains it; the sweep's driver sends it."""
    if config.uri == OFF:
        return OffRun()
    return RunTracking(sweep_dir, first_letter(number, title, choices))


def first_letter(number: int, title: str, choices: Mapping[str, str]) -> Letter:
    known = {key: letter.plain(value) for key, value in choices.items()}
    return Letter(number, letter.plain(title)[: letter.MAX_TITLE], known, now_ms())


def sync(sweep_dir: Path, uri: str | None = None) -> str | None:
    """Send what MLflow has not got of a sweep that has ended; nothing is sent twice.

    Args:
        sweep_dir: the sweep's folder.
        uri: a tracking URI; by default the one that the sweep was run with, or
            MLFLOW_TRACKING_URI where that one had a password.

    Returns:
        The link to the sweep's prepared view; None where something could not be sent.
    """
    known = read_json(sweep_dir / FILE) or {}
    asked = read_json(sweep_dir / SWEEP) or {}
    uri = uri or known.get("uri")
    if uri and places.is_masked(uri):
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            log.warning("The password of %s is stored nowhere: give --uri, or set "
                        "MLFLOW_TRACKING_URI.", known["uri"])  # fmt: skip
            return None
    sweep = SweepTracking.open(
        sweep_dir,
        Tracking(uri=uri, experiment=known.get("experiment", "graft")),
        name=known.get("name", sweep_dir.resolve().name),
        command=known.get("command", asked.get("command", "")),
        axes=known.get("axes", asked.get("axes", [])),
        output_dir=sweep_dir.resolve().parent,
    )
    report, results = sweep_dir / "report.html", sweep_dir / "results.csv"
    link = sweep.finish(read_runs(sweep_dir), report, results)
    sweep.close()
    return link


# --- parts ----------------------------------------------------------------------------------


@harmless
def _open(
    folder: Path,
    config: Tracking,
    name: str,
    command: str,
    axes: tuple[str, ...],
    output_dir: Path,
) -> SweepTracking:
    uri = places.resolve_uri(config.uri, output_dir)
    with places.locked(folder / letter.FOLDER / "lock"):
        known = read_json(folder / FILE) or {}
        info = upload.SweepInfo(
            id=known.get("id") or f"{view.key_of(name)[:80]}-{uuid.uuid4().hex[:6]}",
            name=name,
            command=places.without_secret(command, uri),
            axes=axes,
            experiment=config.experiment,
            start_ms=known.get("start_ms") or now_ms(),
        )
        stored = {**known, **dataclasses.asdict(info), "uri": places.mask(uri)}
        write_json(folder / FILE, stored)
    database = places.sqlite_path(uri) or output_dir / "mlflow"
    lock = database.with_name(f".{database.name}.lock")
    line = Line(uri, lock, f"What it misses can be sent later: {_sync_command(folder)}")
    sweep = SweepTracking(folder, info, line, database.parent / "mlartifacts")
    line.post(sweep.parent)
    return sweep


def _closed(folder: Path, record: Record, number: int) -> Letter:
    """The letter of a run that has a record; one that agrees with it already stays as it is."""
    choices = {str(k): str(v) for k, v in record.info.get("choices", {}).items()}
    known = letter.read_letter(folder, letter.key_of(choices))
    status = str(record.info.get("status", "running"))
    if known is not None and known.end_ms is not None and known.status == status:
        return known
    one = (known or letter.letter_of(record, number)).with_record(record)
    scores = letter.scores_of(record) if record.is_completed and not one.scores else {}
    one = letter.ended(one, status, record.info.get("reason"), scores)
    with suppress(OSError):  # a full disk: it can be sent all the same
        one.write(folder)
    return one


def _stopped(folder: Path, one: Letter) -> Letter:
    """The letter of a run without a record: if it did not end itself, it was killed."""
    if one.end_ms is None:
        one = letter.ended(one, "running", "It was stopped before its end.", {})
        with suppress(OSError):  # as above
            one.write(folder)
    return one


def _held(folder: Path) -> dict[str, str]:
    """Runs of a sweep that some process trains now, and the keys of their letters."""
    asked = (read_json(folder / SWEEP) or {}).get("runs", [])
    held = [run for run in asked if held_by(folder / run["run"] / LOCK)]
    return {run["run"]: letter.key_of(run["choices"]) for run in held}


def _status(folder: Path, letters: Sequence[tuple[Letter, Record | None]]) -> str:
    """The sweep's status: completed only if nothing that was asked for is missing."""
    statuses = [one.status for one, _ in letters]
    asked = (read_json(folder / SWEEP) or {}).get("runs", [])
    if any(letter.MLFLOW_STATUS[status] == "FAILED" for status in statuses):
        return "failed"
    is_whole = len(statuses) >= len(asked) and is_complete(statuses)
    return "completed" if is_whole else "running"


def _metric(letters: Sequence[tuple[Letter, Record | None]]) -> str:
    """What the runs are selected by."""
    names = [str(record.info["metric"]) for _, record in letters if record and
             record.info.get("metric")]  # fmt: skip
    return names[0] if names else "val_accuracy"


def _mlflow() -> str:
    """The command, by its path where a shell would not find it: `.venv` need not be active."""
    beside = Path(sys.executable).with_name("mlflow")
    return "mlflow" if shutil.which("mlflow") or not beside.exists() else shlex.quote(str(beside))


def _sync_command(folder: Path) -> str:
    return f"graft-sweep sync {shlex.quote(str(folder))}"
