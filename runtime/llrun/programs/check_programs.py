"""Checks programs against each other, the graph and the transmission map: every way in which they would fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from llrun.programs.effects import Effects, all_effects
from llrun.programs.graph import check_graph
from llrun.schema import AllReduce, DeviceProgram, GraphBlock, GraphRecord, Rows, TransmissionRecord

Programs = Mapping[str, DeviceProgram]
Way = tuple[int, str, str]  # tensor, from, to


def check_programs(
    programs: Programs, graph: GraphRecord, transmissions: Sequence[TransmissionRecord], head: str
) -> list[str]:
    """Every violation, in words, of what a set of programs promises; empty when there is none.

    Every block is loaded and run once in the cluster, in order and with its own tensors; every transmission is one
    send and one receive, and nothing else travels; nothing is used before it is there or after its release; nothing
    but `logits` is left; a single row is run or sent only where no more is needed; and no device waits for ever.
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
    def users(self) -> Mapping[tuple[str, int], Sequence[GraphBlock]]:
        """[device, tensor]: the blocks that the device runs with the tensor."""
        users: dict[tuple[str, int], list[GraphBlock]] = {}
        for device, done in self.effects.items():
            for does in done:
                if does.runs is not None and does.runs < len(self.graph.blocks):
                    block = self.graph.blocks[does.runs]
                    for tensor in block.inputs:
                        users.setdefault((device, tensor), []).append(block)
        return users

    def unknown(self) -> Iterator[str]:
        for device, program in self.programs.items():
            for i, (instruction, does) in enumerate(
                zip(program.instructions, self.effects[device], strict=True)
            ):
                for tensor in does.tensors:
                    if tensor not in self.names:
                        yield f"{device}, instruction {i}: tensor {tensor} is not in the table"
                if isinstance(instruction, AllReduce):
                    yield f"{device}, instruction {i}: all_reduce is not in this version"

    def blocks(self) -> Iterator[str]:
        done = [does for each in self.effects.values() for does in each]
        loaded, run = Counter(does.loads for does in done), Counter(does.runs for does in done)
        for counts, verb in ((loaded, "loaded"), (run, "run")):
            for block in self.graph.blocks:
                if counts[block.id] != 1:
                    yield f"block {block.id} is {verb} {counts[block.id]} times"
            for stranger in sorted({b for b in counts if b is not None and b >= len(self.graph.blocks)}):
                yield f"block {stranger} is {verb}, the graph has {len(self.graph.blocks)}"

    def device(self, device: str) -> Iterator[str]:
        """One device's instructions in order: what they use must be there."""
        given = {self.graph.position_ids} | ({self.graph.input_ids} if device == self.head else set())
        there, loaded, last_block = set(given), set[int](), -1
        for i, does in enumerate(self.effects[device]):
            where = f"{device}, instruction {i}"
            for tensor in (*does.uses, *does.releases):
                if tensor not in there:
                    yield f"{where}: {self.names[tensor]} is used before it is there, or after its release"
            there = there.union(does.makes).difference(does.releases)
            if does.loads is not None:
                loaded.add(does.loads)
            if does.calls is not None:
                yield from self._run(where, does, loaded, last_block)
                last_block = last_block if does.runs is None else does.runs
            for destination in does.tells:
                yield from self._send(where, does, destination)
        for tensor in sorted(there - given - {self.graph.input_ids, self.graph.logits}):
            yield f"{device}: {self.names[tensor]} is never released"

    def _run(self, where: str, does: Effects, loaded: set[int], last_block: int) -> Iterator[str]:
        if does.runs is None:
            positions = self.graph.positions
            if positions is None or does.calls != positions.template:
                yield f"{where}: {does.calls} runs without a block, and is not the positions template"
                return
            wanted = positions.inputs, positions.outputs
        elif does.runs < len(self.graph.blocks):
            block = self.graph.blocks[does.runs]
            wanted = block.inputs, block.outputs
            if does.calls != block.template:
                yield f"{where}: block {block.id} runs as {does.calls}, it is {block.template}"
            if block.id not in loaded:
                yield f"{where}: block {block.id} was not loaded here"
            if block.id < last_block:
                yield f"{where}: block {block.id} runs after block {last_block}"
            if does.newest_row and block.rows != Rows.LAST:
                yield f"{where}: block {block.id} runs on the last row, all are needed"
        else:
            return
        if (does.uses, does.makes) != wanted:
            found, due = (
                tuple(self._named(each) for each in pair) for pair in ((does.uses, does.makes), wanted)
            )
            yield f"{where}: runs with {found}, not with {due}"

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
