"""Heads trained as one: company changes nothing, bit for bit, and the arithmetic is torch's."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from graft import backbones
from graft.config import SGD, Adam, AdamW, Constant, Cosine, CrossEntropy, CsvDataset
from graft.config import Model, RunConfig, Schedule
from graft.errors import Diverged
from graft.fit import stack as stack_module
from graft.fit.learner import Learner
from graft.fit.loop import Batch, can_stack, fit
from graft.fit.optim import optimizer
from graft.fit.stack import MAX_WEIGHTS, Stack, StackedOptimizer, chain, stacks
from graft.strategies import FineTune, HeadOnly, Strategy
from graft.trunk.cut import cut

BASE = RunConfig(
    dataset=CsvDataset(csv="", images="", target=""),
    model=Model(name="mobilenet_v3_small"),
    strategy=HeadOnly(),
    optimizer=Adam(lr=1e-2),
    epochs=3,
    batch_size=16,
)
