"""Caches are arguments that the functions change in place: written before they are read, never copied or moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from llcompile.ir.graph import CacheSpec, Template
from llcompile.lower import lower_templates
from llcompile.lower.library import build_module, relax_passes
from llrun.schema import Precision, Shapes
from tests.unit.lower.harness import (
    PROCESSORS,
    Library,
    TemplateWriter,
    by_token,
    llama_attention,
    random_inputs,
    runnable,
)


def _two_attentions() -> Template:
    """Two attention nodes in one template, the second over what the first returned; the second's result unused
    but for its sum."""
    w = TemplateWriter({"x": ("float32", (1, "n", 32))})
    x = "x"
    for _ in range(2):
        q, k, v = (w.heads(w.linear(x, 32, 32), 2, 16) for _ in range(3))
        x = w.op("Add", x, w.attend(q, k, v, CacheSpec(2, 2, 16, 16)))
    return w.finish("two", (x, (1, "n", 32)))


@pytest.mark.parametrize("quant", ["f32", "q4"])
def test_both_caches_of_a_template_hold_what_was_appended(quant: str, tmp_path: Path) -> None:
    template = _two_attentions()
    library = Library([template], quant, runnable()[0], tmp_path / "t.so")
    inputs = random_inputs(template, 20)
    expected = library.oracle(template.id, inputs)[0]
    caches = library.caches(template.id)
    first = [np.ascontiguousarray(inputs[s.name][:, :13]) for s in template.inputs]
    library.call(template.id, "prefill", first, caches)
    for cache in caches:
        assert np.isfinite(by_token(cache)[:, :13]).all()
        assert np.isnan(by_token(cache)[:, 13:]).all()
    before = [by_token(c)[:, :13].copy() for c in caches]
    rest = [np.ascontiguousarray(inputs[s.name][:, 13:]) for s in template.inputs]
    got = library.call(template.id, "prefill", rest, caches)[0]
    for cache, old in zip(caches, before, strict=True):
        np.testing.assert_array_equal(by_token(cache)[:, :13], old)
        assert np.isfinite(by_token(cache)[:, 13:20]).all()
    tolerance = {"f32": 3e-6, "q4": 3e-2}[quant]
    assert np.abs(got - expected[:, 13:]).max() < tolerance * np.abs(expected).max()


def test_a_position_is_written_again_when_a_sequence_steps_back(tmp_path: Path) -> None:
    template = llama_attention(32, 2, 2, 16)
    library = Library([template], "f32", runnable()[0], tmp_path / "t.so")
    inputs, other = random_inputs(template, 9), random_inputs(template, 9, seed=1)
    caches = library.caches(template.id)
    library.call(template.id, "prefill", [other[s.name] for s in template.inputs], caches)
    again = library.call(template.id, "prefill", [inputs[s.name] for s in template.inputs], caches)[0]
    np.testing.assert_array_equal(again, library.run(template.id, inputs, [9])[0])


def test_no_copy_of_weights_or_caches_is_made() -> None:
    """What a function allocates is activations alone: less than the smallest cache, and nothing of a size that
    depends on the number of slots."""
    template, processor = llama_attention(64, 4, 2, 16), PROCESSORS["avx2"]
    (lowered,) = lower_templates([template], Precision.of("q4", "f16"), Shapes(4096, 16), processor)
    smallest = min(2 * int(np.prod(shape)) for _, shape in lowered.caches)
    for name, (planned, outputs) in _storage(template, "q4", chunk=16, context=4096).items():
        assert planned, name
        if name != "t1_batch":  # whose workspace, for 16 tokens, is larger
            assert max(planned) < smallest
        assert outputs == (0 if name == "t1_decode" else 1)


def test_prefill_memory_is_planned_for_the_longest_chunk() -> None:
    """The length is symbolic, the memory of intermediates is not: buffers are shared as those of a fixed length."""
    small, large = (_storage(llama_attention(64, 4, 2, 16), "f32", chunk, 64) for chunk in (16, 32))
    assert small["t1_prefill"][1] == 1  # the output
    assert sum(large["t1_prefill"][0]) == 2 * sum(small["t1_prefill"][0]) > 0
    assert small["t1_decode"] == large["t1_decode"]
    intermediates = 64 * (1 + 1 + 0.5 + 0.5 + 1 + 0.5 + 0.5 + 1 + 1 + 1) * 4  # one token's, were none shared
    assert sum(small["t1_prefill"][0]) < 16 * intermediates


def _storage(template: Template, quant: str, chunk: int, context: int) -> dict[str, tuple[list[int], int]]:
    """For each function: the sizes of the storage planned when it is compiled, and how many tensors (outputs, which
    outlive the call) are allocated by their true size."""
    module = build_module([template], Precision.of(quant, "f16"), Shapes(context, chunk), PROCESSORS["avx2"])
    with tvm.target.Target("llvm"):
        lowered = relax_passes()(module)
    found = {}
    for variable, function in lowered.functions.items():
        if isinstance(function, relax.Function):
            values = [binding.value for block in function.body.blocks for binding in block.bindings]
            calls = [v for v in values if isinstance(v, relax.Call)]
            sizes = [c.args[0] for c in calls if getattr(c.op, "name", "") == "relax.vm.alloc_storage"]
            fixed = [int(size.values[0]) for size in sizes if isinstance(size, relax.ShapeExpr)]
            found[variable.name_hint] = (fixed, len(sizes) - len(fixed))
    return found


def test_an_eight_bit_cache_gives_nearly_the_same(tmp_path: Path) -> None:
    """Keys and values rounded to 1/127 of their largest: the block's output moves by less than 1 % of its largest;
    and it takes half the memory."""
    template = llama_attention(64, 4, 2, 16)
    inputs = random_inputs(template, 41)
    found, taken = {}, {}
    for cache in ("f16", "q8"):
        library = Library([template], "f16", runnable()[0], tmp_path / f"{cache}.so", cache=cache)
        found[cache] = library.run("t1", inputs, [16, 1, 13, 1, 10])[0]
        taken[cache] = sum(array.nbytes for array in library.caches("t1"))
    error = np.abs(found["q8"] - found["f16"]).max() / np.abs(found["f16"]).max()
    assert 0 < error < 1e-2
    assert taken["q8"] / taken["f16"] == (16 + 2) / (2 * 16)
