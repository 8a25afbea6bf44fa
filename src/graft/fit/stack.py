"""Tails of several runs as one: small heads, their parameters stacked.

A head of a few thousand weights takes far less time to compute than to ask for. Stacked, K of them
are one product of matrices a layer, and one optimizer step:

    parameters   [K, outputs, inputs] and [K, outputs]
    activations  [B, inputs], the same for all, or [K, B, inputs] behind the first layer

Company changes nothing, bit for bit on a CPU (measured; tests/fit/test_stack.py): products of
stacked matrices are computed one by one, elementwise operations number by number. Two things see to
it. A run alone is stacked too, so that it takes the same kernels. And behind the last run there is
always a row of zeros that belongs to nobody: kernels for a stack of one differ, and the last few
numbers of a tensor, which are left over from the processor's wide registers, may round differently.

Prior art: HFTA (S. Wang et al., MLSys 2021) fuses models that are trained side by side, and their
optimizers.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from graft.config import SGD, Adam, AdamW
from graft.fit.learner import Learner, recorder
from graft.fit.random_numbers import RandomNumbers

# A larger head is bound by the memory that its weights move through. On a CPU one of 0.1 million
# weights takes twice as long in a stack if it is alone, one of 0.6 million takes longer in any
# company. On a GPU, where steps are recorded, one of 0.6 million takes twice as long alone, as long
# among four, and 0.6 of the time among eight; one of 4 million takes longer in any company
# (docs/performance.md; benchmarks/stacks.py).
MAX_WEIGHTS, MAX_WEIGHTS_ON_GPU = 50_000, 600_000

# Products of matrices round differently where rows begin in the middle of a wide register: a Linear
# is stacked where its inputs are a multiple of so many, as in every network of the catalog.
ALIGNED = 16

_PLAIN = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.GELU, nn.SiLU, nn.Identity)


@dataclass(frozen=True)
class Layer:
    """One step of a tail: the name of its module, and the module of each run."""

    name: str
    modules: tuple[nn.Module, ...]


def chain(tail: nn.Module) -> list[str] | None:
    """Names of the modules of a tail that is a chain of layers which can be stacked; else None."""
    if not isinstance(tail, GraphModule):
        return None
    *nodes, output = tail.graph.nodes
    if len(nodes) < 2 or output.args[0] is not nodes[-1]:
        return None
    names = []
    for before, node in pairwise(nodes):
        if node.op != "call_module" or node.args != (before,) or node.kwargs:
            return None
        module = tail.get_submodule(str(node.target))
        is_known = isinstance(module, nn.Dropout) or type(module) in _PLAIN
        if not (is_known or _can_be_row(module)):
            return None
        names.append(str(node.target))
    trained = [p for p in tail.parameters() if p.requires_grad]
    is_on_gpu = any(p.device.type == "cuda" for p in trained)
    most = MAX_WEIGHTS_ON_GPU if is_on_gpu else MAX_WEIGHTS
    return names if 0 < sum(p.numel() for p in trained) <= most else None


def _can_be_row(module: nn.Module) -> bool:
    """Whether a Linear gives the same bits wherever in a stack it stands."""
    if not isinstance(module, nn.Linear) or module.bias is None:
        return False
    return module.in_features % ALIGNED == 0


class Stack:
    """Learners whose tails are trained as one.

    Their networks' parameters become views of the stacked ones, so that each learner sees, stores
    and restores its own as if it were alone.

    Args:
        learners: with tails of one shape, on the same batches, with optimizers of one kind, and
            behind the same epoch.
        names: from `chain`.
    """

    def __init__(self, learners: Sequence[Learner], names: Sequence[str]) -> None:
        self.learners = tuple(learners)
        tails = [learner.tail for learner in learners]
        self._layers = [Layer(n, tuple(t.get_submodule(n) for t in tails)) for n in names]
        self._weights = {
            layer.name: (_stacked([m.weight for m in linears]), _stacked([m.bias for m in linears]))
            for layer in self._layers
            if (linears := [m for m in layer.modules if isinstance(m, nn.Linear)])
        }
        parameters = [p for pair in self._weights.values() for p in pair]
        self._optimizer = StackedOptimizer(
            parameters, [one.config.optimizer for one in learners], learners[0].steps
        )
        for k, learner in enumerate(learners):
            self._give_row(k, learner)
        # Runs with one seed and equal rates draw equal masks, once for all of them.
        rates = [tuple(m.p for m in self._dropouts(k)) for k in range(len(learners))]
        self._streams = [
            (one.config.seed, *rate) for one, rate in zip(learners, rates, strict=True)
        ]
        shared: dict[tuple[float, ...], RandomNumbers] = {}
        for learner, stream in zip(learners, self._streams, strict=True):
            learner.random = shared.setdefault(stream, learner.random)
        self._among: set[Learner] = set()
        self._recorder = recorder(learners[0].config, learners[0].device)

    def step(
        self, activations: tuple[torch.Tensor, ...], labels: torch.Tensor, among: set[Learner]
    ) -> None:
        """One optimizer step of every run on a batch; what is not `among` those left is ignored."""
        (x,) = activations
        if among != self._among:
            self._among = set(among)
            self._recorder.forget()
        with self._recorder.lane(labels, x):
            self._optimizer.prepare([learner.rate() for learner in self.learners])
            self._recorder.run(self._asked_step, labels, x, *self._masks(x))
        for learner in among:
            learner.count(len(labels))

    # --- inside ---------------------------------------------------------------------------

    def _asked_step(self, labels: torch.Tensor, x: torch.Tensor, *masks: torch.Tensor) -> None:
        """What a device does in a step: see `recorded.py`."""
        for parameter in self._optimizer.parameters:
            parameter.grad = None  # of a step that failed half-way
        with self.learners[0].autocast():
            logits = self._forward(x, masks)
        losses = [
            learner.summed_loss(own.float(), labels)
            for learner, own in zip(self.learners, logits, strict=False)
            if learner in self._among
        ]
        torch.autograd.backward(losses)
        self._optimizer.step()

    def _give_row(self, k: int, learner: Learner) -> None:
        """Its share of our optimizer, which steps for all; with what it brings from before."""
        names = [f"{name}.{kind}" for name in self._weights for kind in ("weight", "bias")]
        row = {
            f"{name}/{word}": moment[k]
            for word, moments in self._optimizer.moments.items()
            for name, moment in zip(names, moments, strict=True)
        }
        for key, value in learner.first_moments.items():
            row[key].copy_(value)
        learner.optimizer, learner.row, learner.first_moments = None, row, {}

    def _dropouts(self, k: int) -> list[nn.Dropout]:
        return [m for layer in self._layers if isinstance(m := layer.modules[k], nn.Dropout)]

    def _forward(self, x: torch.Tensor, masks: Sequence[torch.Tensor]) -> torch.Tensor:
        """[B, inputs] -> [K + 1, B, outputs], in train mode."""
        left = iter(masks)
        for layer in self._layers:
            first = layer.modules[0]
            if isinstance(first, nn.Linear):
                weight, bias = self._weights[layer.name]
                if x.ndim == 2:
                    x = x.expand(len(weight), *x.shape)
                x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
            elif isinstance(first, nn.Dropout):
                x = x * next(left).to(x.dtype)
            else:
                x = first(x)
        return x

    def _masks(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """What each dropout multiplies its input by, from every run's own random numbers.

        [B, features] where all runs draw the same, else [K + 1, B, features].
        """
        number, shape = 0, list(x.shape)
        for layer in self._layers:
            if isinstance(layer.modules[0], nn.Linear):
                shape[-1] = layer.modules[0].out_features
            elif isinstance(layer.modules[0], nn.Dropout):
                yield self._mask(number, shape, x.device)
                number += 1

    def _mask(self, number: int, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        masks: dict[tuple[float, ...], torch.Tensor] = {}
        for k, (learner, stream) in enumerate(zip(self.learners, self._streams, strict=True)):
            if stream not in masks:
                with learner.random.drawn():
                    masks[stream] = F.dropout(
                        _ones(tuple(shape), device), self._dropouts(k)[number].p
                    )
        if len(masks) == 1:
            return next(iter(masks.values()))
        every = [masks[stream] for stream in self._streams]
        return torch.stack([*every, every[-1]])


class StackedOptimizer:
    """torch's Adam, AdamW or SGD for every row of stacked parameters, each with its own settings.

    The same arithmetic as `torch.optim`, written with operations that round alike for every row.

    Args:
        parameters: [K + 1, ...] each.
        configs: [K], all of one class; momentum and nesterov equal.
        steps: that it has made, in an earlier process.

    Attributes:
        moments: what it keeps of the parameters, in their order, [K + 1, ...] each; by name.
    """

    BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # torch's own

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        configs: Sequence[Adam | AdamW | SGD],
        steps: int = 0,
    ) -> None:
        self.parameters, self.config = list(parameters), configs[0]
        self._decay = self._row([c.weight_decay for c in configs])
        self._is_decaying = any(c.weight_decay for c in configs)
        # Each row's rate, and what is left of 1 - BETA1**steps and 1 - BETA2**steps: on the device,
        # so that a recorded step (see recorded.py) finds those of its time.
        self._numbers = torch.zeros(len(configs) + 3, device=parameters[0].device)
        self._first = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        self._second = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        self.moments = {"first": self._first, "second": self._second}
        self._steps = steps

    def prepare(self, rates: Sequence[float]) -> None:
        """Before each step: its rates, [K]."""
        self._steps += 1
        left = (1 - self.BETA1**self._steps, 1 - self.BETA2**self._steps)
        # A few numbers are taken at once: nothing waits for the device.
        self._numbers.copy_(torch.tensor([*rates, 0.0, *left]), non_blocking=True)

    @torch.no_grad()
    def step(self) -> None:
        """One step from the parameters' gradients, which are then gone."""
        rates, left = self._numbers[:-2], self._numbers[-2:].unbind()
        for p, m, v in zip(self.parameters, self._first, self._second, strict=True):
            assert p.grad is not None
            lr, decay = (x.view(-1, *[1] * (p.ndim - 1)) for x in (rates, self._decay))
            gradient, p.grad = p.grad, None
            if isinstance(self.config, AdamW):
                p.mul_(1 - lr * decay)
            elif self._is_decaying:
                gradient = gradient + decay * p
            if isinstance(self.config, SGD):
                p.sub_(lr * self._direction(gradient, m))
            else:
                p.sub_(lr * self._adam(gradient, m, v, *left))

    def _adam(
        self, gradient: torch.Tensor, m: torch.Tensor, v: torch.Tensor, left_of_first: torch.Tensor,
        left_of_second: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        m.mul_(self.BETA1).add_(gradient * (1 - self.BETA1))
        v.mul_(self.BETA2).add_(gradient * gradient * (1 - self.BETA2))
        root = (v / left_of_second).sqrt_().add_(self.EPS)
        return (m / left_of_first).div_(root)

    def _direction(self, gradient: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.config, SGD)
        momentum = self.config.momentum
        if not momentum:
            return gradient
        m.mul_(momentum).add_(gradient)  # the first step is the gradient itself
        return gradient + momentum * m if self.config.nesterov else m

    def _row(self, values: Sequence[float]) -> torch.Tensor:
        """[K + 1]; nobody's row gets 0."""
        like = self.parameters[0]
        return torch.tensor([*values, 0.0], dtype=like.dtype, device=like.device)


def stacks(learners: Sequence[Learner]) -> list[Stack]:
    """Learners with equal tails, in stacks of those whose optimizers are of one kind."""
    names = chain(learners[0].tail)
    assert names is not None
    kinds: dict[tuple[object, ...], list[Learner]] = {}
    for learner in learners:
        config = learner.config.optimizer
        kind: tuple[object, ...] = (type(config),)
        if isinstance(config, SGD):
            kind += (config.momentum, config.nesterov)
        kinds.setdefault(kind, []).append(learner)
    return [Stack(group, names) for group in kinds.values()]


@functools.lru_cache(maxsize=4)
def _ones(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Nobody writes to them: the same in every step."""
    return torch.ones(shape, device=device)


def _stacked(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """A stacked copy with a row of zeros behind; the parameters become views of their rows."""
    nobody = torch.zeros_like(parameters[0])
    whole = torch.stack([*(p.detach() for p in parameters), nobody])
    for row, parameter in zip(whole, parameters, strict=False):
        parameter.data = row
    return whole.requires_grad_()
