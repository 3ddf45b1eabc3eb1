"""What a given plan costs: seconds and memory, straight from the definitions. Shares no code with the MIP.

Seconds of a block on a device: roofline, max(bytes / memory rate, operations / compute rate)
(Williams, Waterman, Patterson, "Roofline", CACM 2009). A message takes latency + bytes / rate; the messages of one
hop between consecutive stages share its latency, a residual message pays its own. Nothing is assumed to overlap
within one token, so the figures are on the safe side.

A group computes a block in the seconds of its slowest shard, of the sum (llrun.programs.sums) and of its slowest tail.
What enters a group goes to each of its devices, one after the other; those that are there already need nothing. As its
devices wait for each other, each is busy for as long as the whole group, sums included: chunks of a prompt are not
assumed to overlap within it.

A block that streams takes as long as its weights take to come from disk, where that is longer. Of a token that is
reckoned block by block (llrun.programs.turns): what comes next is read while others run, on other devices too. Of a
chunk of prompt, of throughput and of groups what is read while other devices run is not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from llcompile.ir.cluster import Cluster, Device
from llcompile.ir.plan import BlockCost, Flow, PieceCosts, ShardCosts, Stage
from llcompile.partition.options import PlanOptions
from llcompile.partition.streaming import as_streamed, ends, streamed, weights_in_memory, window_on
from llcompile.partition.transmissions import Message, messages
from llrun.programs.sums import sum_seconds
from llrun.programs.turns import Turn, token_seconds

# Weight of a token's own seconds in the throughput objective: decides between plans of equal throughput, so that a
# device that brings nothing stays out.
TOKEN_WEIGHT = 1e-3


@dataclass(frozen=True)
class Memory:
    """Bytes on one device: `peak` = weights + cache + activations + messages in flight + runtime."""

    weights: int
    cache: int
    peak: int


@dataclass(frozen=True)
class Figures:
    """Seconds of a plan, and `objective`, what the planner minimises.

    `ttft_s` to the first token, `chunk_s` a chunk from end to end, `tpot_s` a further token, `period_s` between
    tokens when `sequences` are in flight, `compute_s` a token on each device, without waiting for others; the slowest
    device or link, for each chunk after the first and for a token.
    """

    ttft_s: float
    chunk_s: float
    tpot_s: float
    period_s: float
    slowest_chunk_s: float
    slowest_token_s: float
    objective: float
    compute_s: Mapping[str, float]


def decode_seconds(cost: BlockCost, device: Device) -> float:
    """Seconds of one token in a block."""
    return max(computing_seconds(cost, device), loading_seconds(cost, device))


def computing_seconds(cost: BlockCost, device: Device) -> float:
    """Seconds of one token in a block that is in memory."""
    return max(cost.decode_bytes / device.memory_bytes_per_s, cost.decode_flops / device.compute_flops)


def loading_seconds(cost: BlockCost, device: Device) -> float:
    """Seconds in which a block that streams comes from disk; 0 for one that does not."""
    return cost.streamed_bytes / device.disk_bytes_per_s


def prefill_seconds(cost: BlockCost, device: Device) -> float:
    """Seconds of one chunk of prompt in a block."""
    return max(
        cost.prefill_bytes / device.memory_bytes_per_s,
        cost.prefill_flops / device.compute_flops,
        loading_seconds(cost, device),
    )


def in_flight_bytes(flows: Sequence[Flow]) -> int:
    """Buffers of a device in a plan of several: one chunk being received and one being sent.

    A head that has every block sends nothing and needs none.
    """
    return 2 * max((flow.buffer_bytes for flow in flows), default=0)


def memory(
    stages: Sequence[Stage],
    costs: Sequence[BlockCost],
    flows: Sequence[Flow],
    cluster: Cluster,
    pieces: ShardCosts | None = None,
) -> Mapping[str, Memory]:
    """Memory of each device that has blocks, or pieces of blocks: shards, tails, and buffers for the parts of a sum,
    one of a chunk from each other device of the group and one that is sent. Weights that stream take a ring's."""
    names = dict.fromkeys(name for stage in stages for name in stage.devices)
    parts: dict[str, int] = defaultdict(int)
    for stage in stages:
        if stage.is_group:
            largest = max(each.buffer_bytes for each in cut_of(stage, pieces))
            for name in stage.devices:
                parts[name] = max(parts[name], len(stage.devices) * largest)
    buffers = in_flight_bytes(flows) if len(names) > 1 else 0
    needs = {}
    for name in names:
        blocks = held_costs(stages, name, costs, pieces)
        stream = streamed(window_on(stages, name), blocks, ends(costs))
        weights, cache = weights_in_memory(stream, blocks), sum(b.cache_bytes for b in blocks)
        working = max(b.activation_bytes for b in blocks) + buffers + cluster.device(name).runtime_bytes
        needs[name] = Memory(weights, cache, weights + cache + working + parts[name])
    return needs


def held_costs(
    stages: Sequence[Stage], name: str, costs: Sequence[BlockCost], pieces: ShardCosts | None
) -> list[BlockCost]:
    """Costs of all that `stages` have a device hold: whole blocks, and the shards and tails of its group."""
    held: list[BlockCost] = []
    for stage in (stage for stage in stages if name in stage.devices):
        if stage.is_group:
            rank = stage.devices.index(name)
            held += [cost for each in cut_of(stage, pieces) for cost in (each.shards[rank], each.tails[rank])]
        else:
            held += costs[stage.start : stage.stop]
    return held


def streaming_costs(
    stages: Sequence[Stage], costs: Sequence[BlockCost], pieces: ShardCosts | None
) -> tuple[Sequence[BlockCost], ShardCosts | None]:
    """The costs where `stages` have some blocks stream; of a group with a window all pieces are taken to."""
    if not any(stage.window for stage in stages):
        return costs, pieces
    changed, never = list(costs), ends(costs)
    for name in dict.fromkeys(stage.lead for stage in stages if not stage.is_group):
        held = held_costs([stage for stage in stages if stage.devices == (name,)], name, costs, None)
        for number in streamed(window_on(stages, name), held, never).numbers:
            changed[held[number].block] = as_streamed(held[number])
    windows = {block: stage.window for stage in stages if stage.is_group for block in stage.blocks}

    def cut(blocks: Sequence[int], shares: tuple[float, ...], parts: int) -> Mapping[int, PieceCosts]:
        found = pieces(blocks, shares, parts) if pieces else {}
        return {block: _streaming(each) if windows.get(block) else each for block, each in found.items()}

    return changed, cut


def _streaming(cut: PieceCosts) -> PieceCosts:
    shards, tails = (tuple(map(as_streamed, each)) for each in (cut.shards, cut.tails))
    return replace(cut, shards=shards, tails=tails)


def cut_of(stage: Stage, pieces: ShardCosts | None) -> list[PieceCosts]:
    """What the blocks of a group cost in pieces, in order. Raises KeyError for one that cannot be cut: whoever makes a
    plan asks before."""
    cut = pieces(stage.blocks, stage.shares, stage.parts) if pieces else {}
    return [cut[block] for block in stage.blocks]


def evaluate(
    stages: Sequence[Stage],
    costs: Sequence[BlockCost],
    flows: Sequence[Flow],
    cluster: Cluster,
    options: PlanOptions,
    pieces: ShardCosts | None = None,
) -> Figures:
    """Figures of a plan.

    TTFT: the chunks of a prompt move through the stages as a pipeline, so sum of the chunk's seconds over stages
    and hops + (chunks - 1) x the slowest device or link, blocks for the last row aside. Throughput: the period is
    the slowest device or link for one token, but not less than a token's own seconds / sequences.
    """
    sent = messages(stages, flows)
    rings = _rings(stages, costs)
    costs, pieces = streaming_costs(stages, costs, pieces)
    spent = [_stage_seconds(stage, costs, cluster, pieces) for stage in stages]
    decode = _busy((stage, seconds.decode) for stage, seconds in zip(stages, spent, strict=True))
    prefill = _busy((stage, seconds.every_chunk) for stage, seconds in zip(stages, spent, strict=True))
    decode_links = _links(stages, sent, cluster, {m: m.flow.decode_bytes for m in sent})
    prefill_links = _links(stages, sent, cluster, {m: m.flow.prefill_bytes for m in sent})
    waits = _latency(stages, sent, cluster)
    turns = [_turn(stage, each, costs, cluster) for stage, each in zip(stages, spent, strict=True)]
    tpot = token_seconds(turns, rings, sum(decode_links.values()) + waits)
    fill = sum(seconds.prefill for seconds in spent) + sum(prefill_links.values()) + waits
    slowest_chunk = max(*prefill.values(), *prefill_links.values(), 0.0)
    slowest_token = max(*decode.values(), *decode_links.values(), 0.0)
    ttft = fill + (options.chunks - 1) * slowest_chunk
    period = max(slowest_token, tpot / options.sequences)
    request = ttft + options.new_tokens * tpot
    objective = request if options.objective == "latency" else period + TOKEN_WEIGHT * tpot
    own: dict[str, float] = defaultdict(float)
    for name, seconds in ((name, s) for each in spent for name, s in each.own.items()):
        own[name] += seconds
    return Figures(ttft, fill, tpot, period, slowest_chunk, slowest_token, objective, dict(own))


def _rings(stages: Sequence[Stage], costs: Sequence[BlockCost]) -> Mapping[str, int]:
    """[device with stages of its own]: how many streamed blocks are in memory at once."""
    found = {}
    for name in dict.fromkeys(stage.lead for stage in stages if not stage.is_group):
        held = held_costs([stage for stage in stages if stage.devices == (name,)], name, costs, None)
        found[name] = streamed(window_on(stages, name), held, ends(costs)).ring
    return found


def _turn(stage: Stage, spent: _Spent, costs: Sequence[BlockCost], cluster: Cluster) -> Turn:
    if stage.is_group:
        return Turn("", [(spent.decode, 0.0)])
    device = cluster.device(stage.lead)
    blocks = costs[stage.start : stage.stop]
    return Turn(
        stage.lead, [(computing_seconds(cost, device), loading_seconds(cost, device)) for cost in blocks]
    )


@dataclass(frozen=True)
class _Spent:
    """Seconds of a token and of a chunk in a stage, those of every chunk and not of the last alone, and of a token on
    each of its devices without waiting."""

    decode: float
    prefill: float
    every_chunk: float
    own: Mapping[str, float]


def _stage_seconds(
    stage: Stage, costs: Sequence[BlockCost], cluster: Cluster, pieces: ShardCosts | None
) -> _Spent:
    devices = [cluster.device(name) for name in stage.devices]
    if not stage.is_group:
        blocks = costs[stage.start : stage.stop]
        decode = sum(decode_seconds(cost, devices[0]) for cost in blocks)
        prefill = sum(prefill_seconds(cost, devices[0]) for cost in blocks)
        every = sum(prefill_seconds(cost, devices[0]) for cost in blocks if not cost.last_row_only)
        computing = sum(computing_seconds(cost, devices[0]) for cost in blocks)
        return _Spent(decode, prefill, every, {stage.lead: computing})
    cut = cut_of(stage, pieces)
    alike = {id(each): each for each in cut}
    counted = [(each, sum(other is each for other in cut)) for each in alike.values()]
    own = {
        device.name: sum(
            times
            * (computing_seconds(each.shards[rank], device) + computing_seconds(each.tails[rank], device))
            for each, times in counted
        )
        for rank, device in enumerate(devices)
    }
    decode = sum(times * group_seconds(stage, each, devices, cluster, True) for each, times in counted)
    chunk = [(each, times * group_seconds(stage, each, devices, cluster, False)) for each, times in counted]
    every = sum(seconds for each, seconds in chunk if not each.last_row_only)
    return _Spent(decode, sum(seconds for _, seconds in chunk), every, own)


def group_seconds(
    stage: Stage, cut: PieceCosts, devices: Sequence[Device], cluster: Cluster, decode: bool
) -> float:
    """Seconds of a block in a group, of a token (`decode`) or a chunk. `devices`: those of the stage."""

    def delay(source: str, to: str) -> tuple[float, float]:
        link = cluster.link(source, to)
        return link.latency_s, 1 / link.bytes_per_s

    assert stage.all_reduce is not None
    seconds = decode_seconds if decode else prefill_seconds
    size = cut.partial_decode_bytes if decode else cut.partial_prefill_bytes
    shard, tail = (max(map(seconds, costs, devices)) for costs in (cut.shards, cut.tails))
    return shard + sum_seconds(stage.all_reduce, stage.devices, stage.root, size, delay) + tail


def _busy(spent: Iterable[tuple[Stage, float]]) -> dict[str, float]:
    """Seconds that each device is busy."""
    busy: dict[str, float] = defaultdict(float)
    for stage, seconds in spent:
        for name in stage.devices:
            busy[name] += seconds
    return dict(busy)


def _links(
    stages: Sequence[Stage], sent: Sequence[Message], cluster: Cluster, size: Mapping[Message, int]
) -> dict[tuple[str, tuple[str, ...]], float]:
    """Seconds each link is busy; those into a group are one, as its devices are sent to one after the other."""
    busy: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
    for m in sent:
        link = cluster.link(m.source, m.destination)
        busy[m.source, stages[m.hop[1]].devices] += size[m] / link.bytes_per_s
    return dict(busy)


def _latency(stages: Sequence[Stage], sent: Sequence[Message], cluster: Cluster) -> float:
    """Seconds that messages wait: the longest of those that leave together."""

    def longest(source: str, to: Iterable[str]) -> float:
        return max((cluster.link(source, name).latency_s for name in to), default=0.0)

    hops = sum(
        longest(a.lead, (name for name in b.devices if name not in a.devices)) for a, b in pairwise(stages)
    )
    skips: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    for m in sent:
        if not m.sequential:
            skips[m.flow.tensor, m.hop[1], m.source].append(m.destination)
    return hops + sum(longest(source, to) for (_, _, source), to in skips.items())
