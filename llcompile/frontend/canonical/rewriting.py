"""Small vocabulary that the passes share: constants, shapes, replacing nodes; in place on onnx_ir graphs."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

DOMAIN = "llcompile"
SCOPES = "pkg.torch.onnx.name_scopes"
KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
PERSISTENT = "pkg.torch.export.graph_signature.InputSpec.persistent"
TRANSPOSED = "llcompile.transposed"
WEIGHT = "llcompile.weight"
_POSITIONS = "position_ids"

Array = npt.NDArray[np.generic]
Attributes = Mapping[str, int | float | str | Sequence[int] | Sequence[float]]


def nodes(model: ir.Model, op: str | None = None) -> Iterator[ir.Node]:
    """The graph's nodes of type `op` (all when None), safe against removal while iterating."""
    return iter([n for n in model.graph if op is None or n.op_type == op])


def is_weight(value: ir.Value | None) -> bool:
    return value is not None and WEIGHT in value.metadata_props


def constant(value: ir.Value | None) -> Array | None:
    """The value of a constant as an array; None for anything else."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The value of a constant with one element, of any rank."""
    array = constant(value)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """The value of an integer constant, flattened."""
    array = constant(value)
    if array is None or not np.issubdtype(array.dtype, np.integer):
        return None
    return tuple(int(x) for x in array.reshape(-1))


def dims(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """Shape with symbolic dimensions by name; None when the rank or a dimension is unknown."""
    if value is None or value.shape is None:
        return None
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return None if "None" in shape else shape


def produced_by(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node that makes `value`, if its type is `op`."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op else None


def operands(node: ir.Node | None, op: str | None = None) -> tuple[ir.Value | None, ...]:
    """A node's inputs; empty when there is no node, or one of another type than `op`."""
    if node is None or (op is not None and node.op_type != op):
        return ()
    return tuple(node.inputs)


def only_use(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`, if there is exactly one use and it is not a graph output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def add_constant(model: ir.Model, name: str, array: Array) -> ir.Value:
    """An initializer of a new name derived from `name`."""
    unique, count = name, 0
    while unique in model.graph.initializers:
        count += 1
        unique = f"{name}_{count}"
    tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=unique)
    value = ir.Value(
        name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def replace(old: ir.Value, new: ir.Value) -> None:
    """Every use of `old`, graph outputs included, becomes a use of `new`; a graph output keeps its name."""
    if old.is_graph_output():
        name, old.name = old.name, f"{old.name}_replaced"
        new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def insert(
    before: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    like: Sequence[ir.Value],
    attributes: Attributes | None = None,
    domain: str = "",
) -> ir.Node:
    """A new node in front of `before`, whose outputs get the types and shapes of `like` and names after them.

    It inherits the metadata of `before`: where in the model's modules it comes from.
    """
    outputs = [ir.Value(name=f"{v.name}_{op.lower()}", type=v.type, shape=v.shape) for v in like]
    node = ir.node(op, inputs, attributes=dict(attributes or {}), domain=domain, outputs=outputs)
    node.name = f"{before.name}_{op.lower()}"
    node.metadata_props.update(before.metadata_props)
    before.graph.insert_before(before, node)  # type: ignore[union-attr]
    return node


def substitute(
    old: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Attributes | None = None,
    domain: str = "",
) -> ir.Node:
    """Put a new one-output node in the place of `old`, which goes; what it alone used is left for removal."""
    node = insert(old, op, inputs, old.outputs, attributes, domain)
    replace(old.outputs[0], node.outputs[0])
    old.graph.remove(old, safe=True)  # type: ignore[union-attr]
    return node


def position_nodes(model: ir.Model) -> set[ir.Node]:
    """Nodes that read nothing but positions, constants and each other."""
    known: set[ir.Node] = set()
    for node in model.graph:
        read = [v for v in node.inputs if v is not None and not v.is_initializer()]
        if read and all(v.name == _POSITIONS or v.producer() in known for v in read):
            known.add(node)
    return known


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def attribute_ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    attribute = node.attributes.get(name)
    return None if attribute is None else tuple(attribute.as_ints())


def scope(node: ir.Node) -> str:
    """The module of the model that a node comes from, as its modules name it; empty when it is not known."""
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    path = scopes[-2] if len(scopes) > 1 and scopes[-2].startswith("model") else ""
    return str(path).removeprefix("model").removeprefix(".")


def module_path(node: ir.Node) -> str:
    """Where in the model a node comes from, for people: its module, else its own name."""
    return scope(node) or str(node.name)
