"""How each canonical ONNX operator becomes values and kernel calls: `OPERATORS` by operator name."""

from __future__ import annotations

from collections.abc import Mapping

from llcompile.lower.emitter import OpEmitter
from llcompile.lower.operators.attention import ATTENTION
from llcompile.lower.operators.elementwise import ELEMENTWISE
from llcompile.lower.operators.linear import LINEAR
from llcompile.lower.operators.norms import NORMS
from llcompile.lower.operators.products import PRODUCTS
from llcompile.lower.operators.shapes import SHAPES

OPERATORS: Mapping[str, OpEmitter] = {**ELEMENTWISE, **SHAPES, **LINEAR, **PRODUCTS, **ATTENTION, **NORMS}
