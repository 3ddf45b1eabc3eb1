"""A plan in words: what the tables and the report page both say."""

from __future__ import annotations

from collections.abc import Sequence

from llcompile.explain.measured import Measured, predict
from llcompile.explain.sizes import human_bytes, human_seconds
from llrun import schema

_EVENTS = {schema.MoveEvent.LOST: "lost", schema.MoveEvent.HALF: "half as fast"}


def summary(record: schema.PlanRecord) -> str:
    """Two sentences: what the plan is, and how fast it should be."""
    devices = len(record.devices)
    weights = sum(block.weights_bytes for block in record.blocks)
    return (
        f"{len(record.blocks)} blocks, {human_bytes(weights)} of {formats_words(record)}, on {devices} "
        f"device{'s' if devices != 1 else ''} with a context of {record.shapes.context} tokens: {_quality(record)}. "
        f"Predicted: first token {human_seconds(record.ttft_s)} after a prompt of {record.prompt_tokens} tokens, "
        f"then one every {human_seconds(record.tpot_s)} ({_rate(record.tpot_s)}) with {record.shapes.context} tokens "
        "in the cache."
    )


def formats_words(record: schema.PlanRecord) -> str:
    """`q4 weights`; where each matrix has a format of its own, the mean, and what rounding costs."""
    costs = [block.divergence for block in record.blocks if block.divergence is not None]
    if not costs:
        return f"{record.precision.weights} weights"
    matrices = [block for block in record.blocks if block.bits]
    count = sum(block.weights_bytes / block.bits for block in matrices)
    bits = sum(block.weights_bytes for block in matrices) / count
    return f"weights of {bits:.2f} bits (predicted divergence {sum(costs):.4f})"


def _quality(record: schema.PlanRecord) -> str:
    """What is proven of the plan. Where blocks stream that is little: the bound is one of plans whose blocks do not."""
    if record.status == "optimal":
        return "the best plan of those looked at" if record.notes else "the best plan"
    if any(stage.window for stage in record.stages):
        least = f"no plan takes less than {1 - record.gap:.1%} of its time"
        return f"the best of the plans looked at whose weights stream from disk ({least})"
    return f"a plan within {record.gap:.1%} of the best possible"


def _rate(tpot_s: float) -> str:
    rate = 1 / tpot_s if tpot_s > 0 else 0.0
    return f"{rate:.0f} tokens/s" if rate >= 100 else f"{rate:.3g} tokens/s"


def comparison(record: schema.PlanRecord, measured: Measured) -> str:
    """What was predicted of this very run beside what it measured; nothing of what it did not measure."""
    expected = predict(record, measured.prompt_tokens)
    chunk, last = record.portion or record.shapes.chunk, measured.prompt_tokens + len(measured.tokens)
    parts = []
    if measured.ttft_s is not None:
        chunks = (
            f"{expected.chunks} chunk{'s' if expected.chunks != 1 else ''}, each reckoned as {chunk} tokens"
        )
        parts.append(
            f"first token after a prompt of {measured.prompt_tokens} tokens: predicted "
            f"{human_seconds(expected.ttft_s)} ({chunks}), measured {human_seconds(measured.ttft_s)}"
        )
    if measured.tpot_s is not None:
        parts.append(
            f"each further token: predicted {human_seconds(expected.tpot_s)} with {expected.cached_tokens} tokens in "
            f"the cache, measured {human_seconds(measured.tpot_s)} with {measured.prompt_tokens} to {last - 1}"
        )
    return "\n".join(parts)


def stage_words(record: schema.PlanRecord, stage: schema.StageRecord) -> str:
    """`blocks 0-3 (4)`, with how a group sums, and with the window when weights stream from disk."""
    start, stop = stage.blocks
    blocks = f"{start}-{stop - 1} ({stop - start})" if stop - start > 1 else f"{start} (1)"
    sums = f", {sum_words(stage)}" if stage.all_reduce else ""
    return f"{blocks}{sums}, {stage.window} in memory at once" if stage.window else f"{blocks}{sums}"


def sum_words(stage: schema.StageRecord) -> str:
    """How the devices of a group sum: `summed direct`, `summed at laptop (star)`, `summed in a ring`."""
    match stage.all_reduce:
        case schema.AllReduceKind.STAR:
            return f"summed at {stage.devices[stage.root]} (star)"
        case schema.AllReduceKind.RING:
            return "summed in a ring"
        case _:
            return "summed direct"


def device_words(stage: schema.StageRecord) -> str:
    """`pi`, or of a group `pi 60%, phone 40%`."""
    if len(stage.devices) == 1:
        return stage.lead
    shares = zip(stage.devices, stage.shares, strict=True)
    return ", ".join(f"{name} {share:.0%}" for name, share in shares)


def sent(record: schema.PlanRecord) -> tuple[schema.TransmissionRecord, ...]:
    """What is sent for a token: tensors one by one, and what one device sends another for a group's sums in one."""
    rows = [each for each in record.transmissions if each.kind != schema.TransmissionKind.SUM]
    sums: dict[tuple[str, str, schema.WireFormat], list[int]] = {}
    for each in record.transmissions:
        if each.kind == schema.TransmissionKind.SUM:
            sums.setdefault((each.source, each.destination, each.wire), []).append(each.bytes)
    together = (
        schema.TransmissionRecord(
            tensor=f"parts of {len(sizes)} sum{'s' if len(sizes) > 1 else ''}",
            kind=schema.TransmissionKind.SUM,
            source=source,
            destination=to,
            bytes=sum(sizes),
            wire=wire,
        )
        for (source, to, wire), sizes in sums.items()
    )
    return (*rows, *together)


def stage_bytes(record: schema.PlanRecord, stage: schema.StageRecord) -> int:
    start, stop = stage.blocks
    return sum(block.weights_bytes for block in record.blocks if start <= block.id < stop)


def block_ranges(blocks: Sequence[int]) -> str:
    """`1-3, 5`: ascending ids, runs of them as ranges."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def event_words(move: schema.MoveRecord) -> str:
    """What happens: `pi lost`."""
    return f"{move.device} {_EVENTS[move.event]}"


def _by_shares(stage: schema.StageRecord) -> str:
    """`pi`, or of a group `pi+phone by 60:40`."""
    shares = ":".join(f"{100 * share:.0f}" for share in stage.shares)
    return f"{'+'.join(stage.devices)} by {shares}" if len(stage.devices) > 1 else stage.lead


def move_words(record: schema.PlanRecord, move: schema.MoveRecord) -> str:
    """What is done about it: the stages that run then, or why the model cannot go on."""
    if not move.possible:
        return f"the model cannot go on: {move.reason}"
    if move.stages == record.stages:
        return "stays as it is"
    return ", ".join(f"{_by_shares(stage)} {block_ranges(range(*stage.blocks))}" for stage in move.stages)
