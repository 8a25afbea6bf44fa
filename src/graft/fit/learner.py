"""One run of an array while it trains."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from graft.config import METRICS, RunConfig
from graft.errors import Diverged, Pruned
from graft.fit.checkpoint import State
from graft.fit.losses import correct, loss
from graft.fit.optim import factor, moments, optimizer, set_moments, set_rate
from graft.fit.random_numbers import RandomNumbers
from graft.fit.recorded import Recorder


class Network(Protocol):
    """What a learner needs of a network: see `graft.backbones.Network`."""

    module: nn.Module

    def train(self) -> None: ...
    def eval(self) -> None: ...
    def restore(self, path: Path) -> None: ...


# Told of an epoch (1-based) and the metric that selects in it; says in words why the run is not
# worth going on with, or nothing.
Judge = Callable[[int, float], str | None]


class Learner:
    """A tail and all that trains it: optimizer, schedule, random state, history, best epoch.

    Random numbers (dropout) come from the learner's own state, put in place around each step: what
    trains beside it changes nothing.
    """

    def __init__(
        self,
        name: str,
        config: RunConfig,
        network: Network,
        tail: nn.Module,
        *,
        steps_per_epoch: int,
        device: torch.device,
        class_weights: torch.Tensor | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.name, self.config, self.network, self.tail = name, config, network, tail
        self.judge = judge
        self.device = device
        self.class_weights = class_weights.to(device) if class_weights is not None else None
        # Made with the first step: in a stack (see stack.py) another steps for all.
        self.optimizer: torch.optim.Optimizer | None = None
        # What that other keeps of this run: its very tensors, by name.
        self.row: dict[str, torch.Tensor] | None = None
        # What an optimizer goes on with that is yet to be made.
        self.first_moments: Mapping[str, torch.Tensor] = {}
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self._factor = factor(config.schedule, config.epochs)
        self._steps_per_epoch, self.steps, self._rate = steps_per_epoch, 0, 0.0
        self.recorder = recorder(config, device)
        self.random = RandomNumbers(config.seed, device)
        self._that_train: Mapping[str, torch.Tensor] | None = None
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0
        self.best_state: dict[str, torch.Tensor] = {}
        self.error: Exception | None = None
        # Sums stay on the device: reading them each step would wait for it.
        self._loss_sum = torch.zeros((), device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._seen = 0

    # --- training -------------------------------------------------------------------------

    def step(self, activations: tuple[torch.Tensor, ...], labels: torch.Tensor) -> None:
        """One optimizer step on a batch: what the trunk made of it, and labels [B]."""
        with self.recorder.lane(labels, *activations):
            if self.optimizer is None:
                self.optimizer = self._new_optimizer()
            set_rate(self.optimizer, self.rate())
            # On a GPU, recorded or not, those of a step as a whole.
            with self.random.drawn() if self.device.type == "cuda" else nullcontext():
                self.recorder.run(self._asked_step, labels, *activations)
        self.count(len(labels))

    def rate(self) -> float:
        """The learning rate of the step that comes next."""
        # At the middle of the step, so that a warm-up does not begin with a step of rate 0.
        epoch = (self.steps + 0.5) / self._steps_per_epoch
        self._rate = self.config.optimizer.lr * self._factor(epoch)
        return self._rate

    def summed_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of a step, float32 [B, outputs] against [B], added to the epoch's sums."""
        value = self.loss(logits, labels)
        self._loss_sum += value.detach() * len(labels)
        self._correct += correct(logits.detach(), labels)
        return value

    def count(self, num_examples: int) -> None:
        """A step on so many examples was made."""
        self.steps += 1
        self._seen += num_examples

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return loss(logits, labels, self.class_weights, self.config.loss.label_smoothing)

    def logits(self, activations: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """float32 [B, outputs], the network being in eval mode."""
        with self.autocast():
            out: torch.Tensor = self.tail(*activations)
        return out.float()

    def autocast(self) -> torch.autocast:
        return autocast(self.config.precision, self.device)

    # --- epochs ---------------------------------------------------------------------------

    def end_epoch(self, val: dict[str, float], seconds: float) -> dict[str, float]:
        """Close an epoch: its row of metrics, and whether it is the best so far.

        Raises:
            Diverged: the training or validation loss is not finite.
        """
        row = {
            "epoch": len(self.history) + 1,
            "train_loss": float(self._loss_sum) / self._seen,
            "train_accuracy": int(self._correct) / self._seen,
            **{f"val_{name}": value for name, value in val.items()},
            "lr": self._rate,
            "seconds": round(seconds, 3),
        }
        self._loss_sum.zero_()
        self._correct.zero_()
        self._seen = 0
        for key in ("train_loss", "val_loss"):
            if not math.isfinite(row[key]):
                raise Diverged(
                    f"{key} became {row[key]} in epoch {row['epoch']} at "
                    f"optimizer.lr={self.config.optimizer.lr:g}. A smaller rate usually helps."
                )
        self.history.append(row)
        if self._is_best(row):
            self.best_epoch = int(row["epoch"])
            self.best_state = copied(self._trained())
        return row

    def hear_judge(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Tell the judge of epochs, in order; what it says of the last of them counts.

        An epoch in which the metric has no value is not told.

        Args:
            rows: the newest of the history.

        Raises:
            Pruned: it is not worth going on, and there is something to go on with.
        """
        if self.judge is None:
            return
        metric = self.config.metric
        told = [(int(row["epoch"]), row[metric]) for row in rows if metric in row]
        said = [self.judge(epoch, value) for epoch, value in told]
        if said and said[-1] and not self.is_done:
            raise Pruned(*told[-1], said[-1])

    @contextmanager
    def keeping_error(self) -> Iterator[None]:
        """What goes wrong in here ends this run alone."""
        try:
            yield
        except Exception as error:
            self.error = error

    def release(self) -> None:
        """Training is over: give gradients and the optimizer's state back, most of its memory."""
        self.optimizer = self.row = None
        self.recorder.forget()
        for parameter in self.network.module.parameters():
            parameter.grad = None

    @property
    def is_done(self) -> bool:
        """Whether it has had its epochs, ran out of patience, or ended early."""
        patience, epochs = self.config.patience, len(self.history)
        is_out_of_patience = patience is not None and epochs - self.best_epoch >= patience
        return self.error is not None or is_out_of_patience or epochs >= self.config.epochs

    def _is_best(self, row: dict[str, float]) -> bool:
        """Strictly better than every epoch before; of equal ones the lower validation loss, then
        the earlier. On a small validation set equal accuracies are common."""
        metric = self.config.metric
        if metric not in row:
            return False
        sign = 1 if METRICS[metric] == "max" else -1
        ranks = [(sign * r[metric], -r["val_loss"]) for r in self.history if metric in r]
        return len(ranks) == 1 or ranks[-1] > max(ranks[:-1])

    # --- from one process to the next -----------------------------------------------------

    def state(self) -> State:
        """All that it has become by the end of an epoch: its very tensors, no copies."""
        kept = self.row
        if kept is None:
            kept = moments(self.optimizer, self._parameters()) if self.optimizer else {}
        is_best = self.best_epoch == len(self.history)
        return State(
            self.history, self.best_epoch, self.steps, self.scaler.state_dict(),
            trained=self._trained(), best={} if is_best else self.best_state,
            moments=kept, random=self.random.state,
        )  # fmt: skip

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Become what another was, before the first step. Tensors stay where and as they are."""
        own = self._trained()
        for name, tensor in own.items():
            tensor.copy_(state.trained[name])
        self.history, self.best_epoch = list(state.history), state.best_epoch
        self.steps, self.random.state = state.steps, state.random
        self.first_moments = state.moments
        if state.scaler:
            self.scaler.load_state_dict(dict(state.scaler))
        if state.best:
            self.best_state = {n: t.to(self.device, copy=True) for n, t in state.best.items()}
        elif state.best_epoch:
            self.best_state = copied(own)

    # --- inside ---------------------------------------------------------------------------

    def _trained(self) -> dict[str, torch.Tensor]:
        """See `trained_tensors`. To look for them takes milliseconds: they stay the same."""
        if self._that_train is None:
            self._that_train = _that_train(self.network.module)
        return _detached(self._that_train)

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Those that train, by name."""
        named = self.network.module.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def _new_optimizer(self) -> torch.optim.Optimizer:
        parameters = self._parameters()
        made = optimizer(self.config.optimizer, parameters.values())
        set_moments(made, parameters, self.first_moments)
        self.first_moments = {}
        return made

    def _asked_step(self, labels: torch.Tensor, *activations: torch.Tensor) -> None:
        """What a device does in a step: see `recorded.py`."""
        assert self.optimizer is not None
        # Nothing is random behind the forward pass; who trains beside need not wait for longer.
        own = nullcontext() if self.device.type == "cuda" else self.random.drawn()
        with own, self.autocast():
            logits = self.tail(*activations)
        value = self.summed_loss(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(value))
        self.scaler.step(self.optimizer)
        self.scaler.update()


def recorder(config: RunConfig, device: torch.device) -> Recorder:
    # The scaler of float16's gradients leaves steps out, and has a state of its own: not recorded.
    return Recorder(device, is_on=config.cuda_graphs and config.precision != "float16")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a network runs at a precision, as `config.RunConfig` names it."""
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def trained_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: parameters with a gradient, and the buffers of training modules."""
    return _detached(_that_train(module))


def _that_train(module: nn.Module) -> dict[str, torch.Tensor]:
    """The same, as they are."""
    found: dict[str, torch.Tensor] = {}
    seen: set[nn.Parameter] = set()  # one that two modules hold has the first name alone
    for prefix, part in module.named_modules():
        at = f"{prefix}." if prefix else ""
        own = {n: p for n, p in part.named_parameters(recurse=False) if p.requires_grad}
        found |= {at + name: p for name, p in own.items() if p not in seen}
        seen.update(own.values())
        if own:
            passing = part._non_persistent_buffers_set
            buffers = part.named_buffers(recurse=False)
            found |= {at + name: tensor for name, tensor in buffers if name not in passing}
    return found


def _detached(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
