"""Small random planning problems, and a devices-and-costs builder for written ones."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from llcompile.ir.cluster import Cluster, Device, Link, Processor
from llcompile.ir.plan import BlockCost, Flow
from llcompile.partition.disk import LIBRARIES_BYTES, RECORD_BYTES, file_bytes
from llcompile.partition.options import Pin, PlanOptions
from llrun.schema import Isa, Precision, Shapes

PROCESSOR = Processor("x86_64-linux-gnu", "x86-64-v3", (), Isa.AVX2)
OPTIONS = PlanOptions(
    objective="latency", precision=Precision.of("q4", "f16"), shapes=Shapes(64, 16), gap=1e-9
)


@dataclass(frozen=True)
class Case:
    costs: tuple[BlockCost, ...]
    flows: tuple[Flow, ...]
    cluster: Cluster
    options: PlanOptions


def device(name: str, memory: int = 10**9, flops: float = 1e10, rate: float = 1e9) -> Device:
    return Device(name, "x86-64-v3", "127.0.0.1:1", memory, 1, flops, rate, 1e8, 1000, PROCESSOR)


def cost(block: int, weights: int, cache: int = 0, activation: int = 100) -> BlockCost:
    moved = float(weights + cache)
    return BlockCost(block, weights, cache, activation, 2.0 * weights, moved, 32.0 * weights, moved)


def chain(blocks: int, size: int = 64) -> tuple[Flow, ...]:
    return tuple(Flow(f"x{b}", b, (b + 1,), size, size * 16) for b in range(blocks - 1))


def random_case(seed: int) -> Case:
    """Two to four devices, two to seven blocks; links, pins, tensors that skip blocks, and scarce memory at times."""
    r = random.Random(seed)
    blocks, workers = r.randint(2, 7), r.randint(0, 3)
    costs = tuple(_random_cost(r, b) for b in range(blocks))
    flows = _random_flows(r, blocks)
    costs = (*costs[:-1], replace(costs[-1], last_row_only=seed % 3 == 0))
    total = sum(c.weights_bytes + c.cache_bytes for c in costs)
    plenty = r.choice([0.5, 0.8, 1.2, 3.0])
    devices = tuple(
        device(
            f"d{i}",
            int(total * plenty * r.uniform(0.2, 1.2)) + 8000,
            r.choice([1e9, 4e9, 1e10]),
            r.choice([1e8, 1e9]),
        )
        for i in range(workers + 1)
    )
    if r.random() < 0.3 and workers > 1:
        # Twins: nothing but the name differs.
        devices = (*devices[:-1], replace(devices[-2], name=devices[-1].name))
    cluster = Cluster(f"d{r.randint(0, workers)}", devices, _link(r), _random_links(r, workers))
    return Case(costs, flows, cluster, _random_options(r, blocks, cluster))


def _random_cost(r: random.Random, block: int) -> BlockCost:
    made = cost(block, r.choice([1000, 5000, 20000]), r.choice([0, 3000]), r.choice([100, 2000]))
    return replace(made, decode_flops=made.decode_flops * r.uniform(0.1, 30))


def _random_flows(r: random.Random, blocks: int) -> tuple[Flow, ...]:
    flows = list(chain(blocks, r.choice([16, 400])))
    if r.random() < 0.5:
        flows = [
            replace(f, consumers=tuple(sorted({*f.consumers, r.randint(f.producer + 1, blocks - 1)})))
            for f in flows
        ]
    if r.random() < 0.3 and blocks > 3:
        flows.append(Flow("skip", 0, (blocks - 2, blocks - 1), 200, 900))
    return tuple(flows)


def _link(r: random.Random) -> Link:
    return Link(r.choice([1e6, 1e7, 1e8]), r.choice([1e-6, 1e-5, 1e-3]))


def _random_links(r: random.Random, workers: int) -> dict[tuple[str, str], Link]:
    """Sometimes no pair of its own; otherwise some, either direction on its own."""
    if r.random() < 0.4:
        return {}
    names = [f"d{i}" for i in range(workers + 1)]
    return {(a, b): _link(r) for a in names for b in names if a != b and r.random() < 0.6}


def _random_options(r: random.Random, blocks: int, cluster: Cluster) -> PlanOptions:
    pins: tuple[Pin, ...] = ()
    if r.random() < 0.3 and blocks > 2:
        start = r.randint(1, blocks - 2)
        pins = (Pin(start, r.randint(start + 1, blocks - 1), r.choice(cluster.devices).name),)
    return replace(
        OPTIONS,
        objective=r.choice(["latency", "throughput"]),
        use_all=r.random() < 0.25,
        pins=pins,
        prompt_tokens=r.choice([4, 48, 512]),
        new_tokens=r.choice([1, 32]),
        sequences=r.choice([1, 4]),
    )


def tight_case(seed: int) -> Case:
    """A random case whose head is about to hold the model alone: some bytes short, exact, or some to spare.

    What a plan of several charges besides (messages in flight: twice the largest tensor) lies within those bytes.
    """
    case, r = random_case(seed), random.Random(-seed - 1)
    need = sum(c.weights_bytes + c.cache_bytes for c in case.costs) + max(
        c.activation_bytes for c in case.costs
    )
    buffers = 2 * max(flow.prefill_bytes for flow in case.flows)
    spare = r.choice([-1, 0, 0, 1, buffers // 2, buffers - 1, buffers, buffers + r.randint(0, 3000)])
    devices = tuple(
        replace(d, memory_bytes=need + d.runtime_bytes + spare) if d.name == case.cluster.head else d
        for d in case.cluster.devices
    )
    pins = case.options.pins if r.random() < 0.3 else ()
    options = replace(case.options, pins=pins, use_all=case.options.use_all and r.random() < 0.3)
    return replace(case, cluster=replace(case.cluster, devices=devices), options=options)


def disk_case(seed: int) -> Case:
    """A random case with bounds on the disks of some devices: much, scarce, or not enough for the libraries."""
    case, r = random_case(seed), random.Random(-seed - 2)
    total = sum(map(file_bytes, case.costs))
    least = LIBRARIES_BYTES + RECORD_BYTES * len(case.costs)

    def bounded(d: Device) -> Device:
        if r.random() < 0.3:
            return d
        return replace(d, disk_bytes=least + int(total * r.choice([-0.1, 0.2, 0.4, 0.6, 0.9, 1.0])))

    devices = tuple(map(bounded, case.cluster.devices))
    return replace(case, cluster=replace(case.cluster, devices=devices))
