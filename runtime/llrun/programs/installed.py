"""A program as a device holds it: checked, split, and replaced as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llrun.errors import RunError
from llrun.programs.check_program import check_program
from llrun.programs.effects import all_effects
from llrun.programs.graph import check_graph
from llrun.programs.layouts import Layout, layout_of
from llrun.programs.segments import Segment, split
from llrun.schema import DeviceProgram, Receive, Slice


@dataclass(frozen=True)
class Installed:
    """A program with all that follows from it.

    `sources` and `segment_of`: for each tensor received, the device that sends it and the segment that waits for
    it. `neighbours`: devices it exchanges tensors with. `blocks`: those that it runs, in order. `chunk`: the most rows
    of a step. `input_ids`, `position_ids`, `logits`: the model's tensors.
    """

    program: DeviceProgram
    epoch: int
    chunk: int
    segments: tuple[Segment, ...]
    layouts: Mapping[int, Layout]
    sources: Mapping[int, str]
    segment_of: Mapping[int, int]
    neighbours: frozenset[str]
    blocks: tuple[int, ...]
    input_ids: int
    position_ids: int
    logits: int

    @property
    def device(self) -> str:
        return self.program.device

    @property
    def every_chunk(self) -> bool:
        """Whether this device takes part in a prompt's every chunk, or only in the last."""
        return any(not each.waits or each.waits - each.waits_last for each in self.segments)


def install(record: Slice, program: DeviceProgram | None = None) -> Installed:
    """`program` (None: the slice's own), checked against the slice. Raises RunError R207 that names the fault."""
    program = program or record.program
    graph = record.graph
    if faults := check_graph(graph):
        raise RunError("R207", f"{record.device}'s slice: {faults[0]}")
    layouts = {tensor.id: layout_of(tensor) for tensor in graph.tensors}
    check_program(record, program, layouts)
    done = all_effects(program.instructions)
    segments = split(program.instructions)
    return Installed(
        program=program,
        epoch=program.epoch,
        chunk=record.model.shapes.chunk,
        segments=segments,
        layouts=layouts,
        sources={each.tensor: each.source for each in program.instructions if isinstance(each, Receive)},
        segment_of={tensor: index for index, segment in enumerate(segments) for tensor in segment.waits},
        neighbours=frozenset(peer for each in done for peer in (*each.hears, *each.tells)),
        blocks=tuple(each.runs for each in done if each.runs is not None),
        input_ids=graph.input_ids,
        position_ids=graph.position_ids,
        logits=graph.logits,
    )
