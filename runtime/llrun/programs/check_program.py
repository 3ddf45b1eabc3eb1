"""Checks one device's program against its slice, before anything of it runs."""

from __future__ import annotations

from collections.abc import Container, Mapping

from llrun.errors import RunError
from llrun.programs.effects import Effects, effects
from llrun.programs.groups import sum_templates
from llrun.programs.layouts import Layout
from llrun.schema import DeviceProgram, Instruction, Rows, Run, Send, Slice


def check_program(record: Slice, program: DeviceProgram, layouts: Mapping[int, Layout]) -> None:
    """Raise RunError R207 that names the first instruction of `program` that cannot be carried out.

    Every block it loads is in the slice, and every block it runs was loaded and is of the template that is called;
    every tensor is described, and there when it is used; it speaks to other devices of the plan alone.
    """
    if program.device != record.device:
        raise RunError("R207", f"a program of device {program.device} in the slice of {record.device}")
    there = {record.graph.position_ids} | (
        {record.graph.input_ids} if record.device == record.head else set()
    )
    loaded: set[int] = set()
    held: dict[int | None, frozenset[str]] = {
        block.id: frozenset({block.template}) for block in record.blocks
    }
    held[None] = sum_templates(record.graph, record.device)
    if record.graph.positions:
        held[None] |= {record.graph.positions.template}
    for index, instruction in enumerate(program.instructions):
        does = effects(instruction)
        fault = (
            _unknown(instruction, does, layouts)
            or _block_fault(does, loaded, held)
            or _tensor_fault(does, there, layouts)
            or _peer_fault(record, does)
            or _template_fault(does, held)
        )
        if fault:
            raise RunError("R207", f"instruction {index} of {record.device}'s program: {fault}")
        loaded |= {does.loads} if does.loads is not None else set()
        there = there.union(does.makes).difference(does.releases)


def _unknown(instruction: Instruction, does: Effects, layouts: Mapping[int, Layout]) -> str | None:
    if isinstance(instruction, Run | Send) and instruction.rows not in tuple(Rows):
        return f"rows is {instruction.rows!r}: all or last"
    unknown = [tensor for tensor in does.tensors if tensor not in layouts]
    return f"tensor {unknown[0]} is not described" if unknown else None


def _block_fault(does: Effects, loaded: Container[int], held: Container[int | None]) -> str | None:
    if does.loads is not None and does.loads not in held:
        return f"block {does.loads} is not in the slice"
    if does.runs is not None and does.runs not in loaded:
        return f"block {does.runs} is run but was not loaded"
    return None


def _template_fault(does: Effects, held: Mapping[int | None, frozenset[str]]) -> str | None:
    """`held`: [block] its template; [None]: those of what is computed of positions, and of a group's sums."""
    due = held.get(does.runs, frozenset())
    if does.calls is None or does.calls in due:
        return None
    what = "what is run without a block" if does.runs is None else f"block {does.runs}"
    return f"template {does.calls} is called for {what}, which is {' or '.join(sorted(due)) or 'none'} here"


def _tensor_fault(does: Effects, there: Container[int], layouts: Mapping[int, Layout]) -> str | None:
    missing = [layouts[tensor].name for tensor in (*does.uses, *does.releases) if tensor not in there]
    if not missing:
        return None
    return f"tensor {missing[0]} is used before it is made or received, or after its release"


def _peer_fault(record: Slice, does: Effects) -> str | None:
    for peer in (*does.hears, *does.tells):
        if peer not in record.devices or peer == record.device:
            return f"device {peer} is not another device of the plan"
    return None
