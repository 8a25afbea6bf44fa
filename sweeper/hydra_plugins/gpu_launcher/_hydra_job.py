"""Hydra's `run_job` in a fraction of its time, which for short jobs was most of a sweep's.

Hydra copies a job's whole configuration four times, and writes its files slowly. All that a job, a
callback, a log or a reader of the files can see is the same, in the same order; a test compares.
"""

import contextlib
import os
from pathlib import Path
from textwrap import dedent
from typing import Any

import hydra
from hydra import version
from hydra._internal.deprecation_warning import deprecation_warning
from hydra.conf import HydraConf
from hydra.core import utils
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, env_override
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydra_plugins.gpu_launcher._template import copied
from hydra_plugins.gpu_launcher._yaml import to_yaml

# Of Hydra: other versions run their own.
_VERSIONS = "1.3."


def run_job(config: DictConfig, task: TaskFunction, context: HydraContext) -> JobReturn:
    """One job of a sweep, from its folder to its last callback.

    Raises:
        Exception: what is wrong before the task begins; what the task raises is in the result.
        BaseException: what else the task raises. `HydraConfig` is as it was, save where the job's
            folder could not be named.
    """
    if hydra.__version__.startswith(_VERSIONS):
        return _run_job(config, task, context)
    return utils.run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)


def _run_job(config: DictConfig, task: TaskFunction, context: HydraContext) -> JobReturn:
    before, hydra_before = os.getcwd(), HydraConfig.instance().cfg
    folder = _named(config)
    try:
        result = JobReturn()
        result.cfg = given = _without_hydra(config)
        result.hydra_cfg = own = _copied(HydraConfig.instance().cfg)
        overrides = OmegaConf.to_container(config.hydra.overrides.task)
        assert isinstance(overrides, list)
        result.overrides = overrides
        Path(folder).mkdir(parents=True, exist_ok=True)
        is_moved = _is_to_move(own)
        if is_moved:
            os.chdir(folder)
        result.working_dir = folder if is_moved else os.getcwd()
        configure_log(config.hydra.job_logging, config.hydra.verbose)
        _save(config, given, own)
        with env_override(own.hydra.job.env_set):
            context.callbacks.on_job_start(config=config, task_function=task)
            _call(task, given, result)
        result.task_name = JobRuntime.instance().get("name")
        utils._flush_loggers()
        context.callbacks.on_job_end(config=config, job_return=result)
        return result
    finally:
        HydraConfig.instance().cfg = hydra_before
        # Where the task has gone to by itself, the next job's relative folder would be made.
        with contextlib.suppress(OSError):
            os.chdir(before)


def _named(config: DictConfig) -> str:
    """The job's folder, which is noted in its configuration, and that in `HydraConfig`."""
    _set_hydra_config(config)
    parts = [str(OmegaConf.select(config, f"hydra.sweep.{key}")) for key in ("dir", "subdir")]
    folder = os.path.join(*parts)
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = os.path.abspath(folder)
    _set_hydra_config(config)
    return folder


def _set_hydra_config(config: DictConfig) -> None:
    """`HydraConfig.set_config`: a copy of Hydra's own section, which can look out of it."""
    OmegaConf.set_readonly(config.hydra, True)
    kind = OmegaConf.get_type(config, "hydra")
    assert kind is not None and issubclass(kind, HydraConf)
    shown: Any = DictConfig({})
    node = config._get_node("hydra")
    assert isinstance(node, DictConfig)
    shown.__dict__["_content"]["hydra"] = copied(node, config)
    HydraConfig.instance().cfg = shown


def _copied(config: Any) -> DictConfig:
    new = copied(config, None)
    assert isinstance(new, DictConfig)
    return new


def _without_hydra(config: DictConfig) -> DictConfig:
    given = _copied(config)
    with read_write(given), open_dict(given):
        del given["hydra"]
    return given


def _is_to_move(own: DictConfig) -> bool:
    """Whether the job runs in its folder."""
    chdir = own.hydra.job.chdir
    if chdir is None and version.base_at_least("1.2"):
        return False
    if chdir is None:
        url = "https://hydra.cc/docs/1.2/upgrades/1.1_to_1.2/changes_to_job_working_dir/"
        deprecation_warning(
            message=dedent(
                f"""\
                Future Hydra versions will no longer change working directory at job runtime by default.
                See {url} for more information."""  # noqa: E501
            ),
            stacklevel=4,
        )
        return True
    return bool(chdir)


def _save(config: DictConfig, given: DictConfig, own: DictConfig) -> None:
    if config.hydra.output_subdir is None:
        return
    folder = Path(config.hydra.runtime.output_dir) / Path(config.hydra.output_subdir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, saved in (
        ("config.yaml", given),
        ("hydra.yaml", own),
        ("overrides.yaml", config.hydra.overrides.task),
    ):
        with open(folder / name, "w", encoding="utf-8") as file:
            file.write(to_yaml(saved))


def _call(task: TaskFunction, given: DictConfig, result: JobReturn) -> None:
    try:
        result.return_value = task(given)
        result.status = JobStatus.COMPLETED
    except Exception as error:
        result.return_value = error
        result.status = JobStatus.FAILED
