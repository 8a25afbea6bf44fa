"""A dry run: what a sweep would do, found out without doing it.

Times come from a short trial on this machine with made-up pictures: of the trunk on a few of them,
of a training step on one batch. Reading and decoding pictures is not in them.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from graft import train
from graft.data.raw import SHOWN
from graft.dataset import LoadedDataset, load_dataset
from graft.fit.learner import Learner
from graft.fit.loop import can_stack
from graft.network import Network
from graft.plan import gigabytes
from graft.progress import counted, span
from graft.supply import Forecast, forecast, made_up
from graft.sweep.asked import Asked, finished, folder_of, value
from graft.sweep.check import checked
from graft.sweep.driver import arrays_of
from graft.trunk.cut import Cut, cut

log = logging.getLogger("graft")

_PICTURES = 16
_TRIALS = 3


@dataclass(frozen=True)
class Cost:
    """What an array would take.

    Attributes:
        trunk: what would be stored for it.
        trunk_s: to compute that; 0 where it is there.
        fit_s: to train its runs and look at the validation set, with what is left of the trunk.
        checkpoint_bytes: of all its runs.
    """

    trunk: Forecast
    trunk_s: float
    fit_s: float
    checkpoint_bytes: int


def show(asked: Sequence[Asked], slots: Sequence[str]) -> None:
    """Check a sweep as if it were to begin, and print what it would do.

    Args:
        slots: names of the places where arrays would run.

    Raises:
        BadRequest: as for a sweep that is to begin.
    """
    resolved, replaced = checked(asked)
    again = {one.name for one in replaced}
    done = {place: value(one, found) for place, one in enumerate(resolved)
            if one.name not in again and (found := finished(one)) is not None}  # fmt: skip
    arrays = arrays_of(resolved, done)
    where = f"{len(slots)} slots ({', '.join(slots)})" if len(slots) > 1 else "one slot"
    print(f"dry run of {folder_of(asked[0].config)}: nothing is started")
    print(f"  {counted(len(resolved), 'run')}, {len(done)} of them finished already")
    print(f"  {len(resolved) - len(done)} to train, in {counted(len(arrays), 'array')}, on {where}")
    stored: set[str] = set()
    costs = []
    for number, array in enumerate(arrays, start=1):
        runs = [resolved[place] for place in array]
        cost = _cost(runs, stored)
        costs.append(cost)
        _say(number, runs, cost)
    _sum_up(costs, len(slots), Path(asked[0].config.output_dir))


def _say(number: int, runs: Sequence[Asked], cost: Cost) -> None:
    print(f"  array {number}: {len(runs)} run{'s' if len(runs) > 1 else ''}")
    for run in runs[:SHOWN]:
        print(f"    {run.name}")
    if len(runs) > SHOWN:
        print(f"    and {len(runs) - SHOWN} more")
    time_s = f", about {span(max(1.0, cost.trunk_s))}" if cost.trunk_s else ""
    print(f"    {cost.trunk.line()}{time_s}")
    epochs = max(run.config.epochs for run in runs)
    print(f"    {counted(epochs, 'epoch')}, about {span(max(1.0, cost.fit_s))}")


def _sum_up(costs: Sequence[Cost], num_slots: int, output_dir: Path) -> None:
    loads = [0.0] * max(1, num_slots)
    for cost in sorted(costs, key=lambda cost: -cost.fit_s):
        loads[loads.index(min(loads))] += cost.fit_s
    seconds = sum(cost.trunk_s for cost in costs) + max(loads)
    stored = sum(cost.trunk.num_bytes for cost in costs if cost.trunk_s)
    kept = sum(cost.checkpoint_bytes for cost in costs)
    print(
        f"  about {span(max(1.0, seconds))} in all; {gigabytes(stored)} more in the trunk cache, "
        f"{gigabytes(kept)} of checkpoints in {output_dir}"
    )


def _cost(runs: Sequence[Asked], stored: set[str]) -> Cost:
    """Tried out; `stored`: trunks that would be there by then."""
    config = runs[0].config
    dataset = load_dataset(config)
    device = torch.device(config.device)
    network = train.build_network(config, dataset.examples.classes, device)
    own = cut(network.module)
    found = forecast(config, dataset.examples, dataset.digests, own)
    key = train.trunk_key(config)
    pictures = made_up(config, _PICTURES, device)
    is_new = found.num_rows > 0 and not found.is_there and key not in stored
    trunk_s = live_s = 0.0
    if own is not None and (is_new or found.live_share):
        network.eval()
        picture_s = _timed(lambda: _run(own, pictures), device) / _PICTURES
        trunk_s = picture_s * (1 - found.live_share) * found.num_rows if is_new else 0.0
        # In every epoch, once for all of its runs.
        num_seen = len(dataset.examples.train) + len(dataset.examples.val)
        epochs = max(run.config.epochs for run in runs)
        live_s = picture_s * found.live_share * num_seen * epochs
    stored.add(key)
    size = sum(p.numel() * p.element_size() for p in network.module.state_dict().values())
    fit_s = _fit_s(runs, dataset, network, own) + live_s
    return Cost(found, trunk_s, fit_s, size * len(runs))


def _fit_s(
    runs: Sequence[Asked], dataset: LoadedDataset, network: Network, own: Cut | None
) -> float:
    config, examples = runs[0].config, dataset.examples
    device = torch.device(config.device)
    num_batches = -(-len(examples.train) // config.batch_size)
    learner = Learner(
        "trial", config, network, own.tail_of(network.module) if own else network.module,
        steps_per_epoch=num_batches, device=device,
    )  # fmt: skip
    size = min(config.batch_size, len(examples.train))
    pictures = made_up(config, size, device)
    network.eval()
    inputs = _run(own, pictures) if own is not None else (pictures,)
    labels = torch.zeros(size, dtype=torch.int64, device=device)
    network.train()
    step_s = _timed(lambda: learner.step(inputs, labels), device)
    num_val = -(-len(examples.val) // config.batch_size)
    # Heads that are trained as one cost little more than one of them.
    is_stack = own is not None and can_stack(own.tail, config)
    epochs = max(run.config.epochs for run in runs) if is_stack else sum(
        run.config.epochs for run in runs)  # fmt: skip
    return epochs * step_s * (num_batches + num_val / 3)


@torch.no_grad()
def _run(own: Cut, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
    out = own.trunk(pictures)
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


def _timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few calls, after one that does not count."""
    times = []
    for _ in range(1 + _TRIALS):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
