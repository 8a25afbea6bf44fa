"""Heads trained as one: company changes nothing, bit for bit, and the arithmetic is torch's."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tests.fit.plain import PlainNetwork
from torch import fx, nn

from graft import backbones
from graft.config import SGD, Adam, AdamW, Constant, Cosine, CrossEntropy, CsvDataset, Model
from graft.config import RunConfig as Config
from graft.errors import Diverged
from graft.fit.learner import Learner
from graft.fit.loop import Batch, can_stack, fit
from graft.fit.optim import optimizer
from graft.fit.stack import MAX_WEIGHTS, StackedOptimizer, chain, stacks
from graft.strategies import FineTune, HeadOnly, Strategy
from graft.trunk.cut import cut

INPUTS = 64
CONSTANT = Constant()
Optimizer = Adam | AdamW | SGD
KINDS: dict[str, Optimizer] = {
    "adam": Adam(lr=1e-2, weight_decay=1e-3),
    "adamw": AdamW(),
    "sgd": SGD(momentum=0.0),
    "momentum": SGD(weight_decay=1e-3),
    "nesterov": SGD(nesterov=True),
}


@dataclass(frozen=True)
class Recipe:
    """One run's own choices. The data, the shape of the head and the kind of optimizer are shared.

    Attributes:
        optimizer: of a kind above.
        head: "linear", or "mobilenet": Linear, Hardswish, Dropout, Linear.
        size: examples of an epoch, in batches of 16.
        weights: of the classes.
    """

    optimizer: Optimizer = KINDS["adam"]
    head: str = "mobilenet"
    outputs: int = 1
    size: int = 50
    dropout: float = 0.2
    head_seed: int = 0
    schedule: Constant | Cosine = CONSTANT
    smoothing: float = 0.0
    weights: bool = False
    epochs: int = 3
    patience: int | None = None
    precision: str = "float32"

    @property
    def config(self) -> Config:
        return Config(
            dataset=CsvDataset(csv="", images="", target=""),
            model=Model(name="mobilenet_v3_small", head_seed=self.head_seed),
            strategy=HeadOnly(),
            optimizer=self.optimizer,
            schedule=self.schedule,
            loss=CrossEntropy(label_smoothing=self.smoothing),
            epochs=self.epochs,
            patience=self.patience,
            batch_size=16,
            precision=self.precision,  # type: ignore[arg-type]
        )


def recipes(first: Recipe, count: int) -> list[Recipe]:
    """`first`, and others that a stack can hold with it: no two of them alike."""
    turns = zip(
        range(count),
        itertools.cycle([1e-2, 3e-1, 1e-3, 1e-1, 3e-2]),
        itertools.cycle([0.2, 0.5, 0.0, 0.2]),
        itertools.cycle([Constant(), Cosine(), Cosine(warmup_epochs=1.5, final_fraction=0.1)]),
        itertools.cycle([1e-3, 0.0]),
        itertools.cycle([3, 2, 4]),
        strict=False,
    )
    return [
        replace(
            first, optimizer=replace(first.optimizer, lr=lr, weight_decay=decay), dropout=dropout,
            head_seed=i, schedule=schedule, smoothing=0.1 * (i % 2), weights=i % 3 == 1,
            epochs=epochs, patience=1 if i % 5 == 2 else None,
        )
        for i, lr, dropout, schedule, decay, epochs in turns
    ]  # fmt: skip


# --- a run: its network, its data, its end ----------------------------------------------------


def new_head(recipe: Recipe, inputs: int = INPUTS) -> nn.Module:
    hidden = 2 * inputs
    with torch.random.fork_rng():
        torch.manual_seed(recipe.head_seed)
        if recipe.head == "linear":
            return nn.Sequential(nn.Dropout(recipe.dropout), nn.Linear(inputs, recipe.outputs))
        return nn.Sequential(
            nn.Linear(inputs, hidden), nn.Hardswish(), nn.Dropout(recipe.dropout),
            nn.Linear(hidden, recipe.outputs),
        )  # fmt: skip


def learner(recipe: Recipe, inputs: int = INPUTS) -> Learner:
    module = new_head(recipe, inputs)
    weights = torch.linspace(0.5, 2.0, max(2, recipe.outputs)) if recipe.weights else None
    return Learner(
        "", recipe.config, PlainNetwork(module), fx.symbolic_trace(module),
        steps_per_epoch=len(batches(recipe, inputs)), device=torch.device("cpu"),
        class_weights=weights,
    )  # fmt: skip


@functools.cache
def batches(recipe: Recipe, inputs: int = INPUTS, size: int | None = None) -> list[Batch]:
    """Features that tell something of their labels; the same for every recipe of a stack."""
    random = torch.Generator().manual_seed(7)
    count, classes = size or recipe.size, max(2, recipe.outputs)
    labels = torch.arange(count) % classes
    features = torch.randn(count, inputs, generator=random) + 0.2 * labels.unsqueeze(1)
    return [
        Batch((x,), y) for x, y in zip(features.split(16), labels.split(16), strict=True)
    ]  # fmt: skip


class Nobody:
    """A watcher that does not watch."""

    def batch(self, epoch: int, done: int, total: int) -> None: ...
    def epoch(self, rows: Mapping[Learner, dict[str, float]]) -> None: ...


def trained(runs: Sequence[Recipe], inputs: int = INPUTS) -> list[Learner]:
    """Learners of these recipes, trained side by side."""
    learners = [learner(run, inputs) for run in runs]
    first = runs[0]
    classes = tuple(map(str, range(max(2, first.outputs))))
    fit(
        learners, lambda inputs: inputs, num_batches=len(batches(first, inputs)),
        train_batches=lambda epoch: iter(batches(first, inputs)),
        val_batches=lambda: iter(batches(first, inputs, 21)),
        classes=classes, watcher=Nobody(),
    )  # fmt: skip
    return learners


def result(one: Learner) -> dict[str, Any]:
    """All that comes out of a run; tensors as lists, so that == compares bit for bit."""
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in one.history]
    weights = {name: tensor.tolist() for name, tensor in one.best_state.items()}
    return {"history": history, "best": one.best_epoch, "weights": weights, "error": one.error}


def last_weights(one: Learner) -> dict[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in one.network.module.state_dict().items()}


# --- company changes nothing ------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 10])
@pytest.mark.parametrize("head", ["linear", "mobilenet"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_company_is_the_run_alone(kind: str, head: str, outputs: int) -> None:
    first = Recipe(KINDS[kind], head, outputs, size=50 if outputs == 1 else 55)
    runs = recipes(first, 4)
    alone = [result(trained([run])[0]) for run in runs]
    assert [result(one) for one in trained(runs)] == alone
    assert len({str(one["weights"]) for one in alone}) == len(runs)


@pytest.mark.parametrize("outputs", [1, 10])
@pytest.mark.parametrize("size", [2, 3, 8, 33])
def test_a_run_is_the_same_at_any_position_of_a_stack_of_any_size(size: int, outputs: int) -> None:
    one, *others = recipes(Recipe(AdamW(), outputs=outputs, size=55), size)
    one = replace(one, epochs=4)  # as long as any, so that its last weights are its own
    (alone,) = trained([one])
    for position in {0, size // 2, size - 1}:
        among = trained([*others[:position], one, *others[position:]])[position]
        assert result(among) == result(alone)
        assert last_weights(among) == last_weights(alone)


@pytest.mark.parametrize("size", [16, 18, 23, 31, 33, 47])
def test_the_size_of_the_last_batch_does_not_matter(size: int) -> None:
    runs = recipes(Recipe(Adam(), outputs=3, size=size), 3)
    assert [result(one) for one in trained(runs)] == [result(trained([run])[0]) for run in runs]


@pytest.mark.parametrize(("head", "inputs"), [("mobilenet", 576), ("linear", 1280)])
def test_heads_of_real_width_are_no_exception(head: str, inputs: int) -> None:
    runs = recipes(Recipe(Adam(), head, size=18), 3)
    alone = [result(trained([run], inputs)[0]) for run in runs]
    assert [result(one) for one in trained(runs, inputs)] == alone


def test_on_bfloat16_company_changes_nothing_either() -> None:
    runs = recipes(Recipe(AdamW(), outputs=3, size=23, precision="bfloat16"), 3)
    alone = [result(trained([run])[0]) for run in runs]
    assert [result(one) for one in trained(runs)] == alone
    exact = trained([replace(runs[0], precision="float32")])[0]
    assert result(exact) != alone[0]


def test_runs_of_every_kind_of_optimizer_go_side_by_side() -> None:
    runs = [one for kind in KINDS.values() for one in recipes(Recipe(kind), 2)]
    assert [result(one) for one in trained(runs)] == [result(trained([run])[0]) for run in runs]
    assert len(stacks([learner(run) for run in runs])) == len(KINDS)


def test_runs_that_differ_in_their_random_numbers_alone_differ() -> None:
    """Else the tests above could not tell a run that draws from a neighbour's stream."""
    first = Recipe()
    runs = [first, replace(first, dropout=0.3), replace(first, head_seed=1)]
    results = [str(result(one)) for one in trained(runs)]
    assert len(set(results)) == 3


# --- runs that leave --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_diverges_leaves_the_others_alone(kind: str) -> None:
    runs = recipes(Recipe(KINDS[kind]), 3)
    bad = replace(runs[1], optimizer=replace(KINDS[kind], lr=1e30, weight_decay=1e-3))
    before, diverged, after = trained([runs[0], bad, runs[2]])
    assert isinstance(diverged.error, Diverged) and diverged.history == []
    assert str(diverged.error) == str(trained([bad])[0].error)
    for one, run in ((before, runs[0]), (after, runs[2])):
        assert one.error is None and result(one) == result(trained([run])[0])


def test_a_run_that_leaves_by_patience_leaves_the_others_alone() -> None:
    long = replace(Recipe(), epochs=8)
    # At this rate nothing changes, and of equal epochs the first is the best.
    patient = replace(long, optimizer=Adam(lr=1e-12), patience=2, dropout=0.5)
    for order in ([long, patient], [patient, long]):
        found = dict(zip(order, trained(order), strict=True))
        assert len(found[patient].history) == found[patient].best_epoch + 2 < 8
        assert len(found[long].history) == 8
        assert all(result(one) == result(trained([run])[0]) for run, one in found.items())


# --- the arithmetic ---------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("kind", KINDS)
def test_the_stacked_optimizer_is_torchs_over_50_steps(kind: str, decay: float) -> None:
    rates = [1e-1, 1e-2, 1e-3]
    configs = [replace(KINDS[kind], lr=lr, weight_decay=decay * i) for i, lr in enumerate(rates)]
    random = torch.Generator().manual_seed(1)
    first = torch.randn(len(rates) + 1, 5, 7, generator=random)
    ours = first.clone()
    ours[-1] = 0
    theirs = [nn.Parameter(row.clone()) for row in first[:-1]]
    stacked = StackedOptimizer([ours.requires_grad_()], configs)
    torchs = [optimizer(config, [row]) for config, row in zip(configs, theirs, strict=True)]
    for step in range(50):
        gradient = torch.randn(ours.shape, generator=random)
        gradient[-1] = 0
        share = 1 - step / 60  # of the rate, as a schedule gives it
        ours.grad = gradient
        stacked.prepare([share * rate for rate in rates])
        stacked.step()
        for row, own, rate, g in zip(theirs, torchs, rates, gradient, strict=False):
            own.param_groups[0]["lr"] = share * rate
            row.grad = g.clone()
            own.step()
    for k, row in enumerate(theirs):
        torch.testing.assert_close(ours[k].detach(), row.detach(), rtol=5e-6, atol=5e-7)
        assert (row - first[k]).abs().max() > 5 * rates[k]  # there was something to compare
    assert torch.equal(ours[-1], torch.zeros(5, 7))


@pytest.mark.parametrize("head", ["linear", "mobilenet"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_trains_like_the_plain_loop(kind: str, head: str) -> None:
    """Dropout included: both draw the same masks from the run's own random numbers."""
    runs = recipes(Recipe(KINDS[kind], head, outputs=3), 3)
    runs = [replace(r, optimizer=replace(r.optimizer, lr=1e-2 / (1 + i)), epochs=2, patience=None)
            for i, r in enumerate(runs)]  # fmt: skip
    for run, ours in zip(runs, trained(runs), strict=True):
        plain = learner(run)
        for batch in batches(run) * run.epochs:
            plain.step(batch.inputs, batch.labels)
        begun, whole = new_head(run).state_dict(), plain.network.module.state_dict()
        for name, tensor in ours.network.module.state_dict().items():
            torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-6)
            assert (tensor - begun[name]).abs().max() > 1e-4


def test_nobodys_row_has_no_gradient_and_stays_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    step = StackedOptimizer.step

    def noted(self: StackedOptimizer) -> None:
        seen.extend(p.grad.clone() for p in self.parameters if p.grad is not None)
        step(self)

    monkeypatch.setattr(StackedOptimizer, "step", noted)
    for kind in KINDS.values():
        runs = recipes(Recipe(kind, outputs=10), 2)
        learners = [learner(run) for run in runs]
        (stack,) = stacks(learners)
        for batch in batches(runs[0]):
            stack.step(batch.inputs, batch.labels, set(learners))
        for parameter in stack._optimizer.parameters:
            assert len(parameter) == 3 and not parameter[-1].any() and parameter[0].any()
    assert len(seen) == 4 * 4 * len(KINDS)
    assert all(not gradient[-1].any() and gradient[0].any() for gradient in seen)


def test_gradients_of_a_step_that_failed_half_way_are_forgotten() -> None:
    runs = recipes(Recipe(KINDS["adam"], outputs=3), 2)
    found = []
    for is_disturbed in (False, True):
        learners = [learner(run) for run in runs]
        (stack,) = stacks(learners)
        for batch in batches(runs[0]):
            stack.step(batch.inputs, batch.labels, set(learners))
            if is_disturbed:
                for parameter in stack._optimizer.parameters:
                    parameter.grad = torch.full_like(parameter, 7.0)
        found.append([one.network.module.state_dict() for one in learners])
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


# --- which tails are stacked ------------------------------------------------------------------


def network(name: str, strategy: Strategy, dropout: float | None = None) -> fx.GraphModule:
    """The tail of a network of the catalog."""
    model = Model(name=name, weights="none", dropout=dropout)
    built = backbones.build(model, 1, seed=0, image_size=32)
    built.freeze(strategy.trainable(list(built.blocks)))
    found = cut(built.module)
    assert found is not None
    return found.tail


@pytest.mark.parametrize(
    ("name", "dropout", "layers"),
    [
        ("efficientnet_lite0", None, 2),
        ("resnet18", None, 1),
        ("resnet18", 0.3, 2),
    ],
)
def test_small_heads_of_the_catalog_are_stacked(
    name: str, dropout: float | None, layers: int
) -> None:
    tail = network(name, HeadOnly(), dropout)
    names = chain(tail)
    assert names is not None and len(names) == layers
    run = Recipe().config
    assert can_stack(tail, run) and not can_stack(tail, replace(run, precision="float16"))


def test_a_head_that_would_lose_by_company_is_not_stacked() -> None:
    assert chain(network("mobilenet_v3_small", HeadOnly())) is None


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18"])
def test_a_tail_with_a_convolution_is_not_stacked(name: str) -> None:
    assert chain(network(name, FineTune())) is None


class Functional(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(x))


class Residual(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class TwoInputs(nn.Sequential):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x)


class TwoOutputs(nn.Sequential):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x


class Skipping(nn.Sequential):
    """Its last layer is given what its first was given, not what the one before it made."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self[0](x)
        return self[1](x)  # type: ignore[no-any-return]


WIDE = 512


@pytest.mark.parametrize(
    ("tail", "is_chain"),
    [
        (nn.Sequential(nn.Linear(16, 2)), True),
        (nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 2)), True),
        (nn.Sequential(nn.Linear(WIDE, 97, device="meta")), True),
        (nn.Sequential(nn.Linear(WIDE, 98, device="meta")), False),
        (nn.Sequential(nn.Linear(16, 2, bias=False)), False),
        (nn.Sequential(nn.Linear(17, 2)), False),
        (nn.Sequential(nn.Linear(16, 50), nn.Linear(50, 2)), False),
        (nn.Sequential(nn.Linear(16, 2), nn.Softplus()), False),
        (nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 2)), False),
        (nn.Sequential(nn.Linear(16, 2), nn.AlphaDropout()), False),
        (nn.Sequential(nn.Linear(16, 2).requires_grad_(False)), False),
        (nn.Sequential(nn.ReLU()), False),
        (Functional(nn.Linear(16, 2)), False),
        (Residual(nn.Linear(16, 16)), False),
        (TwoInputs(nn.Linear(16, 2)), False),
        (TwoOutputs(nn.Linear(16, 2)), False),
        (Skipping(nn.Linear(16, 2), nn.Linear(16, 2)), False),
    ],
    ids=lambda value: repr(value).replace("\n", "") if isinstance(value, nn.Module) else "",
)
def test_only_chains_of_small_layers_that_are_known_are_stacked(
    tail: nn.Module, is_chain: bool
) -> None:
    assert (chain(fx.symbolic_trace(tail)) is not None) == is_chain


def test_a_tail_without_a_graph_is_not_stacked() -> None:
    assert chain(nn.Sequential(nn.Linear(16, 2))) is None


def test_the_largest_head_that_is_stacked_has_so_many_weights() -> None:
    assert 97 * (WIDE + 1) <= MAX_WEIGHTS < 98 * (WIDE + 1)
