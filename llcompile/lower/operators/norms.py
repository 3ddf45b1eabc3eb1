"""Normalisation over the last dimension."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from tvm import relax

from llcompile.lower.emitter import Emitter, OpEmitter
from llcompile.lower.kernels.norm import layer_norm, rms_norm
from llcompile.lower.onnx_graph import Node
from llcompile.lower.values import Value, stored


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
    rows, shape = emitter.rows(x.shape, emitter.extent())
    make = partial(layer_norm if centred else rms_norm, emitter.module.isa.lanes, rows, shape, epsilon)
    name = f"{'layer' if centred else 'rms'}_norm_{width}"
    out = emitter.call(name, (x.shape, epsilon), make, tensors, [(x.shape, "float32")])
    return [stored(x.shape, "float32", out[0])]


NORMS: Mapping[str, OpEmitter] = {"RMSNormalization": _norm, "LayerNormalization": _norm}
