"""A plan in words and tables, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from llcompile.explain.sizes import human_bytes, human_seconds
from llcompile.explain.words import stage_bytes, stage_words, summary
from llrun import schema

Measured = Mapping[str, Any]
_PIPE_WIDTH = 140
_NUMBERS = ("weights", "cache", "memory", "of", "compute", "bytes", "measured")


def print_plan(record: schema.PlanRecord, measured: Measured | None = None) -> None:
    """Print `record` to stdout. `measured`: the object that `llrun --json` prints, to set beside what was
    predicted."""
    screen = Console(highlight=False)
    if not screen.is_terminal:
        screen.width = _PIPE_WIDTH
    screen.print(plan_text(record, measured))


def plan_text(record: schema.PlanRecord, measured: Measured | None = None) -> RenderableType:
    """The same, as something rich can render."""
    parts: list[RenderableType] = [Text(summary(record)), _stages(record), _devices(record, measured)]
    if record.transmissions:
        parts.append(_transmissions(record))
    if record.unused:
        unused = [f"{name} is not used: {reason}" for name, reason in sorted(record.unused.items())]
        parts.append(Text("\n".join(unused)))
    if measured:
        parts.append(Text(_comparison(record, measured)))
    blank = Text("")
    return Group(*(piece for part in parts for piece in (part, blank)))


def _stages(record: schema.PlanRecord) -> Table:
    table = _table("stage", "devices", "blocks", "weights")
    for index, stage in enumerate(record.stages):
        shares = [
            f"{name} {share:.0%}" if len(stage.devices) > 1 else name
            for name, share in zip(stage.devices, stage.shares, strict=True)
        ]
        table.add_row(
            str(index), ", ".join(shares), stage_words(record, stage), human_bytes(stage_bytes(record, stage))
        )
    return table


def _devices(record: schema.PlanRecord, measured: Measured | None) -> Table:
    headings = ["device", "weights", "cache", "memory", "of", "compute a token"]
    figures: Mapping[str, Mapping[str, float]] = (measured or {}).get("devices", {})
    if measured:
        headings += ["measured memory", "measured compute"]
    table = _table(*headings)
    for name, load in sorted(record.devices.items()):
        row = [
            name,
            human_bytes(load.weights_bytes),
            human_bytes(load.kv_bytes),
            human_bytes(load.peak_bytes),
            f"{human_bytes(load.memory_bytes)} ({load.peak_bytes / max(1, load.memory_bytes):.0%})",
            human_seconds(load.compute_s),
        ]
        if measured:
            row += _measured_row(figures.get(name, {}), len(measured.get("tokens", ())))
        table.add_row(*row)
    return table


def _measured_row(figures: Mapping[str, float], tokens: int) -> list[str]:
    peak, compute = figures.get("peak_memory_bytes"), figures.get("compute_s")
    return [
        "-" if peak is None else human_bytes(peak),
        "-" if compute is None or not tokens else human_seconds(compute / tokens),
    ]


def _transmissions(record: schema.PlanRecord) -> Table:
    table = _table("tensor", "from", "to", "kind", "bytes a token")
    for sent in record.transmissions:
        table.add_row(sent.tensor, sent.source, sent.destination, sent.kind, human_bytes(sent.bytes))
    return table


def _comparison(record: schema.PlanRecord, measured: Measured) -> str:
    pairs = [
        f"{words}: predicted {human_seconds(predicted)}, measured {human_seconds(measured[key])}"
        for words, key, predicted in (
            ("first token", "ttft_s", record.ttft_s),
            ("each further token", "tpot_s", record.tpot_s),
        )
        if measured.get(key) is not None
    ]
    return "; ".join(pairs)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        right = heading.split()[0] in _NUMBERS
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    return table
