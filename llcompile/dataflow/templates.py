"""Templates: a block's subgraph as an ONNX model with canonical names, its operations and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper

from llcompile.dataflow.canonical import Canonical, normalize_layers
from llcompile.dataflow.nodes import (
    ATTENTION,
    EMBEDDING,
    INPUT_IDS,
    LINEAR,
    POSITION_IDS,
    Dataflow,
    Node,
    read_program,
)
from llcompile.ir.graph import CacheSpec, Template, TensorSpec, WeightParam


def make_template(
    id: str,
    form: Canonical,
    flow: Dataflow,
    specs: Mapping[str, TensorSpec],
    output_names: Sequence[str] | None = None,
) -> Template:
    """The template of `form`. `output_names` replaces y0, y1, ... (the positions template keeps the graph's
    names)."""
    names = _canonical_names(form, output_names or [f"y{i}" for i in range(len(form.outputs))])
    nodes = [_rename(node, names) for node in normalize_layers(form.nodes)]
    inputs = tuple(_spec(specs[name], names[name]) for name in form.inputs)
    outputs = tuple(_spec(specs[name], names[name]) for name in form.outputs)
    weights = tuple(
        WeightParam(names[name], flow.weights[name], role, _by_token(name, form))
        for name, role in zip(form.weights, form.roles, strict=True)
    )
    constants = {names[name]: flow.constants[name] for name in form.constants}
    return Template(
        id=id,
        onnx=_serialize(id, nodes, inputs, weights, outputs, constants, flow.header),
        inputs=inputs,
        weights=weights,
        outputs=outputs,
        caches=tuple(_cache(node, specs) for node in form.nodes if node.op == ATTENTION),
        ops=tuple(node.op for node in form.nodes),
        linear_flops=sum(_token_flops(node, flow, specs) for node in form.nodes),
        attention_flops=sum(_context_flops(node, specs) for node in form.nodes),
        activation_bytes=_peak_bytes(form, specs),
    )


def template_flow(template: Template) -> Dataflow:
    """The nodes of `template`; its inputs but for ids are given."""
    flow = read_program(template.onnx)
    given = {spec.name: spec for spec in template.inputs if spec.name not in (INPUT_IDS, POSITION_IDS)}
    weights = {weight.name: weight.shape for weight in template.weights}
    return Dataflow(flow.nodes, flow.constants, weights, flow.header, given)


def _canonical_names(form: Canonical, output_names: Sequence[str]) -> dict[str, str]:
    names = {"": "", **{name: name for name in form.ids}}
    for letter, group in (
        ("x", form.activations),
        ("p", form.positions),
        ("w", form.weights),
        ("c", form.constants),
    ):
        names.update((name, f"{letter}{i}") for i, name in enumerate(group))
    names.update(zip(form.outputs, output_names, strict=True))
    taken, number = set(names.values()), 0
    for node in form.nodes:
        for name in node.outputs:
            if name in names:
                continue
            while f"v{number}" in taken:
                number += 1
            names[name] = f"v{number}"
            number += 1
    return names


def _by_token(weight: str, form: Canonical) -> bool:
    """Whether all that is read of `weight` are the rows that the token ids say, as they are."""
    uses = [node for node in form.nodes if weight in node.inputs]
    return bool(uses) and all(node.op == EMBEDDING and node.inputs[1] == INPUT_IDS for node in uses)


def _rename(node: Node, names: Mapping[str, str]) -> Node:
    inputs, outputs = (tuple(names[name] for name in group) for group in (node.inputs, node.outputs))
    return Node(node.op, inputs, outputs, node.attributes)


def _spec(spec: TensorSpec, name: str) -> TensorSpec:
    return TensorSpec(name, spec.dtype, spec.shape)


def _serialize(
    id: str,
    nodes: Sequence[Node],
    inputs: Sequence[TensorSpec],
    weights: Sequence[WeightParam],
    outputs: Sequence[TensorSpec],
    constants: Mapping[str, onnx.TensorProto],
    header: onnx.ModelProto,
) -> bytes:
    graph = helper.make_graph(
        [node.to_proto() for node in nodes],
        id,
        [
            *(_value_info(spec) for spec in inputs),
            *(helper.make_tensor_value_info(w.name, onnx.TensorProto.FLOAT, w.shape) for w in weights),
        ],
        [_value_info(spec) for spec in outputs],
        [numpy_helper.from_array(numpy_helper.to_array(tensor), name) for name, tensor in constants.items()],
    )
    model = onnx.ModelProto(ir_version=header.ir_version, producer_name="llcompile")
    model.opset_import.extend(header.opset_import)
    model.functions.extend(_used_functions(nodes, header))
    model.graph.CopyFrom(graph)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape
    )


def _used_functions(nodes: Sequence[Node], header: onnx.ModelProto) -> list[onnx.FunctionProto]:
    """The model-local functions that the nodes call, directly or through another function."""
    called = {node.op for node in nodes}
    bodies = {f"{f.domain}.{f.name}": f for f in header.functions}
    pending = [name for name in called if name in bodies]
    while pending:
        inner = {
            f"{node.domain}.{node.op_type}" for node in bodies[pending.pop()].node
        } & bodies.keys() - called
        called |= inner
        pending += inner
    return [function for name, function in bodies.items() if name in called]


def _cache(node: Node, specs: Mapping[str, TensorSpec]) -> CacheSpec:
    query, key, value = (specs[name].shape for name in node.inputs[:3])
    return CacheSpec(*map(int, (query[1], key[1], key[3], value[3], node.attribute("window"))))


def _token_flops(node: Node, flow: Dataflow, specs: Mapping[str, TensorSpec]) -> int:
    """Operations a new token: two for each of a Linear's weights, one an element elsewhere."""
    if node.op == LINEAR:
        return 2 * prod(flow.weights[node.inputs[1]])
    return sum(prod(d for d in specs[name].shape if isinstance(d, int)) for name in node.outputs if name)


def _context_flops(node: Node, specs: Mapping[str, TensorSpec]) -> int:
    """Operations a new and cached token: a multiply and an add for each score and weighted value."""
    if node.op != ATTENTION:
        return 0
    query, value = specs[node.inputs[0]].shape, specs[node.inputs[2]].shape
    return 2 * int(query[1]) * (int(query[3]) + int(value[3]))


def _peak_bytes(form: Canonical, specs: Mapping[str, TensorSpec]) -> int:
    """Most bytes of tensors live at once for one token, nodes run in canonical order."""
    last = {name: i for i, node in enumerate(form.nodes) for name in node.inputs}
    last.update(dict.fromkeys(form.outputs, len(form.nodes)))
    sizes = {name: specs[name].bytes(1, 1) for name in form.inputs}
    live = peak = sum(sizes.values())
    for i, node in enumerate(form.nodes):
        for name in filter(None, node.outputs):
            sizes[name] = specs[name].bytes(1, 1)
            live += sizes[name]
        peak = max(peak, live)
        live -= sum(
            sizes.pop(name)
            for name in {*node.inputs, *node.outputs}
            if name in sizes and last.get(name, i) <= i
        )
    return peak
