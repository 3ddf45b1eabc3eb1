"""A graph as text, for dumps and goldens: everything a person compares, no bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llcompile.ir.graph import Block, CacheSpec, Graph, Template, TensorSpec, WeightParam
from llcompile.ir.plan import BlockCost, Plan, Stage
from llcompile.ir.shard import Group, Piece, ShardedBlock, WeightCut


def print_graph(graph: Graph) -> str:
    """The tensors, templates and blocks of `graph`, one item a line, in the graph's order."""
    templates = ([graph.positions] if graph.positions else []) + list(graph.templates.values())
    sections = [
        ["tensors", *(f"  {format_tensor(spec)}" for spec in graph.tensors.values())],
        *(list(_template_lines(template)) for template in templates),
        ["blocks", *(f"  {_block_line(block)}" for block in graph.blocks)],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def format_tensor(spec: TensorSpec) -> str:
    """`name: dtype[dim, ...]`."""
    return f"{spec.name}: {spec.dtype}{_dims(spec.shape)}"


def _dims(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _template_lines(template: Template) -> Iterator[str]:
    yield f"template {template.id}"
    yield f"  inputs  {', '.join(map(format_tensor, template.inputs))}"
    yield from (f"  weight  {_weight(weight)}" for weight in template.weights)
    yield f"  outputs {', '.join(map(format_tensor, template.outputs))}"
    yield from (f"  cache   {_cache(cache)}" for cache in template.caches)
    yield f"  ops     {' '.join(template.ops)}"
    flops = f"{template.linear_flops} a token, {template.attention_flops} a token and cached token"
    yield f"  flops   {flops}; activations {template.activation_bytes} bytes a token"


def _weight(weight: WeightParam) -> str:
    return f"{weight.name}: {weight.role}{_dims(weight.shape)}"


def _cache(cache: CacheSpec) -> str:
    window = f"window {cache.window}" if cache.window else "all tokens"
    return f"{cache.kv_heads} x ({cache.key_dim} + {cache.value_dim}) for {cache.heads} heads, {window}"


def _block_line(block: Block) -> str:
    last = " last row only" if block.last_row_only else ""
    weights = f" [{', '.join(block.weights)}]" if block.weights else ""
    return (
        f"{block.id} {block.template}({', '.join(block.inputs)}) -> {', '.join(block.outputs)}{weights}{last}"
    )


def print_groups(groups: Sequence[Group]) -> str:
    """The pieces of the blocks of `groups`, of blocks that are cut alike those of the first."""
    sections = []
    for group in groups:
        alike: dict[int, list[int]] = {}
        for block, pieces in group.blocks.items():
            alike.setdefault(next((b for b, p in group.blocks.items() if p is pieces), block), []).append(
                block
            )
        for first, blocks in alike.items():
            where = f"blocks {', '.join(map(str, blocks))} on {', '.join(group.stage.devices)}"
            sections.append(f"{where}\n\n{print_pieces(group.blocks[first])}")
    return "\n".join(sections)


def print_pieces(pieces: ShardedBlock) -> str:
    """The shards and the tail of a block, with what each has of the block's weights."""
    shards = (_piece_lines(f"shard {rank}", piece) for rank, piece in enumerate(pieces.shards))
    sections = [*shards, _piece_lines(f"tail of {pieces.sums}", pieces.tail)]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _piece_lines(name: str, piece: Piece) -> Iterator[str]:
    yield f"{name}, of inputs {', '.join(map(str, piece.inputs))}"
    yield from (f"  cut     {_cut(cut)}" for cut in piece.cuts)
    yield from _template_lines(piece.template)


def _cut(cut: WeightCut) -> str:
    ranges = ", ".join(f"{start}:{stop}" for start, stop in cut.ranges)
    return f"weight {cut.weight} {'whole' if cut.axis is None else f'axis {cut.axis}: {ranges}'}"


def print_planned(plan: Plan, costs: Sequence[BlockCost]) -> str:
    """Stages and transmissions of `plan`, and the costs it was made from."""
    head = f"plan {plan.status} objective {plan.objective:.6g} bound {plan.bound:.6g} gap {plan.gap:.3g}"
    lines = [
        f"{head} ttft {plan.ttft_s:.6g} s tpot {plan.tpot_s:.6g} s",
        *(f"  stage {s.start}:{s.stop} on {_devices(s)}" for s in plan.stages),
        *(
            f"  send {t.tensor} {t.source} -> {t.destination} {t.kind} {t.bytes} {t.wire}"
            for t in plan.transmissions
        ),
        *(f"  unused {name}: {reason}" for name, reason in plan.unused.items()),
        *(f"  note {note}" for note in plan.notes),
        *(f"  cost {_cost(cost)}" for cost in costs),
    ]
    return "\n".join(lines) + "\n"


def _devices(stage: Stage) -> str:
    """Of a group with its shares, in the order of ranks, and how it sums."""
    if not stage.is_group:
        return stage.lead
    parts = ", ".join(f"{name} {share:.6g}" for name, share in zip(stage.devices, stage.shares, strict=True))
    return f"{parts} {stage.all_reduce}{f' root {stage.root}' if stage.all_reduce == 'star' else ''}"


def _cost(cost: BlockCost) -> str:
    memory = f"weights {cost.weights_bytes} cache {cost.cache_bytes} activations {cost.activation_bytes}"
    decode = f"decode {cost.decode_bytes:.6g} bytes {cost.decode_flops:.6g} flops"
    return f"{cost.block}: {memory}; {decode}; prefill {cost.prefill_bytes:.6g} bytes {cost.prefill_flops:.6g} flops"
