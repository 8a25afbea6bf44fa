"""Graft: sweeps of transfer-learning recipes for image classification."""

import os

# Threads that wait for each other should sleep, not spin: beside any other work, spinning on two
# cores made a frozen EfficientNet-Lite0 five to twenty times slower (docs/decisions/0006). OpenMP
# reads this once, when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
