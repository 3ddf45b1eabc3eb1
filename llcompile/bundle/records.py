"""The compiler's plan and model as the records of the bundle's schema, and the bundle's identity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from llcompile.ir.graph import Graph
from llcompile.ir.model import Model
from llcompile.ir.packing import mean_bits
from llcompile.ir.plan import BlockCost, Move, Plan, Stage, Transmission, output_start
from llrun import schema


def plan_record(plan: Plan, graph: Graph, costs: Sequence[BlockCost]) -> schema.PlanRecord:
    """The plan, with what each block is and costs, as `plan --json`, `explain` and the manifest hold it."""
    by_block = {cost.block: cost for cost in costs}
    record = schema.PlanRecord(
        status=plan.status,
        objective=plan.objective,
        bound=plan.bound,
        gap=plan.gap,
        solve_s=plan.solve_s,
        seed=plan.seed,
        ttft_s=plan.ttft_s,
        tpot_s=plan.tpot_s,
        precision=plan.precision,
        shapes=plan.shapes,
        prompt_tokens=plan.prompt_tokens,
        new_tokens=plan.new_tokens,
        sequences=plan.sequences,
        chunk_s=plan.chunk_s,
        slowest_chunk_s=plan.slowest_chunk_s,
        stages=stage_records(plan.stages),
        devices={name: _load(plan, name, output_start(costs)) for name in plan.devices},
        unused=dict(plan.unused),
        transmissions=transmission_records(plan.transmissions),
        blocks=tuple(
            schema.BlockRecord(
                id=b.id,
                template=b.template,
                ops=graph.templates[b.template].ops,
                weights_bytes=by_block[b.id].weights_bytes + by_block[b.id].table_bytes,
                decode_flops=by_block[b.id].decode_flops,
                bits=mean_bits(graph.templates[b.template].weights, plan.precision.weights),
                divergence=b.divergence,
            )
            for b in graph.blocks
        ),
        spares=dict(plan.spares),
        divisions=stage_records(plan.divisions),
        envelope=tuple(_move(move) for move in plan.moves),
        notes=plan.notes,
        portion=plan.portion,
    )
    # A whole number where the schema has a float must become one: 256 and 256.0 are different bytes.
    return msgspec.convert(msgspec.to_builtins(record), schema.PlanRecord)


def _move(move: Move) -> schema.MoveRecord:
    return schema.MoveRecord(
        event=move.event,
        device=move.device,
        possible=move.possible,
        tpot_s=move.tpot_s,
        change_s=move.change_s,
        stages=stage_records(move.stages),
        reason=move.reason,
    )


def stage_records(stages: Iterable[Stage]) -> tuple[schema.StageRecord, ...]:
    return tuple(
        schema.StageRecord(
            devices=s.devices,
            shares=s.shares,
            blocks=(s.start, s.stop),
            window=s.window,
            all_reduce=s.all_reduce,
            root=s.root,
            division=s.division,
        )
        for s in stages
    )


def transmission_records(transmissions: Iterable[Transmission]) -> tuple[schema.TransmissionRecord, ...]:
    return tuple(
        schema.TransmissionRecord(
            tensor=t.tensor,
            kind=t.kind,
            source=t.source,
            destination=t.destination,
            bytes=t.bytes,
            wire=t.wire,
        )
        for t in transmissions
    )


def _load(plan: Plan, name: str, output: int) -> schema.LoadRecord:
    """`output`: the block at which the output head begins."""
    load, middle = plan.devices[name], range(1, output)
    return schema.LoadRecord(
        weights_bytes=load.weights_bytes,
        kv_bytes=load.kv_bytes,
        peak_bytes=load.peak_bytes,
        memory_bytes=load.memory_bytes,
        compute_s=load.compute_s,
        window=max(stage.window for stage in plan.stages_of(name)),
        rounds=max(1, sum(any(block in middle for block in stage.blocks) for stage in plan.stages_of(name))),
    )


def plan_json(record: schema.PlanRecord) -> dict[str, Any]:
    """The object that `plan --json` prints: plain dicts, lists and numbers."""
    plain: dict[str, Any] = msgspec.to_builtins(record)
    return plain


def model_info(model: Model, plan: Plan) -> schema.ModelInfo:
    return schema.ModelInfo(
        name=model.name,
        architecture=model.architecture,
        precision=plan.precision,
        shapes=plan.shapes,
        vocab_size=model.vocab_size,
        bos_token_id=model.bos_token_id,
        eos_token_ids=model.eos_token_ids,
    )


def identity(manifest: schema.Manifest, slices: Iterable[schema.Slice]) -> str:
    """Identity of a bundle: sha256 over what its manifest and slices say, save identity and digests."""
    own = {name: entry for name, entry in manifest.files.items() if not is_slice(name)}
    bare: list[schema.Manifest | schema.Slice] = [
        msgspec.structs.replace(manifest, bundle="", digest="", files=own)
    ]
    bare += [msgspec.structs.replace(s, bundle="", digest="") for s in sorted(slices, key=lambda s: s.device)]
    return hashlib.sha256(msgspec.json.encode(bare, order="sorted")).hexdigest()


def is_slice(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 3 and parts[0] == "devices" and parts[2] == "slice.json"


def slice_files(files: Mapping[str, schema.FileEntry], device: str) -> dict[str, schema.FileEntry]:
    """What of the bundle's `files` lies in the slice of `device`, relative to it; not slice.json."""
    prefix = f"devices/{device}/"
    return {
        name.removeprefix(prefix): entry
        for name, entry in files.items()
        if name.startswith(prefix) and not is_slice(name)
    }
