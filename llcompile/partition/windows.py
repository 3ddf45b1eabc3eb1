"""Plans for devices that hold fewer blocks than they run: --window.

Where the model fits, there are no windows unless they are asked for. Where it does not, the stages are planned as if
every block between the model's ends came from disk for each token: it takes next to no memory of its own, each device
gives up that of a smallest window, and a block takes at least its bytes over the disk's rate. Then each device's
window is made as wide as its memory allows; of a group the pieces of blocks count as blocks. That is done again with
what each device then had to stream of its blocks, and the best of these plans is taken; then it is cut into rounds
(rounds.py) where that is faster. An output head that is larger than any block of a layer is several blocks in such
plans, which stream as others do; in the search they are one, as nobody but the head may have any. What is left out:
such plans are not proven to be the best; a group has one run of blocks, as every device has with --pin and --keep; and
the bound of a plan with windows is what the blocks take at least, wherever they are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf

from llcompile.ir.cluster import Cluster, Device
from llcompile.ir.errors import INFEASIBLE, CompileError
from llcompile.ir.plan import BlockCost, Flow, PieceCosts, Plan, ShardCosts, Stage, output_start
from llcompile.partition.clock import Clock
from llcompile.partition.disk import file_bytes, room_bytes
from llcompile.partition.evaluate import Figures, evaluate, held_costs, in_flight_bytes, memory
from llcompile.partition.options import NO_GROUPS, PlanOptions
from llcompile.partition.planner import plan, verify, with_stages
from llcompile.partition.problem import HEAD, Problem
from llcompile.partition.refusal import size
from llcompile.partition.rounds import best_rounds
from llcompile.partition.search import least_seconds
from llcompile.partition.streaming import as_streamed, ends, streamed, window_on
from llrun.programs.ring import AHEAD, places

OFF = 0
MOST = 1 << 14
# Plans that are made, each from what streamed in the one before; the last ones leave room for a stage whose last block
# and first are both large.
ATTEMPTS = (False, False, True, True)
ENOUGH = 0.5  # of the time
SHARPEN = 0.9  # of the time, when rounds are looked for no longer
LEAST_SHARE = 1e-3
NARROWEST = (2, 1)  # one alone reads nothing ahead
_NO_PLAN = "P201"
_LEAST_S = 1.0


def parse_window(text: str) -> int | None:
    """`auto`: None, `off`: OFF, or a number of blocks. Raises CompileError P218 (exit 2) for anything else."""
    if text == "auto":
        return None
    if text == "off":
        return OFF
    if text.isascii() and text.isdigit() and 0 < int(text[:10]) <= MOST:
        return int(text)
    raise CompileError(
        "P218", f"--window {text}: not a window. Write auto, off, or how many blocks, from 1 on"
    )


def plan_with_windows(
    costs: Sequence[BlockCost],
    flows: Sequence[Flow],
    cluster: Cluster,
    options: PlanOptions,
    window: int | None,
    shard_costs: ShardCosts | None = None,
    in_pieces: Callable[[], Sequence[BlockCost]] | None = None,
) -> Plan:
    """`plan`, with `window` blocks of a device in memory at once: None: windows where nothing fits without, OFF: never.

    `in_pieces`: the costs with several blocks for the output head, which plans with windows are then made of. Raises
    CompileError as `plan` does: P201 (exit 3) when nothing fits.
    """
    if window == OFF:
        return plan(costs, flows, cluster, options, shard_costs)

    def problem() -> Problem:
        cut = in_pieces() if in_pieces else costs
        return Problem(tuple(cut), tuple(flows), cluster.at_work(), options, shard_costs)

    if window is not None:
        return _planned(problem(), cluster, window, wider=False)
    clock = Clock(options.time_limit_s)
    try:
        return plan(costs, flows, cluster, options, shard_costs)
    except CompileError as error:
        if error.code != _NO_PLAN:
            raise
        refused = error
    for narrowest in NARROWEST if len(costs) > 2 else ():
        left = replace(options, time_limit_s=max(_LEAST_S, clock.left_s))
        try:
            return _planned(replace(problem(), options=left), cluster, narrowest, wider=True)
        except CompileError as error:
            if error.code != _NO_PLAN:
                raise
    raise refused


def _planned(problem: Problem, cluster: Cluster, window: int, wider: bool) -> Plan:
    """The plan with windows of `window` blocks, or `wider` ones where memory allows.

    Where groups are free to be, the best one without is made as well: what rounds bring is known only after them. And
    where no device has room for a window of whole blocks, a group of all may have for one of their parts.
    """
    options = problem.options
    if options.tensor_parallel is not None or problem.pieces is None:
        return _windowed(problem, cluster, window, wider)
    made, refused = list[Plan](), list[CompileError]()
    free = not options.use_all and all(pin.keep for pin in options.pins)
    for groups in (NO_GROUPS, None, len(problem.devices)):
        if groups == len(problem.devices) and (made or not free):
            break
        wishes = replace(options, tensor_parallel=groups, time_limit_s=options.time_limit_s / 2)
        try:
            made.append(_windowed(replace(problem, options=wishes), cluster, window, wider))
        except CompileError as error:
            if error.code != _NO_PLAN:
                raise
            refused.append(error)
    if not made:
        raise refused[0]
    best = min(made, key=lambda each: each.objective)
    return replace(best, solve_s=sum(each.solve_s for each in made))


def _windowed(problem: Problem, cluster: Cluster, window: int, wider: bool) -> Plan:
    """The best of a few plans, each made with the share of what each device streamed in the one before, in rounds where
    these are better."""
    clock = Clock(problem.options.time_limit_s)
    best: Plan | None = None
    refused: CompileError | None = None
    shares: Mapping[str, float] = {}
    for careful in ATTEMPTS if wider else (False, True):
        try:
            made = _once(problem, cluster, window, wider, shares, careful)
        except CompileError as error:
            if error.code != _NO_PLAN:
                raise
            refused = refused or error
            continue
        if best is None or made.objective < best.objective:
            best = made
        shares = {**shares, **_streamed_shares(made, problem.costs)}
        if not wider or clock.beyond(ENOUGH):
            break
    if best is None:
        assert refused is not None
        raise refused
    best = _in_rounds(problem, best, window, wider, clock)
    at_work = {name: why for name, why in best.unused.items() if not cluster.device(name).standby}
    verify(replace(best, unused=at_work), problem)
    return replace(best, solve_s=clock.spent_s)


def _once(
    problem: Problem, cluster: Cluster, window: int, wider: bool, shares: Mapping[str, float], careful: bool
) -> Plan:
    """A plan with windows. `shares`: of what devices run, what is reckoned to stream; all where it is not there."""
    token = in_flight_bytes(problem.flows) // max(1, problem.blocks - 2) + 1
    less = _with_less_memory(problem, cluster, window, token, careful)
    reckoned = replace(less, devices=tuple(_reckoned(d, shares.get(d.name, 1.0)) for d in less.devices))
    pieces = streaming_pieces(problem.pieces, token)
    costs = _output_as_one(streaming(problem.costs, token))
    made = plan(costs, problem.flows, reckoned, problem.options, pieces)
    stages = (*made.stages[:-1], replace(made.stages[-1], stop=problem.blocks))
    for devices in dict.fromkeys(stage.devices for stage in stages):
        stages = _opened(problem, stages, devices, window, wider)
    return _with_stages(problem, made, stages)


def _in_rounds(problem: Problem, made: Plan, window: int, wider: bool, clock: Clock) -> Plan:
    """The plan, or a better one whose devices have their blocks in several runs."""
    known = dict[tuple[Stage, ...], tuple[Stage, ...]]()

    def cost(stages: tuple[Stage, ...]) -> float:
        try:
            for name in dict.fromkeys(stage.devices for stage in stages):
                known[stages] = _opened(problem, known.get(stages, stages), name, window, wider)
        except CompileError as error:
            if error.code != _NO_PLAN:
                raise
            return inf
        return _figures(problem, known[stages]).objective if _on_disk(problem, stages) else inf

    if problem.options.pins:
        return made  # a block would go from the device that it is pinned to
    output = problem.blocks - problem.output
    best = best_rounds(made.stages, cost, lambda: clock.beyond(SHARPEN), output)
    return made if best == made.stages else _with_stages(problem, made, known[best])


def _on_disk(problem: Problem, stages: tuple[Stage, ...]) -> bool:
    """Whether every device has room for its blocks' files."""
    for device in problem.cluster.devices:
        room = room_bytes(device, problem.blocks)
        held = held_costs(stages, device.name, problem.costs, problem.pieces)
        if room is not None and sum(map(file_bytes, held)) > max(room, 0):
            return False
    return True


def _figures(problem: Problem, stages: tuple[Stage, ...]) -> Figures:
    return evaluate(stages, problem.costs, problem.flows, problem.cluster, problem.options, problem.pieces)


def _with_stages(problem: Problem, made: Plan, stages: tuple[Stage, ...]) -> Plan:
    return with_stages(made, problem, stages, least_seconds(problem))


def _reckoned(device: Device, share: float) -> Device:
    """The device, of whose blocks' bytes a share streams: as if all did, from a faster disk."""
    return replace(device, disk_bytes_per_s=device.disk_bytes_per_s / max(share, LEAST_SHARE))


def _streamed_shares(made: Plan, costs: Sequence[BlockCost]) -> Mapping[str, float]:
    """Of what lies between the model's ends, the share of bytes that streams on each device of its own stages."""
    found = {}
    for name in made.devices:
        held = held_costs([s for s in made.stages if s.devices == (name,)], name, costs, None)
        stream = streamed(window_on(made.stages, name), held, ends(costs))
        middle = sum(cost.weights_bytes for cost in held if cost.block not in ends(costs))
        if middle:
            found[name] = sum(held[number].weights_bytes for number in stream.numbers) / middle
    return found


def streaming(costs: Sequence[BlockCost], token: int) -> tuple[BlockCost, ...]:
    """The costs of a model of which all streams that may. `token`: bytes that each is left, so that none comes for
    nothing, nor all for the buffers that a head alone needs not."""
    never = ends(costs)
    return tuple(
        cost if cost.block in never else replace(as_streamed(cost), weights_bytes=token) for cost in costs
    )


def _output_as_one(costs: Sequence[BlockCost]) -> tuple[BlockCost, ...]:
    """The costs with one block for the output head, which takes what its pieces take together."""
    start = output_start(costs)
    whole, *others = costs[start:]
    for piece in others:
        whole = replace(
            whole,
            weights_bytes=whole.weights_bytes + piece.weights_bytes,
            activation_bytes=max(whole.activation_bytes, piece.activation_bytes),
            decode_flops=whole.decode_flops + piece.decode_flops,
            decode_bytes=whole.decode_bytes + piece.decode_bytes,
            prefill_flops=whole.prefill_flops + piece.prefill_flops,
            prefill_bytes=whole.prefill_bytes + piece.prefill_bytes,
            streamed_bytes=whole.streamed_bytes + piece.streamed_bytes,
        )
    return (*costs[:start], replace(whole, of_output=False))


def streaming_pieces(pieces: ShardCosts | None, token: int) -> ShardCosts | None:
    """The same of blocks in pieces."""

    def least(costs: Sequence[BlockCost]) -> tuple[BlockCost, ...]:
        return tuple(
            replace(as_streamed(cost), weights_bytes=min(token, cost.weights_bytes)) for cost in costs
        )

    def cut(blocks: Sequence[int], shares: tuple[float, ...], parts: int) -> Mapping[int, PieceCosts]:
        found = pieces(blocks, shares, parts) if pieces else {}
        return {
            b: replace(each, shards=least(each.shards), tails=least(each.tails)) for b, each in found.items()
        }

    return cut if pieces else None


def _with_less_memory(problem: Problem, cluster: Cluster, window: int, token: int, careful: bool) -> Cluster:
    """The cluster without the memory that a window takes of each device; of a head that has no room for one beside the
    model's ends, without all that they leave."""
    never = ends(problem.costs)
    beside = problem.free[HEAD] - problem.needed([(block, block + 1) for block in never])
    middle = [cost.weights_bytes for cost in _middle(problem)]
    pieces = [cost.weights_bytes for cost in problem.costs[problem.output :] if cost.block not in never]

    def taken(sizes: Sequence[int]) -> int:
        ring = min(window, AHEAD + 1, len(sizes))
        parts = (sizes, sizes[1:], sizes[:-1]) if careful else (sizes,)
        room = max(places(part, min(ring, len(part))).size_bytes for part in parts)
        kept = min(window, len(sizes)) - ring
        return room + kept * max(sizes, default=0) - token * len(sizes)

    of_worker, of_output, of_both = taken(middle), taken(pieces), taken([*middle, *pieces])

    def left(device: Device) -> Device:
        less = max(0, of_output, min(of_both, beside)) if device.name == cluster.head else of_worker
        return replace(device, memory_bytes=max(1, device.memory_bytes - less))

    return replace(cluster, devices=tuple(map(left, cluster.devices)))


def _middle(problem: Problem) -> Sequence[BlockCost]:
    """What a device may hold of the layers: blocks, or an equal part of each where all are to be a group's."""
    count = problem.options.tensor_parallel or NO_GROUPS
    if count == NO_GROUPS or problem.pieces is None:
        return problem.costs[1 : problem.output]
    names = tuple(device.name for device in problem.devices[:count])
    group = Stage(names, (1 / count,) * len(names), 1, problem.output)
    return held_costs([group], names[0], problem.costs, problem.pieces)


def _opened(
    problem: Problem, stages: tuple[Stage, ...], devices: tuple[str, ...], window: int, wider: bool
) -> tuple[Stage, ...]:
    """`stages` with the window of `devices`, which share some of them. Raises CompileError P201 where none fits."""
    never = ends(problem.costs)
    mine = held_costs([s for s in stages if s.devices == devices], devices[0], problem.costs, problem.pieces)
    count = sum(cost.block not in never for cost in mine)

    def made(width: int) -> tuple[Stage, ...]:
        chosen = width if width < count else 0
        return tuple(replace(s, window=chosen) if s.devices == devices else s for s in stages)

    def lacking(width: int) -> int:
        needs = memory(made(width), problem.costs, problem.flows, problem.cluster, problem.pieces)
        return max(needs[name].peak - problem.cluster.device(name).memory_bytes for name in devices)

    widest = min(window, count)
    if wider:
        widest = bisect_right(range(1, count + 1), 0, key=lacking)
    if count and (lack := lacking(max(widest, 1))) > 0:
        raise CompileError(
            _NO_PLAN,
            f"no feasible plan: with a window of {max(widest, 1)} blocks {' and '.join(devices)} lacks {size(lack)} of"
            " memory. Use a smaller --window, --quant q4, or a smaller --context",
            INFEASIBLE,
        )
    return made(widest) if count else stages
