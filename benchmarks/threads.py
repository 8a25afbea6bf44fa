"""Pictures a second through a frozen EfficientNet-Lite0, by memory order, allocator and threads.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/threads.py

The table of docs/decisions/0006 comes from this, run with and without busy loops beside it. Rates
by the clock and by CPU time: where the first is low and the second not, the machine was busy; where
both are low, threads were spinning or memory was being handed back and forth.
"""

import os
import statistics
import time

import torch

from graft import machine, train
from graft.config import from_dict
from graft.trunk.cut import cut

SIDE, PICTURES, REPEATS = 128, 160, 5


def main() -> None:
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'memory order':<15} {'freed memory':<13} {'batch':>5} {'by clock':>9} {'by CPU':>7}")
    for is_kept in (False, True):  # mallopt cannot be undone, so the default comes first
        if is_kept:
            machine.keep_memory()
        for order in (torch.contiguous_format, torch.channels_last):
            for batch in (16, 32, 64):
                wall, cpu = rates(order, batch)
                name = str(order).removeprefix("torch.").removesuffix("_format")
                kept = "kept" if is_kept else "returned"
                print(f"{name:<15} {kept:<13} {batch:>5} {wall:>9.0f} {cpu:>7.0f}")


def rates(order: torch.memory_format, batch: int) -> tuple[float, float]:
    """Medians of pictures per second by the clock, and per second of CPU time."""
    trunk = _trunk(order)
    pictures = torch.randn(PICTURES, 3, SIDE, SIDE).contiguous(memory_format=order)
    found = []
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.no_grad():
            for part in pictures.split(batch):
                trunk(part)
        found.append(
            (
                PICTURES / (time.perf_counter() - wall),
                PICTURES / (time.process_time() - cpu),
            )
        )
    return statistics.median(w for w, _ in found), statistics.median(c for _, c in found)


def _trunk(order: torch.memory_format) -> torch.nn.Module:
    values = {
        "dataset": {"_target_": "graft.config.EmojiDataset"},
        "model": {"name": "efficientnet_lite0"},
        "strategy": {"_target_": "graft.strategies.HeadOnly"},
        "optimizer": {"_target_": "graft.config.Adam"},
    }
    config = train.resolve(from_dict(values))
    network = train.build_network(config, ("-1", "1"), torch.device("cpu"))
    found = cut(network.module.to(memory_format=order))
    assert found is not None
    return found.trunk


if __name__ == "__main__":
    main()
