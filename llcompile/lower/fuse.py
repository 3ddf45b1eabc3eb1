"""Rewrites a template's nodes so that few kernels pass over memory: products with weights take with them the
element-wise operators that follow, and those with the same input become one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llcompile.lower.onnx_graph import DOMAIN, Node, OnnxGraph, readers_of

LINEAR, PRODUCTS, ATTENTION = f"{DOMAIN}.Linear", f"{DOMAIN}.Products", f"{DOMAIN}.Attention"

# One float32 from float32 of the same place.
_PLAIN = ("Add", "Sub", "Mul", "Div", "Min", "Max", "Neg", "Abs", "Clip", "Identity")
_CURVED = ("Sqrt", "Reciprocal", "Relu", "Exp", "Sigmoid", "Tanh", "Erf", "Pow", "Gelu")
ELEMENTWISE = frozenset((*_PLAIN, *_CURVED))


@dataclass(frozen=True)
class Product:
    """One output of a Products node: `linears` (same input, same number of rows), then the element-wise nodes
    `then`, in order; `output` is the one tensor that is read outside."""

    linears: tuple[Node, ...]
    then: tuple[Node, ...]
    output: str


@dataclass(frozen=True)
class _Graph:
    """Nodes by number; who makes and who reads each tensor."""

    nodes: tuple[Node, ...]
    maker: Mapping[str, int]
    readers: Mapping[str, tuple[int, ...]]
    outputs: frozenset[str]
    rows: Mapping[str, int]  # of each weight

    def live(self, members: frozenset[int]) -> list[str]:
        """Tensors made by `members` and read elsewhere."""
        made = (name for i in sorted(members) for name in self.nodes[i].outputs)
        return [t for t in made if t in self.outputs or not members.issuperset(self.readers.get(t, ()))]

    def external(self, members: frozenset[int]) -> list[str]:
        """Tensors read by `members` and made elsewhere, each once."""
        read = [name for i in sorted(members) for name in self.nodes[i].inputs if name]
        return list(dict.fromkeys(name for name in read if self.maker.get(name) not in members))


def fuse(graph: OnnxGraph, rows: Mapping[str, int]) -> OnnxGraph:
    """Every llcompile.Linear becomes part of an llcompile.Products; `rows`: those of each weight.

    before: g = Linear(x, a); s = Sigmoid(g); m = Mul(g, s); u = Linear(x, b); y = Mul(m, u); z = Linear(x, c)
    after:  y, z = Products(x, a, b, c) with products ([g, u], [s, m, y], y) and ([z], [], z)

    Inputs of a Products node: the products' input, then all other tensors that are read.
    """
    index = _indexed(graph, rows)
    regions = _regions(index)
    for groups in (_groups(index, regions), [[region] for region in regions]):
        nodes = _ordered(index, groups)
        if nodes is not None:
            return replace(graph, nodes=nodes, readers=readers_of(nodes, graph.outputs))
    raise AssertionError("a region leaves by one tensor, so it cannot be part of a cycle")


def _indexed(graph: OnnxGraph, rows: Mapping[str, int]) -> _Graph:
    maker = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs}
    readers: dict[str, tuple[int, ...]] = {}
    for i, node in enumerate(graph.nodes):
        for name in node.inputs:
            readers[name] = (*readers.get(name, ()), i)
    return _Graph(graph.nodes, maker, readers, frozenset(graph.outputs), rows)


def _regions(index: _Graph) -> list[frozenset[int]]:
    """For each Linear the region computed with it; a Linear is in one region."""
    regions: list[frozenset[int]] = []
    taken: set[int] = set()
    for i, node in enumerate(index.nodes):
        if node.op == LINEAR and i not in taken:
            regions.append(_grow(index, i, frozenset(taken)))
            taken |= regions[-1]
    return regions


def _grow(index: _Graph, seed: int, taken: frozenset[int]) -> frozenset[int]:
    """The largest set of nodes around Linear `seed` whose results leave it by a single tensor."""
    members = best = frozenset((seed,))
    while True:
        live = index.live(members)
        if len(live) == 1:
            best = members
        readers = (i for name in live for i in index.readers.get(name, ()))
        follower = next(
            (i for i in readers if i not in members | taken and index.nodes[i].op in ELEMENTWISE), None
        )
        if follower is None:
            return best
        members |= {follower, *_partners(index, seed, index.nodes[follower], taken)}


def _partners(index: _Graph, seed: int, node: Node, taken: frozenset[int]) -> list[int]:
    """Linears that `node` reads, of the same input and number of rows as `seed`."""
    makers = [index.maker[name] for name in node.inputs if name in index.maker]
    first = index.nodes[seed]
    return [
        i
        for i in makers
        if i not in taken
        and index.nodes[i].op == LINEAR
        and index.nodes[i].inputs[0] == first.inputs[0]
        and index.rows.get(index.nodes[i].inputs[1]) == index.rows.get(first.inputs[1])
    ]


def _groups(index: _Graph, regions: Sequence[frozenset[int]]) -> list[list[frozenset[int]]]:
    """Regions of the same input whose operands are all there before the first of their results is read."""

    def window(region: frozenset[int]) -> tuple[int, int]:
        made = [index.maker.get(name, -1) for name in index.external(region)]
        read = [i for name in index.live(region) for i in index.readers.get(name, ()) if i not in region]
        return max(made) + 1, min(read, default=len(index.nodes))

    groups: list[tuple[str, int, int, list[frozenset[int]]]] = []
    for region in regions:
        x, (ready, needed) = _input(index, region), window(region)
        for number, (other, from_, to, members) in enumerate(groups):
            if other == x and max(from_, ready) <= min(to, needed):
                groups[number] = (x, max(from_, ready), min(to, needed), [*members, region])
                break
        else:
            groups.append((x, ready, needed, [region]))
    return [members for *_, members in groups]


def _input(index: _Graph, region: frozenset[int]) -> str:
    return next(index.nodes[i].inputs[0] for i in sorted(region) if index.nodes[i].op == LINEAR)


def _ordered(index: _Graph, groups: Sequence[Sequence[frozenset[int]]]) -> tuple[Node, ...] | None:
    """The nodes with a Products node for each group, each after what it reads; None when there is no such order,
    or attentions, which take the caches in turn, would change places."""
    fused = frozenset(i for group in groups for region in group for i in region)
    items = [(i, node) for i, node in enumerate(index.nodes) if i not in fused]
    items += [(min(min(region) for region in group), _products(index, group)) for group in groups]
    waiting = [node for _, node in sorted(items, key=lambda item: item[0])]
    missing = {name for node in waiting for name in node.outputs}
    done: list[Node] = []
    while waiting:
        node = next((w for w in waiting if missing.isdisjoint(w.inputs)), None)
        if node is None:
            return None
        waiting.remove(node)
        missing -= set(node.outputs)
        done.append(node)
    before, after = ([n.name for n in nodes if n.op == ATTENTION] for nodes in (index.nodes, done))
    return tuple(done) if before == after else None


def _products(index: _Graph, group: Sequence[frozenset[int]]) -> Node:
    products = []
    for region in group:
        nodes = [index.nodes[i] for i in sorted(region)]
        linears = tuple(node for node in nodes if node.op == LINEAR)
        then = tuple(node for node in nodes if node.op != LINEAR)
        products.append(Product(linears, then, index.live(region)[0]))
    x = _input(index, group[0])
    operands = [name for name in index.external(frozenset().union(*group)) if name != x]
    # The input again, when an element-wise node reads it too.
    again = [x] if any(x in node.inputs for p in products for node in p.then) else []
    outputs = tuple(product.output for product in products)
    return Node(PRODUCTS, outputs[0], (x, *operands, *again), outputs, {"products": tuple(products)})
