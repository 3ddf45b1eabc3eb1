"""How each canonical ONNX operator becomes values and kernel calls: `OPERATORS` by operator name."""

from __future__ import annotations

from collections.abc import Mapping

from llcompile.lower.emitter import OpEmitter
from llcompile.lower.operators.elementwise import ELEMENTWISE
from llcompile.lower.operators.heavy import HEAVY
from llcompile.lower.operators.shapes import SHAPES

OPERATORS: Mapping[str, OpEmitter] = {**ELEMENTWISE, **HEAVY, **SHAPES}
