"""What a canonical graph may hold, and what is said when it holds something else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llcompile.frontend.canonical import rewriting as rw
from llcompile.ir.errors import CompileError

_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "ReduceMean", "Reciprocal", "Sqrt", "Pow"})
_ARITHMETIC = frozenset({"Add", "Cos", "Div", "MatMul", "Mul", "Neg", "Sin", "Sub", "Cast"})
_ACTIVATIONS = frozenset({"Erf", "Exp", "Gelu", "Relu", "Sigmoid", "Softplus", "Tanh"})
_LAYOUT = frozenset(
    {"Concat", "Expand", "Gather", "Reshape", "RotaryEmbedding", "Slice", "Split", "Transpose", "Unsqueeze"}
)
STANDARD = _NORMS | _ARITHMETIC | _ACTIVATIONS | _LAYOUT
OWN = frozenset({"Attention", "Embedding", "Linear"})
_LARGEST_CONSTANT_BYTES = 1 << 20


def _fault(node: ir.Node) -> str | None:
    """What makes `node` foreign to the canonical form."""
    known = OWN if node.domain == rw.DOMAIN else STANDARD if not node.domain else frozenset()
    if node.op_type not in known:
        return "this operator is not supported"
    for value in node.inputs:
        if (
            rw.is_weight(value)
            and len(rw.dims(value) or ()) != 1
            and node.op_type not in ("Linear", "Embedding")
        ):
            name = value.name if value is not None else ""
            return f"it reads the weight {name} in a way other than a linear layer or an embedding"
    if node.op_type == "Reshape" and rw.integers(node.inputs[1]) is None:
        return "its shape depends on more than the number of tokens"
    return None


def faults(model: ir.Model) -> Iterator[str]:
    """Every violation of the canonical form, each with the operator and the module it comes from."""
    for node in model.graph:
        fault = _fault(node)
        if fault is not None:
            op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            yield f"{op} in module {rw.module_path(node)}: {fault}"
    for name, constant in model.graph.initializers.items():
        tensor = constant.const_value
        if tensor is None or tensor.nbytes > _LARGEST_CONSTANT_BYTES:
            yield f"constant {name}: larger than {_LARGEST_CONSTANT_BYTES} bytes, or without a value"


@dataclass(frozen=True)
class RequireCanonical:
    """Refuses a graph that is not canonical; a canonical one passes unchanged.

    Raises CompileError F120 naming the operator and the module of the first faults.
    """

    name: ClassVar[str] = "require-canonical"
    requires: ClassVar[frozenset[str]] = frozenset(
        {"linear", "embedding", "static-shapes", "sequences", "norms", "rotary"}
    )
    ensures: ClassVar[frozenset[str]] = frozenset({"canonical"})

    def run(self, value: ir.Model) -> ir.Model:
        violations = list(faults(value))
        if violations:
            more = f" (and {len(violations) - 3} more)" if len(violations) > 3 else ""
            raise CompileError("F120", f"the model cannot be compiled: {'; '.join(violations[:3])}{more}")
        return value
