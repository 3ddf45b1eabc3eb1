"""A block's subgraph in canonical form: equal forms are isomorphic subgraphs, up to the identity of weights.

The inputs of an ONNX operator are ordered, and so are a block's outputs. Walking depth first from the
outputs, inputs in order, therefore numbers every node and tensor in one way only: two subgraphs are
isomorphic exactly when their numbered listings are equal. No search, and comparing two listings is the proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from llcompile.dataflow.nodes import ATTENTION, EMBEDDING, INPUT_IDS, LINEAR, POSITION_IDS, Dataflow, Node
from llcompile.ir.errors import CompileError
from llcompile.ir.graph import TensorSpec

Reference = tuple[
    str, object
]  # space (x, p, w, c, v, or a model input's name), and number in it or constant value


@dataclass(frozen=True)
class Canonical:
    """A subgraph: its nodes in canonical order, and its tensors by graph name, each in canonical order.

    `key` is equal for two subgraphs exactly when they are isomorphic. `activations` and `positions` come from
    other blocks and from the positions template; `ids` are the model inputs it reads. `roles` is aligned with
    `weights`.
    """

    key: tuple[object, ...]
    nodes: tuple[Node, ...]
    activations: tuple[str, ...]
    positions: tuple[str, ...]
    ids: tuple[str, ...]
    weights: tuple[str, ...]
    roles: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """In a template's order: activations, token ids, position tensors, position ids."""
        tokens, position = ((name,) if name in self.ids else () for name in (INPUT_IDS, POSITION_IDS))
        return (*self.activations, *tokens, *self.positions, *position)


def canonicalize(
    flow: Dataflow,
    specs: Mapping[str, TensorSpec],
    members: Sequence[Node],
    outputs: Sequence[str],
    tables: frozenset[str],
) -> Canonical:
    """The canonical form of what computes `outputs`: `members` and the position and fixed nodes they need.

    `tables`: tensors of the positions template, read and not computed again.
    """
    nodes = _walk(flow, members, outputs, tables)
    made = {name for node in nodes for name in node.outputs}
    reads = list(dict.fromkeys(name for node in nodes for name in node.inputs if name and name not in made))
    weights = tuple(name for name in reads if name in flow.weights)
    roles = weight_roles(nodes, flow)
    has_cache = any(node.op == ATTENTION for node in nodes)
    ids = tuple(
        name for name in (INPUT_IDS, POSITION_IDS) if name in reads or (has_cache and name == POSITION_IDS)
    )
    form = Canonical(
        key=(),
        nodes=nodes,
        activations=tuple(name for name in reads if flow.is_activation(name)),
        positions=tuple(name for name in reads if name in tables),
        ids=ids,
        weights=weights,
        roles=tuple(roles[name] for name in weights),
        constants=tuple(name for name in reads if name in flow.constants),
        outputs=tuple(outputs),
    )
    return _with_key(form, flow, specs)


def _walk(
    flow: Dataflow, members: Sequence[Node], outputs: Sequence[str], tables: frozenset[str]
) -> tuple[Node, ...]:
    """Nodes in depth-first order from the outputs, inputs in order."""
    own = {id(node) for node in members}

    def inside(name: str) -> Node | None:
        node = flow.producers.get(name)
        if node is None or name in tables or (flow.is_activation(name) and id(node) not in own):
            return None
        return node

    order: dict[int, Node] = {}
    for output in outputs:
        stack: list[tuple[Node, bool]] = [(flow.producers[output], False)]
        while stack:
            node, is_done = stack.pop()
            if is_done:
                order.setdefault(id(node), node)
            elif id(node) not in order:
                children = [child for name in reversed(node.inputs) if (child := inside(name)) is not None]
                stack += [(node, True), *((child, False) for child in children)]
    return tuple(order.values())


def _with_key(form: Canonical, flow: Dataflow, specs: Mapping[str, TensorSpec]) -> Canonical:
    references: dict[str, Reference] = {
        "": ("", 0),
        INPUT_IDS: (INPUT_IDS, 0),
        POSITION_IDS: (POSITION_IDS, 0),
    }
    for space, names in (("x", form.activations), ("p", form.positions), ("w", form.weights)):
        references.update((name, (space, i)) for i, name in enumerate(names))
    references.update((name, ("c", constant_key(flow.constants[name]))) for name in form.constants)
    made = [name for node in form.nodes for name in node.outputs if name]
    references.update((name, ("v", i)) for i, name in enumerate(made))
    nodes = tuple(
        (
            node.op,
            node.attributes,
            tuple(references[name] for name in node.inputs),
            tuple(map(bool, node.outputs)),
        )
        for node in normalize_layers(form.nodes)
    )
    inputs = tuple((specs[name].dtype, specs[name].shape) for name in form.inputs)
    weights = tuple((role, flow.weights[name]) for role, name in zip(form.roles, form.weights, strict=True))
    outputs = tuple(references[name] for name in form.outputs)
    fields = {name: getattr(form, name) for name in Canonical.__dataclass_fields__ if name != "key"}
    return Canonical(key=(nodes, inputs, form.ids, weights, outputs), **fields)


def normalize_layers(nodes: Sequence[Node]) -> list[Node]:
    """Attention's `layer` becomes its number within the block: all else is equal from layer to layer."""
    result, layer = [], 0
    for node in nodes:
        if node.op == ATTENTION:
            value = onnx.helper.make_attribute("layer", layer).SerializeToString(deterministic=True)
            rest = [item for item in node.attributes if item[0] != "layer"]
            node = Node(node.op, node.inputs, node.outputs, tuple(sorted([*rest, ("layer", value)])))
            layer += 1
        result.append(node)
    return result


def weight_roles(nodes: Sequence[Node], flow: Dataflow) -> dict[str, str]:
    """The role of every weight that `nodes` read. Raises CompileError G103 where one has two, or W is no
    weight."""
    roles: dict[str, str] = {}
    for node in nodes:
        for position, name in enumerate(node.inputs):
            role = _role(node.op, position)
            if role != "plain" and name not in flow.weights:
                operator = f"operator {node.op} at {node.outputs[0]}"
                raise CompileError(
                    "G103", f"{operator} reads {name}, which is no weight input of the model", 1
                )
            if name in flow.weights and roles.setdefault(name, role) != role:
                raise CompileError("G103", f"weight {name} is used both as {roles[name]} and as {role}", 1)
    return roles


def _role(op: str, position: int) -> str:
    if op == LINEAR and position == 1:
        return "linear"
    return "embedding" if op == EMBEDDING and position == 0 else "plain"


def constant_key(tensor: onnx.TensorProto) -> tuple[str, tuple[int, ...], bytes]:
    """A constant's dtype, shape and value, whatever its name and encoding."""
    array = numpy_helper.to_array(tensor)
    return array.dtype.name, array.shape, array.tobytes()
