"""What other stages would give and cost, whether they can be, and which are best: within the envelope."""

from __future__ import annotations

from collections.abc import Sequence, Set

from llrun.programs.feasible import stage_faults
from llrun.programs.groups import is_group
from llrun.programs.moving import Cost, cost_of_change
from llrun.programs.question import question
from llrun.programs.rated import LinkRate, Rated, Rates, Stages
from llrun.programs.search import search
from llrun.programs.together import stages_with
from llrun.schema import Slice, StageRecord

__all__ = ["Cost", "LinkRate", "Placement", "Rates", "Stages"]


class Placement(Rated):
    """The envelope with what is known of the devices now: pure, made anew when that changes."""

    @classmethod
    def of(cls, record: Slice, rates: Rates | None = None, alive: Set[str] | None = None) -> Placement:
        """The placement of the bundle that the slice is of."""
        return cls(record.graph, record.envelope, record.head, record.model.shapes, rates or Rates(), alive)

    def faults(self, stages: Stages, before: Stages = ()) -> list[str]:
        """Why there cannot be these stages, in words; empty when there can.

        All blocks once and in order, the head at both ends, groups that the graph has, every device there and holding
        its blocks or pieces on disk, and memory. `before`: the stages that they replace while tokens go on: old and new
        blocks are in memory at once.
        """
        return stage_faults(self, stages, before)

    def cost(self, before: Stages, after: Stages, held: Sequence[int], lost: Set[str] = frozenset()) -> Cost:
        """What the change takes. `held`: tokens in the caches of each open sequence.

        Devices read at the same time; then caches of blocks that move are copied, a device's one after the other.
        With devices `lost` nothing is copied: all that moved is computed again, by chunks that go through the devices
        as a prompt does, as far as the last block that moved.
        """
        return cost_of_change(self, before, after, held, lost)

    def best(
        self,
        before: Stages = (),
        held: Sequence[int] = (),
        to_come: float = 0.0,
        lost: Set[str] = frozenset(),
    ) -> tuple[StageRecord, ...] | None:
        """The stages with the least TPOT; None where no stages can be. Ties: fewer devices, then their names in order.

        With `to_come`, the tokens still to be produced, it is the least of TPOT x to_come and of the seconds that it
        takes to change from `before` to them, charged block by block as if one moved after the other. Old and new
        blocks are in memory at once, unless devices of `before` are `lost`: then all stands still, and there is no
        need to hold on to anything. Of single devices, exact with up to search.EXACT_WORKERS workers that hold
        something; with more, the best of those looked at. Then one group of the graph at a time is looked at as one
        more device; all that can be are compared by what they take all told, ties to `before`, then to single devices.
        """
        asked = question(self, before, held, to_come, lost)
        runs = search(asked) if asked else []
        found = [tuple(StageRecord.on(*run) for run in runs)] if runs else []
        if any(map(is_group, before)) and not self.faults(before):
            found.insert(0, tuple(before))
        for group in self.graph.groups:
            stages = stages_with(self, group, asked, before, to_come, lost) if asked else None
            if stages and not self.faults(stages, () if lost else before):
                found.append(stages)

        def total_s(stages: Stages) -> float:
            token_s = self.predict(stages)
            if not (before and to_come > 0):
                return token_s
            return token_s * to_come + self.cost(before, stages, held, lost).seconds

        return min(found, key=total_s, default=None) if len(found) > 1 else next(iter(found), None)
