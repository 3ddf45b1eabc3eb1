"""Costs of blocks against figures counted by hand."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest

from llcompile.cost import block_costs, flows
from llcompile.cost.blocks import PAGE_BYTES, TILE_ROWS, template_cost, weight_bytes
from llcompile.ir.graph import Block, CacheSpec, Graph, Template, TensorSpec, WeightParam
from llcompile.ir.packing import GROUP
from llcompile.ir.plan import BlockCost
from llrun.schema import Precision, Shapes

H, KV, D, FFN, VOCAB, WIDTH = 4, 2, 32, 192, 500, 128


def costs_of(graph: Graph, quant: str, context: int, chunk: int) -> tuple[BlockCost, ...]:
    return block_costs(graph, Precision.of(quant, "f16"), Shapes(context, chunk))


def template(id: str, inputs: str, weights: dict[str, tuple[int, ...]], **fields: object) -> Template:
    """`weights`: role and number to shape."""
    specs = tuple(TensorSpec(name, "float32", (1, "n", WIDTH)) for name in inputs.split())
    params = tuple(WeightParam(f"w{i}", s, role.split()[0]) for i, (role, s) in enumerate(weights.items()))
    flops = sum(2 * prod(p.shape) for p in params if p.role == "linear")
    values = {"caches": (), "ops": (), "linear_flops": flops, "attention_flops": 0, "activation_bytes": 4096}
    outputs = (TensorSpec("y0", "float32", (1, "n", WIDTH)),)
    return Template(id=id, onnx=b"x", inputs=specs, weights=params, outputs=outputs, **{**values, **fields})  # type: ignore[arg-type]


def parallel_graph(window: int = 0) -> Graph:
    """Embedding, two layers of attention beside an MLP (both read the residual), head."""
    cache = CacheSpec(heads=H, kv_heads=KV, key_dim=D, value_dim=D, window=window)
    matrices = {"linear q": (H * D, WIDTH), "linear kv": (2 * KV * D, WIDTH), "linear o": (WIDTH, H * D)}
    templates = [
        template("t0", "input_ids", {"embedding": (VOCAB, WIDTH)}),
        template(
            "t1", "x0 p0 position_ids", {"plain": (WIDTH,), **matrices},
            caches=(cache,), attention_flops=2 * H * 2 * D,
        ),
        template("t2", "x0 x1", {"plain": (WIDTH,), "linear up": (FFN, WIDTH), "linear down": (WIDTH, FFN)}),
        template("t3", "x0", {"plain": (WIDTH,), "linear": (VOCAB, WIDTH)}),
    ]  # fmt: skip
    blocks = [Block(0, "t0", ("input_ids",), ("r0",), ("embed",))]
    for layer in range(2):
        residual, made = f"r{layer}", f"a{layer}"
        weights = tuple(f"{layer}.{name}" for name in ("norm", "q", "kv", "o"))
        blocks.append(Block(2 * layer + 1, "t1", (residual, "cos", "position_ids"), (made,), weights))
        mlp = tuple(f"{layer}.{name}" for name in ("norm2", "up", "down"))
        blocks.append(Block(2 * layer + 2, "t2", (residual, made), (f"r{layer + 1}",), mlp, layer == 1))
    blocks.append(Block(5, "t3", ("r2",), ("logits",), ("norm", "lm_head"), True))
    names = ("r0", "a0", "r1", "a1", "r2", "cos", "logits")
    tensors = {name: TensorSpec(name, "float32", (1, "n", WIDTH)) for name in names}
    return Graph(tuple(blocks), {t.id: t for t in templates}, tensors, None)


def pages(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES


@pytest.mark.parametrize(
    ("quant", "element_bits", "scale_bytes"), [("f32", 32, 0), ("f16", 16, 0), ("q8", 8, 2), ("q4", 4, 2)]
)
def test_matrix_bytes(quant: str, element_bits: int, scale_bytes: int) -> None:
    rows = -(-VOCAB // TILE_ROWS) * TILE_ROWS
    data, scales = rows * WIDTH * element_bits // 8, rows * WIDTH // GROUP * scale_bytes
    assert weight_bytes(WeightParam("w", (VOCAB, WIDTH), "linear"), quant) == pages(data) + pages(scales)


def test_vectors_stay_f32_and_take_a_page() -> None:
    assert weight_bytes(WeightParam("w", (WIDTH,), "plain"), "q4") == PAGE_BYTES
    assert weight_bytes(WeightParam("w", (1025,), "plain"), "q4") == 2 * PAGE_BYTES


def test_attention_block() -> None:
    context, chunk = 1000, 64
    cost = costs_of(parallel_graph(), "f16", context, chunk)[1]
    weights = PAGE_BYTES + sum(pages(2 * n * WIDTH) for n in (H * D, 2 * KV * D, WIDTH))
    linear = 2 * WIDTH * (H * D + 2 * KV * D + WIDTH)
    assert cost.weights_bytes == weights
    assert cost.cache_bytes == context * 2 * KV * D * 2
    assert cost.activation_bytes == chunk * 4096
    assert cost.decode_flops == linear + context * 2 * H * 2 * D
    assert cost.decode_bytes == weights + cost.cache_bytes
    assert cost.prefill_flops == chunk * (linear + context / 2 * 2 * H * 2 * D)
    assert cost.prefill_bytes == weights + cost.cache_bytes / 2


def test_cache_elements_are_four_bytes_in_f32_and_two_otherwise() -> None:
    sizes = {
        quant: costs_of(parallel_graph(), quant, 100, 8)[1].cache_bytes for quant in ("f32", "f16", "q4")
    }
    assert sizes == {"f32": 100 * 128 * 4, "f16": 100 * 128 * 2, "q4": 100 * 128 * 2}


def test_a_window_bounds_what_is_read_not_what_is_held() -> None:
    full, windowed = (costs_of(parallel_graph(window), "f16", 1000, 64)[1] for window in (0, 100))
    assert windowed.cache_bytes == full.cache_bytes
    assert full.decode_bytes - windowed.decode_bytes == 900 * 2 * KV * D * 2
    assert full.decode_flops - windowed.decode_flops == 900 * 2 * H * 2 * D
    assert full.prefill_flops - windowed.prefill_flops == 64 * 400 * 2 * H * 2 * D
    assert full.prefill_bytes - windowed.prefill_bytes == 400 * 2 * KV * D * 2


def test_a_window_wider_than_the_context_changes_nothing() -> None:
    assert costs_of(parallel_graph(0), "q4", 64, 8) == costs_of(parallel_graph(64), "q4", 64, 8)


def test_an_embedding_reads_rows_and_not_its_table() -> None:
    cost = costs_of(parallel_graph(), "q4", 1000, 64)[0]
    row = WIDTH + WIDTH // GROUP * 2  # 8 bits and a scale a group
    assert cost.weights_bytes == pages(VOCAB * WIDTH) + pages(VOCAB * WIDTH // GROUP * 2)
    assert cost.decode_bytes == row
    assert cost.prefill_bytes == 64 * row


def test_last_row_blocks_cost_one_row_whatever_the_chunk() -> None:
    costs = costs_of(parallel_graph(), "f16", 1000, 64)
    whole, last = costs[2], costs[4]
    assert last.prefill_flops == last.decode_flops == whole.decode_flops
    assert whole.prefill_flops == 64 * last.prefill_flops
    assert whole.activation_bytes == 64 * last.activation_bytes
    assert whole.weights_bytes == last.weights_bytes


def test_blocks_in_order() -> None:
    assert [cost.block for cost in costs_of(parallel_graph(), "q8", 100, 8)] == list(range(6))


def test_flows_of_a_parallel_model() -> None:
    found = {
        f.tensor: (f.producer, f.consumers, f.decode_bytes, f.prefill_bytes)
        for f in flows(parallel_graph(), 64)
    }
    row = WIDTH * 4
    assert found == {
        "r0": (0, (1, 2), row, 64 * row),
        "a0": (1, (2,), row, 64 * row),
        "r1": (2, (3, 4), row, 64 * row),  # block 3 needs every row
        "a1": (3, (4,), row, row),
        "r2": (4, (5,), row, row),
    }


@pytest.mark.parametrize(
    ("rows", "by_token", "stays"), [(40_000, True, True), (400, True, False), (40_000, False, False)]
)
def test_a_large_table_that_tokens_look_up_takes_disk_and_no_memory(
    rows: int, by_token: bool, stays: bool
) -> None:
    table = replace(
        template("t0", "input_ids", {}), weights=(WeightParam("w", (rows, 64), "embedding", by_token),)
    )
    found = template_cost(table, Precision.of("f32", "f16"), Shapes(64, 16), False)
    size = pages(rows * 64 * 4)
    assert (found.weights_bytes, found.table_bytes) == ((0, size) if stays else (size, 0))
