"""Groups in a bundle's records: tensors of parts and sums, pieces as blocks of their own, what is compiled and sent."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from llcompile.bundle.graph_record import graph_record
from llcompile.bundle.slices import max_payload_bytes, placed_blocks
from llcompile.graph import build_graph
from llcompile.ir.cluster import Processor
from llcompile.ir.errors import CompileError
from llcompile.ir.plan import Stage
from llcompile.ir.printer import print_groups
from llcompile.ir.shard import Group
from llcompile.lower import lower_templates
from llcompile.sharding import Sharding, piece_templates, sum_templates
from llrun.programs.groups import sum_templates as sum_names
from llrun.schema import AllReduceKind, Isa, Precision, Shapes
from tests.unit.graph.synthetic import decoder

GRAPH = build_graph(decoder(2, hidden=32, heads=4, kv_heads=2, ffn=64))
PRECISION, SHAPES = Precision.of("f32", "f32"), Shapes(64, 16)


def groups(kind: str, shares: Sequence[float] = (0.5, 0.25, 0.25), stop: int = 3) -> tuple[Group, ...]:
    names = tuple("abcdef"[: len(shares)])
    stage = Stage(names, tuple(shares), 1, stop, all_reduce=AllReduceKind(kind), root=1)
    return Sharding(GRAPH, PRECISION, SHAPES).groups((Stage.on("h", 0, 1), stage, Stage.on("h", stop, 6)))


@pytest.mark.parametrize(("kind", "sums"), [("direct", 0), ("star", 1), ("ring", 2)])
def test_parts_and_sums_are_tensors_behind_the_others(kind: str, sums: int) -> None:
    plain, record = graph_record(GRAPH), graph_record(GRAPH, groups=groups(kind))
    count = len(plain.tensors)
    assert record.tensors[:count] == plain.tensors
    assert [t.id for t in record.tensors] == list(range(len(record.tensors)))
    added = record.tensors[count:]
    parts = ["block1.part0", "block1.part1", "block1.part2"]
    assert [t.name for t in added[: 3 + sums]] == [*parts, *(f"block1.sum{i}" for i in range(sums))]
    assert {(t.dtype, t.shape) for t in added} == {("float32", (1, -1, 32))}
    (group,) = record.groups
    first, second = group.blocks
    assert (first.block, second.block) == (1, 2)
    assert first.shards == ("t1_s2", "t1_s1", "t1_s1")
    assert first.partials == (count, count + 1, count + 2)
    assert first.sums == tuple(range(count + 3, count + 3 + sums))
    assert (first.tail, second.tail) == (
        ("t1_tail3", "t2_tail3") if kind == "direct" else ("t1_tail1", "t2_tail1")
    )
    # A shard takes what the block takes; the tail adds the residual, the block's first input.
    assert first.inputs == plain.blocks[1].inputs
    assert first.tail_inputs == plain.blocks[1].inputs[:1]
    assert second.inputs == second.tail_inputs == plain.blocks[2].inputs


def test_pieces_are_blocks_of_their_own() -> None:
    made = groups("star")
    templates = [*GRAPH.templates.values(), *piece_templates(made, {"b"})]
    processor = Processor("x86_64-linux-gnu", "x86-64-v3", (), Isa.AVX2)
    lowered = lower_templates(templates, PRECISION, SHAPES, processor)
    placed = placed_blocks("b", (3,), GRAPH, made, lowered)
    assert [(p.id, p.template.id, p.file) for p in placed] == [
        (3, "t1", "weights/block-003.safetensors"),
        (8, "t1_s1", "weights/block-001-shard.safetensors"),
        (9, "t1_tail1", "weights/block-001-tail.safetensors"),
        (10, "t2_s16", "weights/block-002-shard.safetensors"),
        (11, "t2_tail1", "weights/block-002-tail.safetensors"),
    ]
    assert [p.cuts is None for p in placed] == [True, False, False, False, False]
    assert len({p.content for p in placed}) == len(placed)


def test_devices_compile_what_they_run() -> None:
    made = groups("star")
    by_device = {name: [t.id for t in piece_templates(made, {name})] for name in "habc"}
    assert by_device["h"] == []
    assert by_device["a"] == ["t1_s2", "t1_tail1", "t2_s32", "t2_tail1"]
    assert by_device["b"] == by_device["c"] == ["t1_s1", "t1_tail1", "t2_s16", "t2_tail1"]
    sums = {name: sum_names(graph_record(GRAPH, groups=made), name) for name in "habc"}
    assert [t.id for t in sum_templates(made, sums["b"])] == ["sum_3"]
    assert sum_templates(made, sums["a"]) == sum_templates((), {"sum_2"}) == ()


def test_blocks_cut_alike_are_printed_once() -> None:
    lines = print_groups(groups("ring", stop=5)).splitlines()
    assert [line for line in lines if line.startswith("blocks")] == [
        "blocks 1, 3 on a, b, c",
        "blocks 2, 4 on a, b, c",
    ]
    assert [line for line in lines if line.startswith("template")][:4] == [
        "template t1_s2",
        "template t1_s1",
        "template t1_s1",
        "template t1_tail1",
    ]


def test_messages_are_as_large_as_parts_of_sums() -> None:
    record = msgspec.structs.replace(graph_record(GRAPH, groups=groups("ring")), blocks=())
    assert max_payload_bytes(record, 16) == 16 * 32 * 4
    assert max_payload_bytes(msgspec.structs.replace(record, groups=()), 16) == 1


def test_a_plan_that_cannot_be_cut_is_a_fault_of_the_compiler() -> None:
    with pytest.raises(CompileError, match="block 1 cannot be cut for a, b, c, d, e: 4 heads") as caught:
        groups("direct", (0.2,) * 5)
    assert (caught.value.code, caught.value.exit_code) == ("P226", 1)
