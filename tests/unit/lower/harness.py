"""What the tests of lowering share: processors of this machine, kernels run alone, templates written by hand, and a
compiled library driven as the runtime does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import tvm
import tvm_ffi
from onnx import helper, numpy_helper
from tvm import tirx

from llcompile.frontend.functions import local_functions
from llcompile.ir.cluster import Processor
from llcompile.ir.graph import CacheSpec, Template, TensorSpec, WeightParam
from llcompile.ir.packing import Layout, layout_of
from llcompile.lower import compile_library, lower_templates
from llcompile.lower.kernel_passes import kernel_pipeline
from llcompile.lower.library import PASSES, target_of
from llcompile.lower.tiles import tile_rows
from llcompile.quantize import pack, unpack
from llrun.memory import aligned_copy
from llrun.schema import Isa, Precision, Shapes
from tests.unit.lower.emulated import CPUS, EmulatedFunction, emulate

PROCESSORS = {
    "avx512vnni": Processor("x86_64-linux-gnu", "x86-64-v4", ("+avx512vnni",), Isa.AVX512VNNI),
    "avx2": Processor("x86_64-linux-gnu", "x86-64-v3", (), Isa.AVX2),
    "neon": Processor("aarch64-linux-gnu", "cortex-a72", (), Isa.NEON),
    "neon_dotprod": Processor("aarch64-linux-gnu", "cortex-a76", (), Isa.NEON_DOTPROD),
    "neon_i8mm": Processor("aarch64-linux-gnu", "neoverse-n2", ("-sve", "-sve2"), Isa.NEON_I8MM),
}
FLAGS = {"avx512vnni": {"avx512_vnni", "avx512bw", "avx512vl"}, "avx2": {"avx2", "fma", "f16c"}}


def runnable() -> list[str]:
    """Instruction sets of PROCESSORS that this machine executes."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    flags = set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
    return [isa for isa, needed in FLAGS.items() if needed <= flags]


def new_tokens() -> tirx.Var:
    return tirx.Var("n", "int64")


class Kernel:
    """One kernel, compiled for `isa` and called with numpy arrays; an array that it writes is changed in place. Arm's
    run under qemu."""

    def __init__(self, function: tirx.PrimFunc, isa: str) -> None:
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        with tvm.transform.PassContext(config=PASSES):
            self.built = tvm.tirx.build(module, target=target_of(PROCESSORS[isa]), pipeline=kernel_pipeline())
        self.isa = isa

    def __call__(self, *arrays: np.ndarray) -> None:
        if self.isa in CPUS:
            self.emulated(*arrays)
            return
        tensors = [tvm.runtime.tensor(a) for a in arrays]
        self.built["main"](*tensors)
        for array, tensor in zip(arrays, tensors, strict=True):
            array[...] = tensor.numpy()

    @cached_property
    def emulated(self) -> EmulatedFunction:
        return emulate(self.built, "main", self.isa)

    def assembly(self) -> str:
        return str(self.built.inspect_source("asm"))


@dataclass
class TemplateWriter:
    """Writes a template's ONNX text node by node; every method returns the name of the tensor it makes."""

    inputs: dict[str, tuple[str, tuple[int | str, ...]]]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, WeightParam] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    caches: list[CacheSpec] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [f"{kind.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, role: str, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = WeightParam(name, shape, role)
        return name

    def constant(self, value: Any, dtype: str = "float32") -> str:
        name = f"const{len(self.constants)}"
        self.constants[name] = np.array(value, dtype)
        return name

    def linear(self, x: str, rows: int, columns: int, bias: bool = False) -> str:
        extra = [self.weight("plain", rows)] if bias else []
        return str(self.op("Linear", x, self.weight("linear", rows, columns), *extra, domain="llcompile"))

    def heads(self, x: str, heads: int, dim: int) -> str:
        shaped = self.op("Reshape", x, self.constant([1, -1, heads, dim], "int64"))
        return str(self.op("Transpose", shaped, perm=[0, 2, 1, 3]))

    def attend(self, q: str, k: str, v: str, cache: CacheSpec, **attributes: Any) -> str:
        self.caches.append(cache)
        settings = {"layer": len(self.caches) - 1, "scale": cache.key_dim**-0.5, "softcap": 0.0, "causal": 1}
        settings |= {"window": cache.window, **attributes}
        out = self.op("Attention", q, k, v, domain="llcompile", **settings)
        merged = self.op("Transpose", out, perm=[0, 2, 1, 3])
        return str(self.op("Reshape", merged, self.constant([1, -1, cache.heads * cache.value_dim], "int64")))

    def finish(self, id: str, *outputs: tuple[str, tuple[int | str, ...]]) -> Template:
        """The template, its outputs named and typed float32."""
        inputs = dict(self.inputs)
        if self.caches:
            inputs["position_ids"] = ("int64", (1, "n"))
        specs = tuple(TensorSpec(name, dtype, shape) for name, (dtype, shape) in inputs.items())
        results = tuple(TensorSpec(name, "float32", shape) for name, shape in outputs)
        weights = tuple(self.weights.values())
        ops = tuple(f"{n.domain}.{n.op_type}".lstrip(".") for n in self.nodes)
        text = self._model(specs, results)
        return Template(id, text, specs, weights, results, tuple(self.caches), ops, 0, 0, 0)

    def _model(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
        def info(name: str, dtype: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
            )

        graph = helper.make_graph(
            self.nodes,
            "template",
            [info(s.name, s.dtype, s.shape) for s in inputs]
            + [info(w.name, "float32", w.shape) for w in self.weights.values()],
            [info(s.name, s.dtype, s.shape) for s in outputs],
            [numpy_helper.from_array(a, name) for name, a in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("llcompile", 1)]
        used = {n.op_type for n in self.nodes if n.domain}
        bodies = [f for f in local_functions() if f.name in used]
        return helper.make_model(
            graph, opset_imports=opsets, functions=bodies, ir_version=10
        ).SerializeToString()


def llama_attention(
    hidden: int, heads: int, kv_heads: int, dim: int, window: int = 0, **settings: Any
) -> Template:
    """Norm, projections, rotary positions, attention, output projection, residual sum."""
    w = TemplateWriter({"x": ("float32", (1, "n", hidden)), "cos": ("float32", (1, "n", dim // 2)),
                        "sin": ("float32", (1, "n", dim // 2))})  # fmt: skip
    x = w.op("RMSNormalization", "x", w.weight("plain", hidden), epsilon=1e-5, axis=-1)
    q = w.heads(w.linear(x, heads * dim, hidden), heads, dim)
    k = w.heads(w.linear(x, kv_heads * dim, hidden), kv_heads, dim)
    v = w.heads(w.linear(x, kv_heads * dim, hidden), kv_heads, dim)
    q, k = (w.op("RotaryEmbedding", t, "cos", "sin") for t in (q, k))
    mixed = w.attend(q, k, v, CacheSpec(heads, kv_heads, dim, dim, window), **settings)
    y = w.op("Add", "x", w.linear(mixed, hidden, heads * dim))
    return w.finish("t1", (y, (1, "n", hidden)))


def llama_mlp(hidden: int, inner: int) -> Template:
    """Norm, gated unit, residual sum."""
    w = TemplateWriter({"x": ("float32", (1, "n", hidden))})
    x = w.op("RMSNormalization", "x", w.weight("plain", hidden), epsilon=1e-5, axis=-1)
    gate = w.linear(x, inner, hidden)
    silu = w.op("Mul", gate, w.op("Sigmoid", gate))
    product = w.op("Mul", silu, w.linear(x, inner, hidden))
    y = w.op("Add", "x", w.linear(product, hidden, inner))
    return w.finish("t2", (y, (1, "n", hidden)))


def embedding(rows: int, columns: int) -> Template:
    w = TemplateWriter({"input_ids": ("int64", (1, "n"))})
    y = w.op("Embedding", w.weight("embedding", rows, columns), "input_ids", domain="llcompile")
    return w.finish("t0", (y, (1, "n", columns)))


def random_weight(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Matrices that keep the size of what they multiply; vectors around 1."""
    noise = rng.standard_normal(shape)
    return (1 + noise / 10 if len(shape) == 1 else noise * shape[-1] ** -0.5).astype(np.float32)


def extreme_weight(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """All codes at the end of their range, rows of one sign each: times ones, the largest sums there are."""
    signs = rng.choice([-1.0, 1.0], shape[0])
    return (np.ones(shape) if len(shape) == 1 else signs[:, None] * np.ones(shape) / shape[1]).astype(
        np.float32
    )


class Library:
    """A compiled library with random weights in `quant`, called as the runtime calls it."""

    def __init__(
        self,
        templates: Sequence[Template],
        quant: str,
        isa: str,
        out: Path,
        context: int = 64,
        chunk: int = 16,
        draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] = random_weight,
        cache: str = "f16",
    ) -> None:
        processor = PROCESSORS[isa]
        precision, shapes = Precision.of(quant, cache), Shapes(context, chunk)
        compile_library(templates, precision, shapes, processor, out)
        self.machine = tvm_ffi.load_module(str(out))["vm_load_executable"]()
        self.machine["vm_initialization"](1, 0, 2)
        lowered = lower_templates(templates, precision, shapes, processor)
        self.lowered = {low.template: low for low in lowered}
        self.templates = {t.id: t for t in templates}
        self.weights: dict[str, dict[str, np.ndarray]] = {}
        self.params: dict[str, list[np.ndarray]] = {}
        rng = np.random.default_rng(7)
        for template in templates:
            self._pack(template, quant, tile_rows(processor), lambda shape: draw(rng, shape))

    def _pack(
        self, template: Template, quant: str, rows: int, draw: Callable[[tuple[int, ...]], np.ndarray]
    ) -> None:
        """`weights`: as the kernels see them, in float32. `params`: packed."""
        seen, packed = {}, []
        for index, weight in enumerate(template.weights):
            matrix = draw(weight.shape)
            layout: Layout = layout_of(weight.role, quant, rows)
            parts = pack(matrix, layout, weight.name)
            seen[weight.name] = unpack(parts, layout, weight.shape)
            for param in self.lowered[template.id].params:
                if param.weight == index:
                    assert (parts[param.part].shape, str(parts[param.part].dtype)) == (
                        param.shape,
                        param.dtype,
                    )
                    packed.append(aligned_copy(parts[param.part]))
        self.weights[template.id], self.params[template.id] = seen, packed

    def caches(self, id: str, slots: int = 1) -> list[np.ndarray]:
        """Caches full of what must never be read."""
        return [
            aligned_copy(np.full((slots, *shape), -128 if dtype == "int8" else np.nan, dtype))
            for dtype, shape in self.lowered[id].caches
        ]

    def call(
        self,
        id: str,
        mode: str,
        inputs: Sequence[np.ndarray],
        caches: Sequence[np.ndarray] = (),
        slots: Sequence[int] = (0,),
    ) -> list[np.ndarray]:
        where = [aligned_copy(np.array(slots, np.int64))] if caches else []
        arrays = [*map(aligned_copy, inputs), *self.params[id], *where, *caches]
        result = self.machine[f"{id}_{mode}"](*map(tvm_ffi.from_dlpack, arrays))
        results = [result] if len(self.templates[id].outputs) == 1 else list(result)
        return [np.from_dlpack(r).copy() for r in results]

    def run(self, id: str, inputs: dict[str, np.ndarray], chunks: Sequence[int]) -> list[np.ndarray]:
        """The outputs for a whole sequence that is given in `chunks`; chunks of 1 decode."""
        template, caches, pieces, start = self.templates[id], self.caches(id), [], 0
        for size in chunks:
            part = [_tokens(inputs[s.name], s, start, size) for s in template.inputs]
            pieces.append(self.call(id, "decode" if size == 1 else "prefill", part, caches))
            start += size
        return [
            np.concatenate([p[i] for p in pieces], axis=spec.shape.index("n"))
            for i, spec in enumerate(template.outputs)
        ]

    def oracle(self, id: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """onnxruntime on the template's text with the weights the kernels see; positions must start at 0."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(self.templates[id].onnx, options, providers=["CPUExecutionProvider"])
        wanted = {i.name for i in session.get_inputs()}
        given = {**inputs, **self.weights[id]}
        return list(session.run(None, {name: a for name, a in given.items() if name in wanted}))


def _tokens(array: np.ndarray, spec: TensorSpec, start: int, size: int) -> np.ndarray:
    return np.ascontiguousarray(np.take(array, range(start, start + size), axis=spec.shape.index("n")))


def by_token(cache: np.ndarray, slot: int = 0) -> np.ndarray:
    """A slot of a cache's tensor with the tokens on the second axis, (Hkv, tokens, ...)."""
    if cache.ndim == 5:  # keys, in transposed blocks
        return np.swapaxes(cache[slot], 2, 3).reshape(cache.shape[1], -1, cache.shape[3])
    return cache[slot]


def random_inputs(template: Template, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Activations, ids below 10, positions from 0."""
    rng = np.random.default_rng(seed)
    result = {}
    for spec in template.inputs:
        shape = [n if d == "n" else int(d) for d in spec.shape]
        if spec.name == "position_ids":
            result[spec.name] = np.arange(n)[None]
        elif spec.dtype == "int64":
            result[spec.name] = rng.integers(0, 10, shape)
        else:
            result[spec.name] = rng.standard_normal(shape).astype(np.float32)
    return result
