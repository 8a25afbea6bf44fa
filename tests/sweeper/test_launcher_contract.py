"""Hydra's own published suites for launchers, over every executor."""

import pytest
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)

EXECUTORS = ["slots_inline", "slots"]

# Hydra's suites expect each job in its own working directory, the default of Hydra 1.1, which
# they ask for by leaving `version_base` out. Hydra then says that this default has changed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Future Hydra versions will no longer change working directory:UserWarning"
)


@pytest.mark.parametrize(("launcher_name", "overrides"), [(name, []) for name in EXECUTORS])
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [(name, ["hydra.sweeper.max_batch_size=2"]) for name in EXECUTORS],
)
class TestBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [({}, ["-m", f"hydra/launcher={name}"]) for name in EXECUTORS],
)
class TestIntegration(IntegrationTestSuite):
    pass
