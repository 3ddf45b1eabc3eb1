"""Programs: how they are split, and the faults that are found before anything runs."""

from __future__ import annotations

import msgspec
import numpy_model
import pytest
from numpy_model import FIRST, IDS, LOGITS, POSITIONS, TABLE

from llrun.errors import RunError
from llrun.programs.check_programs import check_programs
from llrun.programs.graph import token_arguments
from llrun.programs.installed import install
from llrun.programs.write import idle_program, write_programs
from llrun.schema import DeviceProgram, GraphPositions, Load, Receive, Release, Run, Send, Tensor

NAMES = ["head", "anna", "bert"]
MIX = Run(template="t1", block=3, inputs=(FIRST + 2, TABLE, POSITIONS), outputs=(FIRST + 3,))
TABLES = Run(template="positions", block=None, inputs=(POSITIONS,), outputs=(TABLE,))
TAKE = Receive(tensor=FIRST + 2, source="anna")


def build(*instructions, **changes):
    program = DeviceProgram(device="bert", epoch=1, instructions=instructions)
    return install(numpy_model.record("bert", NAMES, program=program, **changes))


def test_segments_begin_at_receives_that_follow_other_steps():
    program = build(
        Load(block=3),
        TABLES,
        TAKE,
        Receive(tensor=FIRST, source="head"),
        MIX,
        Receive(tensor=FIRST + 1, source="anna"),
        Send(tensor=FIRST + 3, destination="head"),
    )
    assert [sorted(segment.waits) for segment in program.segments] == [[], [FIRST, FIRST + 2], [FIRST + 1]]
    assert [len(segment.instructions) for segment in program.segments] == [1, 1, 1]
    assert program.sources == {FIRST: "head", FIRST + 1: "anna", FIRST + 2: "anna"}
    assert program.segment_of == {FIRST: 1, FIRST + 2: 1, FIRST + 1: 2}
    assert program.neighbours == {"head", "anna"}


def test_only_tensors_of_last_rows_need_not_come_early():
    head = install(numpy_model.record("head", NAMES))
    assert head.segments[1].waits_last == {FIRST + 4}
    assert install(numpy_model.record("bert", NAMES)).segments[1].waits_last == set()


def test_tables_that_token_ids_index_are_known():
    assert token_arguments(numpy_model.graph()) == {0: 0}


@pytest.mark.parametrize(
    ("instructions", "reason"),
    [
        ([Load(block=9)], "instruction 0 of bert's program: block 9 is not in the slice"),
        ([TAKE, TABLES, MIX], "block 3 is run but was not loaded"),
        ([Load(block=3), TAKE, MIX], "tensor table is used before"),
        ([Send(tensor=FIRST, destination="head")], "tensor h0 is used before"),
        ([TAKE, Release(tensor=FIRST + 2), Send(tensor=FIRST + 2, destination="head")], "after its release"),
        ([Receive(tensor=99, source="anna")], "tensor 99 is not described"),
        ([Receive(tensor=FIRST, source="carl")], "device carl is not another device"),
        ([Receive(tensor=FIRST, source="bert")], "device bert is not another device"),
        ([TAKE, Send(tensor=FIRST + 2, destination="carl")], "device carl"),
        ([TAKE, Send(tensor=FIRST + 2, destination="head", rows="some")], "rows is 'some'"),
        (
            [Load(block=3), TAKE, TABLES, msgspec.structs.replace(MIX, template="t2")],
            "template t2 is called for block 3, which is t1 here",
        ),
        (
            [msgspec.structs.replace(TABLES, template="t1")],
            "template t1 is called for what is run without a block, which is positions here",
        ),
        (
            [Run(template="t0", block=None, inputs=(IDS,), outputs=(LOGITS,))],
            "tensor input_ids is used before",
        ),
    ],
)
def test_faults_are_named(instructions, reason):
    with pytest.raises(RunError, match=reason) as caught:
        build(*instructions)
    assert (caught.value.code, caught.value.exit_code) == ("R207", 2)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (Tensor(id=FIRST, name="h", dtype="complex64", shape=(1, -1)), "dtype complex64"),
        (Tensor(id=FIRST, name="h", dtype="float32", shape=(1, 4)), "one -1"),
        (Tensor(id=FIRST, name="h", dtype="float32", shape=(-1, -1)), "one -1"),
        (Tensor(id=FIRST, name="h", dtype="float32", shape=(-1, 0)), "the rest positive"),
    ],
)
def test_tensors_without_a_size_are_refused(tensor, reason):
    others = [other for other in numpy_model.graph().tensors if other.id != tensor.id]
    graph = msgspec.structs.replace(numpy_model.graph(), tensors=(tensor, *others))
    with pytest.raises(RunError, match=reason):
        build(graph=graph)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"logits": 99}, "the graph names tensor 99, which is not in the table"),
        (
            {"tensors": (*numpy_model.graph().tensors, numpy_model.graph().tensors[0])},
            "a number or a name twice",
        ),
        ({"blocks": numpy_model.graph().blocks[1:]}, "block 1 stands at 0 of the graph"),
        (
            {"blocks": (msgspec.structs.replace(numpy_model.graph().blocks[0], inputs=(77,)),)},
            "block 0 names tensor 77",
        ),
        (
            {"positions": GraphPositions(template="positions", inputs=(1,), outputs=(5,))},
            "positions template names tensor 5",
        ),
    ],
)
def test_a_graph_that_is_none_is_refused(changes, reason):
    with pytest.raises(RunError, match=reason) as caught:
        build(graph=msgspec.structs.replace(numpy_model.graph(), **changes))
    assert caught.value.code == "R207"


def test_a_program_of_another_device_is_refused():
    with pytest.raises(RunError, match="a program of device anna in the slice of bert"):
        install(numpy_model.record("bert", NAMES, program=numpy_model.record("anna", NAMES).program))


def test_a_device_without_a_stage_installs_an_empty_program():
    idle = install(numpy_model.record("bert", NAMES, program=idle_program("bert", 4)))
    assert (idle.epoch, idle.segments, idle.neighbours, idle.blocks) == (4, (), frozenset(), ())
    assert not idle.every_chunk


def test_idle_devices_change_nothing_for_the_others():
    graph, head = numpy_model.graph(), numpy_model.record("head", NAMES[:2])
    programs = write_programs(graph, head.stages, head.transmissions, 4)
    assert "bert" not in programs
    both = {**programs, "bert": idle_program("bert", 4)}
    assert check_programs(both, graph, head.transmissions, "head") == []
