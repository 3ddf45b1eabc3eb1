"""What each device needs to know: pure records, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from llcompile.ir.cluster import Cluster
from llcompile.ir.graph import DTYPE_BYTES, Block, Graph, Template
from llcompile.ir.packing import LoweredTemplate, token_axes
from llcompile.ir.plan import Plan
from llcompile.ir.shard import Group, WeightCut
from llrun import schema
from llrun.programs.groups import shard_id, tail_id

LIBRARY = "lib/model.so"
RUNTIME_LIBRARY = "lib/libtvm_runtime.so"


@dataclass(frozen=True)
class Placed:
    """A block on a device, or a piece of one, and how that device's processor wants its weights.

    `id`: what it is called there. `template`: its own. `cuts`: what each of its weights is of the block's; None: all of
    them, whole. `name`: its file's.
    """

    id: int
    name: str
    block: Block
    template: Template
    lowered: LoweredTemplate
    cuts: tuple[WeightCut, ...] | None = None

    @property
    def file(self) -> str:
        return f"weights/{self.name}.safetensors"

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for two placed blocks whose files are equal."""
        return self.block.id, self.cuts, self.lowered.params


def placed_blocks(
    device: str,
    held: Sequence[int],
    graph: Graph,
    groups: Sequence[Group],
    lowered: Sequence[LoweredTemplate],
) -> tuple[Placed, ...]:
    """What is in the slice of `device`, by id: the blocks that it runs, spares, and the pieces of its groups."""
    made = {t.template: t for t in lowered}
    found = []
    for block in (graph.blocks[i] for i in held):
        template = graph.templates[block.template]
        found.append(Placed(block.id, f"block-{block.id:03d}", block, template, made[template.id]))
    for group in (group for group in groups if device in group.stage.devices):
        for number, *pieces in group.pieces(group.stage.devices.index(device)):
            at = number, len(graph.blocks), group.stage.division
            for id, kind, piece in zip((shard_id(*at), tail_id(*at)), ("shard", "tail"), pieces, strict=True):
                which = f"-{group.stage.division}" if group.stage.division else ""
                name, own = f"block-{number:03d}-{kind}{which}", made[piece.template.id]
                found.append(Placed(id, name, graph.blocks[number], piece.template, own, piece.cuts))
    return tuple(sorted(found, key=lambda placed: placed.id))


def block_entry(placed: Placed) -> schema.BlockEntry:
    lowered, weights = placed.lowered, placed.template.weights
    return schema.BlockEntry(
        id=placed.id,
        template=placed.template.id,
        file=placed.file,
        params=tuple(
            schema.Param(name=p.name, dtype=p.dtype, shape=p.shape, by_token=weights[p.weight].by_token)
            for p in lowered.params
        ),
        caches=tuple(
            schema.CacheArray(dtype=dtype, shape=shape, token_axes=token_axes(shape))
            for dtype, shape in lowered.caches
        ),
    )


def device_infos(cluster: Cluster, plan: Plan) -> dict[str, schema.DeviceInfo]:
    """Every device that has a slice, by name: the plan uses it, or it holds spares."""
    return {
        d.name: schema.DeviceInfo(
            name=d.name,
            target=d.target,
            address=d.address,
            threads=d.threads,
            memory_bytes=d.memory_bytes,
            peak_bytes=plan.devices[d.name].peak_bytes if d.name in plan.devices else d.runtime_bytes,
            isa=d.processor.isa,
        )
        for d in map(cluster.device, plan.held)
    }


def max_payload_bytes(graph: schema.GraphRecord, chunk: int, output_blocks: int = 1) -> int:
    """Bytes of the largest message of a whole chunk, wherever blocks are cut apart; 1 when there is none. What the last
    `output_blocks` make, pieces of the logits, stays where it is."""
    made = {tensor for block in graph.blocks[: len(graph.blocks) - output_blocks] for tensor in block.outputs}
    moved = made & {tensor for block in graph.blocks for tensor in block.inputs}
    for group in graph.groups:
        moved.update(tensor for each in group.blocks for tensor in (*each.partials, *each.sums))
    sizes = [
        DTYPE_BYTES[t.dtype] * prod(chunk if d == -1 else d for d in t.shape)
        for t in graph.tensors
        if t.id in moved
    ]
    return max([1, *sizes])


def make_slice(
    device: str,
    model: schema.ModelInfo,
    head: str,
    devices: Mapping[str, schema.DeviceInfo],
    programs: Mapping[str, schema.DeviceProgram],
    graph: schema.GraphRecord,
    plan: schema.PlanRecord,
    envelope: schema.Envelope,
    blocks: Sequence[Placed],
    files: Mapping[str, schema.FileEntry],
    output_blocks: int,
) -> schema.Slice:
    """The slice of `device`, its identity and digest still empty. `output_blocks`: of the graph, those that make the
    logits."""
    return schema.Slice(
        schema=schema.SCHEMA,
        digest="",
        bundle="",
        model=model,
        device=device,
        head=head,
        devices=dict(devices),
        library=LIBRARY,
        runtime_library=RUNTIME_LIBRARY,
        graph=graph,
        stages=plan.stages,
        transmissions=plan.transmissions,
        envelope=envelope,
        blocks=tuple(block_entry(b) for b in blocks),
        program=programs[device],
        max_payload_bytes=max_payload_bytes(graph, model.shapes.chunk, output_blocks),
        files=dict(files),
    )
