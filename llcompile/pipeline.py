"""The whole compiler as one straight line: the only module that knows the order of the stages."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import ceil
from pathlib import Path

from llcompile import bundle, cost, explain, frontend, graph, lower, partition, quantize
from llcompile.cluster import load_cluster, with_tokenizer
from llcompile.ir.cluster import Cluster, Processor
from llcompile.ir.errors import CompileError
from llcompile.ir.graph import Block, Graph, Template
from llcompile.ir.model import Model
from llcompile.ir.packing import LoweredTemplate
from llcompile.ir.plan import BlockCost, Plan
from llcompile.ir.printer import print_graph, print_groups, print_planned
from llcompile.ir.shard import Group, WeightCut
from llcompile.rounding import calibration_sequences, calibration_text, check_bits, in_bits
from llcompile.sharding import Sharding, piece_templates, sum_templates
from llcompile.trace import Trace
from llrun.programs.groups import sum_templates as sum_names
from llrun.schema import FileEntry, Precision, Shapes, WireFormat

DEFAULT_CONTEXT = 4096
CHUNK = 128
PIECE_SHARE = 1 / 4  # of the head's memory: a piece of an output head that streams, of which a ring has three


@dataclass(frozen=True)
class BuildOptions:
    """What the command line asks for. `bits`: of a weight, in formats that are chosen for each matrix; None: all in
    `quant`. `context` None: the model's limit, at most DEFAULT_CONTEXT. `calibrate`: random, none, or the path of a
    text. `prompt_tokens`, `new_tokens`: the request that the plan is for, None: 512 and 128, as far as the context
    holds them. `time_limit`: seconds that planning may take. `keep`: the first and last so many layers stay on the
    head. `tensor_parallel`: auto, off, or the number of devices of a group. `window`: auto, off, or how many blocks of
    a device are in memory at once."""

    model: str
    target: Path
    quant: str = "q4"
    bits: float | None = None
    cache: str = "f16"
    wire: str = partition.wires.AUTO
    context: int | None = None
    objective: str = "latency"
    use_all: bool = False
    spare: str = "auto"
    pins: tuple[str, ...] = ()
    random_seed: int | None = None
    jobs: int = 1
    calibrate: str = "random"
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    sequences: int = partition.options.SEQUENCES
    time_limit: float = partition.options.TIME_LIMIT_S
    keep: int = 0
    tensor_parallel: str = "auto"
    window: str = "auto"


@dataclass(frozen=True)
class Planned:
    """A plan with all that led to it."""

    model: Model
    graph: Graph
    cluster: Cluster
    costs: tuple[BlockCost, ...]
    plan: Plan

    @cached_property
    def sharding(self) -> Sharding:
        """What cuts blocks for groups, in the formats and sizes of the plan."""
        return Sharding(self.graph, self.plan.precision, self.plan.shapes)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The plan's stages of several devices and its divisions, with the pieces of their blocks."""
        return self.sharding.groups((*self.plan.stages, *self.plan.divisions))


@dataclass(frozen=True)
class Compiled:
    """By target: how its functions are called, its library, and the runtime library for its processor."""

    lowered: Mapping[str, tuple[LoweredTemplate, ...]]
    libraries: Mapping[str, Path]
    runtime: Mapping[str, Path]


def make_plan(
    options: BuildOptions, trace: Trace, progress: bundle.Progress | None = None, text: str | None = None
) -> Planned:
    """MODEL and devices.json to a plan; nothing is compiled. `text`: what --bits is measured on, None: random
    tokens."""
    check_bits(options)
    cluster = load_cluster(options.target)
    for text in options.pins:
        partition.parse_pin(text)  # a slip of the pen is told before the export, not after
    partition.check_time_limit(options.time_limit)
    partition.parse_window(options.window)
    partition.parse_tensor_parallel(options.tensor_parallel)
    with trace.stage("export"):
        model = frontend.load_model(
            options.model, options.random_seed, trace.passes(frontend.text, frontend.serialized)
        )
        for note in notes_on(model, options):
            trace.write(f"note: {note}")
    with trace.stage("graph"):
        dataflow = graph.build_graph(model, trace.passes(graph.print_dataflow))
        trace.program("blocks", print_graph(dataflow))
    if options.bits is not None:
        with trace.stage("measure"):
            dataflow = in_bits(options, model, dataflow, text, progress)
    with trace.stage("plan"):
        planned = plan_graph(model, dataflow, cluster, options)
        trace.plan(lambda: print_planned(planned.plan, planned.costs))
        if planned.graph is not dataflow:
            trace.program("output-in-pieces", print_graph(planned.graph))
        if planned.groups:
            trace.program("pieces", print_groups(planned.groups))
    return planned


def plan_graph(model: Model, dataflow: Graph, cluster: Cluster, options: BuildOptions) -> Planned:
    """Decide which device computes which blocks of `dataflow`, whose output head is in pieces where blocks stream."""
    cluster = with_tokenizer(cluster, model.tokenizer_bytes)
    context = context_of(options, model)
    precision, shapes = Precision.of(options.quant, options.cache), Shapes(context, min(CHUNK, context))
    costs = cost.block_costs(dataflow, precision, shapes)
    prompt_tokens, new_tokens = partition.request_of(options.prompt_tokens, options.new_tokens, context)
    pins = partition.parse_pins(options.pins, cluster, len(dataflow.blocks))
    wishes = partition.PlanOptions(
        objective=options.objective,
        use_all=options.use_all,
        pins=(*pins, *partition.kept_pins(options.keep, costs, cluster.head)),
        tensor_parallel=partition.parse_tensor_parallel(options.tensor_parallel),
        precision=precision,
        shapes=shapes,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        sequences=options.sequences,
        time_limit_s=options.time_limit,
    )
    sharding = Sharding(dataflow, precision, shapes)

    @cache
    def in_pieces() -> tuple[Model, Graph]:
        room_bytes = cluster.device(cluster.head).memory_bytes * PIECE_SHARE
        return graph.output_in_pieces(model, dataflow, ceil(costs[-1].weights_bytes / room_bytes))

    plan = _best_plan(dataflow, cluster, options, wishes, sharding, lambda: in_pieces()[1])
    if plan.stages[-1].stop != len(dataflow.blocks):
        model, dataflow = in_pieces()
        costs, sharding = cost.block_costs(dataflow, precision, shapes), Sharding(dataflow, precision, shapes)
    if options.wire == partition.wires.AUTO:
        plan = _per_link(plan, dataflow, cluster, wishes, sharding)
    travel, exact = (
        cost.flows(dataflow, shapes.chunk, wire) for wire in (plan.precision.wire, WireFormat.F32)
    )
    left = partition.settled(travel, exact, plan.wires)
    sharding, spare = replace(sharding, precision=plan.precision), partition.Spare(options.spare)
    plan = partition.with_divisions(plan, costs, left, cluster, wishes, spare, sharding.costs)
    groups = sharding.groups((*plan.stages, *plan.divisions))
    described = bundle.graph_record(dataflow, plan.wires, groups)
    plan = partition.with_spares(plan, costs, left, cluster, wishes, described, spare, sharding.costs)
    return Planned(model, dataflow, cluster, costs, plan)


def _best_plan(
    dataflow: Graph,
    cluster: Cluster,
    options: BuildOptions,
    wishes: partition.PlanOptions,
    sharding: Sharding,
    in_pieces: Callable[[], Graph],
) -> Plan:
    """The best of the plans for the formats and for the pieces of a prompt that are worth a look. `in_pieces`: the
    graph with several blocks for the output head, which plans with windows are then made of."""
    window, devices = partition.parse_window(options.window), len(cluster.at_work().devices)

    def make(wire: WireFormat, portion: int | None, limit_s: float) -> Plan:
        precision, shapes = replace(wishes.precision, wire=wire), wishes.shapes
        asked = replace(wishes, precision=precision, portion=portion, time_limit_s=limit_s)
        costs = cost.block_costs(dataflow, precision, shapes, portion)
        flows = cost.flows(dataflow, shapes.chunk, wire, portion)
        pieces = replace(sharding, precision=precision, portion=portion).costs

        def output_in_pieces() -> tuple[BlockCost, ...]:
            return cost.block_costs(in_pieces(), precision, shapes, portion)

        return partition.plan_with_windows(costs, flows, cluster, asked, window, pieces, output_in_pieces)

    def in_portions(wire: WireFormat, limit_s: float) -> Plan:
        asked = replace(wishes, time_limit_s=limit_s)
        return partition.plan_portions(asked, devices, lambda rows, left_s: make(wire, rows, left_s))

    return partition.plan_wire(options.wire, devices, options.time_limit, in_portions)


def _per_link(
    plan: Plan, dataflow: Graph, cluster: Cluster, wishes: partition.PlanOptions, sharding: Sharding
) -> Plan:
    """The plan whose narrow format is taken where it saves time alone."""
    precision, portion, chunk = plan.precision, plan.portion, plan.shapes.chunk
    asked = replace(wishes, precision=precision, portion=portion)
    costs = cost.block_costs(dataflow, precision, plan.shapes, portion)
    flows = [cost.flows(dataflow, chunk, wire, portion) for wire in (precision.wire, WireFormat.F32)]
    pieces = replace(sharding, precision=precision, portion=portion).costs
    return partition.widened(plan, costs, (flows[0], flows[1]), cluster, asked, pieces)


def notes_on(model: Model, options: BuildOptions) -> tuple[str, ...]:
    """What the user should know of `model`, a sentence each."""
    if not model.positions_reason or options.context is not None:
        return model.notes
    context = context_of(options, model)
    return (*model.notes, f"{model.name}: --context is {context}, because {model.positions_reason}")


def context_of(options: BuildOptions, model: Model) -> int:
    """Tokens a sequence may hold. Raises CompileError when more are asked for than the model was made for, or than
    its graph is right for."""
    most = model.max_positions
    if options.context is None:
        return min(most, DEFAULT_CONTEXT)
    if options.context > most:
        limit = f"for which {model.name} can be compiled: {model.positions_reason}"
        reason = limit if model.positions_reason else f"that {model.name} was made for"
        raise CompileError(
            "F190",
            f"--context {options.context} is more than the {most} positions {reason}; use --context {most} or less",
        )
    return options.context


def build(options: BuildOptions, out: Path, trace: Trace, progress: bundle.Progress | None) -> Planned:
    """MODEL and devices.json to a bundle at `out`."""
    bundle.check_destination(out)
    text = calibration_text(options)
    planned = make_plan(options, trace, progress, text)
    sequences = calibration_sequences(options, planned.model, text)
    with tempfile.TemporaryDirectory(prefix="llcompile-") as scratch:
        with trace.stage("compile"):
            compiled = compile_targets(planned, Path(scratch))
        calibration = None
        if sequences:
            with trace.stage("calibrate"):
                weights, folder = planned.model.weights, Path(scratch) / "calibration"
                calibration = quantize.calibrate(
                    planned.graph,
                    weights,
                    sequences,
                    folder,
                    progress,
                    options.jobs,
                    planned.plan.precision.cache,
                )
        with trace.stage("pack"):
            write(planned, compiled, out, progress, options.jobs, calibration)
    return planned


def write(
    planned: Planned,
    compiled: Compiled,
    out: Path,
    progress: bundle.Progress | None = None,
    jobs: int = 1,
    calibration: quantize.Calibration | None = None,
) -> None:
    """Pack the weights and write the bundle."""
    model = planned.model

    def pack(
        path: Path,
        lowered: LoweredTemplate,
        template: Template,
        block: Block,
        progress: Callable[[int], None],
        cuts: Sequence[WeightCut] | None,
    ) -> FileEntry:
        seed = model.random_seed or 0
        return quantize.write_block(
            path, lowered, template, block, model.weights, seed, progress, jobs, calibration, cuts
        )

    record = bundle.plan_record(planned.plan, planned.graph, planned.costs)
    described = bundle.graph_record(planned.graph, planned.plan.wires, planned.groups)
    held = planned.plan.held
    idle = [device for device in held if device not in planned.plan.devices]
    programs = partition.device_programs(
        described, record.stages, record.transmissions, planned.cluster.head, idle
    )
    bundle.write_bundle(
        out,
        model=model,
        graph=planned.graph,
        costs=planned.costs,
        plan=planned.plan,
        cluster=planned.cluster,
        lowered=compiled.lowered,
        libraries=compiled.libraries,
        runtime_libraries=compiled.runtime,
        programs=programs,
        described=described,
        envelope=partition.envelope(
            held,
            planned.costs,
            planned.cluster,
            planned.plan.stages,
            planned.sharding.costs,
            planned.plan.divisions,
        ),
        pack=pack,
        pages=explain.pages,
        progress=progress,
        groups=planned.groups,
    )


def compile_targets(planned: Planned, scratch: Path) -> Compiled:
    """Compile every template once for each distinct processor, and the pieces of the groups there; targets that share
    one share its library."""
    plan = planned.plan
    processors = {d.target: d.processor for d in map(planned.cluster.device, plan.held)}
    # Looked up first: a missing library should be reported before minutes of work, not after.
    runtime = {target: bundle.runtime_library(p.mtriple) for target, p in processors.items()}
    lowered: dict[str, tuple[LoweredTemplate, ...]] = {}
    libraries: dict[str, Path] = {}
    done: dict[Processor, str] = {}
    for target, processor in sorted(processors.items()):
        twin = done.setdefault(processor, target)
        if twin == target:
            templates, without_weights = templates_for(planned, processor)
            lowered[target] = lower.lower_templates(templates, plan.precision, plan.shapes, processor)
            libraries[target] = scratch / f"{target}.so"
            lower.kept_library(
                [*templates, *without_weights],
                plan.precision,
                plan.shapes,
                processor,
                libraries[target],
            )
        lowered[target], libraries[target] = lowered[twin], libraries[twin]
    return Compiled(lowered, libraries, runtime)


def templates_for(planned: Planned, processor: Processor) -> tuple[list[Template], list[Template]]:
    """What devices with `processor` run: templates of blocks and pieces, and of what has no weights, positions and
    sums of parts."""
    groups = planned.groups
    devices = {device.name for device in planned.cluster.devices if device.processor == processor}
    record = bundle.graph_record(planned.graph, groups=groups)
    sums = {name for device in devices for name in sum_names(record, device)}
    positions = [planned.graph.positions] if planned.graph.positions else []
    return (
        [*planned.graph.templates.values(), *piece_templates(groups, devices)],
        [*positions, *sum_templates(groups, sums)],
    )
