"""How many slots a Ray cluster has room for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra.errors import HydraException

from hydra_plugins.gpu_launcher._ray_cluster import Demand

_KEYS = {"GPU": "num_gpus", "CPU": "num_cpus"}


@dataclass(frozen=True)
class Share:
    """Of a cluster, for each slot."""

    num_gpus: float
    num_cpus: float

    def places(self, resources: Mapping[str, float]) -> float:
        """How many fit on a node; infinitely many, if they need nothing."""
        gpus = _fit(resources.get("GPU", 0.0), self.num_gpus)
        return min(gpus, _fit(resources.get("CPU", 0.0), self.num_cpus, is_divided=False))


def _fit(there: float, each: float, *, is_divided: bool = True) -> float:
    if each == 0:
        return math.inf
    if is_divided and each < 1:  # a share of a device lies whole on one
        return int(there) * int(1 / each + 1e-6)
    return int(there / each + 1e-6)


def room(ray: Any, share: Share) -> float:
    """How many slots fit on the nodes that live, if nobody else uses them."""
    return sum(share.places(one["Resources"]) for one in ray.nodes() if one["Alive"])


def share_of(ray: Any, demand: Demand) -> Share:
    """What each slot is to have.

    Raises:
        HydraException: no node has that much.
    """
    nodes = [one["Resources"] for one in ray.nodes() if one["Alive"]]
    most = {kind: max((node.get(kind, 0.0) for node in nodes), default=0.0) for kind in _KEYS}
    gpus = demand.num_gpus
    share = Share(float(most["GPU"] > 0) if gpus is None else gpus, demand.num_cpus)
    asked = {"GPU": share.num_gpus, "CPU": share.num_cpus}
    for kind, key in _KEYS.items():
        if asked[kind] > most[kind]:
            raise HydraException(
                f"hydra.launcher.{key}={asked[kind]:g}, but no node of the Ray cluster has more "
                f"than {most[kind]:g} {kind}s."
            )
    if not any(share.places(node) for node in nodes):
        raise HydraException(
            f"No node of the Ray cluster has {share.num_gpus:g} GPUs (hydra.launcher.num_gpus) and "
            f"{share.num_cpus:g} CPUs (hydra.launcher.num_cpus) together."
        )
    return share


def num_slots(ray: Any, share: Share, asked: int | None) -> int:
    """How many slots there should be.

    Raises:
        HydraException: neither the cluster nor the user sets a bound.
    """
    if asked is not None:
        return asked
    found = room(ray, share)
    if math.isinf(found):
        raise HydraException(
            "hydra.launcher.num_gpus=0 and hydra.launcher.num_cpus=0: set hydra.launcher.slots."
        )
    return int(found)
