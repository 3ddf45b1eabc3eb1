"""Operations and bytes of each block at a precision, context and chunk; the tensors that flow between."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llcompile.ir.graph import DTYPE_BYTES, CacheSpec, Graph, Template, TensorSpec, WeightParam
from llcompile.ir.packing import cache_token_bytes, layout_of, packed_params, pad
from llcompile.ir.plan import BlockCost, Flow
from llrun.programs.formats import may_be_coded, row_bytes
from llrun.programs.graph import SMALL_TABLE_BYTES
from llrun.schema import Precision, Shapes, WireFormat

PAGE_BYTES = 4096
# The widest row tile of any processor's kernels: an upper bound on the rows that padding adds.
TILE_ROWS = 16


def block_costs(
    graph: Graph, precision: Precision, shapes: Shapes, portion: int | None = None
) -> tuple[BlockCost, ...]:
    """Costs of the graph's blocks, in order. `portion`: rows of a chunk that prompts go in, None: as many as it holds.

    weights_bytes: packed tensors, each on pages of its own; a large table that tokens look up takes table_bytes of disk
    instead. cache_bytes: keys and values of `context` tokens, in the cache's format. activation_bytes: peak of a chunk.
    decode: one token with `context` tokens cached, of which attention reads those in its window; an embedding
    reads one row, not its table. prefill: `portion` rows of a prompt that fills the context, at the mean number of
    cached tokens, context / 2: a window bounds it too; weights are read once a chunk, an embedding's rows
    once a token. A block that needs the last row only is charged one row.
    """
    costs: dict[tuple[str, bool], BlockCost] = {}
    result = []
    for block in graph.blocks:
        key = (block.template, block.last_row_only)
        if key not in costs:
            costs[key] = template_cost(
                graph.templates[block.template], precision, shapes, block.last_row_only, portion
            )
        of_output = graph.output_blocks > 1 and block.id >= graph.output_start
        result.append(replace(costs[key], block=block.id, of_output=of_output))
    return tuple(result)


def template_cost(
    template: Template,
    precision: Precision,
    shapes: Shapes,
    last_row_only: bool,
    portion: int | None = None,
) -> BlockCost:
    """The cost of a block of `template`, or of a piece of one, as block 0; see block_costs."""
    quant, cache, context = precision.weights, precision.cache, shapes.context
    most = 1 if last_row_only else shapes.chunk
    rows = min(most, portion or most)
    streamed = sum(weight_bytes(w, quant) for w in template.weights if w.role != "embedding")
    tables = sum(weight_bytes(w, quant) for w in template.weights if w.role == "embedding")
    kept = sum(weight_bytes(w, quant) for w in template.weights if not w.by_token)
    table = streamed + tables - kept if streamed + tables > SMALL_TABLE_BYTES else 0
    row = sum(_row_bytes(w, quant) for w in template.weights if w.role == "embedding")
    mean = context / 2
    return BlockCost(
        block=0,
        weights_bytes=streamed + tables - table,
        cache_bytes=context * sum(_token_bytes(c, cache) for c in template.caches),
        activation_bytes=most * template.activation_bytes,
        decode_flops=template.linear_flops + _attention_flops(template, context),
        decode_bytes=streamed + row + _cache_read(template, context, cache),
        prefill_flops=rows * (template.linear_flops + _attention_flops(template, mean)),
        prefill_bytes=streamed + rows * row + _cache_read(template, mean, cache),
        table_bytes=table,
        last_row_only=last_row_only,
    )


def weight_bytes(weight: WeightParam, quant: str) -> int:
    """Bytes of a weight as stored: every packed tensor padded to whole pages."""
    params = packed_params(
        0, weight.name, weight.shape, layout_of(weight.role, weight.format or quant, TILE_ROWS)
    )
    return sum(pad(param.nbytes, PAGE_BYTES) for param in params)


def _row_bytes(weight: WeightParam, quant: str) -> int:
    params = packed_params(0, weight.name, (1, weight.shape[1]), layout_of(weight.role, quant, TILE_ROWS))
    return sum(param.nbytes for param in params)


def _seen(cache: CacheSpec, cached: float) -> float:
    return min(cached, cache.window) if cache.window else cached


def _attention_flops(template: Template, cached: float) -> float:
    """Multiply and add for each score and weighted value: 2 heads (key_dim + value_dim) a cached token."""
    return sum(2 * c.heads * (c.key_dim + c.value_dim) * _seen(c, cached) for c in template.caches)


def _cache_read(template: Template, cached: float, kind: str) -> float:
    """Bytes of the cache that one token's attention reads."""
    return sum(_token_bytes(c, kind) * _seen(c, cached) for c in template.caches)


def _token_bytes(cache: CacheSpec, kind: str) -> int:
    return cache_token_bytes(kind, cache.kv_heads, cache.key_dim, cache.value_dim)


def flows(
    graph: Graph, chunk: int, wire: WireFormat = WireFormat.F32, portion: int | None = None
) -> tuple[Flow, ...]:
    """Every activation that one block makes and others read, in order of production; consumers ascending. They travel
    as `wire`, those that can. Of a chunk's rows a prompt fills `portion`, None: all.

    Neither what a device computes from positions nor token ids nor logits, whole or in pieces: the first is never sent,
    the others stay on the head, whose pieces of the output head are one consumer. A tensor that only last-row blocks
    read travels as one row in prefill.
    """
    last_row = {block.id for block in graph.blocks if block.last_row_only}
    result = []
    for block in graph.blocks[: graph.output_start]:
        for name in block.outputs:
            consumers = tuple(dict.fromkeys(min(each, graph.output_start) for each in graph.consumers(name)))
            if consumers:
                rows = 1 if last_row.issuperset(consumers) else chunk
                spec = graph.tensors[name]
                sent = message(spec, rows, wire, portion)
                result.append(
                    Flow(
                        name,
                        block.id,
                        consumers,
                        sent.row_bytes,
                        sent.portion_bytes,
                        sent.wire,
                        sent.held_bytes,
                    )
                )
    return tuple(result)


@dataclass(frozen=True)
class Message:
    """A tensor on the wire in the format `wire`: bytes of one row and of a prompt's portion; `held_bytes` of a chunk on
    a device that sends or receives it, as it is computed with and as it travels."""

    wire: WireFormat
    row_bytes: int
    portion_bytes: int
    held_bytes: int


def message(spec: TensorSpec, rows: int, wire: WireFormat, portion: int | None = None) -> Message:
    """A message of up to `rows` rows of a tensor, of which a prompt fills `portion`; it travels as `wire` if it can."""
    row, chunk = spec.bytes(1, 1), spec.bytes(rows, rows)
    filled = min(rows, portion or rows)
    shape = tuple(-1 if isinstance(size, str) else size for size in spec.shape)
    if wire == WireFormat.F32 or not may_be_coded(spec.dtype, shape):
        return Message(WireFormat.F32, row, spec.bytes(filled, filled), chunk)
    coded = row_bytes(wire, row // DTYPE_BYTES[spec.dtype])
    return Message(wire, coded, filled * coded, chunk + rows * coded)
