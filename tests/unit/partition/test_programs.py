"""Programs: hand-written expectation, every possible cut, and a checker that is checked itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from llcompile.bundle import graph_record
from llcompile.bundle.records import stage_records, transmission_records
from llcompile.cost import flows
from llcompile.ir.check import check_graph
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.ir.graph import Graph
from llcompile.ir.plan import DeviceLoad, Plan, Stage
from llcompile.partition import device_programs
from llcompile.partition.brute_force import candidates
from llcompile.partition.programs import verify_programs
from llcompile.partition.transmissions import transmissions
from llrun import schema
from llrun.programs.check_programs import check_programs
from llrun.programs.write import write_programs
from llrun.schema import PlanStatus, Precision, Shapes
from tests.unit.partition.cases import OPTIONS, device
from tests.unit.partition.graphs import layered

Programs = dict[str, schema.DeviceProgram]
Records = tuple[schema.GraphRecord, tuple[schema.StageRecord, ...], tuple[schema.TransmissionRecord, ...]]
CLUSTER = Cluster("h", tuple(device(name) for name in ("h", "a", "b", "c")), Link(1e6, 1e-3), {})
SPLIT = (("h", 0, 1), ("a", 1, 2), ("b", 2, 4), ("h", 4, 6))


def plan_of(stages: tuple[tuple[str, int, int], ...]) -> Plan:
    loads = {name: DeviceLoad(0, 0, 0, 0, 0.0) for name, _, _ in stages}
    made = tuple(Stage.on(name, start, stop) for name, start, stop in stages)
    seconds = (1.0, 1.0, 1.0, 1.0)
    requests = (512, 128, 8)
    proof = (PlanStatus.OPTIMAL, 1.0, 1.0, 0.0, 0.0, 1)
    return Plan(
        *proof, *seconds, Precision.of("q4", "f16"), Shapes(64, 16), *requests, made, loads, {}, (), ""
    )


def records_of(graph: Graph, stages: tuple[tuple[str, int, int], ...]) -> Records:
    made = plan_of(stages).stages
    return (
        graph_record(graph),
        stage_records(made),
        transmission_records(transmissions(made, flows(graph, 1))),
    )


def programs_of(graph: Graph, stages: tuple[tuple[str, int, int], ...]) -> Programs:
    return device_programs(*records_of(graph, stages), "h")


def faults(programs: Programs, graph: Graph, stages: tuple[tuple[str, int, int], ...]) -> list[str]:
    described, _, sent = records_of(graph, stages)
    return check_programs(programs, described, sent, "h")


def text(programs: Programs, graph: Graph) -> list[str]:
    """Programs as people read them."""
    names = {tensor.id: tensor.name for tensor in graph_record(graph).tensors}
    lines = []
    for name, program in programs.items():
        lines.append(f"{name}:")
        lines += [f"  {line(instruction, names)}" for instruction in program.instructions]
    return lines


def line(instruction: schema.Instruction, names: dict[int, str]) -> str:
    if isinstance(instruction, schema.Load):
        return f"load {instruction.block}"
    if isinstance(instruction, schema.Receive):
        return f"receive {names[instruction.tensor]} from {instruction.source}"
    if isinstance(instruction, schema.Release):
        return f"release {names[instruction.tensor]}"
    rows = " (last row)" if instruction.rows == "last" else ""
    if isinstance(instruction, schema.Send):
        return f"send {names[instruction.tensor]} to {instruction.destination}{rows}"
    inputs, outputs = (", ".join(names[t] for t in ids) for ids in (instruction.inputs, instruction.outputs))
    return f"run {instruction.template} of {instruction.block}: {inputs} -> {outputs}{rows}"


def test_graphs_are_graphs() -> None:
    assert check_graph(layered(2)) == []
    assert check_graph(layered(3, parallel=True)) == []


def test_residual_tensor_goes_straight_to_each_consumer() -> None:
    graph = layered(2, parallel=True)
    assert text(programs_of(graph, SPLIT), graph) == [
        "h:",
        "  load 0",
        "  load 4",
        "  load 5",
        "  run t0 of 0: input_ids -> x0",
        "  send x0 to a",
        "  send x0 to b",
        "  release x0",
        "  receive x1 from b",
        "  receive a1 from b",
        "  run t2 of 4: x1, a1 -> x2 (last row)",
        "  release x1",
        "  release a1",
        "  run t3 of 5: x2 -> logits (last row)",
        "  release x2",
        "a:",
        "  load 1",
        "  receive x0 from h",
        "  run positions of None: position_ids -> cos, sin",
        "  run t1 of 1: x0, cos, sin, position_ids -> a0",
        "  send a0 to b",
        "  release x0",
        "  release cos",
        "  release sin",
        "  release a0",
        "b:",
        "  load 2",
        "  load 3",
        "  receive x0 from h",
        "  receive a0 from a",
        "  run positions of None: position_ids -> cos, sin",
        "  run t2 of 2: x0, a0 -> x1",
        "  send x1 to h (last row)",
        "  release x0",
        "  release a0",
        "  run t1 of 3: x1, cos, sin, position_ids -> a1",
        "  send a1 to h (last row)",
        "  release x1",
        "  release cos",
        "  release sin",
        "  release a1",
    ]


def test_head_alone_has_one_segment() -> None:
    graph = layered(1)
    alone = (("h", 0, 4),)
    program = programs_of(graph, alone)["h"]
    assert not any(
        isinstance(instruction, schema.Send | schema.Receive) for instruction in program.instructions
    )
    assert faults({"h": program}, graph, alone) == []


def test_tables_are_made_anew_in_each_segment_that_uses_them() -> None:
    program = programs_of(layered(3), (("h", 0, 2), ("a", 2, 3), ("h", 3, 8)))["h"]
    runs = [
        instruction.template for instruction in program.instructions if isinstance(instruction, schema.Run)
    ]
    assert runs.count("positions") == 2
    cos = next(tensor.id for tensor in graph_record(layered(3)).tensors if tensor.name == "cos")
    assert sum(instruction == schema.Release(tensor=cos) for instruction in program.instructions) == 2


@pytest.mark.parametrize("parallel", [False, True])
def test_every_cut_gives_right_programs(parallel: bool) -> None:
    graph = layered(3, parallel)
    seen = 0
    for stages in candidates(len(graph.blocks), CLUSTER, OPTIONS):
        runs = tuple((stage.lead, stage.start, stage.stop) for stage in stages)
        programs = programs_of(graph, runs)
        assert faults(programs, graph, runs) == [], runs
        seen += 1
    assert seen > 200


def test_tensor_table_is_numbered_and_marks_new_tokens() -> None:
    table = graph_record(layered(1)).tensors
    assert [tensor.id for tensor in table] == list(range(len(table)))
    assert [t.name for t in table] == ["input_ids", "position_ids", "cos", "sin", "x0", "a0", "x1", "logits"]
    assert table[4].shape == (1, -1, 8)


def test_tensor_of_the_cache_length_is_refused() -> None:
    graph = layered(1)
    t0 = graph.templates["t0"]
    long = replace(t0, outputs=(replace(t0.outputs[0], shape=(1, "c")),))
    with pytest.raises(
        CompileError, match="x0 is of the cache's length and crosses a block boundary"
    ) as caught:
        graph_record(replace(graph, templates={**graph.templates, "t0": long}))
    assert (caught.value.code, caught.value.exit_code) == ("B130", 1)


# --- the checker, given broken programs ---------------------------------------------------------------------------


def instructions_of(programs: Programs, device_name: str) -> list[schema.Instruction]:
    return list(programs[device_name].instructions)


def with_instructions(programs: Programs, name: str, instructions: list[schema.Instruction]) -> Programs:
    return {**programs, name: msgspec.structs.replace(programs[name], instructions=tuple(instructions))}


def drop(kind: type[schema.Instruction], name: str) -> Callable[[Programs], Programs]:
    def broken(programs: Programs) -> Programs:
        instructions = instructions_of(programs, name)
        instructions.remove(
            next(instruction for instruction in instructions if isinstance(instruction, kind))
        )
        return with_instructions(programs, name, instructions)

    return broken


def double(kind: type[schema.Instruction], name: str) -> Callable[[Programs], Programs]:
    def broken(programs: Programs) -> Programs:
        instructions = instructions_of(programs, name)
        index = next(i for i, instruction in enumerate(instructions) if isinstance(instruction, kind))
        return with_instructions(
            programs, name, [*instructions[:index], instructions[index], *instructions[index:]]
        )

    return broken


def change(kind: type[schema.Instruction], name: str, **fields: object) -> Callable[[Programs], Programs]:
    def broken(programs: Programs) -> Programs:
        instructions = instructions_of(programs, name)
        index = next(i for i, instruction in enumerate(instructions) if isinstance(instruction, kind))
        instructions[index] = msgspec.structs.replace(instructions[index], **fields)
        return with_instructions(programs, name, instructions)

    return broken


def release_first(programs: Programs) -> Programs:
    instructions = instructions_of(programs, "a")
    release = next(instruction for instruction in instructions if isinstance(instruction, schema.Release))
    instructions.remove(release)
    instructions.insert(2, release)
    return with_instructions(programs, "a", instructions)


def send_late(programs: Programs) -> Programs:
    """The head sends only after its last segment, which waits for what follows from the sending."""
    instructions = instructions_of(programs, "h")
    send = next(instruction for instruction in instructions if isinstance(instruction, schema.Send))
    instructions.remove(send)
    return with_instructions(programs, "h", [*instructions, send])


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (drop(schema.Load, "a"), "block 1 is loaded 0 times"),
        (drop(schema.Run, "h"), "block 0 is run 0 times"),
        (
            drop(schema.Send, "h"),
            "x0 from h to a is sent 0 and received 1 times, the transmission map has it 1 times",
        ),
        (drop(schema.Receive, "a"), "x0 from h to a is sent 1 and received 0 times"),
        (drop(schema.Release, "a"), "a: x0 is never released"),
        (double(schema.Send, "a"), "a0 from a to b is sent 2 and received 1 times"),
        (double(schema.Run, "h"), "block 0 is run 2 times"),
        (double(schema.Load, "b"), "block 2 is loaded 2 times"),
        (double(schema.Release, "b"), "is used before it is there, or after its release"),
        (change(schema.Receive, "b", source="c"), "x0 from c to b is sent 0 and received 1 times"),
        (change(schema.Send, "a", destination="c"), "which has no use for it"),
        (change(schema.Send, "h", rows="last"), "only the last row of x0 goes to a, all are needed"),
        (change(schema.Run, "h", rows="last"), "block 0 runs on the last row, all are needed"),
        (change(schema.Run, "h", template="t1"), "block 0 runs as t1, it is t0"),
        (change(schema.Run, "h", outputs=(7,)), "runs with"),
        (change(schema.Send, "h", tensor=99), "tensor 99 is not in the table"),
        (change(schema.Load, "h", block=99), "block 99 is loaded, the graph has 6"),
        (release_first, "x0 is used before it is there, or after its release"),
        (send_late, "a waits for ever for x0 from h"),
    ],
)
def test_checker_finds(damage: Callable[[Programs], Programs], complaint: str) -> None:
    graph = layered(2, parallel=True)
    broken = damage(programs_of(graph, SPLIT))
    found = faults(broken, graph, SPLIT)
    assert any(complaint in fault for fault in found), found


def test_random_damage_never_passes_unseen() -> None:
    """Removing any one instruction is found."""
    graph = layered(2, parallel=True)
    programs = programs_of(graph, SPLIT)
    for name in programs:
        for index in range(len(programs[name].instructions)):
            instructions = instructions_of(programs, name)
            removed = instructions.pop(index)
            found = faults(with_instructions(programs, name, instructions), graph, SPLIT)
            assert found, (name, removed)


# --- against the map, and in the product --------------------------------------------------------------------------


def test_programs_follow_the_map_that_is_given_and_no_other() -> None:
    """A tensor that the map sends twice is sent twice; one that it lacks is not sent, and both are found."""
    graph, stages, sent = records_of(layered(2, parallel=True), SPLIT)
    twice = write_programs(graph, stages, (*sent, sent[0]))
    assert sum(isinstance(each, schema.Send) for each in twice["h"].instructions) == 3
    found = check_programs(twice, graph, sent, "h")
    assert "x0 from h to a is sent 2 and received 2 times, the transmission map has it 1 times" in found
    less = write_programs(graph, stages, sent[1:])
    found = check_programs(less, graph, sent, "h")
    assert "x0 from h to a is sent 0 and received 0 times, the transmission map has it 1 times" in found
    assert check_programs(write_programs(graph, stages, sent), graph, sent[1:], "h") == [
        "x0 from h to a is sent 1 and received 1 times, the transmission map has it 0 times"
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tensor": "nothing"}, "nothing from h to a is not made there"),
        ({"source": "b"}, "x0 from b to a is not made there"),
        ({"destination": "c"}, "x0 from h to c is not used there"),
    ],
)
def test_a_map_that_is_not_of_these_stages_is_refused(changes: dict[str, str], reason: str) -> None:
    graph, stages, sent = records_of(layered(2), SPLIT)
    with pytest.raises(CompileError, match=reason) as caught:
        device_programs(graph, stages, (msgspec.structs.replace(sent[0], **changes), *sent[1:]), "h")
    assert (caught.value.code, caught.value.exit_code) == ("P223", INTERNAL)


def test_a_stage_of_several_devices_is_refused() -> None:
    graph, stages, sent = records_of(layered(2), SPLIT)
    shared = msgspec.structs.replace(stages[1], devices=("a", "c"))
    with pytest.raises(CompileError, match="blocks 1 to 1 are not cut for a, c with these shares"):
        device_programs(graph, (stages[0], shared, *stages[2:]), sent, "h")


def test_programs_that_are_wrong_end_in_their_name() -> None:
    graph, _, sent = records_of(layered(2), SPLIT)
    broken = drop(schema.Send, "a")(programs_of(layered(2), SPLIT))
    with pytest.raises(CompileError, match="a0 from a to b is sent 0 and received 1 times") as caught:
        verify_programs(broken, graph, sent, "h")
    assert (caught.value.code, caught.value.exit_code) == ("P223", INTERNAL)
