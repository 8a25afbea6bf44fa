"""Each run's own log, where many runs are trained by one process."""

import contextlib
import logging
import resource
import shutil
from pathlib import Path

import pytest
from tests.opened import needs_proc, num_open

from graft import machine
from graft.config import RunConfig
from graft.runlog import RunLog

log = logging.getLogger("graft")


@needs_proc
def test_the_logs_of_runs_that_wait_are_not_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="graft")
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(RunLog(tmp_path / f"{i}.log")) for i in range(20)]
        log.info("of all")
        assert num_open(tmp_path) == 0
        for one in logs[:3]:
            one.info("of one")
        assert num_open(tmp_path) == 3
        for one in logs[:3]:
            one.rest()
        log.info("of all again")
        logs[0].info("once more")
    lines = [(tmp_path / f"{i}.log").read_text().splitlines() for i in (0, 3)]
    said = [[line.rpartition("] ")[2] for line in one] for one in lines]
    assert said == [["of all", "of one", "of all again", "once more"], ["of all", "of all again"]]
    assert num_open(tmp_path) == 0


def test_a_log_that_cannot_be_written_costs_its_lines_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="graft")
    for name in ("gone", "there"):
        (tmp_path / name).mkdir()
    with RunLog(tmp_path / "gone" / "train.log") as gone, RunLog(tmp_path / "there" / "train.log"):
        shutil.rmtree(tmp_path / "gone")
        log.info("of both")
        gone.info("of one")
    assert "of both" in (tmp_path / "there" / "train.log").read_text()


def test_a_process_that_trains_may_open_as_many_files_as_the_machine_lets_it(
    tiny_config: RunConfig,
) -> None:
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(allowed, 900), most))
    try:
        machine.prepare_process(tiny_config)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(most, 1 << 16)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
