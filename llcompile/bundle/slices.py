"""What each device needs to know: pure records, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from llcompile.ir.cluster import Cluster
from llcompile.ir.graph import DTYPE_BYTES, Block, Graph, Template
from llcompile.ir.packing import LoweredTemplate, token_axes
from llcompile.ir.plan import Plan
from llrun import schema

LIBRARY = "lib/model.so"
RUNTIME_LIBRARY = "lib/libtvm_runtime.so"


@dataclass(frozen=True)
class Placed:
    """A block on a device, and how that device's processor wants its weights. `by_token`: numbers of those weights
    of its template that are read by token."""

    block: Block
    lowered: LoweredTemplate
    by_token: frozenset[int]

    @property
    def file(self) -> str:
        return f"weights/block-{self.block.id:03d}.safetensors"

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for two placed blocks whose files are equal."""
        return self.block.id, self.lowered.params


def placed_blocks(
    held: Sequence[int], graph: Graph, lowered: Sequence[LoweredTemplate]
) -> tuple[Placed, ...]:
    """The blocks of a slice: those that the device runs, and spares."""
    templates = {t.template: t for t in lowered}
    blocks = [graph.blocks[i] for i in held]
    return tuple(Placed(b, templates[b.template], _by_token(graph.templates[b.template])) for b in blocks)


def _by_token(template: Template) -> frozenset[int]:
    return frozenset(i for i, weight in enumerate(template.weights) if weight.by_token)


def block_entry(placed: Placed) -> schema.BlockEntry:
    lowered = placed.lowered
    return schema.BlockEntry(
        id=placed.block.id,
        template=placed.block.template,
        file=placed.file,
        params=tuple(
            schema.Param(name=p.name, dtype=p.dtype, shape=p.shape, by_token=p.weight in placed.by_token)
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


def max_payload_bytes(graph: schema.GraphRecord, chunk: int) -> int:
    """Bytes of the largest message of a whole chunk, wherever blocks are cut apart; 1 when there is none."""
    made = {tensor for block in graph.blocks for tensor in block.outputs}
    moved = made & {tensor for block in graph.blocks for tensor in block.inputs}
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
) -> schema.Slice:
    """The slice of `device`, its identity and digest still empty."""
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
        max_payload_bytes=max_payload_bytes(graph, model.shapes.chunk),
        files=dict(files),
    )
