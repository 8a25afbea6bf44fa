"""Graft: sweeps of transfer-learning recipes for image classification."""

import os

# Threads that wait for each other should sleep, not spin: beside any other work, spinning on two
# cores made a frozen EfficientNet-Lite0 five to twenty times slower (docs/decisions/0006). OpenMP
# reads this once, when torch loads it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    # A few microseconds are waited through, so that a short step need not wake anybody up.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
