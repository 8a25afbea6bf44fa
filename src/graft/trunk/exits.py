"""Parts of a trunk: what leads to some of its nodes, and what comes after.

Runs that freeze less leave the same graph earlier: one pass can give the activations of both. And
where the last tensors are too large to store, an earlier one may be small enough.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Interpreter, Node

from graft.trunk.cut import is_in_place

Exit = tuple[str, ...]  # names of nodes whose values leave together


def prefix(trunk: GraphModule, exits: Sequence[Exit]) -> GraphModule:
    """pictures -> for each of `exits` the tuple of its nodes' values.

    An operation in place after an exit finds a copy there: what left is not changed any more. Only
    the trunk's own output is as it is at the very end.
    """
    order = {node: i for i, node in enumerate(trunk.graph.nodes)}
    wanted, end = {name for names in exits for name in names}, _output(trunk)
    last = max(i for node, i in order.items() if node.name in wanted or end in exits)
    # What is written need not be read under the name of the write: it counts as needed.
    writes = [node for node in order if order[node] < last and is_in_place(trunk, node)]
    needed = _with_inputs([*(node for node in order if node.name in wanted), *writes])
    graph, copies, left = Graph(), dict[Node, Node](), dict[str, Node]()
    for node in trunk.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.name in wanted:
            is_written = any(order[write] > order[node] for write in writes)
            copy = copies[node]
            left[node.name] = graph.call_method("clone", (copy,)) if is_written else copy
    ends = {node.name: copy for node, copy in copies.items()}
    graph.output(
        tuple(tuple((ends if names == end else left)[name] for name in names) for names in exits)
    )
    return GraphModule(trunk, graph, "Prefix")


def rest(trunk: GraphModule, exit: Exit) -> GraphModule | None:
    """The values of an exit, one argument each -> the trunk's own output; None if they are it."""
    if _output(trunk) == exit:
        return None
    every = list(trunk.graph.nodes)
    nodes = {node.name: node for node in every}
    after = every[max(every.index(nodes[name]) for name in exit) + 1 :]
    writes = [node for node in after if is_in_place(trunk, node)]
    # Beyond a frontier there are only constants, which whoever needs them fetches.
    wanted = _with_inputs([every[-1], *writes], without=frozenset(nodes[name] for name in exit))
    graph, copies = Graph(), dict[Node, Node]()
    for name in exit:
        copies[nodes[name]] = graph.placeholder(name)
    for node in trunk.graph.nodes:
        if node in wanted and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return GraphModule(trunk, graph, "Rest")


def holds(trunk: GraphModule, other: GraphModule, exit: Exit) -> bool:
    """Whether `trunk` computes `other`'s exit, operation for operation."""
    ours = {node.name: _described(node) for node in trunk.graph.nodes}
    theirs = {node.name: node for node in other.graph.nodes}
    needed = _with_inputs(theirs[name] for name in exit)
    return all(ours.get(node.name) == _described(node) for node in needed)


def frontiers(trunk: GraphModule) -> list[Exit]:
    """Single nodes through which all goes that the trunk makes of the pictures, in order."""
    nodes = list(trunk.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    seen: set[Node] = set()
    for node in nodes:
        if node.op == "placeholder" or seen.intersection(node.all_input_nodes):
            seen.add(node)
    found, live = list[Exit](), set[Node]()
    for node in nodes:
        if node not in seen or node.op == "output":
            continue
        live = {n for n in live if max(map(order.__getitem__, n.users), default=-1) > order[node]}
        if not live and node.op != "placeholder" and node.users:
            found.append((node.name,))
        live.add(node)
    return found


@dataclass(frozen=True)
class Measured:
    """Of one exit: bytes that a picture takes there, and the seconds a picture took to get there
    and from there to the end of the trunk."""

    bytes: int
    before_s: float
    after_s: float


def measure(
    trunk: GraphModule, exits: Sequence[Exit], pictures: torch.Tensor
) -> dict[Exit, Measured]:
    """Run the trunk on [B, 3, S, S], node by node, and see how large and how late each exit is.

    An exit whose values are not tensors with a row for each picture is left out.
    """
    watch = _Stopwatch(trunk)
    with torch.no_grad():
        watch.run(pictures)
    total = sum(watch.seconds.values())
    found, batch = {}, len(pictures)
    names = list(watch.seconds)
    for exit in exits:
        sizes = [watch.bytes.get(name) for name in exit]
        if not all(sizes):
            continue
        last = max(names.index(name) for name in exit)
        before = sum(watch.seconds[name] for name in names[: last + 1])
        found[exit] = Measured(
            sum(size for size in sizes if size), before / batch, (total - before) / batch
        )
    return found


class _Stopwatch(Interpreter):
    """Seconds of each node, and bytes a picture of each value that has a row for each picture."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, int] = {}
        self._batch = 0

    def run_node(self, n: Node) -> Any:
        started = time.perf_counter()
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.device.type == "cuda":
            torch.cuda.synchronize(value.device)
        self.seconds[n.name] = time.perf_counter() - started
        if n.op == "placeholder":
            self._batch = len(value)
        elif isinstance(value, torch.Tensor) and value.ndim and len(value) == self._batch:
            self.bytes[n.name] = value[0].numel() * value.element_size()
        return value


def _output(trunk: GraphModule) -> Exit:
    output = next(node for node in trunk.graph.nodes if node.op == "output")
    return tuple(node.name for node in output.all_input_nodes)


def _with_inputs(nodes: Iterable[Node], without: frozenset[Node] = frozenset()) -> set[Node]:
    """The nodes and all that they are made of; not beyond those `without`."""
    found, todo = set[Node](), list(nodes)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            if node not in without:
                todo += node.all_input_nodes
    return found


def _described(node: Node) -> tuple[str, str, str, str]:
    return node.op, str(node.target), str(node.args), str(node.kwargs)
