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
        f"{device}, step {i}: tensor {tensor} is not in the table"
        for device, program in programs.items()
        for i, step in enumerate(program.steps)
        for tensor in _tensors(step)
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


def _tensors(step: schema.Step) -> tuple[int, ...]:
    if isinstance(step, schema.Run):
        return (*step.inputs, *step.outputs)
    return () if isinstance(step, schema.Load) else (step.tensor,)


def _check_blocks(programs: Programs, graph: Graph) -> Iterator[str]:
    steps = [step for program in programs.values() for step in program.steps]
    for kind, verb in ((schema.Load, "loaded"), (schema.Run, "run")):
        counts = Counter(step.block for step in steps if isinstance(step, kind))
        for block in graph.blocks:
            if counts[block.id] != 1:
                yield f"block {block.id} is {verb} {counts[block.id]} times"
        for stranger in sorted({b for b in counts if b is not None and b >= len(graph.blocks)}):
            yield f"block {stranger} is {verb}, the graph has {len(graph.blocks)}"


def _check_device(
    programs: Programs, device: str, names: Mapping[int, str], graph: Graph, head: str
) -> Iterator[str]:
    """One device's steps in order: what they use must be there."""
    there = {POSITION_IDS} | ({INPUT_IDS} if device == head else set())
    loaded: set[int] = set()
    last_block = -1
    for i, step in enumerate(programs[device].steps):
        place = f"{device}, step {i}"
        if isinstance(step, schema.Load):
            loaded.add(step.block)
            continue
        if isinstance(step, schema.Receive):
            there.add(names[step.tensor])
            continue
        used = step.inputs if isinstance(step, schema.Run) else (step.tensor,)
        for tensor in used:
            if names[tensor] not in there:
                yield f"{place}: {names[tensor]} is used before it is there, or after its release"
        if isinstance(step, schema.Run):
            yield from _check_run(place, step, names, graph, loaded, last_block)
            last_block = last_block if step.block is None else step.block
            there |= {names[tensor] for tensor in step.outputs}
        elif isinstance(step, schema.Send):
            yield from _check_send(place, step, programs, names, graph)
        elif isinstance(step, schema.Release):
            there.discard(names[step.tensor])
    logits = set(graph.blocks[-1].outputs)
    for name in sorted(there - {INPUT_IDS, POSITION_IDS} - logits):
        yield f"{device}: {name} is never released"


def _check_run(
    place: str, step: schema.Run, names: Mapping[int, str], graph: Graph, loaded: set[int], last_block: int
) -> Iterator[str]:
    if step.block is None:
        template = graph.positions
        if template is None or step.template != template.id:
            yield f"{place}: {step.template} runs without a block, and is not the positions template"
            return
        wanted = tuple(s.name for s in template.inputs), tuple(s.name for s in template.outputs)
    elif step.block < len(graph.blocks):
        block = graph.blocks[step.block]
        wanted = block.inputs, block.outputs
        if step.template != block.template:
            yield f"{place}: block {block.id} runs as {step.template}, it is {block.template}"
        if step.block not in loaded:
            yield f"{place}: block {step.block} was not loaded here"
        if step.block < last_block:
            yield f"{place}: block {step.block} runs after block {last_block}"
        if step.rows == "last" and not block.last_row_only:
            yield f"{place}: block {step.block} runs on the last row, all are needed"
    else:
        return
    found = tuple(names[t] for t in step.inputs), tuple(names[t] for t in step.outputs)
    if found != wanted:
        yield f"{place}: runs with {found}, not with {wanted}"


def _check_send(
    place: str, step: schema.Send, programs: Programs, names: Mapping[int, str], graph: Graph
) -> Iterator[str]:
    users = _users(programs.get(step.destination), names[step.tensor], graph)
    if not users:
        yield f"{place}: {names[step.tensor]} goes to {step.destination}, which has no use for it"
    if step.rows == "last" and not all(block.last_row_only for block in users):
        yield f"{place}: only the last row of {names[step.tensor]} goes to {step.destination}, all are needed"


def _users(program: schema.DeviceProgram | None, tensor: str, graph: Graph) -> list[Block]:
    steps = program.steps if program else ()
    blocks = [step.block for step in steps if isinstance(step, schema.Run) and step.block is not None]
    return [graph.blocks[b] for b in blocks if b < len(graph.blocks) and tensor in graph.blocks[b].inputs]


def _check_messages(programs: Programs, names: Mapping[int, str]) -> Iterator[str]:
    """Sends and receives, paired."""
    sent: Counter[tuple[str, str, str]] = Counter()
    received: Counter[tuple[str, str, str]] = Counter()
    for device, program in programs.items():
        for step in program.steps:
            if isinstance(step, schema.Send):
                sent[names[step.tensor], device, step.destination] += 1
            elif isinstance(step, schema.Receive):
                received[names[step.tensor], step.source, device] += 1
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
            while at[device] < len(program.steps):
                step = program.steps[at[device]]
                if isinstance(step, schema.Receive) and (step.tensor, step.source, device) not in on_the_way:
                    break
                if isinstance(step, schema.Send):
                    on_the_way.add((step.tensor, device, step.destination))
                at[device] += 1
                moved = True
    for device, program in programs.items():
        if at[device] < len(program.steps):
            step = program.steps[at[device]]
            if isinstance(step, schema.Receive):
                yield f"{device} waits for ever for {names[step.tensor]} from {step.source}"
