"""Where a group overtakes single devices: what the planner predicts for links of 0.1 to 20 ms.

    python benchmarks/plan_groups.py                              # TinyLlama's shape on four equal devices
    python benchmarks/plan_groups.py --model DIR --target devices.json --prompt-tokens 128

Nothing is compiled or run. MODEL needs a config.json alone. Every link gets the latency of its row; its rate stays.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
from shared.shapes import TINYLLAMA, devices_file, model_directory
from shared.tables import table

from llcompile import cost, frontend, graph, partition
from llcompile.cluster import load_cluster
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.plan import Plan
from llcompile.partition.options import NO_GROUPS
from llcompile.sharding import Sharding
from llrun.schema import Precision, Shapes

LATENCIES_MS = "0.1,0.2,0.5,1,2,3,4,5,7,10,15,20"
BOARDS = [
    {"name": name, "target": "raspberry-pi-5", "memory_bytes": 2_000_000_000} for name in ("head", *"abc")
]
WORDS = ("links", "it takes", "group")


@click.command()
@click.option("--model", type=click.Path(path_type=Path), help="A directory with a config.json.")
@click.option("--target", type=click.Path(path_type=Path), help="devices.json")
@click.option("--quant", default="q4", show_default=True)
@click.option("--context", default=2048, show_default=True)
@click.option("--prompt-tokens", default=128, show_default=True)
@click.option("--new-tokens", default=128, show_default=True)
@click.option(
    "--rate", default=1.25e8, show_default=True, help="Bytes a second of every link; 0: as devices.json says."
)
@click.option("--time-limit", default=10.0, show_default=True)
@click.option("--latencies", default=LATENCIES_MS, show_default=True, metavar="MS,...")
def main(
    model: Path | None,
    target: Path | None,
    quant: str,
    context: int,
    prompt_tokens: int,
    new_tokens: int,
    rate: float,
    time_limit: float,
    latencies: str,
) -> None:
    """Print what single devices and the best group take, and which of them the plan is."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = model or model_directory(Path(scratch) / "model", TINYLLAMA)
        cluster = load_cluster(target or devices_file(Path(scratch) / "devices.json", BOARDS))
        dataflow = graph.build_graph(frontend.load_model(str(folder), 1))
    precision, shapes = Precision.of(quant, "f16"), Shapes(context, min(128, context))
    options = partition.PlanOptions(
        objective="latency",
        precision=precision,
        shapes=shapes,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        time_limit_s=time_limit,
    )
    flows = cost.flows(dataflow, shapes.chunk, precision.wire)
    costs = cost.block_costs(dataflow, precision, shapes)
    sharding, rows = Sharding(dataflow, precision, shapes), []
    for latency_ms in map(float, latencies.split(",")):
        given = with_links(cluster, latency_ms / 1e3, rate)
        single = partition.plan(costs, flows, given, replace(options, tensor_parallel=NO_GROUPS))
        best = partition.plan(costs, flows, given, options, sharding.costs)
        rows.append(row(latency_ms, single, best, new_tokens))
    heads = ("links", "single: request", "token", "plan: request", "token", "planned in", "it takes", "group")
    sys.stdout.write(table(heads, rows, WORDS) + "\n")


def with_links(cluster: Cluster, latency_s: float, rate: float) -> Cluster:
    """`cluster` with that latency, and that rate if it is not 0, on every link."""

    def changed(link: Link) -> Link:
        return Link(rate or link.bytes_per_s, latency_s)

    links = {way: changed(link) for way, link in cluster.links.items()}
    return replace(cluster, default_link=changed(cluster.default_link), links=links)


def row(latency_ms: float, single: Plan, best: Plan, new_tokens: int) -> Sequence[str]:
    """A line of the table."""
    group = next((stage for stage in best.stages if stage.is_group), None)
    shares = zip(group.devices, group.shares, strict=True) if group else ()
    words = ", ".join(f"{name} {share:.0%}" for name, share in shares)
    return (
        f"{latency_ms:g} ms",
        f"{single.ttft_s + new_tokens * single.tpot_s:.2f} s",
        f"{single.tpot_s * 1e3:.1f} ms",
        f"{best.ttft_s + new_tokens * best.tpot_s:.2f} s",
        f"{best.tpot_s * 1e3:.1f} ms",
        f"{best.solve_s:.1f} s, gap {best.gap:.1%}",
        "a group" if group else f"{len(best.devices)} single",
        f"{words} ({group.all_reduce}), blocks {group.start} to {group.stop - 1}" if group else "-",
    )


if __name__ == "__main__":
    main()
