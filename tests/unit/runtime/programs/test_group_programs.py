"""Programs of groups: golden texts, every group that can be, and a checker that finds what is broken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy_group
import pytest
from numpy_group import Group, split

from llrun.errors import RunError
from llrun.programs.check_programs import check_programs
from llrun.programs.graph import check_graph
from llrun.programs.installed import install
from llrun.programs.transmissions import transmissions
from llrun.programs.write import write_programs
from llrun.schema import (
    AllReduceKind,
    DeviceProgram,
    Instruction,
    Load,
    Receive,
    Release,
    Run,
    Send,
    StageRecord,
    TransmissionKind,
)

GOLDEN = Path(__file__).parents[3] / "golden/group_programs.txt"
STAR, DIRECT, RING = AllReduceKind.STAR, AllReduceKind.DIRECT, AllReduceKind.RING
CASES = {
    "star of two workers, its root not the lead": split(("a", "b"), STAR, 1, blocks=(2, 4)),
    "star of the head, its lead, and three workers": split(("h", "a", "b", "c"), STAR, 0, blocks=(1, 3)),
    "direct exchange of three, the head not the lead": split(("a", "h", "b"), DIRECT, blocks=(1, 3)),
    "direct exchange of two workers, up to the last row": split(("a", "b"), DIRECT, blocks=(4, 6)),
    "ring of three, the head in the middle": split(("a", "h", "b"), RING, blocks=(4, 6)),
    "ring of four workers": split(("c", "a", "d", "b"), RING, blocks=(1, 3)),
}
Programs = dict[str, DeviceProgram]


def programs_of(group: Group) -> Programs:
    graph, stages = numpy_group.graph(group), numpy_group.stages("h", group)
    return write_programs(graph, stages, transmissions(graph, stages))


def faults(programs: Programs, group: Group) -> list[str]:
    graph = numpy_group.graph(group)
    return check_programs(programs, graph, transmissions(graph, numpy_group.stages("h", group)), "h")


def text(programs: Programs, group: Group) -> list[str]:
    names = {tensor.id: tensor.name for tensor in numpy_group.graph(group).tensors}
    lines = []
    for device, program in programs.items():
        lines += [f"{device}:", *(f"  {line(each, names)}" for each in program.instructions)]
    return lines


def line(instruction: Instruction, names: dict[int, str]) -> str:
    match instruction:
        case Load():
            return f"load {instruction.block}"
        case Receive():
            return f"receive {names[instruction.tensor]} from {instruction.source}"
        case Release():
            return f"release {names[instruction.tensor]}"
        case Send():
            last = " (last row)" if instruction.rows == "last" else ""
            return f"send {names[instruction.tensor]} to {instruction.destination}{last}"
        case Run():
            last = " (last row)" if instruction.rows == "last" else ""
            took, made = (
                ", ".join(map(names.__getitem__, ids)) for ids in (instruction.inputs, instruction.outputs)
            )
            return f"run {instruction.template} of {instruction.block}: {took} -> {made}{last}"


def test_programs_are_as_they_were_read() -> None:
    found = []
    for name, group in CASES.items():
        found += [f"# {name}", *text(programs_of(group), group), ""]
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text("\n".join(found))
    assert "\n".join(found) == GOLDEN.read_text()


@pytest.mark.parametrize("kind", AllReduceKind)
def test_every_group_has_right_programs(kind: AllReduceKind) -> None:
    seen = 0
    for names in (("a", "b"), ("h", "a"), ("a", "h"), ("a", "h", "b"), ("a", "b", "h"), ("b", "a", "h", "d")):
        for root in range(len(names)):
            for start in range(1, 6):
                for stop in range(start + 1, 7):
                    group = split(names, kind, root, blocks=(start, stop))
                    assert faults(programs_of(group), group) == [], group
                    seen += 1
    assert seen == 15 * (2 + 2 + 2 + 3 + 3 + 4)


def test_only_those_that_need_the_last_block_finish_it() -> None:
    """The head, which goes on with it, and the lead; the others hear nothing of its sum."""
    group = split(("a", "b", "h", "d"), DIRECT, blocks=(1, 3))
    programs = programs_of(group)
    tails = {
        device: [
            each.block
            for each in program.instructions
            if isinstance(each, Run) and each.template == "t1_tail"
        ]
        for device, program in programs.items()
    }
    assert tails == {"a": [10, 12], "b": [10], "h": [10, 12], "d": [10]}
    heard = [each.tensor for each in programs["b"].instructions if isinstance(each, Receive)]
    assert {group.partial(1, 0), group.partial(1, 2), group.partial(1, 3)} < {*heard}
    assert not {group.partial(2, rank) for rank in range(4)} & {*heard}


def test_a_ring_adds_in_the_order_of_ranks_and_passes_on_at_once() -> None:
    group = CASES["ring of four workers"]
    lines = text(programs_of(group), group)
    sums = [each.split(": ")[1] for each in lines if "sum_2" in each and "1_" in each]
    assert sorted(sums) == ["p1_0, p1_1 -> s1_0", "s1_0, p1_2 -> s1_1", "s1_1, p1_3 -> s1_2"]
    at = lines.index("  receive s1_2 from b")
    assert lines[at : at + 2] == ["  receive s1_2 from b", "  send s1_2 to a"]


def test_the_map_names_every_message() -> None:
    group = split(("a", "b"), STAR, 1, blocks=(2, 4))
    sent = transmissions(numpy_group.graph(group), numpy_group.stages("h", group))
    assert [(each.tensor, each.kind, each.source, each.destination) for each in sent] == [
        ("h1", TransmissionKind.SEQUENTIAL, "h", "a"),
        ("h1", TransmissionKind.SEQUENTIAL, "h", "b"),
        ("p2_0", TransmissionKind.SUM, "a", "b"),
        ("s2_0", TransmissionKind.SUM, "b", "a"),
        ("p3_0", TransmissionKind.SUM, "a", "b"),
        ("s3_0", TransmissionKind.SUM, "b", "a"),
        ("h3", TransmissionKind.SEQUENTIAL, "a", "h"),
    ]
    assert {each.bytes for each in sent} == {64}


def test_a_group_that_the_graph_does_not_have_is_refused() -> None:
    group = split(("a", "b"), STAR, blocks=(2, 4))
    graph = numpy_group.graph(group)
    for other in (split(("b", "a"), STAR, blocks=(2, 4)), split(("a", "b"), STAR, blocks=(2, 5))):
        with pytest.raises(RunError, match=r"no program can be written: blocks 2 to . are not cut for"):
            write_programs(graph, numpy_group.stages("h", other), ())


# --- the checker -----------------------------------------------------------------------------------------------------


def without(device: str, number: int, kind: type[Instruction]) -> Callable[[Programs], Programs]:
    def broken(programs: Programs) -> Programs:
        instructions = [*programs[device].instructions]
        del instructions[[i for i, each in enumerate(instructions) if isinstance(each, kind)][number]]
        return with_instructions(programs, device, instructions)

    return broken


def changed(
    device: str, number: int, kind: type[Instruction], **fields: object
) -> Callable[[Programs], Programs]:
    def broken(programs: Programs) -> Programs:
        instructions = [*programs[device].instructions]
        at = [i for i, each in enumerate(instructions) if isinstance(each, kind)][number]
        instructions[at] = msgspec.structs.replace(instructions[at], **fields)
        return with_instructions(programs, device, instructions)

    return broken


def twice(device: str, number: int, kind: type[Instruction]) -> Callable[[Programs], Programs]:
    def broken(programs: Programs) -> Programs:
        instructions = [*programs[device].instructions]
        at = [i for i, each in enumerate(instructions) if isinstance(each, kind)][number]
        return with_instructions(programs, device, [*instructions[:at], instructions[at], *instructions[at:]])

    return broken


def with_instructions(programs: Programs, device: str, instructions: list[Instruction]) -> Programs:
    return {**programs, device: msgspec.structs.replace(programs[device], instructions=tuple(instructions))}


def waits_too_early(programs: Programs) -> Programs:
    """The root wants the sum of both before it computes its own."""
    instructions = [*programs["a"].instructions]
    sent = next(i for i, each in enumerate(instructions) if isinstance(each, Send))
    then = next(i for i, each in enumerate(instructions[sent:], sent) if isinstance(each, Receive))
    instructions.insert(sent, instructions.pop(then))
    return with_instructions(programs, "a", instructions)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (without("a", 0, Load), "a's shard of block 2 is loaded 0 times"),
        (without("a", 1, Run), "a's shard of block 2 is run 0 times"),
        (without("b", 2, Run), "the sum sum_2 of block 2 is made 0 times on b"),
        (twice("b", 2, Run), "the sum sum_2 of block 2 is made 2 times on b"),
        (twice("a", 1, Run), "a's shard of block 2 is run 2 times"),
        (twice("a", 2, Run), "the tail of block 2 is run 2 times on a"),
        (without("a", -1, Run), "the tail of block 3 is run nowhere"),
        (
            changed("b", 2, Run, inputs=(121, 120)),
            "(('p2_1', 'p2_0'), ('s2_0',)), not with (('p2_0', 'p2_1'), ('s2_0',))",
        ),
        (changed("b", 2, Run, template="sum_3"), "the sum sum_2 of block 2 runs as sum_3, it is sum_2"),
        (changed("a", 1, Run, template="t1_6_16"), "the shard of block 2 runs as t1_6_16, it is t1_0_6"),
        (changed("a", 1, Run, rows="last"), "the shard of block 2 runs on the last row, all are needed"),
        (changed("a", 0, Send, rows="last"), "only the last row of p2_0 goes to b, all are needed"),
        (without("a", 0, Send), "p2_0 from a to b is sent 0 and received 1 times"),
        (without("b", 1, Receive), "p2_0 from a to b is sent 1 and received 0 times"),
        (twice("a", 0, Send), "p2_0 from a to b is sent 2 and received 1 times"),
        (changed("b", 0, Load, block=2), "b's shard of block 2 is loaded 0 times"),
        (changed("h", 1, Load, block=2), "block 2 is loaded whole on h, and in pieces on a, b"),
        (changed("h", 1, Load, block=11), "block 2 is cut for a, b, h, which is no group of the graph"),
        (changed("h", 1, Load, block=99), "block 99 is loaded, the graph has 7"),
        (without("a", 1, Release), "is never released"),
        (waits_too_early, "a waits for ever for s2_0 from b"),
    ],
)
def test_the_checker_finds(damage: Callable[[Programs], Programs], complaint: str) -> None:
    group = CASES["star of two workers, its root not the lead"]
    found = faults(damage(programs_of(group)), group)
    assert any(complaint in fault for fault in found), found


@pytest.mark.parametrize("name", CASES)
def test_whatever_is_taken_away_is_missed(name: str) -> None:
    group = CASES[name]
    programs = programs_of(group)
    for device, program in programs.items():
        for index in range(len(program.instructions)):
            instructions = [*program.instructions]
            removed = instructions.pop(index)
            assert faults(with_instructions(programs, device, instructions), group), (device, removed)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"devices": ("a", "a")}, "is not of several devices, each named once"),
        ({"devices": ("a",), "shares": (1.0,)}, "is not of several devices"),
        ({"shares": (1.0, 0.0)}, "not one between 0 and 1 for each"),
        ({"shares": (0.5, 0.25, 0.25)}, "not one between 0 and 1 for each"),
        ({"shares": (0.5, 0.6)}, "shares that sum to 1.1, not to 1"),
        ({"root": 2}, "has the root 2"),
        ({"all_reduce": RING, "block": {"sums": ()}}, "for ring it is 2, 2 and 1"),
        ({"block": {"partials": (120, 99)}}, "names tensor 99, which is not in the table"),
        ({"block": {"partials": (120, 120)}}, "has a partial or a sum that is another tensor too"),
        ({"block": {"partials": (120, 10)}}, "has a partial or a sum that is another tensor too"),
        ({"block": {"block": 0}}, "block 0 is not between the first and the last"),
        ({"block": {"block": 40}}, "block 40 is not between the first and the last"),
        ({"block": {"inputs": (10,)}}, "takes what the block does not take"),
        ({"block": {"block": 4}}, "has its blocks not in order"),
    ],
)
def test_a_group_that_is_none_is_named(changes: dict[str, object], reason: str) -> None:
    graph = numpy_group.graph(split(("a", "b"), STAR, blocks=(2, 4)))
    (group,) = graph.groups
    fields = dict(changes)
    if block := fields.pop("block", None):
        first = msgspec.structs.replace(group.blocks[0], **block)
        fields["blocks"] = (first, *group.blocks[1:])
    broken = msgspec.structs.replace(graph, groups=(msgspec.structs.replace(group, **fields),))
    assert any(reason in fault for fault in check_graph(broken)), check_graph(broken)


def test_a_device_may_make_the_sums_that_are_its_own_alone() -> None:
    group, devices = split(("a", "b"), STAR, 1), ["h", "a", "b"]
    record = numpy_group.record("a", devices, group)
    parts = numpy_group.Group.partial(group, 1, 0), numpy_group.Group.partial(group, 1, 1)
    summing = Run(template="sum_2", block=None, inputs=parts, outputs=group.sums(1))
    takes = [Receive(tensor=part, source="b") for part in parts]
    program = DeviceProgram(device="a", epoch=1, instructions=(*takes, summing))
    with pytest.raises(
        RunError, match="template sum_2 is called for what is run without a block, which is positions"
    ):
        install(record, program)
    installed = install(numpy_group.record("b", devices, group))
    assert len(installed.segments) == 1 + 5
    assert [segment.blocks for segment in installed.segments[:3]] == [(9,), (10, 11), (12, 13)]


def test_stages_of_the_head_and_a_group_of_it_flow_into_each_other() -> None:
    group = split(("h", "a"), DIRECT)
    installed = install(numpy_group.record("h", ["h", "a"], group))
    assert [segment.blocks for segment in installed.segments] == [
        (0, 9),
        (10, 11),
        (12, 13),
        (14, 15),
        (16, 17),
        (18, 6),
    ]
    assert numpy_group.stages("h", group)[1] == StageRecord(
        devices=("h", "a"), shares=(0.375, 0.625), blocks=(1, 6), window=0, all_reduce=DIRECT
    )
