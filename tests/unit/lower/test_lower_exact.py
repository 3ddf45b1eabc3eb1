"""No product is left for the compiler to fuse with a sum or not: what a token comes to can't depend on the loop that
computes it, nor on the processor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as B

from llcompile.ir.graph import CacheSpec, Template
from llcompile.lower.kernel_passes import kernel_pipeline
from llcompile.lower.kernels.vector import add, rounded, subtract
from llcompile.lower.library import PASSES, build_module, relax_passes, target_of
from llrun.schema import Precision, Shapes
from tests.unit.lower.harness import (
    PROCESSORS,
    Kernel,
    TemplateWriter,
    llama_attention,
    runnable,
)

_CURVED = ("Neg", "Tanh", "Erf", "Exp")


def _everything() -> Template:
    """LayerNorm with a bias, rotary positions, a soft cap, a window, gelu beside the residual sum."""
    tables: Any = ("float32", (1, "n", 4))
    w = TemplateWriter({"x": ("float32", (1, "n", 32)), "cos": tables, "sin": tables})
    x = w.op("LayerNormalization", "x", w.weight("plain", 32), w.weight("plain", 32), epsilon=1e-5)
    q, k, v = (w.heads(w.linear(x, 32, 32, bias=True), 4, 8) for _ in range(3))
    q, k = (w.op("RotaryEmbedding", t, "cos", "sin") for t in (q, k))
    mixed = w.attend(q, k, v, CacheSpec(4, 4, 8, 8, 9), softcap=4.0)
    scaled = w.op("Mul", w.linear(mixed, 32, 32), w.constant(0.3))
    inner = w.op("Gelu", w.linear(x, 32, 32))
    y = w.op("Sub", w.op("Add", "x", inner), w.op("Mul", scaled, w.op("Sigmoid", scaled)))
    return w.finish("all", (w.op("Add", y, scaled), (1, "n", 32)))


def _curved() -> Template:
    """Sums and differences of functions of products."""
    tensor: Any = ("float32", (1, "n", 16))
    w = TemplateWriter({"x": tensor, "y": tensor})
    total = "y"
    for kind in _CURVED:
        value = w.op(kind, w.op("Mul", "x", "y"))
        total = w.op("Sub", w.op("Add", w.op("Sub", "x", value), value), total)
    gelu = w.op("Gelu", w.op("Mul", "x", "y"), approximate="tanh")
    cube = w.op("Pow", w.op("Mul", "x", "y"), w.constant(3.0))
    return w.finish("curved", (total, tensor[1]), (w.op("Sub", cube, gelu), tensor[1]))


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx512vnni", "neon"])
def test_no_product_is_left_for_the_compiler_to_fuse_or_not(isa: str) -> None:
    """Of whatever is added, none is a product that was not rounded: so it makes no difference what is around it."""
    templates = [_everything(), llama_attention(32, 4, 2, 8), _curved()]
    module = build_module(templates, Precision.of("q8", "q8"), Shapes(256, 16), PROCESSORS[isa])
    with tvm.transform.PassContext(config=PASSES):
        built = relax.build(
            module,
            target=target_of(PROCESSORS[isa]),
            relax_pipeline=relax_passes(),
            tir_pipeline=kernel_pipeline(),
            exec_mode="compiled",
        )
    texts = [part.inspect_source("ll") for part in _parts(built.mod) if part.kind == "llvm"]
    assert sum(text.count("@llvm.fma") for text in texts) > 100
    assert [pair for text in texts for pair in _pairs(text)] == []


_SAME = ("fneg", "extractelement", "insertelement", "shufflevector", "freeze")


def _parts(module: Any) -> Iterator[Any]:
    yield module
    for part in module.imports:
        yield from _parts(part)


def _pairs(text: str) -> Iterator[str]:
    """Sums in LLVM's text of which a term is a product, or lanes of one."""
    for function in re.split(r"(?m)^define ", text)[1:]:
        products: set[str] = set()
        for line in function.splitlines():
            found = re.match(r"\s+(%[\w.]+) = (\w+) (.*)", line)
            if found is None:
                continue
            name, what, rest = found.groups()
            is_read = not products.isdisjoint(re.findall(r"%[\w.]+", rest))
            if what == "fmul" or (what in _SAME and is_read):
                products.add(name)
            elif what in ("fadd", "fsub") and is_read:
                yield line


def test_products_are_fused_as_they_are_written() -> None:
    """a * b is rounded when it has a name (`rounded`), and not before it is added to or subtracted."""
    a, b, c = (np.array([v], np.float32) for v in (1 + 2**-13, 1 - 2**-13, -1.0))
    exact = -(2.0**-26)  # of a * b + c; a * b rounds to 1
    cases = {
        "added": (lambda x, y, z: add(x * y, z), exact),
        "added to": (lambda x, y, z: add(z, x * y), exact),
        "bound": (lambda x, y, z: add(tirx.Let(v := tirx.Var("v", "float32"), x, v * y), z), exact),
        "subtracted from": (lambda x, y, z: subtract(x * y, -z), exact),
        "subtracted": (lambda x, y, z: subtract(-z, x * y), -exact),
        "negated": (lambda x, y, z: add(-(x * y), -z), -exact),
        "rounded": (lambda x, y, z: add(rounded(x * y), z), 0.0),
    }
    for name, (make, expected) in cases.items():
        assert _pointwise(make, a, b, c) == expected, name


def _pointwise(make: Any, *values: np.ndarray) -> float:
    with IRBuilder() as builder, B.prim_func(s_tir=True):
        B.func_attr({"tirx.noalias": True})
        given = [B.arg(f"x{i}", B.buffer((1,), "float32")) for i in range(len(values))]
        out = B.arg("out", B.buffer((1,), "float32"))
        B.buffer_store(out, make(*(buffer[0] for buffer in given)), [0])
    result = np.zeros(1, np.float32)
    Kernel(builder.get(), runnable()[-1])(*values, result)
    return float(result[0])
