"""Devices with several runs of blocks: what the stages are, and that the best of those looked at is taken."""

from __future__ import annotations

from itertools import pairwise

import pytest

from llcompile.ir.plan import Stage
from llcompile.partition.rounds import best_rounds, in_rounds, middle_counts

PLAN = (Stage.on("h", 0, 3), Stage.on("a", 3, 8), Stage.on("b", 8, 11), Stage.on("h", 11, 12))


def shape(stages: tuple[Stage, ...]) -> list[tuple[str, int, int]]:
    return [(stage.lead, stage.start, stage.stop) for stage in stages]


def never() -> bool:
    return False


def test_the_ends_belong_to_nobodys_share() -> None:
    assert middle_counts(PLAN) == {"h": 2, "a": 5, "b": 3}


def test_each_round_has_an_equal_part_of_every_devices_blocks() -> None:
    assert shape(in_rounds(middle_counts(PLAN), 2, "h")) == [
        ("h", 0, 2),
        ("a", 2, 4),
        ("b", 4, 5),
        ("h", 5, 6),
        ("a", 6, 9),
        ("b", 9, 11),
        ("h", 11, 12),
    ]


@pytest.mark.parametrize("rounds", [1, 2, 3, 5, 7])
def test_every_block_is_in_one_stage_and_nobody_has_two_in_a_row(rounds: int) -> None:
    stages = in_rounds({"h": 2, "a": 5, "b": 3}, rounds, "h")
    assert [block for stage in stages for block in stage.blocks] == list(range(12))
    assert all(x.lead != y.lead for x, y in pairwise(stages))
    assert middle_counts(stages) == {"h": 2, "a": 5, "b": 3}


def test_a_round_more_is_taken_where_it_costs_less() -> None:
    assert shape(best_rounds(PLAN, lambda stages: abs(len(stages) - 7), never)) == shape(
        in_rounds(middle_counts(PLAN), 2, "h")
    )
    assert best_rounds(PLAN, len, never) == PLAN


def test_blocks_go_to_the_device_on_which_they_cost_less() -> None:
    def cost(stages: tuple[Stage, ...]) -> float:
        counts = middle_counts(stages)
        return counts.get("h", 0) ** 2 + (counts["a"] / 4) ** 2 + counts["b"] ** 2

    assert middle_counts(best_rounds(PLAN, cost, never)) == {"h": 1, "a": 8, "b": 1}


def test_when_it_is_late_nothing_is_looked_at() -> None:
    assert best_rounds(PLAN, lambda stages: -len(stages), lambda: True) == PLAN


def test_a_plan_with_a_group_is_left_as_it_is() -> None:
    group = Stage(("a", "b"), (0.5, 0.5), 3, 11)
    stages = (PLAN[0], group, PLAN[-1])
    assert best_rounds(stages, lambda stages: -len(stages), never) == stages
