"""Each device's program: what it loads, waits for, runs, sends and forgets, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llcompile.ir.cluster import Cluster
from llcompile.ir.graph import Block, Graph, TensorSpec
from llcompile.ir.plan import Flow, Plan, Stage
from llcompile.partition.transmissions import Message, messages
from llrun import schema

INPUT_IDS, POSITION_IDS = "input_ids", "position_ids"


def device_programs(
    graph: Graph, plan: Plan, cluster: Cluster
) -> tuple[dict[str, schema.DeviceProgram], tuple[schema.Tensor, ...]]:
    """The program of every device in use, in the cluster's order, and the tensors that programs speak of.

    A program loads its blocks, then has one segment a stage: receives, the positions template if a block of the
    stage uses what it makes, then blocks, each followed by the sends of what it made (to the next stage
    first), and releases as tensors die. The head begins without a receive, as token ids are its own; `logits` is
    never released. A prompt's last row alone is run and sent where nothing needs more.
    """
    tensors = tensor_table(graph)
    writer = _Writer(graph, plan.stages, {tensor.name: tensor.id for tensor in tensors})
    used = [device.name for device in cluster.devices if device.name in plan.devices]
    programs = {
        name: schema.DeviceProgram(device=name, epoch=0, instructions=writer.program(name)) for name in used
    }
    return programs, tensors


def tensor_table(graph: Graph) -> tuple[schema.Tensor, ...]:
    """Model inputs, what the positions template makes, then every block's outputs, numbered in that order.

    Raises ValueError when a tensor's size depends on the context: such a tensor cannot be sent.
    """
    specs: dict[str, TensorSpec] = {
        name: TensorSpec(name, "int64", (1, "n")) for name in (INPUT_IDS, POSITION_IDS)
    }
    for spec in graph.positions.outputs if graph.positions else ():
        specs[spec.name] = spec
    for block in graph.blocks:
        for name, spec in zip(block.outputs, graph.templates[block.template].outputs, strict=True):
            specs[name] = spec
    return tuple(
        schema.Tensor(id=i, name=name, dtype=spec.dtype, shape=tuple(map(_dimension, spec.shape)))
        for i, (name, spec) in enumerate(specs.items())
    )


def _dimension(size: int | str) -> int:
    if size == "c":
        raise ValueError("a tensor of the cache's length crosses a block boundary")
    return -1 if isinstance(size, str) else size


def activation_flows(graph: Graph) -> tuple[Flow, ...]:
    """What travels between blocks: neither model inputs, nor what is computed from positions, nor logits."""
    found = []
    for block in graph.blocks:
        for name in block.outputs:
            consumers = graph.consumers(name)
            if consumers:
                found.append(Flow(name, block.id, consumers, 0, 0))
    return tuple(found)


@dataclass(frozen=True)
class _Writer:
    """Writes one device's instructions after another."""

    graph: Graph
    stages: Sequence[Stage]
    ids: Mapping[str, int]

    def program(self, device: str) -> tuple[schema.Instruction, ...]:
        mine = [stage for stage in self.stages if stage.lead == device]
        loads = [schema.Load(block=b) for stage in mine for b in range(stage.start, stage.stop)]
        sent = messages(self.stages, activation_flows(self.graph))
        bodies = [instruction for stage in mine for instruction in self._segment(device, stage, mine, sent)]
        return (*loads, *bodies)

    def _segment(
        self, device: str, stage: Stage, mine: Sequence[Stage], sent: Sequence[Message]
    ) -> Iterator[schema.Instruction]:
        blocks = self.graph.blocks[stage.start : stage.stop]
        for message in sent:
            if message.destination == device and self.stages[message.hop[1]] == stage:
                yield schema.Receive(tensor=self.ids[message.flow.tensor], source=message.source)
        yield from self._positions(blocks)
        dying = self._last_uses(mine)
        for block in blocks:
            yield self._run(block)
            for message in sent:
                if message.flow.producer == block.id:
                    yield self._send(message)
            for name in dying.get(block.id, ()):
                yield schema.Release(tensor=self.ids[name])

    def _positions(self, blocks: Sequence[Block]) -> Iterator[schema.Instruction]:
        """Run for this segment alone: its outputs are released with their last use in it."""
        template = self.graph.positions
        if template is None:
            return
        made = [spec.name for spec in template.outputs]
        users = [block for block in blocks if set(made) & set(block.inputs)]
        if users:
            yield schema.Run(
                template=template.id,
                block=None,
                inputs=tuple(self.ids[spec.name] for spec in template.inputs),
                outputs=tuple(self.ids[name] for name in made),
                rows=_rows(users),
            )
            used = {name for block in users for name in block.inputs}
            for name in made:
                if name not in used:
                    yield schema.Release(tensor=self.ids[name])

    def _last_uses(self, mine: Sequence[Stage]) -> Mapping[int, list[str]]:
        """[block]: the tensors that the device needs no more once the block has run and its outputs are sent."""
        tables = {spec.name for spec in self.graph.positions.outputs} if self.graph.positions else set()
        last: dict[tuple[str, int], int] = {}
        for number, stage in enumerate(mine):
            for block in self.graph.blocks[stage.start : stage.stop]:
                for name in (*block.inputs, *block.outputs):
                    if name not in (INPUT_IDS, POSITION_IDS) and (
                        name in block.inputs or self.graph.consumers(name)
                    ):
                        # A table is made anew in each segment; anything else lives from one to the next.
                        last[name, number if name in tables else 0] = block.id
        dying: dict[int, list[str]] = {}
        for (name, _), block_id in last.items():
            dying.setdefault(block_id, []).append(name)
        return dying

    def _run(self, block: Block) -> schema.Run:
        return schema.Run(
            template=block.template,
            block=block.id,
            inputs=tuple(self.ids[name] for name in block.inputs),
            outputs=tuple(self.ids[name] for name in block.outputs),
            rows=_rows([block]),
        )

    def _send(self, message: Message) -> schema.Send:
        """Rows as the blocks that use the tensor on the other device need them."""
        there = {b for s in self.stages if s.lead == message.destination for b in range(s.start, s.stop)}
        users = [self.graph.blocks[b] for b in message.flow.consumers if b in there]
        return schema.Send(
            tensor=self.ids[message.flow.tensor], destination=message.destination, rows=_rows(users)
        )


def _rows(users: Sequence[Block]) -> schema.Rows:
    return schema.Rows.LAST if all(block.last_row_only for block in users) else schema.Rows.ALL
