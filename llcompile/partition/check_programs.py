"""Checks programs against each other and the graph: every way in which they would fail, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from llcompile.ir.graph import Block, Graph
from llcompile.partition.programs import INPUT_IDS, POSITION_IDS
from llrun import schema

Programs = Mapping[str, schema.DeviceProgram]


def check_programs(
    programs: Programs, tensors: Sequence[schema.Tensor], graph: Graph, head: str
) -> list[str]:
    """Every violation of what a set of programs promises; empty when there is none.

    Every block is loaded and run once in the cluster, in order and with its own tensors; every tensor received is sent
    once by the device named; nothing is used before it is there or after its release; nothing but `logits` is left;
    a single row is run or sent only where no more is needed; and no device waits for ever.
    """
    names = {tensor.id: tensor.name for tensor in tensors}
    if len(names) != len(tensors) or len(set(names.values())) != len(tensors):
        return ["the tensor table has a number or a name twice"]
    unknown = [
        f"{device}, instruction {i}: tensor {tensor} is not in the table"
        for device, program in programs.items()
        for i, instruction in enumerate(program.instructions)
        for tensor in _tensors(instruction)
        if tensor not in names
    ]
    if unknown:
        return unknown
    return [
        *_check_blocks(programs, graph),
        *(fault for device in programs for fault in _check_device(programs, device, names, graph, head)),
        *_check_messages(programs, names),
        *_check_progress(programs, names),
    ]


def _tensors(instruction: schema.Instruction) -> tuple[int, ...]:
    if isinstance(instruction, schema.Run):
        return (*instruction.inputs, *instruction.outputs)
    return () if isinstance(instruction, schema.Load) else (instruction.tensor,)


def _check_blocks(programs: Programs, graph: Graph) -> Iterator[str]:
    instructions = [instruction for program in programs.values() for instruction in program.instructions]
    for kind, verb in ((schema.Load, "loaded"), (schema.Run, "run")):
        counts = Counter(instruction.block for instruction in instructions if isinstance(instruction, kind))
        for block in graph.blocks:
            if counts[block.id] != 1:
                yield f"block {block.id} is {verb} {counts[block.id]} times"
        for stranger in sorted({b for b in counts if b is not None and b >= len(graph.blocks)}):
            yield f"block {stranger} is {verb}, the graph has {len(graph.blocks)}"


def _check_device(
    programs: Programs, device: str, names: Mapping[int, str], graph: Graph, head: str
) -> Iterator[str]:
    """One device's instructions in order: what they use must be there."""
    there = {POSITION_IDS} | ({INPUT_IDS} if device == head else set())
    loaded: set[int] = set()
    last_block = -1
    for i, instruction in enumerate(programs[device].instructions):
        place = f"{device}, instruction {i}"
        if isinstance(instruction, schema.Load):
            loaded.add(instruction.block)
            continue
        if isinstance(instruction, schema.Receive):
            there.add(names[instruction.tensor])
            continue
        used = instruction.inputs if isinstance(instruction, schema.Run) else (instruction.tensor,)
        for tensor in used:
            if names[tensor] not in there:
                yield f"{place}: {names[tensor]} is used before it is there, or after its release"
        if isinstance(instruction, schema.Run):
            yield from _check_run(place, instruction, names, graph, loaded, last_block)
            last_block = last_block if instruction.block is None else instruction.block
            there |= {names[tensor] for tensor in instruction.outputs}
        elif isinstance(instruction, schema.Send):
            yield from _check_send(place, instruction, programs, names, graph)
        elif isinstance(instruction, schema.Release):
            there.discard(names[instruction.tensor])
    logits = set(graph.blocks[-1].outputs)
    for name in sorted(there - {INPUT_IDS, POSITION_IDS} - logits):
        yield f"{device}: {name} is never released"


def _check_run(
    place: str,
    instruction: schema.Run,
    names: Mapping[int, str],
    graph: Graph,
    loaded: set[int],
    last_block: int,
) -> Iterator[str]:
    if instruction.block is None:
        template = graph.positions
        if template is None or instruction.template != template.id:
            yield f"{place}: {instruction.template} runs without a block, and is not the positions template"
            return
        wanted = tuple(s.name for s in template.inputs), tuple(s.name for s in template.outputs)
    elif instruction.block < len(graph.blocks):
        block = graph.blocks[instruction.block]
        wanted = block.inputs, block.outputs
        if instruction.template != block.template:
            yield f"{place}: block {block.id} runs as {instruction.template}, it is {block.template}"
        if instruction.block not in loaded:
            yield f"{place}: block {instruction.block} was not loaded here"
        if instruction.block < last_block:
            yield f"{place}: block {instruction.block} runs after block {last_block}"
        if instruction.rows == "last" and not block.last_row_only:
            yield f"{place}: block {instruction.block} runs on the last row, all are needed"
    else:
        return
    found = tuple(names[t] for t in instruction.inputs), tuple(names[t] for t in instruction.outputs)
    if found != wanted:
        yield f"{place}: runs with {found}, not with {wanted}"


def _check_send(
    place: str, instruction: schema.Send, programs: Programs, names: Mapping[int, str], graph: Graph
) -> Iterator[str]:
    users = _users(programs.get(instruction.destination), names[instruction.tensor], graph)
    if not users:
        yield f"{place}: {names[instruction.tensor]} goes to {instruction.destination}, which has no use for it"
    if instruction.rows == "last" and not all(block.last_row_only for block in users):
        tensor, there = names[instruction.tensor], instruction.destination
        yield f"{place}: only the last row of {tensor} goes to {there}, all are needed"


def _users(program: schema.DeviceProgram | None, tensor: str, graph: Graph) -> list[Block]:
    instructions = program.instructions if program else ()
    blocks = [
        instruction.block
        for instruction in instructions
        if isinstance(instruction, schema.Run) and instruction.block is not None
    ]
    return [graph.blocks[b] for b in blocks if b < len(graph.blocks) and tensor in graph.blocks[b].inputs]


def _check_messages(programs: Programs, names: Mapping[int, str]) -> Iterator[str]:
    """Sends and receives, paired."""
    sent: Counter[tuple[str, str, str]] = Counter()
    received: Counter[tuple[str, str, str]] = Counter()
    for device, program in programs.items():
        for instruction in program.instructions:
            if isinstance(instruction, schema.Send):
                sent[names[instruction.tensor], device, instruction.destination] += 1
            elif isinstance(instruction, schema.Receive):
                received[names[instruction.tensor], instruction.source, device] += 1
    for tensor, source, destination in sorted(sent.keys() | received.keys()):
        key = tensor, source, destination
        if sent[key] != 1 or received[key] != 1:
            counts = f"sent {sent[key]} and received {received[key]} times"
            yield f"{tensor} from {source} to {destination} is {counts}"
        if source == destination or tensor in (INPUT_IDS, POSITION_IDS):
            yield f"{tensor} from {source} to {destination} need not travel"


def _check_progress(programs: Programs, names: Mapping[int, str]) -> Iterator[str]:
    """Let every device go as far as it can; a receive waits for its send."""
    at = dict.fromkeys(programs, 0)
    on_the_way: set[tuple[int, str, str]] = set()
    moved = True
    while moved:
        moved = False
        for device, program in programs.items():
            while at[device] < len(program.instructions):
                instruction = program.instructions[at[device]]
                if (
                    isinstance(instruction, schema.Receive)
                    and (instruction.tensor, instruction.source, device) not in on_the_way
                ):
                    break
                if isinstance(instruction, schema.Send):
                    on_the_way.add((instruction.tensor, device, instruction.destination))
                at[device] += 1
                moved = True
    for device, program in programs.items():
        if at[device] < len(program.instructions):
            instruction = program.instructions[at[device]]
            if isinstance(instruction, schema.Receive):
                yield f"{device} waits for ever for {names[instruction.tensor]} from {instruction.source}"
