"""What a given plan costs: seconds and memory, straight from the definitions. Shares no code with the MIP.

Seconds of a block on a device: roofline, max(bytes / memory rate, operations / compute rate)
(Williams, Waterman, Patterson, "Roofline", CACM 2009). A message takes latency + bytes / rate; the messages of one
hop between consecutive stages share its latency, a residual message pays its own. Nothing is assumed to overlap
within one token, so the figures are on the safe side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llcompile.ir.cluster import Cluster, Device
from llcompile.ir.plan import BlockCost, Flow, Stage
from llcompile.partition.options import PlanOptions
from llcompile.partition.transmissions import Message, messages

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
    tokens when `sequences` are in flight, `compute_s` a token on each device; the slowest device or link, for a
    chunk and for a token.
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
    return max(cost.decode_bytes / device.memory_bytes_per_s, cost.decode_flops / device.compute_flops)


def prefill_seconds(cost: BlockCost, device: Device) -> float:
    """Seconds of one chunk of prompt in a block."""
    return max(cost.prefill_bytes / device.memory_bytes_per_s, cost.prefill_flops / device.compute_flops)


def in_flight_bytes(flows: Sequence[Flow]) -> int:
    """Buffers of a device in a plan of several: one chunk being received and one being sent.

    A head that has every block sends nothing and needs none.
    """
    return 2 * max((flow.prefill_bytes for flow in flows), default=0)


def memory(
    stages: Sequence[Stage], costs: Sequence[BlockCost], flows: Sequence[Flow], cluster: Cluster
) -> Mapping[str, Memory]:
    """Memory of each device that has blocks."""
    held: dict[str, list[BlockCost]] = defaultdict(list)
    for stage in stages:
        held[stage.lead] += costs[stage.start : stage.stop]
    buffers = in_flight_bytes(flows) if len(held) > 1 else 0
    needs = {}
    for name, blocks in held.items():
        weights, cache = sum(b.weights_bytes for b in blocks), sum(b.cache_bytes for b in blocks)
        working = max(b.activation_bytes for b in blocks) + buffers + cluster.device(name).runtime_bytes
        needs[name] = Memory(weights, cache, weights + cache + working)
    return needs


def evaluate(
    stages: Sequence[Stage],
    costs: Sequence[BlockCost],
    flows: Sequence[Flow],
    cluster: Cluster,
    options: PlanOptions,
) -> Figures:
    """Figures of a plan.

    TTFT: the chunks of a prompt move through the stages as a pipeline, so sum of the chunk's seconds over
    stages and hops + (chunks - 1) x the slowest device or link. Throughput: the period is the slowest device or
    link for one token, but not less than a token's own seconds / sequences.
    """
    sent = messages(stages, flows)
    decode, prefill = _compute(stages, costs, cluster)
    decode_links = _links(sent, cluster, {m: m.flow.decode_bytes for m in sent})
    prefill_links = _links(sent, cluster, {m: m.flow.prefill_bytes for m in sent})
    waits = _latency(stages, sent, cluster)
    tpot = sum(decode.values()) + sum(decode_links.values()) + waits
    fill = sum(prefill.values()) + sum(prefill_links.values()) + waits
    slowest_chunk = max(*prefill.values(), *prefill_links.values(), 0.0)
    slowest_token = max(*decode.values(), *decode_links.values(), 0.0)
    ttft = fill + (options.chunks - 1) * slowest_chunk
    period = max(slowest_token, tpot / options.sequences)
    request = ttft + options.new_tokens * tpot
    objective = request if options.objective == "latency" else period + TOKEN_WEIGHT * tpot
    return Figures(ttft, fill, tpot, period, slowest_chunk, slowest_token, objective, decode)


def _compute(
    stages: Sequence[Stage], costs: Sequence[BlockCost], cluster: Cluster
) -> tuple[dict[str, float], dict[str, float]]:
    decode: dict[str, float] = defaultdict(float)
    prefill: dict[str, float] = defaultdict(float)
    for stage in stages:
        device = cluster.device(stage.lead)
        for cost in costs[stage.start : stage.stop]:
            decode[device.name] += decode_seconds(cost, device)
            prefill[device.name] += prefill_seconds(cost, device)
    return dict(decode), dict(prefill)


def _links(
    sent: Sequence[Message], cluster: Cluster, size: Mapping[Message, int]
) -> dict[tuple[str, str], float]:
    """Seconds each link is busy."""
    busy: dict[tuple[str, str], float] = defaultdict(float)
    for m in sent:
        busy[m.source, m.destination] += size[m] / cluster.link(m.source, m.destination).bytes_per_s
    return dict(busy)


def _latency(stages: Sequence[Stage], sent: Sequence[Message], cluster: Cluster) -> float:
    hops = [(a.lead, b.lead) for a, b in pairwise(stages)]
    hops += [(m.source, m.destination) for m in sent if not m.sequential]
    return sum(cluster.link(*hop).latency_s for hop in hops)
