"""The experiment that graft grew from, at its full size, on one GPU: where its time goes.

    python benchmarks/h100.py
    python benchmarks/h100.py --dry-run      # a few pictures, one epoch, on the CPU: does it run?

27,000 made JPEGs of 178 x 218 (24,000 for training, 3,000 for validation, and a few more for the
test that graft insists on), VGG-16 at 224 px, batches of 32, head_only and fine_tune x 1e-3 and
1e-4, 10 epochs. Random weights: they cost the same as ImageNet's.

decode      reading, decoding and resizing every picture once, by all cores, measured alone
trunk       from the runs' records: decoding again, the frozen part once a view, storing; for each
            array of runs
tails       from the runs' records: epochs and validation of what trains, one run after the other
Adam        a fused step on the head's 102.8 M parameters. It reads weights, gradient and two states
            and writes weights and states, 7 x 4 bytes a parameter: as a share of what the memory
            could move in that time (`--bandwidth`, bytes a second; an H100 SXM: 3.35e12)
plain loop  plain_loop.py on `--plain-limit` pictures: its second epoch, counted for all pictures
            and epochs, and for both rates
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pictures
from measure import (
    GraftSweep,
    Places,
    Table,
    conditions,
    environment,
    graft,
    note,
    process,
    sample,
    script,
)

SIDE, BATCH = 224, 32
STRATEGIES, RATES = "head_only,fine_tune", "1e-3,1e-4"
HEAD = (25088, 4096)


def main() -> None:
    options = _options()
    device = _device(options)
    with tempfile.TemporaryDirectory(prefix="graft-h100-", dir=options.places) as temporary:
        folder = options.folder or Path(temporary) / "pictures"
        _write(options, folder)
        # Graft first: a process may inherit the peak of memory of the one that started it.
        sweep = _graft(options, folder, Path(temporary), device)
        note(f"graft, {sweep.process.seconds:.1f} s")
        plain_s = _plain_s(options, folder, device) if options.plain_limit else None
        note(f"plain loop on {options.plain_limit:,} pictures")
        decode_s = _decode_s(folder)
        note(f"decoded once in {decode_s:.1f} s")
        adam = _adam(device, options.bandwidth)
        tables = [_split(sweep, decode_s, plain_s, options), _runs(sweep), adam]
        print(f"{conditions()}, {_name(device)}\n")
        for table in tables:
            print(table)
        if options.json:
            found = {
                "conditions": conditions(),
                "device": _name(device),
                "tables": [table.plain() for table in tables],
                "runs": sweep.runs,
            }
            options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _device(options: argparse.Namespace) -> str:
    import torch

    if options.dry_run:
        return "cpu"
    if not torch.cuda.is_available():
        sys.exit(
            "benchmarks/h100.py needs a CUDA device, and there is none here. With --dry-run it "
            "goes through all of it on a CPU, with a few pictures."
        )
    return "cuda"


def _name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "no GPU (dry run)"


# --- what is measured -----------------------------------------------------------------------


def _write(options: argparse.Namespace, folder: Path) -> None:
    train = options.pictures * 8 // 9
    counts = f"{train},{options.pictures - train},{_num_test(options)}"
    started = time.perf_counter()
    process(
        script("pictures.py", "random", str(folder), "--counts", counts, "--size", "178x218"),
        environment(sleeps=True),
    )
    note(f"{options.pictures:,} pictures written in {time.perf_counter() - started:.1f} s")


def _num_test(options: argparse.Namespace) -> int:
    return int(max(2, options.pictures // 400))


def _decode_s(folder: Path) -> float:
    """Seconds to decode every picture once, with as many threads as graft uses."""
    import numpy as np

    from graft.data.pictures import Pictures

    paths = sorted(folder.glob("*.jpg"))
    chunks = np.array_split(np.arange(len(paths)), max(1, len(paths) // 256))
    started = time.perf_counter()
    with Pictures(paths, SIDE) as found:
        for _ in found.batches(chunks):
            pass
    return time.perf_counter() - started


def _plain_s(options: argparse.Namespace, folder: Path, device: str) -> float:
    """Seconds of the whole sweep as a plain loop, counted from one epoch of a few pictures."""
    command = script(
        "plain_loop.py", "--dataset", "random", "--folder", str(folder), "--model", "vgg16",
        "--weights", "none", "--image-size", str(SIDE), "--mean", "0.5,0.5,0.5", "--std",
        "0.5,0.5,0.5", "--limit", str(options.plain_limit), "--epochs", "2", "--rates", "1e-4",
        "--strategies", STRATEGIES, "--device", device,
    )  # fmt: skip
    runs = process(command, environment(sleeps=False)).results
    seen = options.plain_limit / (options.pictures + _num_test(options))
    # The second epoch: the first one sets kernels up. Two rates, each as long as the other.
    return sum(2 * options.epochs * run["epoch_s"][1] / seen for run in runs)


def _graft(options: argparse.Namespace, folder: Path, temporary: Path, device: str) -> GraftSweep:
    return graft(
        *pictures.overrides(folder), "model=vgg16", "model.weights=none",
        "model.mean=[0.5,0.5,0.5]", "model.std=[0.5,0.5,0.5]", f"image_size={SIDE}",
        f"batch_size={BATCH}", f"epochs={options.epochs}", f"strategy={STRATEGIES}",
        f"optimizer.lr={RATES}", f"device={device}", f"precision={options.precision}",
        f"activations={options.activations}", "cache.limit_gb=100", "metric=val_loss",
        **Places(temporary / "sweep").fresh(),
    )  # fmt: skip


def _adam(device: str, bandwidth: float) -> Table:
    """A fused step on the seed's head; on a CPU a hundredth of it, to see that it runs."""
    import torch
    from torch import nn

    inputs = HEAD[0] if device == "cuda" else HEAD[0] // 100
    head = nn.Sequential(nn.Linear(inputs, HEAD[1]), nn.Linear(HEAD[1], 1)).to(device)
    for parameter in head.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-4, fused=True)
    times = [_timed(optimizer.step, device) for _ in range(60)][10:]
    count = sum(parameter.numel() for parameter in head.parameters())
    moved, median = 7 * 4 * count, statistics.median(times)
    rows: list[list[object]] = [
        ["parameters", f"{count:,}"],
        ["bytes moved, GB", f"{moved / 1e9:.3g}"],
        ["a step, ms", sample([1e3 * value for value in times])],
        ["moved, TB/s", f"{moved / median / 1e12:.3g}"],
        [f"% of {bandwidth / 1e12:g} TB/s", f"{100 * moved / median / bandwidth:.1f}"],
    ]
    return Table("Adam on the head, fused", ["", ""], rows)


def _timed(step: Any, device: str) -> float:
    """Seconds of one step, by the device's own clock where it is a GPU."""
    import torch

    if device == "cpu":
        started = time.perf_counter()
        step()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


# --- tables ---------------------------------------------------------------------------------


def _split(
    sweep: GraftSweep, decode_s: float, plain_s: float | None, options: argparse.Namespace
) -> Table:
    whole, spent = sweep.process.seconds, sweep.spent("prepare", "trunk", "fit", "test")
    parts = {
        "start: imports, composing, check of the pictures": sweep.before_s,
        "prepare: networks built and cut": sweep.spent("prepare"),
        "trunk, decoding included": sweep.spent("trunk"),
        "  decode, measured alone": decode_s,
        "tails: epochs and validation": sweep.spent("fit"),
        "test, checkpoints, predictions": sweep.spent("test"),
        "figures, report, MLflow, end": whole - sweep.before_s - spent,
        "whole process": whole,
        "first picture to last epoch": sweep.first_to_last_s,
    }
    rows = [[name, f"{seconds:,.1f}", f"{100 * seconds / whole:.0f}"]
            for name, seconds in parts.items()]  # fmt: skip
    notes = [
        f"{options.pictures:,} pictures, {options.epochs} epochs, {options.precision}, activations "
        f"{options.activations}, {sweep.stored_mb / 1e3:.1f} GB stored; peak "
        f"{sweep.process.peak_mb / 1e3:.1f} GB of memory."
    ]
    if plain_s is not None:
        rows.append(["plain loop, counted", f"{plain_s:,.0f}", ""])
        notes.append(
            f"Plain loop: an epoch of {options.plain_limit:,} pictures measured, counted for "
            f"all; {plain_s / sweep.first_to_last_s:.1f} times graft's first picture to last "
            f"epoch, {plain_s / whole:.1f} times its whole process."
        )
    return Table("the sweep", ["graft", "seconds", "%"], rows, notes)


def _runs(sweep: GraftSweep) -> Table:
    rows = []
    for run in sweep.runs:
        spent, epochs = run["timings_s"], sweep.epochs(run["run"])
        where = f"{run['trunk']['source']}, {run['trunk']['at']}"
        rows.append(
            [run["run"], where, spent.get("trunk", 0.0), spent["fit"], sample(epochs[1:] or epochs)]
        )
    head = ["run", "activations", "trunk, s", "fit, s", "an epoch after the first, s"]
    return Table("its runs", head, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pictures", type=int, default=27_000, help="for training and validation")
    add("--epochs", type=int, default=10)
    # The plain loop has PyTorch's defaults, TF32 in convolutions among them.
    add("--precision", default="tf32", help="or float32, bfloat16, float16")
    add("--activations", default="float32", help="or bfloat16")
    add("--plain-limit", type=int, default=1_000, help="pictures for the plain loop; 0: without")
    add("--bandwidth", type=float, default=3.35e12, help="of the GPU's memory, bytes a second")
    add("--folder", type=Path, help="keep the pictures here")
    add("--places", type=Path, help="a folder for results and activations, on a RAM disk, say")
    add("--json", type=Path, help="write every measurement here, too")
    add("--dry-run", action="store_true", help="on the CPU, with 36 pictures and one epoch")
    options = parser.parse_args()
    if options.dry_run:
        options.pictures, options.plain_limit, options.epochs = 36, 36, 1
        options.precision = "float32"
    return options


if __name__ == "__main__":
    main()
