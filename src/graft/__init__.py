"""Graft: sweeps of transfer-learning recipes for image classification."""

import os

# Threads that wait for each other should sleep, not spin: beside any other work, spinning on two
# cores made a frozen EfficientNet-Lite0 five to twenty times slower (docs/decisions/0006). OpenMP
# reads this once, when torch loads it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    # A few microseconds are waited through, so that a short step need not wake anybody up.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# glibc reads this when a process starts: for the workers that this one starts, which have threads
# before anything of ours could ask for it (see `machine.keep_memory`).
os.environ.setdefault("MALLOC_ARENA_MAX", "1")
