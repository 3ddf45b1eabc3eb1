"""A plan in words and tables, for a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from llcompile.explain.measured import DeviceFigures, Measured
from llcompile.explain.sizes import human_bytes, human_seconds
from llcompile.explain.words import (
    block_ranges,
    comparison,
    device_words,
    event_words,
    move_words,
    sent,
    stage_bytes,
    stage_words,
    summary,
)
from llrun import schema

_WIDTH_WITHOUT_TERMINAL = 140
_NARROWEST = 20
_HEIGHT = 25  # no table depends on it
_STANDARD_STREAMS = (1, 2, 0)
_NUMBERS = ("weights", "cache", "memory", "of", "compute", "bytes", "measured", "token", "change")


def print_plan(record: schema.PlanRecord, measured: Measured | None = None) -> None:
    """Print `record` to stdout, as wide as the terminal. `measured`: a run, to set beside what is predicted of it."""
    width = columns(os.environ, _STANDARD_STREAMS) or _WIDTH_WITHOUT_TERMINAL
    # Both, or rich takes 80 columns where TERM is dumb.
    screen = Console(highlight=False, width=max(width, _NARROWEST), height=_HEIGHT)
    screen.print(plan_text(record, measured))


def columns(environment: Mapping[str, str], descriptors: Iterable[int]) -> int | None:
    """The width of the terminal in characters: COLUMNS, else that of the first descriptor that is a terminal.

    So a plan that goes through a pager is as wide as the terminal that shows it.
    """
    stated = environment.get("COLUMNS", "")
    if stated.isascii() and stated.isdigit() and int(stated):
        return int(stated)
    for descriptor in descriptors:
        try:
            width = os.get_terminal_size(descriptor).columns
        except OSError:  # closed, or no terminal
            continue
        if width:
            return width
    return None


def plan_text(record: schema.PlanRecord, measured: Measured | None = None) -> RenderableType:
    """The same, as something rich can render."""
    parts: list[RenderableType] = [Text(summary(record)), _stages(record), _devices(record, measured)]
    if record.transmissions:
        parts.append(_transmissions(record))
    if any(block.divergence is not None for block in record.blocks):
        parts.append(_bits(record))
    if record.spares:
        parts.append(_spares(record))
    if record.divisions:
        parts.append(_divisions(record))
    if record.envelope:
        parts.append(_envelope(record))
    if record.unused:
        unused = [f"{name} is not used: {reason}" for name, reason in sorted(record.unused.items())]
        parts.append(Text("\n".join(unused)))
    if record.notes:
        parts.append(Text("\n".join(record.notes)))
    if measured:
        parts.append(Text(comparison(record, measured)))
    blank = Text("")
    return Group(*(piece for part in parts for piece in (part, blank)))


def _stages(record: schema.PlanRecord) -> Table:
    table = _table("stage", "devices", "blocks", "weights")
    for index, stage in enumerate(record.stages):
        table.add_row(
            str(index),
            device_words(stage),
            stage_words(record, stage),
            human_bytes(stage_bytes(record, stage)),
        )
    return table


def _devices(record: schema.PlanRecord, measured: Measured | None) -> Table:
    headings = ["device", "weights", "cache", "memory", "of", "compute a token"]
    if measured:
        headings += ["measured memory", "measured compute of the run"]
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
            row += _measured_row(measured.devices.get(name))
        table.add_row(*row)
    return table


def _measured_row(figures: DeviceFigures | None) -> list[str]:
    if figures is None:
        return ["-", "-"]
    return [human_bytes(figures.peak_memory_bytes), human_seconds(figures.compute_s)]


def _transmissions(record: schema.PlanRecord) -> Table:
    table = _table("tensor", "from", "to", "kind", "format", "bytes a token")
    for each in sent(record):
        size = human_bytes(each.bytes)
        table.add_row(each.tensor, each.source, each.destination, each.kind, each.wire, size)
    return table


def _bits(record: schema.PlanRecord) -> Table:
    """Blocks that are alike in their matrices' formats, together."""
    table = _table("matrices of blocks", "bits a weight", "divergence, predicted")
    alike: dict[str, list[schema.BlockRecord]] = {}
    for block in record.blocks:
        if block.divergence is not None:
            alike.setdefault(block.template, []).append(block)
    for blocks in alike.values():
        cost = sum(block.divergence or 0.0 for block in blocks)
        table.add_row(block_ranges([block.id for block in blocks]), f"{blocks[0].bits:.2f}", f"{cost:.5f}")
    return table


def _spares(record: schema.PlanRecord) -> Table:
    table = _table("spares of", "blocks that it holds besides", "weights")
    for name, blocks in sorted(record.spares.items()):
        size = sum(block.weights_bytes for block in record.blocks if block.id in set(blocks))
        table.add_row(name, block_ranges(blocks), human_bytes(size))
    return table


def _divisions(record: schema.PlanRecord) -> Table:
    table = _table("pieces held for", "blocks")
    for stage in record.divisions:
        table.add_row(device_words(stage), stage_words(record, stage))
    return table


def _envelope(record: schema.PlanRecord) -> Table:
    table = _table("when", "then", "token", "change")
    for move in record.envelope:
        token = "-" if move.tpot_s is None else human_seconds(move.tpot_s)
        change = human_seconds(move.change_s) if move.change_s else "-"
        table.add_row(event_words(move), move_words(record, move), token, change)
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        right = heading.split()[0] in _NUMBERS
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    return table
