"""Normalisation over the last dimension."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from tvm import relax

from llcompile.lower.emitter import Emitter, OpEmitter
from llcompile.lower.kernels.norm import NormSpec, norm
from llcompile.lower.onnx_graph import Node
from llcompile.lower.operators.linear import quantised_types
from llcompile.lower.values import Value, quantised, stored


def _norm(emitter: Emitter, node: Node) -> list[Value]:
    centred = node.op == "LayerNormalization"
    x = emitter.value(node.inputs[0])
    width, epsilon = x.shape[-1], float(node.attributes.get("epsilon", 1e-5))
    if int(node.attributes.get("axis", -1)) not in (-1, len(x.shape) - 1) or not isinstance(width, int):
        raise emitter.error("L118", node, "only the last dimension can be normalised")
    if len(node.outputs) > 1:
        raise emitter.error("L118", node, "mean and deviation are not returned")
    tensors = [emitter.materialise(emitter.value(name)) for name in node.inputs[:2]]
    if centred and len(node.inputs) > 2 and node.inputs[2]:
        tensors.append(emitter.materialise(emitter.value(node.inputs[2])))
    elif centred:
        tensors.append(relax.const(np.zeros(width, np.float32)))
    in_int8 = x.shape == (1, "n", width) and emitter.quantises(node.outputs[0])
    rows, shape = emitter.rows(x.shape, emitter.extent())
    spec = NormSpec(epsilon, centred, in_int8)
    name = f"{'layer' if centred else 'rms'}_norm_{width}{'_q' if in_int8 else ''}"
    types = quantised_types(width) if in_int8 else [(x.shape, "float32")]
    made = emitter.call(name, (x.shape, spec), partial(norm, spec, rows, shape), tensors, types)
    return [quantised(x.shape, made) if in_int8 else stored(x.shape, "float32", made[0])]


NORMS: Mapping[str, OpEmitter] = {"RMSNormalization": _norm, "LayerNormalization": _norm}
