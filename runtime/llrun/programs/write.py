"""Writes each device's program: what it loads, waits for, runs, sends and forgets, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llrun.errors import INTERNAL, RunError
from llrun.schema import (
    DeviceProgram,
    GraphBlock,
    GraphRecord,
    Instruction,
    Load,
    Receive,
    Release,
    Rows,
    Run,
    Send,
    StageRecord,
    TransmissionRecord,
)


def write_programs(
    graph: GraphRecord,
    stages: Sequence[StageRecord],
    transmissions: Sequence[TransmissionRecord],
    epoch: int = 0,
) -> dict[str, DeviceProgram]:
    """The program of every device that has a stage, in the order of their first stages; others: `idle_program`.

    A program loads its blocks, then has one segment a stage: receives, the positions template if a block of the
    stage uses what it makes, then blocks, each followed by the sends of what it made, and releases as tensors die.
    What is received and sent is what `transmissions` says, in their order. The head begins without a receive, as
    token ids are its own; `logits` is never released. A prompt's last row alone is run and sent where nothing needs
    more. Raises RunError R209 for what programs cannot be written for.
    """
    owners = tuple(_owner(stage) for stage in stages)
    writer = _Writer(graph, stages, owners, _messages(graph, stages, owners, transmissions))
    return {
        device: DeviceProgram(device=device, epoch=epoch, instructions=writer.program(device))
        for device in dict.fromkeys(owners)
    }


def idle_program(device: str, epoch: int = 0) -> DeviceProgram:
    """The program of a device without a stage: it takes part, and does nothing."""
    return DeviceProgram(device=device, epoch=epoch, instructions=())


def _owner(stage: StageRecord) -> str:
    if len(stage.devices) != 1:
        raise _fault(
            f"blocks {stage.blocks[0]} to {stage.blocks[1] - 1} have {len(stage.devices)} devices, not one"
        )
    (device,) = stage.devices
    return device


def _fault(reason: str) -> RunError:
    return RunError("R209", f"no program can be written: {reason}", INTERNAL)


@dataclass(frozen=True)
class _Message:
    """A transmission among the blocks: who makes `tensor`, what stage receives it, and the rows needed there."""

    tensor: int
    producer: int
    source: str
    destination: str
    stage: int
    rows: Rows


def _messages(
    graph: GraphRecord,
    stages: Sequence[StageRecord],
    owners: Sequence[str],
    transmissions: Sequence[TransmissionRecord],
) -> tuple[_Message, ...]:
    ids = {tensor.name: tensor.id for tensor in graph.tensors}
    made_by = {tensor: block for block in graph.blocks for tensor in block.outputs}
    stage_of = {block: number for number, stage in enumerate(stages) for block in range(*stage.blocks)}
    messages = []
    for sent in transmissions:
        way = f"{sent.tensor} from {sent.source} to {sent.destination}"
        producer = made_by.get(ids.get(sent.tensor, -1))
        if producer is None or owners[stage_of[producer.id]] != sent.source:
            raise _fault(f"{way} is not made there")
        users = [
            block
            for block in graph.blocks[producer.id + 1 :]
            if ids[sent.tensor] in block.inputs and owners[stage_of[block.id]] == sent.destination
        ]
        if not users:
            raise _fault(f"{way} is not used there")
        messages.append(
            _Message(
                ids[sent.tensor],
                producer.id,
                sent.source,
                sent.destination,
                stage_of[users[0].id],
                _rows(users),
            )
        )
    return tuple(messages)


def _rows(users: Sequence[GraphBlock]) -> Rows:
    return Rows.LAST if all(block.rows == Rows.LAST for block in users) else Rows.ALL


@dataclass(frozen=True)
class _Writer:
    """Writes one device's instructions after another; `owners`: the device of each stage."""

    graph: GraphRecord
    stages: Sequence[StageRecord]
    owners: Sequence[str]
    messages: Sequence[_Message]

    def program(self, device: str) -> tuple[Instruction, ...]:
        mine = [number for number, owner in enumerate(self.owners) if owner == device]
        loads = [Load(block=block.id) for number in mine for block in self._blocks(number)]
        dying = self._last_uses(mine)
        bodies = [each for number in mine for each in self._segment(device, number, dying)]
        return (*loads, *bodies)

    def _blocks(self, stage: int) -> Sequence[GraphBlock]:
        start, stop = self.stages[stage].blocks
        return self.graph.blocks[start:stop]

    def _segment(self, device: str, number: int, dying: Mapping[int, Sequence[int]]) -> Iterator[Instruction]:
        blocks = self._blocks(number)
        for message in self.messages:
            if (message.destination, message.stage) == (device, number):
                yield Receive(tensor=message.tensor, source=message.source)
        yield from self._positions(blocks)
        for block in blocks:
            yield Run(
                template=block.template,
                block=block.id,
                inputs=block.inputs,
                outputs=block.outputs,
                rows=block.rows,
            )
            for message in self.messages:
                if message.producer == block.id:
                    yield Send(tensor=message.tensor, destination=message.destination, rows=message.rows)
            for tensor in dying.get(block.id, ()):
                yield Release(tensor=tensor)

    def _positions(self, blocks: Sequence[GraphBlock]) -> Iterator[Instruction]:
        """Run for this segment alone: its outputs are released with their last use in it."""
        positions = self.graph.positions
        if positions is None:
            return
        users = [block for block in blocks if set(positions.outputs) & set(block.inputs)]
        if users:
            yield Run(
                template=positions.template,
                block=None,
                inputs=positions.inputs,
                outputs=positions.outputs,
                rows=_rows(users),
            )
            used = {tensor for block in users for tensor in block.inputs}
            for tensor in positions.outputs:
                if tensor not in used:
                    yield Release(tensor=tensor)

    def _last_uses(self, mine: Sequence[int]) -> Mapping[int, Sequence[int]]:
        """[block]: the tensors that the device needs no more once the block has run and its outputs are sent."""
        kept = {self.graph.input_ids, self.graph.position_ids, self.graph.logits}
        tables = set(self.graph.positions.outputs) if self.graph.positions else set()
        last: dict[tuple[int, int], int] = {}
        for number in mine:
            for block in self._blocks(number):
                for tensor in (*block.inputs, *block.outputs):
                    if tensor not in kept:
                        # A table is made anew in each segment; anything else lives from one to the next.
                        last[tensor, number if tensor in tables else -1] = block.id
        dying: dict[int, list[int]] = {}
        for (tensor, _), block_id in last.items():
            dying.setdefault(block_id, []).append(tensor)
        return dying
