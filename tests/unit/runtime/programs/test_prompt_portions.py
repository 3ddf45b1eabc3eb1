"""In how many pieces a prompt goes."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import msgspec
import pytest

from llcompile.ir.cluster import Cluster, Link
from llrun.programs.placement import Placement
from llrun.programs.portions import Pieces, portion
from llrun.schema import Rows, Shapes, StageRecord
from tests.unit.partition.cases import OPTIONS, Case, chain, cost, device
from tests.unit.partition.placed import envelope_of, graph_of

SHAPES = Shapes(1024, 128)
STAGES = tuple(StageRecord.on(n, *at) for n, *at in (("h", 0, 1), ("a", 1, 4), ("b", 4, 7), ("h", 7, 8)))
ALONE = (StageRecord.on("h", 0, 8),)


def placed(latency_s: float = 1e-3, decode_s: float = 1e-3, chunk_s: float = 32e-3) -> Placement:
    """Eight blocks that take these seconds on each of three devices; the last one runs for the last row alone."""
    cluster = Cluster("h", tuple(map(device, "hab")), Link(1e6, latency_s), {})
    case = Case(tuple(cost(b, 1000) for b in range(8)), chain(8), cluster, OPTIONS)
    made = Placement(graph_of(8, case.flows), envelope_of(case), "h", SHAPES)
    devices = {
        name: msgspec.structs.replace(
            each,
            blocks=tuple(
                msgspec.structs.replace(b, decode_s=decode_s, chunk_s=decode_s if b.id == 7 else chunk_s)
                for b in each.blocks
            ),
        )
        for name, each in made.envelope.devices.items()
    }
    blocks = tuple(
        msgspec.structs.replace(b, rows=Rows.LAST if b.id == 7 else Rows.ALL) for b in made.graph.blocks
    )
    graph = msgspec.structs.replace(made.graph, blocks=blocks)
    return replace(made, graph=graph, envelope=msgspec.structs.replace(made.envelope, devices=devices))


def seconds(placement: Placement, tokens: int, rows: int) -> float:
    return placement.pipeline_s(STAGES, ceil(tokens / rows), rows)


def test_a_device_alone_reads_its_weights_for_full_chunks() -> None:
    assert portion(placed(), ALONE, 1000) == 128


def test_a_prompt_goes_in_pieces_that_keep_every_device_busy() -> None:
    """16 rows take 4 ms a block, a fourth of what four times as many take: the smallest pieces wait the least."""
    made = placed()
    assert portion(made, STAGES, 128) == 16
    assert seconds(made, 128, 16) == pytest.approx(7 * 4e-3 + 1e-3 + 3 * 1e-3 + 33 * 64 / 1e6 + 7 * 12e-3)
    assert seconds(made, 128, 128) > 2 * seconds(made, 128, 16)


def test_pieces_that_read_weights_in_vain_are_none() -> None:
    """With as many seconds for a row as for 64 smaller pieces only repeat them; all within a hair, the largest."""
    assert portion(placed(decode_s=16e-3), STAGES, 128) == 64
    assert portion(placed(decode_s=32e-3), STAGES, 1024) == 128


def test_a_short_prompt_goes_whole() -> None:
    assert portion(placed(), STAGES, 16) == 128
    assert portion(placed(), STAGES, 2) == 128


def test_a_small_chunk_is_the_most() -> None:
    small = replace(placed(), shapes=Shapes(64, 8))
    assert portion(small, STAGES, 64) == 8


@pytest.mark.parametrize("tokens", [17, 40, 128, 129, 500, 1000])
@pytest.mark.parametrize("decode_s", [1e-4, 2e-3, 8e-3, 20e-3])
def test_no_other_size_is_quicker(tokens: int, decode_s: float) -> None:
    made = placed(decode_s=decode_s)
    chosen = portion(made, STAGES, tokens)
    sizes = range(16, 129, 16)
    best = min(seconds(made, tokens, min(rows, tokens)) for rows in sizes)
    assert seconds(made, tokens, min(chosen, tokens)) <= best * 1.02
    assert chosen in sizes


def test_rows_that_nobody_needs_are_not_charged_with_every_piece() -> None:
    made = placed()
    heavy = {
        name: msgspec.structs.replace(
            each,
            blocks=tuple(msgspec.structs.replace(b, chunk_s=1.0) if b.id == 7 else b for b in each.blocks),
        )
        for name, each in made.envelope.devices.items()
    }
    slow = replace(made, envelope=msgspec.structs.replace(made.envelope, devices=heavy))
    assert seconds(slow, 128, 16) == pytest.approx(seconds(made, 128, 16) + 1.0 - 1e-3)


@pytest.mark.parametrize("latency_s", [0.0, 1e-2])
def test_what_is_kept_of_stages_answers_for_every_prompt(latency_s: float) -> None:
    made = placed(latency_s, decode_s=6e-3)
    kept = Pieces.of(made, STAGES)
    assert [rows for rows, _, _ in kept.seconds] == [*range(16, 129, 16)]
    for tokens in range(1, 600, 7):
        assert kept.rows(tokens) == portion(made, STAGES, tokens)
    assert Pieces.of(made, ALONE).rows(500) == 128
