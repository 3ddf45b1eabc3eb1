"""A bundle of a made-up model on two devices, small enough to be written in every test. No compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llcompile.bundle import graph_record, write_bundle
from llcompile.bundle.records import stage_records, transmission_records
from llcompile.explain import pages
from llcompile.ir.cluster import Cluster, Device, Link, Processor
from llcompile.ir.graph import Block, CacheSpec, Graph, Template, TensorSpec, WeightParam
from llcompile.ir.model import Model, WeightSource
from llcompile.ir.packing import LoweredTemplate, layout_of, packed_params
from llcompile.ir.plan import BlockCost, DeviceLoad, Plan, Stage, Transmission
from llcompile.ir.shard import WeightCut
from llcompile.partition import device_programs
from llcompile.partition.envelope import envelope
from llcompile.quantize import write_block
from llrun import schema
from llrun.programs.write import idle_program
from llrun.schema import Isa, PlanStatus, Precision, Shapes, TransmissionKind

HIDDEN = TensorSpec("hidden", "float32", (1, "n", 32))
LOGITS = TensorSpec("logits", "float32", (1, "n", 40))
PROCESSORS = {
    "big": Processor("x86_64-linux-gnu", "x86-64-v3", (), Isa.AVX2),
    "small": Processor("aarch64-linux-gnu", "cortex-a76", (), Isa.NEON_DOTPROD),
}
TILES = {"big": 8, "small": 4}


def template(
    id: str,
    weights: tuple[WeightParam, ...],
    caches: tuple[CacheSpec, ...] = (),
    output: TensorSpec = HIDDEN,
) -> Template:
    return Template(id, b"", (HIDDEN,), weights, (output,), caches, ("Linear", "Add"), 2048, 64, 256)


TEMPLATES = {
    "t0": template("t0", (WeightParam("table", (40, 32), "embedding"),)),
    "t1": template(
        "t1",
        (WeightParam("w", (40, 32), "linear"), WeightParam("norm", (32,), "plain")),
        (CacheSpec(1, 1, 16, 16),),
    ),
    "t2": template("t2", (WeightParam("head", (40, 32), "linear"),), output=LOGITS),
}
GRAPH = Graph(
    blocks=(
        Block(0, "t0", ("input_ids",), ("h0",), ("embed",)),
        Block(1, "t1", ("h0", "position_ids"), ("h1",), ("layer.w", "layer.norm")),
        Block(2, "t1", ("h1", "position_ids"), ("h2",), ("layer2.w", "layer2.norm")),
        Block(3, "t2", ("h2",), ("logits",), ("embed",), last_row_only=True),
    ),
    templates=TEMPLATES,
    tensors={},
    positions=None,
)
WEIGHTS = {name: WeightSource(name, (40, 32), "f32") for name in ("embed", "layer.w", "layer2.w")} | {
    name: WeightSource(name, (32,), "f32", init="ones") for name in ("layer.norm", "layer2.norm")
}
COSTS = tuple(BlockCost(i, 1000 * (i + 1), 64, 256, 4096, 1500, 90_000, 10_000) for i in range(4))
DESCRIBED = graph_record(GRAPH)
PLAN = Plan(
    status=PlanStatus.OPTIMAL,
    objective=0.25,
    bound=0.25,
    gap=0,  # a whole number, as solvers return them
    solve_s=1.25,
    seed=1,
    ttft_s=0.5,
    tpot_s=0.02,
    chunk_s=0.2,
    slowest_chunk_s=0.1,
    precision=Precision.of("q4", "f16"),
    shapes=Shapes(64, 16),
    prompt_tokens=512,
    new_tokens=128,
    sequences=8,
    stages=(
        Stage.on("laptop", 0, 1),
        Stage(("pi",), (1,), 1, 3),
        Stage.on("laptop", 3, 4),
    ),
    devices={
        "laptop": DeviceLoad(5000, 0, 60_000_000, 1 << 30, 0.001),
        "pi": DeviceLoad(5000, 128, 70_000_000, 1 << 29, 0.002),
    },
    unused={"phone": "its link adds <9 ms> a token & saves 2 ms"},
    transmissions=(
        Transmission("h0", TransmissionKind.SEQUENTIAL, "laptop", "pi", 128),
        Transmission("h2", TransmissionKind.SEQUENTIAL, "pi", "laptop", 128),
    ),
    problem="NAME plan\nENDATA\n",
)


def device(name: str, target: str, port: int) -> Device:
    return Device(name, target, f"127.0.0.1:{port}", 1 << 30, 1, 1e9, 1e9, 1e8, 5 << 20, PROCESSORS[target])


CLUSTER = Cluster(
    head="laptop",
    devices=(device("laptop", "big", 5700), device("pi", "small", 5701), device("phone", "small", 5702)),
    default_link=Link(1e7, 0.001),
    links={},
)


PROGRAMS = device_programs(
    DESCRIBED, stage_records(PLAN.stages), transmission_records(PLAN.transmissions), CLUSTER.head
)


def lower(target: str, quant: str = "q4") -> tuple[LoweredTemplate, ...]:
    lowered = []
    for t in TEMPLATES.values():
        layouts = [layout_of(w.role, quant, TILES[target]) for w in t.weights]
        params = [
            p
            for i, (w, layout) in enumerate(zip(t.weights, layouts, strict=True))
            for p in packed_params(i, w.name, w.shape, layout)
        ]
        caches = [("float16", (c.kv_heads, 64, d)) for c in t.caches for d in (c.key_dim, c.value_dim)]
        lowered.append(LoweredTemplate(t.id, tuple(params), tuple(caches)))
    return tuple(lowered)


def pack(
    path: Path,
    lowered: LoweredTemplate,
    template: Template,
    block: Block,
    progress: Callable[[int], None],
    cuts: Sequence[WeightCut] | None,
) -> schema.FileEntry:
    return write_block(path, lowered, template, block, WEIGHTS, seed=1, progress=progress, cuts=cuts)


def arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    """write_bundle's arguments; libraries and tokenizer are made in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("big.so", "small.so", "runtime.so", "tokenizer.json"):
        (folder / name).write_bytes(name.encode() * 1000)
    model = Model(
        name="tiny <model>",
        architecture="TinyForCausalLM",
        onnx=b"",
        weights=WEIGHTS,
        vocab_size=40,
        hidden_size=32,
        max_positions=64,
        bos_token_id=None,
        eos_token_ids=(2,),
        tokenizer_files=(str(folder / "tokenizer.json"),),
        random_seed=1,
    )
    plan = changes.get("plan", PLAN)
    return {
        "model": model,
        "graph": GRAPH,
        "costs": COSTS,
        "plan": plan,
        "cluster": CLUSTER,
        "lowered": {target: lower(target) for target in PROCESSORS},
        "libraries": {target: folder / f"{target}.so" for target in PROCESSORS},
        "runtime_libraries": {target: folder / "runtime.so" for target in PROCESSORS},
        "programs": PROGRAMS,
        "described": DESCRIBED,
        "envelope": envelope(plan.held, COSTS, changes.get("cluster", CLUSTER)),
        "pack": pack,
        "pages": pages,
        **changes,
    }


def build(out: Path, **changes: Any) -> Path:
    """Write the bundle at `out`, its inputs beside it."""
    write_bundle(out, **arguments(out.parent / f"{out.name}-inputs", **changes))
    return out


def with_spares() -> dict[str, Any]:
    """The phone runs nothing and holds the pi's blocks too: equal processors, hence equal files."""
    return {
        "plan": replace(PLAN, spares={"laptop": (1,), "phone": (1, 2)}),
        "programs": {**PROGRAMS, "phone": idle_program("phone")},
    }
