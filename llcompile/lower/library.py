"""Templates -> Relax module -> object files -> shared library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx

from llcompile.ir.cluster import Processor
from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.ir.graph import Template
from llcompile.lower.emitter import INPUTS, Module, emit_function
from llcompile.lower.fuse import fuse
from llcompile.lower.kernel_passes import kernel_pipeline
from llcompile.lower.kernels.isa import isa_of
from llcompile.lower.onnx_graph import read_graph
from llcompile.lower.operators import OPERATORS
from llcompile.lower.tiles import lower_templates
from llrun.schema import MAX_BATCH, Precision, Shapes

_LINK_SECONDS = 120
_CHECKS = ("vm.builtin.check_tensor_info", "vm.builtin.match_shape")

# A function checks its arguments once (match_shape); that each kernel checks them again is three fifths of the library
# and a third of the time to compile it.
PASSES = {"tirx.disable_assert": True}


def compile_library(
    templates: Sequence[Template],
    precision: Precision,
    shapes: Shapes,
    processor: Processor,
    out: Path,
) -> None:
    """See llcompile.lower.compile_library."""
    module = build_module(templates, precision, shapes, processor)
    with tvm.transform.PassContext(config=PASSES):
        executable = relax.build(
            module,
            target=target_of(processor),
            relax_pipeline=relax_passes(),
            tir_pipeline=kernel_pipeline(),
            exec_mode="compiled",
        )
    link(executable, out)


def target_of(processor: Processor) -> tvm.target.Target:
    """LLVM code generation for `processor`."""
    options: dict[str, Any] = {"kind": "llvm", "mtriple": processor.mtriple, "mcpu": processor.mcpu}
    if processor.mattr:
        options["mattr"] = list(processor.mattr)
    return tvm.target.Target(options)


def build_module(
    templates: Sequence[Template],
    precision: Precision,
    shapes: Shapes,
    processor: Processor,
) -> tvm.IRModule:
    """The Relax module with all functions of each template; memory is planned for a chunk's tokens."""
    module = Module(relax.BlockBuilder(), isa_of(processor.isa), precision, shapes)
    lowered = lower_templates(templates, precision, shapes, processor)
    for template, convention in zip(templates, lowered, strict=True):
        rows = {weight.name: weight.shape[0] for weight in template.weights}
        graph = fuse(read_graph(template), rows)
        for function in ("decode", "prefill", "batch") if convention.caches else ("decode", "prefill"):
            emit_function(module, template, convention, graph, OPERATORS, function)
    built = module.builder.get()
    for name, function in built.functions.items():
        if isinstance(function, relax.Function):
            most = MAX_BATCH if name.name_hint.endswith("_batch") else shapes.chunk
            built.update_func(name, function.with_attr("tir_var_upper_bound", {"n": most}))
    return built


def relax_passes() -> tvm.transform.Pass:
    """Operators are kernel calls already: what is left is memory planning and the virtual machine's calls."""
    return tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            tvm.transform.module_pass(ordered_shapes, opt_level=0, name="ordered"),
            tvm.transform.module_pass(_trusting, opt_level=0, name="trusting"),
            relax.transform.AttachGlobalSymbol(),
        ]
    )


def ordered_shapes(module: tvm.IRModule, _: Any) -> tvm.IRModule:
    """VMShapeLower writes the shapes that a function computes in the order of a table of addresses, which differs from
    run to run: here in the order of their slots, for the same bytes every time.

    before: H[3] = H[0] * 768; H[2] = H[0] * 2
    after:  H[2] = H[0] * 2; H[3] = H[0] * 768
    """
    for name, function in module.functions.items():
        of_shapes = isinstance(function, tirx.PrimFunc) and name.name_hint.startswith("shape_func")
        if of_shapes and isinstance(function.body, tirx.SeqStmt):
            stores = sorted(function.body.seq, key=lambda store: int(store.indices[0]))
            module.update_func(name, function.with_body(tirx.SeqStmt(stores)))
    return module


def _trusting(module: tvm.IRModule, _: Any) -> tvm.IRModule:
    """Weights and caches are the same at each of a block's many calls: where a token is a call (decode, batch), they
    are not checked again: an eighth of the time of a call beside its kernels.

    before: check_tensor_info(x, ..); check_tensor_info(w0_data, ..); match_shape(x, ..); match_shape(w0_data, ..)
    after:  check_tensor_info(x, ..); match_shape(x, ..)
    """
    for name, function in module.functions.items():
        if isinstance(function, relax.Function) and not name.name_hint.endswith("_prefill"):
            module.update_func(name, _unchecked(function))
    return module


def _unchecked(function: relax.Function) -> relax.Function:
    inputs = [function.params[int(i)] for i in function.attrs[INPUTS]]

    def kept(binding: relax.Binding) -> bool:
        call = binding.value
        check = isinstance(call, tvm.ir.Call) and getattr(call.op, "global_symbol", "") in _CHECKS
        return not check or any(call.args[0].same_as(variable) for variable in inputs)

    blocks = [relax.BindingBlock([b for b in block.bindings if kept(b)]) for block in function.body.blocks]
    body = relax.SeqExpr(blocks, function.body.body)
    return relax.Function(function.params, body, function.ret_ty, bool(function.is_pure), function.attrs)


def link(executable: Any, out: Path) -> None:
    """Write `executable` as a shared library. Its code needs nothing but the runtime library and the C library's
    memcpy and memset, which every process that loads it has: so the linker is given no C library of the target.

    Raises CompileError L130 when the linker fails.
    """

    def run_linker(output: str, objects: list[str], options: Any = None, **_: Any) -> None:
        command = [sys.executable, "-m", "ziglang", "ld.lld", "-shared", "--build-id=none", "-o", output]
        done = subprocess.run(
            command + sorted(objects), capture_output=True, text=True, timeout=_LINK_SECONDS
        )
        if done.returncode:
            raise CompileError("L130", f"linking {out.name} failed: {done.stderr.strip()}", INTERNAL)

    run_linker.output_format = "so"  # type: ignore[attr-defined]
    executable.export_library(str(out), fcompile=run_linker)
