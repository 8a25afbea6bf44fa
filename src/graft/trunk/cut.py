"""Cut a network in two: what training cannot change (trunk), and the rest (tail).

The trunk is the largest part of the network's graph that depends on the pictures, on no parameter
that trains, and on nothing that is random or moves in the mode that it will train in. It is found
from the graph, never declared. Trunk and tail hold the network's own modules and parameters: to
train the tail is to train the network, and `tail(*trunk(x))` is the network's output, bit for bit.
"""

import builtins
import logging
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node, Tracer

from graft.trunk.lighter import lighten

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cut:
    """A network in two parts.

    Attributes:
        trunk: pictures -> tuple of tensors; its mode is that of the network's frozen blocks.
        tail: the same tensors, one argument each -> logits. Neither changes what it is given.
        at: where, in the network's own names: "features.23", "layer3", "flatten".
        exits: the graph's nodes whose values cross, in the order of the tensors.
    """

    trunk: GraphModule
    tail: GraphModule
    at: str
    exits: tuple[str, ...]

    @property
    def tensors(self) -> int:
        """How many tensors cross."""
        return len(self.exits)

    def tail_of(self, module: nn.Module) -> GraphModule:
        """The tail of another network of the same architecture, of which the same trains."""
        return _tail(module, self.tail.graph)


# Of the largest logit, where kernels may round otherwise from call to call.
BOUND = 1e-3


class _NoCut(Exception):
    """Why a network has no trunk."""


def cut(module: nn.Module, example: torch.Tensor | None = None) -> Cut | None:
    """Cut `module` where training begins.

    Call it in the mode in which it will train, after `Network.freeze` or `Network.train`: a dropout
    that is in train mode goes to the tail, one that is in eval mode does nothing and stays. Move
    the module to its device first.

    Args:
        module: pictures [B, 3, S, S] -> logits.
        example: pictures to compare the two parts with the whole on, in eval mode: on a CPU bit by
            bit, elsewhere to `BOUND`. None: nothing is compared.

    Returns:
        The parts, or None where there is no trunk, because everything trains or the network's
        graph cannot be followed; the log says why.
    """
    try:
        found = _cut(module)
        if example is not None:
            _compare(found, module, example)
    except _NoCut as reason:
        _log.info("no trunk to share: %s", reason)
        return None
    return found


def _cut(module: nn.Module) -> Cut:
    graph = _trace(module)
    parts = _Parts(module, graph)
    crossing = parts.crossing()
    if not parts.has_frozen_parameters():
        raise _NoCut("training begins at the pictures")
    parts.refuse_hidden_writes(crossing)
    return Cut(
        trunk=GraphModule(module, parts.trunk(crossing), "Trunk"),
        tail=_tail(module, parts.tail(crossing)),
        at=", ".join(_place(node) for node in crossing),
        exits=tuple(node.name for node in crossing),
    )


def _tail(module: nn.Module, graph: Graph) -> GraphModule:
    lighten(module, graph)
    return GraphModule(module, graph, "Tail")


def _compare(found: Cut, module: nn.Module, example: torch.Tensor) -> None:
    """Exact or not at all: the parts against the whole.

    Tests do it for each network that we know; how a library builds them may change.
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    with torch.no_grad():
        whole, parts = module(example.clone()), found.tail(*found.trunk(example))
    for part, is_training in modes.items():
        part.training = is_training
    if torch.allclose(whole, parts, rtol=0.0, atol=0.0, equal_nan=True):
        return
    difference = float((whole - parts).abs().max())
    is_exact = example.device.type == "cpu"
    if is_exact or not difference <= BOUND * float(whole.abs().max()):
        raise _NoCut(f"trunk and tail differ from the network by {difference:g}")


# --- the graph ------------------------------------------------------------------------------


class _Tracer(Tracer):
    """Keeps whole what behaves differently in training: a graph would fix the mode of today."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _has_modes(type(m)) or super().is_leaf_module(m, module_qualified_name)


def _trace(module: nn.Module) -> Graph:
    if _has_modes(type(module)):
        raise _NoCut(f"{type(module).__name__} itself behaves differently in training")
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # whatever the module's own code does with stand-ins for tensors
        raise _NoCut(f"its graph cannot be followed ({error})") from error
    constants = [n.target for n in graph.nodes if "_tensor_constant" in str(n.target)]
    if constants:
        raise _NoCut("it makes new tensors while it runs, which may be random")
    return graph


def _has_modes(kind: type[nn.Module]) -> bool:
    """Whether the code of a module asks for `self.training`."""
    functions = (
        item
        for base in kind.__mro__
        if issubclass(base, nn.Module) and base is not nn.Module
        for item in vars(base).values()
        if isinstance(item, FunctionType)
    )
    return any("training" in function.__code__.co_names for function in functions)


_RANDOM = re.compile(
    r"rand|bernoulli|multinomial|poisson|(normal|uniform|exponential)_?$|.*dropout"
    r"|stochastic_depth|drop_block"
)


class _Parts:
    """Every node of a graph in its part.

    `seen` depends on the pictures, `moving` on what trains or is random. Seen and not moving is the
    trunk, moving the tail; neither is a constant (a parameter, or made of parameters), which is no
    part of the cut: whoever needs it fetches it.
    """

    def __init__(self, module: nn.Module, graph: Graph) -> None:
        self.module, self.graph = module, graph
        self.seen: set[Node] = set()
        self.moving: set[Node] = set()
        for node in graph.nodes:
            if node.op == "placeholder" or self.seen.intersection(node.all_input_nodes):
                self.seen.add(node)
            inputs_move = self.moving.intersection(node.all_input_nodes)
            if inputs_move or node.op == "output" or self._moves(node):
                self.moving.add(node)

    def crossing(self) -> tuple[Node, ...]:
        """The trunk's tensors that the tail needs, in forward order."""
        needed: set[Node] = set()
        for node in self.moving:
            for source in node.all_input_nodes:
                needed.update(self._tensors_for(source))
        return tuple(node for node in self.graph.nodes if node in needed)

    def has_frozen_parameters(self) -> bool:
        """Whether the trunk is more than reshaped or padded pictures."""
        frozen = self.seen - self.moving
        return any(
            self._is_parametrised(node) or not self.seen.issuperset(node.all_input_nodes)
            for node in frozen
        )

    def trunk(self, crossing: tuple[Node, ...]) -> Graph:
        graph, copies = Graph(), dict[Node, Node]()
        frozen = [node for node in self.graph.nodes if node not in self.moving]
        given = [node for node in frozen if node.op == "placeholder"]
        for node in given:
            copies[node] = graph.node_copy(node)
        for node in self._overwritten(given, frozen):
            copies[node] = graph.call_method("clone", (copies[node],))
        for node in frozen:
            if node not in copies:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in crossing))
        return graph

    def tail(self, crossing: tuple[Node, ...]) -> Graph:
        graph, copies = Graph(), dict[Node, Node]()
        for node in crossing:
            copies[node] = graph.placeholder(node.name)
        for node in self._overwritten(crossing, self.moving):
            copies[node] = graph.call_method("clone", (copies[node],))
        belongs = self.moving | self._refetched()
        for node in self.graph.nodes:
            if node in belongs:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        return graph

    # --- what is what ---------------------------------------------------------------------

    def _moves(self, node: Node) -> bool:
        """Whether a node by itself is changed by training, or is random."""
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.module)
            return isinstance(value, torch.Tensor) and value.requires_grad
        if node.op == "call_module":
            return _changes(self.module.get_submodule(str(node.target)))
        if node.op in ("call_function", "call_method"):
            return _RANDOM.match(_function_name(node)) is not None
        return False

    def _tensors_for(self, node: Node) -> Iterator[Node]:
        """What must cross so that the tail can have `node`'s value."""
        if node in self.moving or node not in self.seen:
            return
        if _is_size(node):
            for source in node.all_input_nodes:
                yield from self._tensors_for(source)
        else:
            yield node

    def _refetched(self) -> set[Node]:
        """Constants, and sizes, that the tail makes for itself."""
        found: set[Node] = set()
        for node in reversed(self.graph.nodes):
            is_cheap = node not in self.seen or _is_size(node)
            is_used = any(user in self.moving or user in found for user in node.users)
            if node not in self.moving and is_cheap and is_used:
                found.add(node)
        return found

    def _overwritten(self, given: Iterable[Node], part: Iterable[Node]) -> Iterator[Node]:
        """Tensors that a part is given and that an in-place operation of it would write to."""
        written = {
            target
            for node in part
            if self._is_in_place(node)
            for target in _reached(node.all_input_nodes[0], self._lenders)
        }
        return (node for node in given if node in written)

    def refuse_hidden_writes(self, crossing: tuple[Node, ...]) -> None:
        """An in-place operation changes a tensor under all its names, and no edge of the graph says
        so. Refuse where the order of trunk first, tail second would make a difference.

        Raises:
            _NoCut: the trunk overwrites what the tail needs from before, or the tail overwrites
                what the trunk, or it under another name, reads after.
        """
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for write in filter(self._is_in_place, self.graph.nodes):
            names = self._names_of(write.all_input_nodes[0])
            users = [user for name in names for user in name.users]
            if write in self.moving:
                late = [u for u in users if u not in self.moving and order[u] > order[write]]
                is_hidden = bool(late) or len(names.intersection(crossing)) > 1
            else:
                is_hidden = any(u in self.moving and order[u] < order[write] for u in users)
            if is_hidden:
                raise _NoCut(f"{_place(write)} overwrites what is needed elsewhere")

    def _names_of(self, node: Node) -> set[Node]:
        """All nodes whose values may share the memory of this one's."""
        return _reached(
            node, lambda n: [*self._lenders(n), *(u for u in n.users if n in self._lenders(u))]
        )

    def _lenders(self, node: Node) -> list[Node]:
        """The inputs whose memory a node's value may share: of what writes in place, the target."""
        if node.op == "output" or self._is_new(node) or _is_size(node):
            return []
        return node.all_input_nodes[: 1 if self._is_in_place(node) else None]

    def _is_new(self, node: Node) -> bool:
        """Whether a node surely makes a tensor of its own: not a view, not its own input."""
        is_new = node.op == "call_function" and node.target in _MAKES_NEW
        return is_new or self._is_parametrised(node)

    def _is_parametrised(self, node: Node) -> bool:
        if node.op != "call_module":
            return False
        part = self.module.get_submodule(str(node.target))
        return any(True for _ in part.parameters(recurse=False))

    def _is_in_place(self, node: Node) -> bool:
        return is_in_place(self.module, node)


_MAKES_NEW: set[Callable[..., Any]] = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul,
    torch.add, torch.mul, torch.matmul, torch.cat,
}  # fmt: skip
_WRITES: set[Callable[..., Any]] = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem,
}  # fmt: skip


def _reached(start: Node, neighbours: Callable[[Node], list[Node]]) -> set[Node]:
    found, todo = set[Node](), [start]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += neighbours(node)
    return found


def is_in_place(module: nn.Module, node: Node) -> bool:
    """Whether a node of a graph of `module` writes to a tensor that it is given."""
    if node.op == "call_module":
        parts = module.get_submodule(str(node.target)).modules()
        return any(getattr(part, "inplace", False) for part in parts)
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return False
    name = _function_name(node)
    is_operator = node.op == "call_function" and node.target in _WRITES
    return is_operator or name.endswith("_") or bool(node.kwargs.get("inplace"))


def _changes(module: nn.Module) -> bool:
    """Whether training changes what a module computes: it trains, or is in a mode that does."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return True
    return any(part.training and _has_modes(type(part)) for part in module.modules())


def _is_size(node: Node) -> bool:
    """Whether a node's value is a number, or several, about a tensor, rather than a tensor."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel", "stride", "is_contiguous")
    if node.op != "call_function":
        return False
    if node.target is builtins.getattr:
        return node.args[1] in ("shape", "ndim", "device", "dtype")
    sources = node.all_input_nodes
    is_arithmetic = getattr(node.target, "__module__", "") in ("_operator", "math", "builtins")
    return is_arithmetic and bool(sources) and all(map(_is_size, sources))


# --- names ----------------------------------------------------------------------------------


def _function_name(node: Node) -> str:
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))


def _place(node: Node) -> str:
    """The outermost module whose output a node is, else what it does."""
    for path in node.meta.get("nn_module_stack", {}):
        if path and not any(path in user.meta.get("nn_module_stack", {}) for user in node.users):
            return str(path)
    if node.op == "call_module":
        return str(node.target)
    if node.target is operator.getitem:
        return f"part of {_place(node.all_input_nodes[0])}"
    within = list(node.meta.get("nn_module_stack", {}))
    return _function_name(node) + (f" in {within[-1]}" if within else "")
