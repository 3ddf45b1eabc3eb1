"""Pieces of blocks that cost what their share says, and a plan with groups evaluated a second time, slowly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from llcompile.ir.cluster import Cluster, Device
from llcompile.ir.plan import BlockCost, Flow, PieceCosts, ShardCosts, Stage
from llcompile.partition.options import PlanOptions

PARTIAL = 64  # bytes of a token's partial; a chunk has 16 tokens
TAIL = 40


def linear(costs: Sequence[BlockCost], uncut: Sequence[int] = ()) -> ShardCosts:
    """Each shard has its share of everything; a tail reads a few bytes, and as much again for each part that it sums.
    The ends of the model and the blocks `uncut` cannot be cut."""

    def pieces(blocks: Sequence[int], shares: tuple[float, ...], parts: int) -> Mapping[int, PieceCosts]:
        return {
            b: PieceCosts(
                tuple(_part(costs[b], share) for share in shares),
                tuple(_tail(costs[b], parts) for _ in shares),
                PARTIAL,
                16 * PARTIAL,
            )
            for b in blocks
            if 0 < b < len(costs) - 1 and b not in uncut
        }

    return pieces


def _part(cost: BlockCost, share: float) -> BlockCost:
    return replace(
        cost,
        weights_bytes=round(cost.weights_bytes * share),
        cache_bytes=round(cost.cache_bytes * share),
        activation_bytes=round(cost.activation_bytes * share),
        decode_flops=cost.decode_flops * share,
        decode_bytes=cost.decode_bytes * share,
        prefill_flops=cost.prefill_flops * share,
        prefill_bytes=cost.prefill_bytes * share,
    )


def _tail(cost: BlockCost, parts: int) -> BlockCost:
    size = float(TAIL * (1 + parts))
    once = cost.last_row_only
    return BlockCost(cost.block, TAIL, 0, TAIL, size, size, 16 * size, 16 * size, last_row_only=once)


class Slowly:
    """One plan's seconds and bytes, message by message, in other words than llcompile.partition.evaluate's."""

    def __init__(
        self,
        stages: Sequence[Stage],
        costs: Sequence[BlockCost],
        flows: Sequence[Flow],
        cluster: Cluster,
        options: PlanOptions,
        pieces: ShardCosts,
    ) -> None:
        self.stages, self.costs, self.flows = stages, costs, flows
        self.cluster, self.options, self.pieces = cluster, options, pieces
        self.where = {b: s for s in stages for b in s.blocks}

    def seconds(self, cost: BlockCost, device: Device, decode: bool) -> float:
        moved, done = (
            (cost.decode_bytes, cost.decode_flops) if decode else (cost.prefill_bytes, cost.prefill_flops)
        )
        return max(moved / device.memory_bytes_per_s, done / device.compute_flops)

    def stage(self, stage: Stage, decode: bool) -> float:
        members = [self.cluster.device(name) for name in stage.devices]
        total = 0.0
        for b in stage.blocks:
            if len(members) == 1:
                total += self.seconds(self.costs[b], members[0], decode)
                continue
            cut = self.pieces([b], stage.shares, len(members) if stage.all_reduce == "direct" else 1)[b]
            total += max(self.seconds(cut.shards[r], d, decode) for r, d in enumerate(members))
            total += max(self.seconds(cut.tails[r], d, decode) for r, d in enumerate(members))
            total += self.sum(stage, cut.partial_decode_bytes if decode else cut.partial_prefill_bytes)
        return total

    def way(self, source: str, to: str) -> tuple[float, float]:
        link = self.cluster.link(source, to)
        return link.latency_s, link.bytes_per_s

    def sum(self, stage: Stage, size: int) -> float:
        names = list(stage.devices)
        if stage.all_reduce == "ring":
            once, twice = [*names, names[0]], [*names, *names[:-1]]
            latency = sum(self.way(a, b)[0] for a, b in pairwise(once))
            return latency + sum(size / self.way(a, b)[1] for a, b in pairwise(twice))
        if stage.all_reduce == "star":
            root = names[stage.root]
            others = [name for name in names if name != root]
            up, down = ([self.way(n, root) for n in others], [self.way(root, n) for n in others])
            return sum(max(w for w, _ in ways) + sum(size / r for _, r in ways) for ways in (up, down))
        out = [sum(size / self.way(a, b)[1] for b in names if b != a) for a in names]
        into = [sum(size / self.way(a, b)[1] for a in names if a != b) for b in names]
        return max(self.way(a, b)[0] for a in names for b in names if a != b) + max(*out, *into)

    def travel(self, decode: bool) -> tuple[float, list[float]]:
        """Seconds of all messages, and how long each link is busy."""
        total, links = 0.0, dict[tuple[str, tuple[str, ...]], float]()
        for a, b in pairwise(self.stages):
            total += max([self.way(a.devices[0], n)[0] for n in b.devices if n not in a.devices] or [0.0])
        for flow in self.flows:
            made = self.where[flow.producer]
            have, size = set(made.devices), flow.decode_bytes if decode else flow.prefill_bytes
            for b in sorted(flow.consumers):
                user = self.where[b]
                new = [name for name in user.devices if name not in have]
                have |= set(new)
                taken = sum(size / self.way(made.devices[0], n)[1] for n in new)
                key = made.devices[0], user.devices
                links[key] = links.get(key, 0.0) + taken
                total += taken
                if new and list(self.stages).index(user) > list(self.stages).index(made) + 1:
                    total += max(self.way(made.devices[0], n)[0] for n in new)
        return total, list(links.values())

    def slowest(self, decode: bool) -> float:
        """The most that a device or a link is busy with each token, or with each chunk after the first."""
        busy: dict[str, float] = {}
        for stage in self.stages:
            blocks = [b for b in stage.blocks if decode or not self.costs[b].last_row_only]
            taken = sum(self.stage(replace(stage, start=b, stop=b + 1), decode) for b in blocks)
            for name in stage.devices:
                busy[name] = busy.get(name, 0.0) + taken
        return max([*busy.values(), *self.travel(decode)[1]])

    def whole(self, decode: bool) -> float:
        return sum(self.stage(stage, decode) for stage in self.stages) + self.travel(decode)[0]

    def objective(self) -> float:
        options, token = self.options, self.whole(True)
        if options.objective == "throughput":
            return max(self.slowest(True), token / options.sequences) + 1e-3 * token
        chunks = max(1.0, options.prompt_tokens / options.shapes.chunk)
        return self.whole(False) + (chunks - 1) * self.slowest(False) + options.new_tokens * token

    def peak(self, name: str) -> int:
        """Bytes that a device needs."""
        held, parts = list[BlockCost](), 0
        for stage in self.stages:
            if name not in stage.devices:
                continue
            for b in stage.blocks:
                if len(stage.devices) == 1:
                    held.append(self.costs[b])
                    continue
                rank, count = stage.devices.index(name), len(stage.devices)
                cut = self.pieces([b], stage.shares, count if stage.all_reduce == "direct" else 1)[b]
                held += [cut.shards[rank], cut.tails[rank]]
                parts = max(parts, (count - 1) * cut.partial_prefill_bytes + cut.partial_prefill_bytes)
        several = len({n for stage in self.stages for n in stage.devices}) > 1
        moving = 2 * max((f.prefill_bytes for f in self.flows), default=0) if several else 0
        stored = sum(c.weights_bytes + c.cache_bytes for c in held)
        runtime = self.cluster.device(name).runtime_bytes
        return stored + max(c.activation_bytes for c in held) + moving + parts + runtime
