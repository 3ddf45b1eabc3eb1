"""What TVM does with a kernel on its way to LLVM: the few passes that ours need, of the fifty that it has for all."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx.compilation_pipeline import PIPELINE_MAP

_NAME = "llcompile"


def kernel_pipeline() -> str:
    """The name by which `tvm.tirx.build` and `relax.build` know these passes.

    Kernels come without blocks, threads of a graphics processor or storage to share, and LLVM finds common
    subexpressions itself: TVM's own passes for these took two thirds of the time to compile a library, hoisting
    conditions out of loops wrote the loops twice, and rewriting storage forgot which buffers are a kernel's own
    (vector.local).
    """
    PIPELINE_MAP[_NAME] = _passes
    return _NAME


def _passes() -> tuple[tvm.transform.Pass, object, object]:
    lowering = tvm.transform.Sequential(
        [
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.NarrowDataType(32),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.UnrollLoop(),
            tirx.transform.StmtSimplify(),
            s_tir.transform.RewriteUnsafeSelect(),
            tirx.transform.VerifyMemory(),
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.SplitHostDevice(),
            tirx.transform.MakePackedAPI(),
        ]
    )
    return lowering, finalize_host_passes, finalize_device_passes
