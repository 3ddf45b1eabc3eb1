"""The frontend's programs as files: written after a pass, or by hand, and read back for one pass alone."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import parser

from llcompile.frontend.canonical import VERIFIER, canonical_passes
from llcompile.frontend.canonical import rewriting as rw
from llcompile.frontend.printer import text
from llcompile.ir.errors import CompileError
from llcompile.passes import Pass, run_alone


def passes() -> tuple[Pass[ir.Model], ...]:
    """The stage's passes in order; weights keep the names that they have."""
    return canonical_passes({})


def run_pass(step: Pass[ir.Model], data: bytes, weights: Collection[str]) -> tuple[str, str]:
    """The texts of the program in `data` before and after `step`. Raises CompileError F181, E112, E113."""
    return run_alone(parsed(data, weights), step, VERIFIER, text)


def serialized(model: ir.Model) -> bytes:
    """`model` as a serialized ModelProto, the marks of its weights with it."""
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def read_program(path: Path) -> bytes:
    """A serialized ModelProto from ONNX's binary form or, in a .onnxtxt file, its text form, shapes inferred.

    Raises CompileError F180.
    """
    try:
        if path.suffix != ".onnxtxt":
            data = path.read_bytes()
            onnx.checker.check_model(data)  # parses first, so that what is no protobuf is refused here
            return data
        proto = parser.parse_model(path.read_text())
        onnx.checker.check_model(proto)
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True, strict_mode=True)
    except OSError as error:
        raise CompileError("F180", f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, parser.ParseError, onnx.checker.ValidationError) as error:
        raise CompileError("F180", f"{path} is no ONNX program: {_line(error)}") from error
    except onnx.shape_inference.InferenceError as error:
        raise CompileError("F180", f"{path}: its shapes do not fit: {_line(error)}") from error
    return bytes(proto.SerializeToString())


def parsed(data: bytes, weights: Collection[str]) -> ir.Model:
    """The program in `data`, the inputs named in `weights` marked as weights. Raises CompileError F181."""
    model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(data))
    inputs = {value.name: value for value in model.graph.inputs}
    for name in weights:
        if name not in inputs:
            raise CompileError(
                "F181", f"--weight {name}: the program's inputs are {', '.join(map(str, inputs))}"
            )
        inputs[name].metadata_props[rw.WEIGHT] = "1"
    return model


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
