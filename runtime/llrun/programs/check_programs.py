"""Checks programs against each other, the graph and the transmission map: every way in which they would fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from llrun.programs.due import Due, Teams, due_of
from llrun.programs.effects import Effects, all_effects
from llrun.programs.graph import check_graph
from llrun.programs.groups import block_of, ids_end, shard_id, tail_id
from llrun.schema import DeviceProgram, GraphBlock, GraphRecord, Rows, TransmissionRecord

Programs = Mapping[str, DeviceProgram]
Way = tuple[int, str, str]  # tensor, from, to


def check_programs(
    programs: Programs, graph: GraphRecord, transmissions: Sequence[TransmissionRecord], head: str
) -> list[str]:
    """Every violation, in words, of what a set of programs promises; empty when there is none.

    Every block is loaded and run once in the cluster, in order and with its own tensors, whole or by a group of the
    graph: each device of it its shard once, some the tail, and every sum once, where it is due; every transmission is
    one send and one receive, and nothing else travels; nothing is used before it is there or after its release, nor
    made twice; nothing but `logits` is left; a single row is run or sent only where no more is needed; and no device
    waits for ever.
    """
    if faults := check_graph(graph):
        return faults
    names = {tensor.id: tensor.name for tensor in graph.tensors}
    cluster = _Cluster(programs, graph, names, head)
    unknown = list(cluster.unknown())
    return unknown or [
        *cluster.blocks(),
        *(fault for device in programs for fault in cluster.device(device)),
        *cluster.messages(transmissions),
        *cluster.progress(),
    ]


@dataclass(frozen=True)
class _Cluster:
    programs: Programs
    graph: GraphRecord
    names: Mapping[int, str]
    head: str

    @cached_property
    def effects(self) -> Mapping[str, Sequence[Effects]]:
        return {device: all_effects(program.instructions) for device, program in self.programs.items()}

    @cached_property
    def teams(self) -> Teams:
        return Teams.of(self.graph, self.effects)

    @cached_property
    def users(self) -> Mapping[tuple[str, int], Sequence[GraphBlock]]:
        """[device, tensor]: the blocks that the device runs with the tensor; a device of a group has a use for all that
        a block needs, though not each of its pieces does."""
        users: dict[tuple[str, int], list[GraphBlock]] = {}
        for device, done in self.effects.items():
            for does in done:
                block = self._block(device, does)
                if block is not None:
                    for tensor in dict.fromkeys((*does.uses, *block.inputs)):
                        users.setdefault((device, tensor), []).append(block)
        return users

    def _block(self, device: str, does: Effects) -> GraphBlock | None:
        """The block that an instruction computes, whole or in part."""
        if does.runs is None:
            due = self.teams.sums.get((device, does.makes))
            return due.block if due else None
        number = block_of(does.runs, len(self.graph.blocks))
        return self.graph.blocks[number] if number < len(self.graph.blocks) else None

    def unknown(self) -> Iterator[str]:
        for device in self.programs:
            for i, does in enumerate(self.effects[device]):
                for tensor in does.tensors:
                    if tensor not in self.names:
                        yield f"{device}, instruction {i}: tensor {tensor} is not in the table"

    def blocks(self) -> Iterator[str]:
        done = [(device, does) for device, each in self.effects.items() for does in each]
        loaded = Counter((device, does.loads) for device, does in done if does.loads is not None)
        run = Counter((device, does.runs) for device, does in done if does.runs is not None)
        count = len(self.graph.blocks)
        for counts, verb in ((loaded, "loaded"), (run, "run")):
            whole = Counter[int]()
            for (_, piece), times in counts.items():
                whole[piece] += times
            for block in range(count):
                if block in self.teams.devices:
                    yield from self._pieces(block, counts, verb)
                elif whole[block] != 1:
                    yield f"block {block} is {verb} {whole[block]} times"
            for stranger in sorted(piece for piece in whole if piece >= ids_end(self.graph)):
                yield f"block {stranger} is {verb}, the graph has {count}"
        sums = Counter((device, does.makes) for device, does in done if does.calls and does.runs is None)
        for (device, makes), due in self.teams.sums.items():
            if sums[device, makes] != 1:
                yield f"{due.words} is made {sums[device, makes]} times on {device}"

    def _pieces(self, block: int, counts: Counter[tuple[str, int]], verb: str) -> Iterator[str]:
        """Of a block that is cut: nobody has it whole, each of its group the shard once and the tail once at most."""
        count, devices = len(self.graph.blocks), self.teams.devices[block]
        team = self.teams.groups.get(block)
        if team is None:
            yield f"block {block} is cut for {', '.join(sorted(devices))}, which is no group of the graph"
            return
        tails = 0
        for device in self.programs:
            if counts[device, block]:
                yield f"block {block} is {verb} whole on {device}, and in pieces on {', '.join(team.devices)}"
            times, due = counts[device, shard_id(block, count, team.division)], int(device in team.devices)
            if times != due:
                yield f"{device}'s shard of block {block} is {verb} {times} times"
            times = counts[device, tail_id(block, count, team.division)]
            tails += times
            if times > due:
                yield f"the tail of block {block} is {verb} {times} times on {device}"
        if not tails:
            yield f"the tail of block {block} is {verb} nowhere"

    def device(self, device: str) -> Iterator[str]:
        """One device's instructions in order: what they use must be there."""
        given = {self.graph.position_ids} | ({self.graph.input_ids} if device == self.head else set())
        there, loaded, last_block = set(given), set[int](), -1
        for i, does in enumerate(self.effects[device]):
            where = f"{device}, instruction {i}"
            for tensor in (*does.uses, *does.releases):
                if tensor not in there:
                    yield f"{where}: {self.names[tensor]} is used before it is there, or after its release"
            for tensor in does.makes:
                if tensor in there:
                    yield f"{where}: {self.names[tensor]} is there already"
            there = there.union(does.makes).difference(does.releases)
            if does.loads is not None:
                loaded.add(does.loads)
            if does.calls is not None:
                yield from self._run(where, device, does, loaded, last_block)
                last_block = last_block if does.runs is None else block_of(does.runs, len(self.graph.blocks))
            for destination in does.tells:
                yield from self._send(where, does, destination)
        for tensor in sorted(there - given - {self.graph.input_ids, self.graph.logits}):
            yield f"{device}: {self.names[tensor]} is never released"

    def _run(
        self, where: str, device: str, does: Effects, loaded: set[int], last_block: int
    ) -> Iterator[str]:
        due = self._due(device, does)
        if due is None:
            if does.runs is None:
                neither = "is neither the positions template nor a sum that is due there"
                yield f"{where}: {does.calls} runs without a block, and {neither}"
            return
        if does.runs is not None:
            number = block_of(does.runs, len(self.graph.blocks))
            if does.runs not in loaded:
                yield f"{where}: {due.words} was not loaded here"
            if number < last_block:
                yield f"{where}: {due.words} runs after block {last_block}"
        if does.calls != due.template:
            yield f"{where}: {due.words} runs as {does.calls}, it is {due.template}"
        if does.newest_row and due.block is not None and due.block.rows != Rows.LAST:
            yield f"{where}: {due.words} runs on the last row, all are needed"
        if (does.uses, does.makes) != (due.inputs, due.outputs):
            found, wanted = (
                tuple(self._named(each) for each in pair)
                for pair in ((does.uses, does.makes), (due.inputs, due.outputs))
            )
            yield f"{where}: runs with {found}, not with {wanted}"

    def _due(self, device: str, does: Effects) -> Due | None:
        """What a run is to be; None where there is none such, which `blocks` says of one with a block."""
        positions = self.graph.positions
        if does.runs is None and positions and does.calls == positions.template:
            return Due(
                "the positions template", positions.template, positions.inputs, positions.outputs, None
            )
        if does.runs is None:
            return self.teams.sums.get((device, does.makes))
        return due_of(self.graph, self.teams, device, does.runs)

    def _named(self, tensors: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.names[tensor] for tensor in tensors)

    def _send(self, where: str, does: Effects, destination: str) -> Iterator[str]:
        for tensor in does.uses:
            users = self.users.get((destination, tensor), ())
            if not users:
                yield f"{where}: {self.names[tensor]} goes to {destination}, which has no use for it"
            if does.newest_row and not all(block.rows == Rows.LAST for block in users):
                yield f"{where}: only the last row of {self.names[tensor]} goes to {destination}, all are needed"

    def messages(self, transmissions: Sequence[TransmissionRecord]) -> Iterator[str]:
        """Sends and receives, paired, against the map."""
        ids = {name: tensor for tensor, name in self.names.items()}
        sent: Counter[Way] = Counter()
        received: Counter[Way] = Counter()
        for device, done in self.effects.items():
            for does in done:
                sent.update((tensor, device, to) for to in does.tells for tensor in does.uses)
                received.update((tensor, source, device) for source in does.hears for tensor in does.makes)
        wires = {tensor.name: tensor.wire for tensor in self.graph.tensors}
        for t in transmissions:
            if t.wire != wires.get(t.tensor, t.wire):
                yield f"{t.tensor} is said to travel as {t.wire}, it is {wires[t.tensor]}"
        due = Counter((ids.get(t.tensor, -1), t.source, t.destination) for t in transmissions)
        for way in sorted(sent.keys() | received.keys() | due.keys()):
            tensor, source, destination = way
            where = f"{self.names.get(tensor, 'a tensor without a name')} from {source} to {destination}"
            if (sent[way], received[way], due[way]) != (1, 1, 1):
                counts = f"sent {sent[way]} and received {received[way]} times"
                yield f"{where} is {counts}, the transmission map has it {due[way]} times"
            if source == destination or tensor in (self.graph.input_ids, self.graph.position_ids):
                yield f"{where} need not travel"

    def progress(self) -> Iterator[str]:
        """Let every device go as far as it can; a receive waits for its send."""
        at = dict.fromkeys(self.programs, 0)
        on_the_way: set[Way] = set()
        moved = True
        while moved:
            moved = False
            for device, done in self.effects.items():
                while at[device] < len(done) and not self._awaited(device, done[at[device]], on_the_way):
                    does = done[at[device]]
                    on_the_way.update((tensor, device, to) for to in does.tells for tensor in does.uses)
                    at[device] += 1
                    moved = True
        for device, done in self.effects.items():
            if at[device] < len(done):
                for tensor, source, _ in self._awaited(device, done[at[device]], on_the_way):
                    yield f"{device} waits for ever for {self.names[tensor]} from {source}"

    def _awaited(self, device: str, does: Effects, on_the_way: set[Way]) -> list[Way]:
        due = [(tensor, source, device) for source in does.hears for tensor in does.makes]
        return [way for way in due if way not in on_the_way]
