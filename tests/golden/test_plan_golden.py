"""A small plan, the programs it gives, and the saved problem, against committed texts.

UPDATE_GOLDEN=1 rewrites them; read the difference before committing it.
"""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

from llcompile.bundle import graph_record
from llcompile.bundle.records import stage_records, transmission_records
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.plan import Flow, Plan
from llcompile.partition import Spare, device_programs, plan, with_spares
from tests.unit.partition.cases import OPTIONS, cost, device
from tests.unit.partition.graphs import layered
from tests.unit.partition.test_programs import text

HERE = Path(__file__).parent
GRAPH = layered(2, parallel=True)
# Three of four devices are needed; the fourth is slow. x0 and x1 are read by two blocks each.
COSTS = tuple(
    cost(b, weights, 1000 * (b % 2), 200) for b, weights in enumerate((9000, 6000, 12000, 6000, 12000, 9000))
)
FLOWS = tuple(
    Flow(name, block.id, GRAPH.consumers(name), 32, 512)
    for block in GRAPH.blocks
    for name in block.outputs
    if GRAPH.consumers(name)
)
CLUSTER = Cluster(
    "h",
    (device("h", 30_000), device("a", 24_000), device("slow", 40_000, 1e7, 1e6), device("b", 24_000)),
    Link(1e7, 1e-5),
    {("a", "b"): Link(1e6, 1e-4), ("b", "a"): Link(1e6, 1e-5)},
)


def compare(found: str, name: str) -> None:
    path = HERE / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


def printed(made: Plan) -> str:
    """A field a line, numbers to six digits (solve_s and the problems aside)."""
    lines = []
    for field in fields(made):
        value = getattr(made, field.name)
        if field.name in ("solve_s", "problem", "spare_problem"):
            continue
        if isinstance(value, tuple):
            lines += [f"{field.name}:", *(f"  {entry}" for entry in value)]
        elif hasattr(value, "items"):
            lines += [f"{field.name}:", *(f"  {key}: {entry}" for key, entry in value.items())]
        else:
            lines.append(
                f"{field.name}: {value:.6g}" if isinstance(value, float) else f"{field.name}: {value}"
            )
    return "\n".join(lines) + "\n"


def test_plan_and_programs() -> None:
    described = graph_record(GRAPH)
    made = plan(COSTS, FLOWS, CLUSTER, OPTIONS)
    made = with_spares(made, COSTS, FLOWS, CLUSTER, OPTIONS, described, Spare.AUTO)
    sent = transmission_records(made.transmissions)
    idle = sorted(made.held.keys() - made.devices.keys())
    programs = device_programs(described, stage_records(made.stages), sent, CLUSTER.head, idle)
    compare("\n".join([printed(made), *text(programs, GRAPH), ""]), "plan_small.txt")


def test_saved_problem() -> None:
    """Two devices, uniform links: the whole MPS text."""
    two = replace(CLUSTER, devices=CLUSTER.devices[:2], links={})
    chain = tuple(Flow(f"x{b}", b, (b + 1,), 32, 512) for b in range(3))
    compare(plan(COSTS[:4], chain, two, OPTIONS).problem, "plan_problem.txt")
