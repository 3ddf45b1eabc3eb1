"""The planner's question as numbers: what each block takes on each device, and which runs of blocks fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from llcompile.ir.cluster import Cluster, Device, Link
from llcompile.ir.plan import BlockCost, Flow, ShardCosts, Stage, output_start
from llcompile.partition.disk import file_bytes, room_bytes
from llcompile.partition.evaluate import TOKEN_WEIGHT, decode_seconds, in_flight_bytes, prefill_seconds
from llcompile.partition.groups import Group
from llcompile.partition.options import PlanOptions

HEAD = 0
INFINITY = float("inf")


@dataclass(frozen=True)
class Weights:
    """The objective is fill x (seconds a chunk takes from end to end) + token x (seconds of a token) + slowest x
    (the slowest device or link). `by_token`: the slowest is meant for a token, not for a chunk; it then is at
    least a token's seconds / `sequences`."""

    fill: float
    token: float
    slowest: float
    by_token: bool
    sequences: int


@dataclass(frozen=True)
class Problem:
    """Devices are numbers from here on: 0 is the head, then the workers in the cluster's order.

    `pieces`: what blocks cost cut for a group, None where there are no groups. `group`: what the last device stands
    for. The head may be in it, and is a device of its own as well: what both together need of it is left to
    llcompile.partition.evaluate, so that bounds are true ones and a plan is one only if that says so.
    """

    costs: tuple[BlockCost, ...]
    flows: tuple[Flow, ...]
    cluster: Cluster
    options: PlanOptions
    pieces: ShardCosts | None = None
    group: Group | None = None

    @property
    def real(self) -> Cluster:
        """The cluster of single devices."""
        return self.group.cluster if self.group else self.cluster

    @cached_property
    def grouped(self) -> int | None:
        """The number of the device that stands for the group."""
        return len(self.devices) - 1 if self.group else None

    def expanded(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """`stages` with the group itself in the place of the device that stands for it."""
        group = self.group
        if group is None:
            return tuple(stages)
        return tuple(group.stage(s.start, s.stop) if s.lead == group.name else s for s in stages)

    @property
    def blocks(self) -> int:
        return len(self.costs)

    @cached_property
    def output(self) -> int:
        """The first of the blocks that make the logits."""
        return output_start(self.costs)

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        head = self.cluster.device(self.cluster.head)
        return (head, *(device for device in self.cluster.devices if device.name != head.name))

    @property
    def workers(self) -> range:
        return range(1, len(self.devices))

    @cached_property
    def weights(self) -> Weights:
        options = self.options
        if options.objective == "latency":
            return Weights(1.0, float(options.new_tokens), options.chunks - 1, False, options.sequences)
        return Weights(0.0, TOKEN_WEIGHT, 1.0, True, options.sequences)

    # --- seconds -----------------------------------------------------------------------------------------------------

    @cached_property
    def decode(self) -> tuple[tuple[float, ...], ...]:
        """Seconds of a token, [device][block]."""
        return self._seconds(decode_seconds, True)

    @cached_property
    def prefill(self) -> tuple[tuple[float, ...], ...]:
        """Seconds of a chunk, [device][block]."""
        return self._seconds(prefill_seconds, False)

    def _seconds(
        self, seconds: Callable[[BlockCost, Device], float], decode: bool
    ) -> tuple[tuple[float, ...], ...]:
        """[device][block]; of a group and a block that it cannot have, the most of any device."""
        singles = self.devices[:-1] if self.group else self.devices
        rows = [tuple(seconds(cost, device) for cost in self.costs) for device in singles]
        if self.group:
            known = self.group.seconds(decode)
            rows.append(tuple(known.get(b, max(column)) for b, column in enumerate(zip(*rows, strict=True))))
        return tuple(rows)

    @cached_property
    def load(self) -> tuple[tuple[float, ...], ...]:
        """Seconds that count towards the slowest device, [device][block]: of a token, or of each chunk of a prompt."""
        if self.weights.by_token:
            return self.decode
        once = [cost.last_row_only for cost in self.costs]
        return tuple(tuple(0.0 if o else s for o, s in zip(once, row, strict=True)) for row in self.prefill)

    @cached_property
    def block_cost(self) -> tuple[tuple[float, ...], ...]:
        """What a block on a device adds to the objective, the slowest aside, [device][block]."""
        w = self.weights
        rows = zip(self.prefill, self.decode, strict=True)
        return tuple(tuple(w.fill * p + w.token * d for p, d in zip(*row, strict=True)) for row in rows)

    def link(self, source: int, destination: int) -> Link:
        if self.group and self.grouped in (source, destination):
            into = destination == self.grouped
            return (
                self.group.link_from(self.devices[source].name)
                if into
                else self.group.link_to(self.devices[destination].name)
            )
        return self.cluster.link(self.devices[source].name, self.devices[destination].name)

    @cached_property
    def hop_flows(self) -> tuple[tuple[Flow, ...], ...]:
        """[block]: the flows that cross only if the block begins a stage: made just before it, used by it alone."""
        crossing: list[list[Flow]] = [[] for _ in self.costs]
        for flow in self.flows:
            if flow.consumers == (flow.producer + 1,):
                crossing[flow.producer + 1].append(flow)
        return tuple(map(tuple, crossing))

    @cached_property
    def entering(self) -> tuple[tuple[tuple[Flow, ...], tuple[Flow, ...]], ...]:
        """[block]: the tensors that it uses, made just before it, and made earlier."""
        used: list[tuple[list[Flow], list[Flow]]] = [([], []) for _ in self.costs]
        for flow in self.flows:
            for block in flow.consumers:
                used[block][0 if flow.producer == block - 1 else 1].append(flow)
        return tuple((tuple(near), tuple(far)) for near, far in used)

    @cached_property
    def long_flows(self) -> tuple[Flow, ...]:
        """The other flows: what they cost depends on more than one cut."""
        return tuple(flow for flow in self.flows if flow.consumers != (flow.producer + 1,))

    def bytes_cost(self, flows: Iterable[Flow], link: Link) -> float:
        """What moving tensors over a link adds to the objective."""
        w = self.weights
        return (
            sum(w.token * flow.decode_bytes + w.fill * flow.prefill_bytes for flow in flows)
            / link.bytes_per_s
        )

    def latency_cost(self, link: Link) -> float:
        return (self.weights.token + self.weights.fill) * link.latency_s

    def busy(self, flows: Iterable[Flow], link: Link) -> float:
        """Seconds that tensors keep a link busy, as the slowest counts them."""
        by_token = self.weights.by_token
        return sum(flow.decode_bytes if by_token else flow.prefill_bytes for flow in flows) / link.bytes_per_s

    # --- memory ------------------------------------------------------------------------------------------------------

    @cached_property
    def free(self) -> tuple[int, ...]:
        """Bytes each device has for weights, cache and activations in a plan of several devices.

        The buffers of a cluster's only device stay empty.
        """
        buffers = in_flight_bytes(self.flows) if len(self.devices) > 1 else 0
        return tuple(device.memory_bytes - device.runtime_bytes - buffers for device in self.devices)

    @property
    def free_alone(self) -> int:
        """Bytes the head has for weights, cache and activations when it has every block: it sends nothing then."""
        return self.devices[HEAD].memory_bytes - self.devices[HEAD].runtime_bytes

    @cached_property
    def disk(self) -> tuple[float, ...]:
        """Bytes that each device's disk has for the files of blocks; infinite where devices.json bounds none."""
        rooms = (room_bytes(device, self.blocks) for device in self.devices)
        return tuple(INFINITY if room is None else room for room in rooms)

    @cached_property
    def _files(self) -> tuple[int, ...]:
        """Bytes of the files of the blocks before each."""
        return (0, *accumulate(map(file_bytes, self.costs)))

    def on_disk(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Bytes of the files of the blocks of `ranges`."""
        return sum(self._files[stop] - self._files[start] for start, stop in ranges)

    @property
    def least_file(self) -> int:
        """Bytes of the smallest file of a block that a worker may have."""
        return min((self.on_disk([(b, b + 1)]) for b in range(1, self.output)), default=0)

    def fits(self, device: int, ranges: Sequence[tuple[int, int]]) -> bool:
        """Whether memory and disk of a device hold blocks together, in a plan of several devices."""
        if device == self.grouped:
            return all(self._group_fits(*range_) for range_ in ranges)
        return self.needed(ranges) <= self.free[device] and self.on_disk(ranges) <= self.disk[device]

    def _group_fits(self, start: int, stop: int) -> bool:
        """Whether all members of the group hold their pieces of blocks, the head beside what it has in any case."""
        group = self.group
        if group is None or not group.cuts(start, stop):
            return False
        own = {self.real.head: [self.costs[b] for b, owner in enumerate(self.owners) if owner == HEAD]}
        buffers = in_flight_bytes(self.flows)
        free = [device.memory_bytes - device.runtime_bytes - buffers for device in group.members]
        rooms = (room_bytes(device, self.blocks) for device in group.members)
        room = [INFINITY if each is None else each for each in rooms]
        return bool(
            (group.needed(start, stop, own) <= free).all() and (group.on_disk(start, stop, own) <= room).all()
        )

    @cached_property
    def _stored(self) -> tuple[int, ...]:
        """Weights and cache of the blocks before each."""
        return (0, *accumulate(cost.weights_bytes + cost.cache_bytes for cost in self.costs))

    def needed(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Bytes that the blocks of `ranges` need together on one device."""
        stored = sum(self._stored[stop] - self._stored[start] for start, stop in ranges)
        active = (self.costs[b].activation_bytes for start, stop in ranges for b in range(start, stop))
        return stored + max(active, default=0)

    @cached_property
    def _loads(self) -> tuple[tuple[float, ...], ...]:
        """Seconds towards the slowest of the blocks before each, [device][block]."""
        return tuple((0.0, *accumulate(loads)) for loads in self.load)

    @cached_property
    def owners(self) -> tuple[int | None, ...]:
        """[block]: the device it is pinned to; the ends are the head's in any case, all that makes logits with them."""
        numbers = {device.name: d for d, device in enumerate(self.devices)}
        owners: list[int | None] = [None] * self.blocks
        for pin in self.options.pins:
            owners[pin.start : pin.stop] = [numbers[pin.device]] * (pin.stop - pin.start)
        owners[0] = HEAD
        owners[self.output :] = [HEAD] * (self.blocks - self.output)
        return tuple(owners)

    @cached_property
    def kept(self) -> frozenset[int]:
        """The blocks that no worker may ever hold: those of --keep, and all that make logits."""
        asked = (b for pin in self.options.pins if pin.keep for b in range(pin.start, pin.stop))
        return frozenset([*asked, *range(self.output, self.blocks)])

    def holds(self, device: int, ranges: Sequence[tuple[int, int]], limit: float = INFINITY) -> bool:
        """Whether blocks fit on a device together and keep it busy for no more than `limit` seconds."""
        busy = sum(self._loads[device][stop] - self._loads[device][start] for start, stop in ranges)
        return self.fits(device, ranges) and busy <= limit - self._beside(device)

    def _beside(self, device: int) -> float:
        """Seconds towards the slowest that a group's member has besides: the head's for what it must have."""
        if device != self.grouped or not (self.group and self.group.has_head):
            return 0.0
        return sum(self.load[HEAD][b] for b, owner in enumerate(self.owners) if owner == HEAD)

    def first_starts(self, device: int, limit: float = INFINITY) -> tuple[int, ...]:
        """[block]: the earliest start of a stage of `device` that includes the block; block + 1: there is none.

        What fits and what is done within `limit` seconds both stay so when a block is taken away: the later of two
        starts.
        """
        starts, loads = self._memory_starts[device], self._loads[device]
        if limit == INFINITY:
            return starts
        limit -= self._beside(device)
        limited, start = [], 0
        for block, first in enumerate(starts):
            start = max(start, first)
            while start <= block and loads[block + 1] - loads[start] > limit:
                start += 1
            limited.append(start)
        return tuple(limited)

    @cached_property
    def _memory_starts(self) -> tuple[tuple[int, ...], ...]:
        """[device][block]: `first_starts` without a limit."""
        return tuple(self._starts_in_memory(device) for device in range(len(self.devices)))

    def _starts_in_memory(self, device: int) -> tuple[int, ...]:
        starts, start = [], 0
        for block, owner in enumerate(self.owners):
            if owner not in (None, device):
                start = block + 1
            while start <= block and not self.fits(device, [(start, block + 1)]):
                start += 1
            starts.append(start)
        return tuple(starts)

    def first_returns(self, limit: float = INFINITY) -> tuple[int, ...]:
        """[stop]: the earliest start of the head's last stage when its first ends before `stop`, 1 <= stop < blocks.

        `blocks` (past the last) means that such a first stage leaves no room for the last block, or none at all.
        """
        foreign = [block for block, owner in enumerate(self.owners) if owner not in (None, HEAD)]
        returns, start = [0], max([0, *foreign]) + 1
        for stop in range(1, self.blocks):
            start = max(start, stop)
            if foreign and stop > foreign[0]:
                start = self.blocks
            while start < self.blocks and not self.head_holds(stop, start, limit):
                start += 1
            returns.append(start)
        return tuple(returns)

    def head_holds(self, stop: int, start: int, limit: float = INFINITY) -> bool:
        """Whether the head holds the blocks before `stop` and those from `start` on."""
        return self.holds(HEAD, [(0, stop), (start, self.blocks)], limit)

    def head_alone(self, limit: float = INFINITY) -> bool:
        """Whether the head may have every block, memory and wishes considered."""
        wanted = self.options.use_all and len(self.devices) > 1
        return (
            not wanted
            and set(self.owners) <= {None, HEAD}
            and self.needed([(0, self.blocks)]) <= self.free_alone
            and self.on_disk([(0, self.blocks)]) <= self.disk[HEAD]
            and self._loads[HEAD][-1] <= limit
        )

    @cached_property
    def uniform(self) -> bool:
        """Whether a cut costs the same whichever devices it lies between."""
        count = range(len(self.devices))
        return not self.long_flows and len({self.link(d, e) for d in count for e in count if d != e}) <= 1
