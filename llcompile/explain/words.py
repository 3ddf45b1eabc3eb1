"""A plan in words: what the tables and the report page both say."""

from __future__ import annotations

from llcompile.explain.sizes import human_bytes, human_seconds
from llrun import schema


def summary(record: schema.PlanRecord) -> str:
    """Two sentences: what the plan is, and how fast it should be."""
    devices = len(record.devices)
    weights = sum(block.weights_bytes for block in record.blocks)
    optimal = record.status == "optimal"
    quality = "the best plan" if optimal else f"a plan within {record.gap:.1%} of the best possible"
    return (
        f"{len(record.blocks)} blocks, {human_bytes(weights)} of {record.precision.weights} weights, on {devices} "
        f"device{'s' if devices != 1 else ''} with a context of {record.shapes.context} tokens: {quality}. "
        f"Predicted: first token after {human_seconds(record.ttft_s)}, then one every "
        f"{human_seconds(record.tpot_s)} ({_rate(record.tpot_s)})."
    )


def _rate(tpot_s: float) -> str:
    rate = 1 / tpot_s if tpot_s > 0 else 0.0
    return f"{rate:.0f} tokens/s" if rate >= 100 else f"{rate:.3g} tokens/s"


def stage_words(record: schema.PlanRecord, stage: schema.StageRecord) -> str:
    """`blocks 0-3 (4)`, with the window when weights stream from disk."""
    start, stop = stage.blocks
    blocks = f"{start}-{stop - 1} ({stop - start})" if stop - start > 1 else f"{start} (1)"
    return f"{blocks}, {stage.window} in memory at once" if stage.window else blocks


def stage_bytes(record: schema.PlanRecord, stage: schema.StageRecord) -> int:
    start, stop = stage.blocks
    return sum(block.weights_bytes for block in record.blocks if start <= block.id < stop)
