"""Where to cut the dataflow into blocks: where the fewest bytes are live, told from the graph alone.

Order. Nodes are scheduled depth first from the output, at a join the branch with more attention behind it
first. So parallel branches never interleave: a GPT-NeoX layer is its whole attention, then its whole MLP.
Embedding lookups come before all else, so that token ids stay with the first block.

Cuts. Attention nodes are the anchors, one a block. In the gap from one attention node to the next (or to the
end) two cuts are made that enclose an MLP, which is a Linear fed by a Linear; one of the two has the gap's
fewest live bytes, and of all such pairs the one with the fewest together is taken. In a sequential layer
those are the two residual sums, where one tensor is live; in a parallel one the end of the layer and the
point where attention's output waits beside the residual. A gap without an MLP is cut once. Before the first
attention node one cut ends the embedding. After the last, the same two cuts separate MLP and output head,
which holds at least one Linear.

Ties (equal bytes): more Linears before the first cut, as attention's output projection belongs to attention;
then cuts at tensors that several nodes read, as the residual stream is, so that an embedding's scale or norm,
and a norm after a sum, stay with what they follow; then as many nodes between as in the gap before, so that
equal layers give equal blocks to the last; then the earlier cut, so that the last norm goes with the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from llcompile.dataflow.nodes import ATTENTION, EMBEDDING, LINEAR, LOGITS, Dataflow, Node
from llcompile.ir.errors import CompileError
from llcompile.ir.graph import TensorSpec


@dataclass(frozen=True)
class Cuts:
    """`order`: the activation nodes as scheduled. `live_bytes`[i]: bytes live after node i, for one new
    token. `stops`: for each block, the position after its last node."""

    order: tuple[Node, ...]
    live_bytes: tuple[int, ...]
    stops: tuple[int, ...]

    def pieces(self) -> Iterator[tuple[Node, ...]]:
        start = 0
        for stop in self.stops:
            yield self.order[start:stop]
            start = stop


@dataclass(frozen=True)
class _Curve:
    """Entry i holds after node i. `live`: bytes; `unforked`: live tensors that one node reads; `linears`: how
    many so far; `chained`: of the Linears so far that are fed by a Linear, the latest start of such a
    chain."""

    live: Sequence[int]
    unforked: Sequence[int]
    linears: Sequence[int]
    chained: Sequence[int]


def find_cuts(flow: Dataflow, specs: Mapping[str, TensorSpec]) -> Cuts:
    """Cut `flow` into embedding, two blocks a layer, and head. Raises CompileError G105 where it cannot."""
    order = schedule(flow)
    anchors = [i for i, node in enumerate(order) if node.op == ATTENTION]
    if not anchors:
        raise CompileError(
            "G105", f"the graph has no {ATTENTION} node: it is no language model that we can split", 1
        )
    curve = _curve(order, flow, specs)
    cuts = [_first_cut(order, curve, anchors[0])]
    for start, stop in zip(anchors, [*anchors[1:], len(order)], strict=True):
        length = cuts[-1] - cuts[-2] if len(cuts) > 2 else 0
        cuts += _gap_cuts(curve, start, stop - 1, length, is_last=stop == len(order))
    return Cuts(order, tuple(curve.live), (*(cut + 1 for cut in cuts), len(order)))


def schedule(flow: Dataflow) -> tuple[Node, ...]:
    """The activation nodes in the order that the module's docstring gives."""
    depth = _attention_depth(flow)
    lookups = [node for node in flow.nodes if node.op == EMBEDDING and flow.is_activation(node.outputs[0])]

    def inputs(node: Node) -> list[Node]:
        names = sorted(node.inputs, key=lambda name: -depth.get(name, 0))
        return [flow.producers[name] for name in names if flow.is_activation(name)]

    order: list[Node] = []
    done: set[int] = set()
    for root in [*lookups, flow.producers[LOGITS]]:
        stack = [(root, iter(inputs(root)))]
        while stack:
            node, pending = stack[-1]
            child = next((c for c in pending if id(c) not in done), None)
            if child is not None:
                stack.append((child, iter(inputs(child))))
                continue
            stack.pop()
            if id(node) not in done:
                done.add(id(node))
                order.append(node)
    return tuple(order)


def _attention_depth(flow: Dataflow) -> dict[str, int]:
    """For each tensor, the most attention nodes on any path to it."""
    depth: dict[str, int] = {}
    for node in flow.nodes:
        own = max((depth.get(name, 0) for name in node.inputs), default=0) + (node.op == ATTENTION)
        depth.update((name, own) for name in node.outputs)
    return depth


def _curve(order: Sequence[Node], flow: Dataflow, specs: Mapping[str, TensorSpec]) -> _Curve:
    born = {name: i for i, node in enumerate(order) for name in node.outputs if name}
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(order):
        for name in set(node.inputs).intersection(born):
            readers.setdefault(name, []).append(i)
    live, unforked = [0] * (len(order) + 1), [0] * (len(order) + 1)
    for name, reads in readers.items():
        size, single = specs[name].bytes(1, 1), int(len(reads) == 1)
        live[born[name]] += size
        live[reads[-1]] -= size
        unforked[born[name]] += single
        unforked[reads[-1]] -= single
    linears = accumulate(int(node.op == LINEAR) for node in order)
    chained = accumulate(_chains(order), max)
    return _Curve(list(accumulate(live))[:-1], list(accumulate(unforked))[:-1], list(linears), list(chained))


def _chains(order: Sequence[Node]) -> Iterator[int]:
    """For each Linear fed by a Linear, at whatever distance, the nearest one's position; else -1."""
    nearest: dict[str, int] = {}
    for i, node in enumerate(order):
        before = max((nearest.get(name, -1) for name in node.inputs), default=-1)
        yield before if node.op == LINEAR else -1
        nearest.update(dict.fromkeys(node.outputs, i if node.op == LINEAR else before))


def _first_cut(order: Sequence[Node], curve: _Curve, anchor: int) -> int:
    """Behind every embedding lookup, before the first attention node; on a tie the later one."""
    start = max((i for i, node in enumerate(order) if node.op == EMBEDDING), default=0)
    if start >= anchor:
        raise CompileError(
            "G105", f"embedding {order[start].outputs[0]} follows attention: no first block", 1
        )
    return min(range(start, anchor), key=lambda i: (curve.live[i], curve.unforked[i], -i))


def _gap_cuts(curve: _Curve, start: int, stop: int, length: int, is_last: bool) -> list[int]:
    """The two cuts in start <= first < second < stop; one where there is no MLP to enclose."""
    most = curve.linears[-1] - 1 if is_last else curve.linears[-1]
    points = [i for i in range(start, stop) if curve.linears[i] <= most]
    if not points:
        raise CompileError("G105", "nothing follows an attention node that could be a block of its own", 1)
    least = min(curve.live[i] for i in points)
    pairs = [
        (a, b)
        for a in points
        for b in points
        if a < curve.chained[b] and least in (curve.live[a], curve.live[b])
    ]
    if pairs:
        best = min(pairs, key=lambda pair: _pair_key(curve, pair, length))
        return list(best)
    return [min(points, key=lambda i: (curve.live[i], curve.unforked[i], i))]


def _pair_key(curve: _Curve, pair: tuple[int, int], length: int) -> tuple[int, ...]:
    a, b = pair
    return (
        curve.live[a] + curve.live[b],
        -curve.linears[a],
        curve.unforked[a] + curve.unforked[b],
        abs(b - a - length) if length else 0,
        a,
        b,
    )
