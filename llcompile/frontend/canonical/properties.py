"""What the passes' contracts mean: a predicate for each property, and what holds of every graph.

A predicate yields what is wrong, each with the node or value at fault. None of them asks a pass's own pattern
matcher: it would say of a pass what the pass says of itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from llcompile.frontend.canonical import rewriting as rw
from llcompile.frontend.canonical.check import faults
from llcompile.passes import Verifier


def sound(model: ir.Model) -> Iterator[str]:
    """Every value is read after it is made, in this graph; every output of the graph is made."""
    graph = model.graph
    known = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        lost = [v for v in node.inputs if v is not None and v not in known]
        yield from (f"{_name(node)} reads {value.name}, which nothing made before" for value in lost)
        known.update(node.outputs)
    yield from (f"nothing makes the output {value.name}" for value in graph.outputs if value not in known)
    yield from (f"initializer {v.name} is kept as {n}" for n, v in graph.initializers.items() if v.name != n)


def weights_are_inputs(model: ir.Model) -> Iterator[str]:
    """No initializer is a parameter or a persistent buffer; weights have names of their own and no value."""
    for name, value in model.graph.initializers.items():
        kind, kept = value.metadata_props.get(rw.KIND), value.metadata_props.get(rw.PERSISTENT)
        if kind == "PARAMETER" or (kind == "BUFFER" and kept == "True"):
            yield f"{name} is a weight, and an initializer"
    counts = Counter(value.name for value in model.graph.inputs)
    yield from (f"{count} inputs are named {name}" for name, count in counts.items() if count > 1)
    yield from (
        f"weight {v.name} has a value"
        for v in model.graph.inputs
        if rw.is_weight(v) and v.const_value is not None
    )


def constants_are_initializers(model: ir.Model) -> Iterator[str]:
    """No Constant node, and a value for every initializer."""
    yield from (f"{_name(node)} is a constant, and a node" for node in rw.nodes(model, "Constant"))
    values = model.graph.initializers.items()
    yield from (f"initializer {name} has no value" for name, value in values if value.const_value is None)


def static_shapes(model: ir.Model) -> Iterator[str]:
    """A Reshape to at most one symbolic dimension says so: -1 there, and the other dimensions as they are."""
    for node in rw.nodes(model, "Reshape"):
        shape, operand = rw.dims(node.outputs[0]), rw.integers(node.inputs[1])
        if shape is None or sum(isinstance(d, str) for d in shape) > 1:
            continue  # refused at the end
        expected = tuple(d if isinstance(d, int) else -1 for d in shape)
        if operand != expected or rw.attribute_int(node, "allowzero", 0):
            yield f"{_name(node)} reshapes to {operand}, and its result is {expected}"


def linear(model: ir.Model) -> Iterator[str]:
    """Linear reads a weight (N, K) for x (..., K) and gives (..., N); no product reads a transposed weight."""
    for node in rw.nodes(model, "Linear"):
        weight, x, y = rw.dims(node.inputs[1]), rw.dims(node.inputs[0]), rw.dims(node.outputs[0])
        bias = rw.dims(node.inputs[2]) if len(node.inputs) > 2 else weight and weight[:1]
        if not rw.is_weight(node.inputs[1]) or weight is None or len(weight) != 2:
            yield f"{_name(node)} reads {_names(node)}: the second is no weight matrix"
        elif bias != weight[:1] or (x and x[-1] != weight[1]) or (y and y[-1] != weight[0]):
            yield f"{_name(node)} maps {x} to {y} by {weight} and {bias}"
    for node in rw.nodes(model, "MatMul"):
        transpose = rw.produced_by(node.inputs[1], "Transpose")
        source = transpose.inputs[0] if transpose is not None else None
        if (
            transpose is not None
            and rw.is_weight(source)
            and rw.attribute_ints(transpose, "perm") in (None, (1, 0))
        ):
            yield f"{_name(node)} reads the weight {source.name if source else ''} transposed"


def embedding(model: ir.Model) -> Iterator[str]:
    """Embedding reads a weight (rows, columns) and gives (..., columns); no Gather reads a weight matrix's rows."""
    for node in rw.nodes(model, "Embedding"):
        table, y = rw.dims(node.inputs[0]), rw.dims(node.outputs[0])
        if not rw.is_weight(node.inputs[0]) or table is None or len(table) != 2 or (y and y[-1] != table[1]):
            yield f"{_name(node)} takes {y} from rows of {table}"
    for node in rw.nodes(model, "Gather"):
        is_matrix = rw.is_weight(node.inputs[0]) and len(rw.dims(node.inputs[0]) or ()) == 2
        if is_matrix and rw.attribute_int(node, "axis", 0) == 0:
            yield f"{_name(node)} gathers rows of a weight"


def sequences(model: ir.Model) -> Iterator[str]:
    """What works row by row has results of its operands' rank: a stretch is over (1, n, K) as a whole or not at all."""
    for node in model.graph:
        if node.op_type not in ("Linear", "LayerNormalization", "Add", "Sub", "Mul", "Div"):
            continue
        operands = node.inputs[:1] if node.op_type in ("Linear", "LayerNormalization") else node.inputs
        shapes, y = [rw.dims(v) for v in operands if v is not None], rw.dims(node.outputs[0])
        if y is not None and None not in shapes and len(y) != max(len(shape or ()) for shape in shapes):
            yield f"{_name(node)} maps {shapes} to {y}"


def norms(model: ir.Model) -> Iterator[str]:
    """RMSNormalization is over the last axis, keeps the shape and has a scale of that axis's width."""
    for node in rw.nodes(model, "RMSNormalization"):
        x, y, scale = rw.dims(node.inputs[0]), rw.dims(node.outputs[0]), rw.dims(node.inputs[1])
        last = rw.attribute_int(node, "axis", -1) in (-1, len(x or ()) - 1)
        if x is not None and (not last or y != x or scale != x[-1:]):
            yield f"{_name(node)} maps {x} to {y} by {scale}"


def rotary(model: ir.Model) -> Iterator[str]:
    """RotaryEmbedding keeps the shape; its tables are (1, n, r / 2), of positions alone, r even and no wider."""
    known = rw.position_nodes(model)
    for node in rw.nodes(model, "RotaryEmbedding"):
        x, y = rw.dims(node.inputs[0]), rw.dims(node.outputs[0])
        tables = [rw.dims(table) for table in node.inputs[1:3]]
        if x is None or any(table is None for table in tables):
            continue
        turned = rw.attribute_int(node, "rotary_embedding_dim", 0) or x[-1]
        halves = {table[-1] for table in tables if table}
        if y != x or not isinstance(turned, int) or not isinstance(x[-1], int) or turned > x[-1]:
            yield f"{_name(node)} turns {turned} features of {x}, and gives {y}"
        elif halves != {turned // 2} or turned % 2:
            yield f"{_name(node)} turns {turned} features by tables of {sorted(halves, key=str)}"
        elif any(t is not None and t.producer() not in known for t in node.inputs[1:3]):
            yield f"{_name(node)} reads tables that depend on more than positions"


def deterministic(model: ir.Model) -> Iterator[str]:
    """Positions' arithmetic comes first; a node is named as its first result, and no two values alike."""
    known, others = rw.position_nodes(model), False
    for node in model.graph:
        if node in known and others:
            yield f"{_name(node)} depends on positions alone, and comes late"
        others = others or node not in known
        if node.name != node.outputs[0].name:
            yield f"the node of {node.outputs[0].name} is named {node.name}"
    inputs, constants = model.graph.inputs, model.graph.initializers.values()
    names = Counter(v.name for v in (*inputs, *constants, *(v for node in model.graph for v in node.outputs)))
    yield from (f"{count} values are named {name}" for name, count in names.items() if count > 1)


def _name(node: ir.Node) -> str:
    return f"{node.op_type} -> {node.outputs[0].name}"


def _names(node: ir.Node) -> str:
    return ", ".join(str(value.name) if value is not None else "nothing" for value in node.inputs)


PROPERTIES: Mapping[str, Callable[[ir.Model], Iterator[str]]] = {
    "canonical": faults,
    "constants-are-initializers": constants_are_initializers,
    "deterministic": deterministic,
    "embedding": embedding,
    "linear": linear,
    "norms": norms,
    "rotary": rotary,
    "sequences": sequences,
    "static-shapes": static_shapes,
    "weights-are-inputs": weights_are_inputs,
}
VERIFIER: Verifier[ir.Model] = Verifier(sound, PROPERTIES)
