"""Where a group overtakes single devices: what the planner predicts for links of 0.1 to 20 ms.

    python benchmarks/plan_groups.py                              # TinyLlama's shape on four equal devices
    python benchmarks/plan_groups.py --model DIR --target devices.json --prompt-tokens 128
    sudo python benchmarks/plan_groups.py --measured [--figure docs/crossing.svg]

Without `--measured` nothing is compiled or run. MODEL needs a config.json alone. Every link gets the latency of its
row; its rate stays. With it: layers of TinyLlama's shape on two emulated devices with a core each, neither of which
holds the model; the plans with and without a group are both built and timed, and it ends with 1 where the plan that was
free to choose is over 5 % slower than the other. See shared/crossing.py.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
from shared.crossing import HEADS, Request, Workshop, curves, with_links
from shared.machines import why_not
from shared.peer import CACHE
from shared.shapes import TINYLLAMA, devices_file, model_directory
from shared.svg import figure
from shared.tables import table

from llcompile import cost, frontend, graph, partition
from llcompile.cluster import load_cluster
from llcompile.ir.plan import Plan
from llcompile.partition.options import NO_GROUPS
from llcompile.sharding import Sharding
from llrun.schema import Precision, Shapes

LATENCIES_MS = "0.1,0.2,0.5,1,2,3,4,5,7,10,15,20"
BOARDS = [
    {"name": name, "target": "raspberry-pi-5", "memory_bytes": 2_000_000_000} for name in ("head", *"abc")
]
WORDS = ("links", "it takes", "group")
WORDS_MEASURED = ("links", "the plan", "faster, or within 5 %")
MEMORY_BYTES = 600_000_000  # of each measured device: six layers in f16 and the output head want 0.75 GB
RATE = 1.25e8


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
@click.option("--measured", is_flag=True, help="Build and time the plans; root.")
@click.option("--layers", default=6, show_default=True, help="Of the measured model.")
@click.option("--figure", "drawing", type=click.Path(path_type=Path), help="Where to draw what was measured.")
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
    measured: bool,
    layers: int,
    drawing: Path | None,
) -> None:
    """Print what single devices and the best group take, and which of them the plan is."""
    if measured:
        measure([float(each) / 1e3 for each in latencies.split(",")], layers, drawing)
        return
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


def measure(latencies_s: Sequence[float], layers: int, drawing: Path | None) -> None:
    """Time both plans at each latency, print a table, draw it."""
    if reason := why_not(delayed=True):
        raise SystemExit(reason)

    def tell(text: str) -> None:
        click.echo(text, err=True)

    shop = Workshop(CACHE / "crossing", layers, "f16", MEMORY_BYTES, RATE, Request(128, 16), tell)
    settings = shop.settings(latencies_s)
    sys.stdout.write(table(HEADS, [each.row for each in settings], WORDS_MEASURED) + "\n")
    if drawing:
        drawing.write_text(figure(curves(settings), "latency of the link one way, ms", "a request, s"))
    sys.exit(not all(each.is_right for each in settings))


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
