"""Hydra's own published suites for launchers, over every executor."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pytest
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)

# Hydra's suites expect each job in its own working directory, the default of Hydra 1.1, which
# they ask for by leaving `version_base` out. Hydra then says that this default has changed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Future Hydra versions will no longer change working directory:UserWarning"
)


ON_RAY = (
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray"),
)


@pytest.fixture(autouse=True)
def _one_cluster_for_all(request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params.get("launcher_name") == "slots_ray":
        request.getfixturevalue("ray_cluster")


def over_each(*overrides: str) -> list[Any]:
    on_ray = pytest.param("slots_ray", ["hydra.launcher.slots=2", *overrides], marks=ON_RAY)
    # `slots` goes through all that `slots_inline` does, and processes besides.
    inline = pytest.param("slots_inline", list(overrides), marks=pytest.mark.slow)
    return [inline, ("slots", list(overrides)), on_ray]


def as_commands() -> list[Any]:
    def flags(name: str, *more: str) -> tuple[dict[str, Any], Sequence[str]]:
        return {}, ["-m", f"hydra/launcher={name}", *more]

    on_ray = flags("slots_ray", "hydra.launcher.init={num_cpus: 2}")
    return [
        flags("slots_inline"),
        pytest.param(*flags("slots"), marks=pytest.mark.slow, id="slots"),
        pytest.param(*on_ray, marks=ON_RAY, id="slots_ray"),
    ]


@pytest.mark.parametrize(("launcher_name", "overrides"), over_each())
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), over_each("hydra.sweeper.max_batch_size=2")
)
class TestBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), as_commands())
class TestIntegration(IntegrationTestSuite):
    pass
