"""Writes each device's program: what it loads, waits for, runs, sends and forgets, in order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from llrun.errors import INTERNAL, RunError
from llrun.programs.groups import block_run, finishers, group_blocks, group_runs, is_group
from llrun.schema import (
    DeviceProgram,
    GraphBlock,
    GraphRecord,
    GroupBlock,
    Instruction,
    Load,
    Receive,
    Release,
    Rows,
    Run,
    Send,
    StageRecord,
    TransmissionKind,
    TransmissionRecord,
)

Place = tuple[int, int]  # a run of a device: the number of its stage, and which of the stage's runs it is


def write_programs(
    graph: GraphRecord,
    stages: Sequence[StageRecord],
    transmissions: Sequence[TransmissionRecord],
    epoch: int = 0,
) -> dict[str, DeviceProgram]:
    """The program of every device that has a stage, in the order of their first stages; others: `idle_program`.

    A program loads its blocks, then has for each stage: receives, the positions template if a block of the stage uses
    what it makes, then blocks, each followed by the sends of what it made, and releases as tensors die. A device of a
    group has of each block its shard, then the sums that it makes, then the tail; what comes of the others' parts is
    received just before it is used, so that a segment begins there, and what only passes through goes on at once.
    What is received and sent is what `transmissions` says, in their order. The head begins without a receive, as
    token ids are its own; `logits` is never released. A prompt's last row alone is run and sent where nothing needs
    more. Raises RunError R209 for what programs cannot be written for.
    """
    pieces = tuple(_pieces(graph, stage) for stage in stages)
    messages = _messages(graph, stages, pieces, transmissions)
    devices = dict.fromkeys(device for stage in stages for device in stage.devices)
    return {
        device: DeviceProgram(
            device=device,
            epoch=epoch,
            instructions=(*_Writer(graph, stages, pieces, messages, device).program(),),
        )
        for device in devices
    }


def idle_program(device: str, epoch: int = 0) -> DeviceProgram:
    """The program of a device without a stage: it takes part, and does nothing."""
    return DeviceProgram(device=device, epoch=epoch, instructions=())


def _pieces(graph: GraphRecord, stage: StageRecord) -> Mapping[int, GroupBlock] | None:
    if not is_group(stage):
        return None
    blocks = group_blocks(graph, stage)
    if blocks is None:
        raise _fault(
            f"blocks {stage.blocks[0]} to {stage.blocks[1] - 1} are not cut for {', '.join(stage.devices)} with these"
            " shares"
        )
    return blocks


def _fault(reason: str) -> RunError:
    return RunError("R209", f"no program can be written: {reason}", INTERNAL)


@dataclass(frozen=True)
class _Message:
    """A transmission. `stage`: whose receive it is, at its beginning; of a sum's part None, received as it is used.
    `rows`: those needed there."""

    tensor: int
    source: str
    destination: str
    stage: int | None
    rows: Rows


def _messages(
    graph: GraphRecord,
    stages: Sequence[StageRecord],
    pieces: Sequence[Mapping[int, GroupBlock] | None],
    transmissions: Sequence[TransmissionRecord],
) -> tuple[_Message, ...]:
    ids = {tensor.name: tensor.id for tensor in graph.tensors}
    made_by = {tensor: block for block in graph.blocks for tensor in block.outputs}
    stage_of = {block: number for number, stage in enumerate(stages) for block in range(*stage.blocks)}
    users: dict[int, list[GraphBlock]] = defaultdict(list)
    for block in graph.blocks:
        for tensor in dict.fromkeys(block.inputs):
            users[tensor].append(block)
    summed = {
        tensor: (stage, graph.blocks[block])
        for stage, blocks in zip(stages, pieces, strict=True)
        if blocks is not None
        for block in range(*stage.blocks)
        for tensor in (*blocks[block].partials, *blocks[block].sums)
    }
    messages = []
    for sent in transmissions:
        tensor, way = ids.get(sent.tensor, -1), (sent.source, sent.destination)
        words = f"{sent.tensor} from {sent.source} to {sent.destination}"
        if sent.kind == TransmissionKind.SUM:
            stage, summing = summed.get(tensor, (None, None))
            if stage is None or summing is None or not {*way} <= {*stage.devices}:
                raise _fault(f"{words} is no part of a sum there")
            messages.append(_Message(tensor, *way, None, summing.rows))
            continue
        producer = made_by.get(tensor)
        if producer is None or stages[stage_of[producer.id]].lead != sent.source:
            raise _fault(f"{words} is not made there")
        there = [b for b in users[tensor] if sent.destination in stages[stage_of[b.id]].devices]
        if not there:
            raise _fault(f"{words} is not used there")
        messages.append(_Message(tensor, *way, stage_of[there[0].id], _rows(there)))
    return tuple(messages)


def _rows(users: Sequence[GraphBlock] | Sequence[Run]) -> Rows:
    return Rows.LAST if all(each.rows == Rows.LAST for each in users) else Rows.ALL


@dataclass
class _Writer:
    """Writes one device's instructions after another."""

    graph: GraphRecord
    stages: Sequence[StageRecord]
    pieces: Sequence[Mapping[int, GroupBlock] | None]
    messages: Sequence[_Message]
    device: str
    had: set[int] = field(default_factory=set)  # parts of sums that were received

    def program(self) -> Iterator[Instruction]:
        yield from (
            Load(block=run.block) for runs in self.runs.values() for run in runs if run.block is not None
        )
        for number in self.runs:
            yield from self._stage(number)

    @cached_property
    def runs(self) -> Mapping[int, Sequence[Run]]:
        """[stage]: what the device runs of it, in order."""
        found = {}
        for number, (stage, blocks) in enumerate(zip(self.stages, self.pieces, strict=True)):
            if self.device not in stage.devices:
                continue
            if blocks is None:
                found[number] = [block_run(block) for block in self.graph.blocks[slice(*stage.blocks)]]
            else:
                rank, ends = stage.devices.index(self.device), finishers(self.graph, self.stages, number)
                found[number] = [*group_runs(self.graph, stage, blocks, rank, ends)]
        return found

    @cached_property
    def comes(self) -> Mapping[int, Sequence[_Message]]:
        """[stage]: what is received at its beginning."""
        found: dict[int, list[_Message]] = defaultdict(list)
        for message in self.messages:
            if message.destination == self.device and message.stage is not None:
                found[message.stage].append(message)
        return found

    @cached_property
    def parts(self) -> Mapping[int, Sequence[_Message]]:
        """[tensor]: how what is part of a sum comes."""
        found: dict[int, list[_Message]] = defaultdict(list)
        for message in self.messages:
            if message.destination == self.device and message.stage is None:
                found[message.tensor].append(message)
        return found

    @cached_property
    def goes(self) -> Mapping[int, Sequence[tuple[int, _Message]]]:
        """[tensor]: whom it is sent to, each with its place in the map."""
        found: dict[int, list[tuple[int, _Message]]] = defaultdict(list)
        for index, message in enumerate(self.messages):
            if message.source == self.device:
                found[message.tensor].append((index, message))
        return found

    def _stage(self, number: int) -> Iterator[Instruction]:
        for message in self.comes.get(number, ()):
            yield Receive(tensor=message.tensor, source=message.source)
        yield from self._positions(self.runs[number])
        for index, run in enumerate(self.runs[number]):
            parts = [m for tensor in run.inputs for m in self.parts.get(tensor, ()) if tensor not in self.had]
            self.had.update(message.tensor for message in parts)
            for message in parts:
                yield Receive(tensor=message.tensor, source=message.source)
            yield from self._sends([message.tensor for message in parts])
            yield run
            yield from self._sends(run.outputs)
            for tensor in self._dying.get((number, index), ()):
                yield Release(tensor=tensor)

    def _sends(self, tensors: Sequence[int]) -> Iterator[Instruction]:
        found = [each for tensor in dict.fromkeys(tensors) for each in self.goes.get(tensor, ())]
        for _, message in sorted(found, key=lambda each: each[0]):
            yield Send(tensor=message.tensor, destination=message.destination, rows=message.rows)

    def _positions(self, runs: Sequence[Run]) -> Iterator[Instruction]:
        """Run for this stage alone: its outputs are released with their last use in it."""
        positions = self.graph.positions
        if positions is None:
            return
        users = [run for run in runs if set(positions.outputs) & set(run.inputs)]
        if users:
            yield Run(
                template=positions.template,
                block=None,
                inputs=positions.inputs,
                outputs=positions.outputs,
                rows=_rows(users),
            )
            used = {tensor for run in users for tensor in run.inputs}
            for tensor in positions.outputs:
                if tensor not in used:
                    yield Release(tensor=tensor)

    @cached_property
    def _dying(self) -> Mapping[Place, Sequence[int]]:
        """The tensors that the device needs no more once a run is done and what it made is sent."""
        kept = {self.graph.input_ids, self.graph.position_ids, self.graph.logits}
        tables = set(self.graph.positions.outputs) if self.graph.positions else set()
        last: dict[tuple[int, int], Place] = {}
        for number, runs in self.runs.items():
            for index, run in enumerate(runs):
                for tensor in (*run.inputs, *run.outputs):
                    if tensor not in kept:
                        # A table is made anew in each stage; anything else lives from one to the next.
                        last[tensor, number if tensor in tables else -1] = number, index
            for message in self.comes.get(number, ()):  # what only another of the group has a use for
                last.setdefault((message.tensor, -1), (number, len(runs) - 1))
        dying: dict[Place, list[int]] = defaultdict(list)
        for (tensor, _), place in last.items():
            dying[place].append(tensor)
        return dying
