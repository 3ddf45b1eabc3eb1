"""A graph's blocks cut for groups, and what the pieces cost: the stages shard and cost together, for who plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llcompile import cost
from llcompile.ir.graph import Graph, Template
from llcompile.ir.packing import cut_multiple
from llcompile.ir.plan import BlockCost, PieceCosts
from llcompile.ir.shard import ShardedBlock
from llcompile.shard import Split, shard, split
from llrun.schema import Precision, Shapes


@dataclass(frozen=True)
class Sharding:
    """Cuts the blocks of `graph`, each template's cuts made once."""

    graph: Graph
    precision: Precision
    shapes: Shapes
    _splits: dict[str, Split | str] = field(default_factory=dict)
    _pieces: dict[tuple[str, tuple[float, ...], int], ShardedBlock | str] = field(default_factory=dict)
    _costs: dict[tuple[str, bool], BlockCost] = field(default_factory=dict)

    def pieces(self, block: int, shares: Sequence[float], sums: int) -> ShardedBlock | str:
        """The pieces of `block`, whose tail takes `sums` parts; or why it cannot be cut so."""
        id = self.graph.blocks[block].template
        key = id, tuple(shares), sums
        if key not in self._pieces:
            found = self._split(id)
            multiple = cut_multiple(self.precision.weights)
            self._pieces[key] = found if isinstance(found, str) else shard(found, shares, sums, multiple)
        return self._pieces[key]

    def costs(self, blocks: Sequence[int], shares: tuple[float, ...], sums: int) -> Mapping[int, PieceCosts]:
        """What the pieces of `blocks` cost, as ShardCosts has it: a block that cannot be cut so is left out."""
        cut = {block: self.pieces(block, shares, sums) for block in blocks}
        return {block: self._of(block, each) for block, each in cut.items() if not isinstance(each, str)}

    def _of(self, block: int, pieces: ShardedBlock) -> PieceCosts:
        (partial,), chunk = pieces.shards[0].template.outputs, self.shapes.chunk
        tail = self._cost(pieces.tail.template, block)
        sent = cost.message(partial, chunk, self.precision.wire)
        return PieceCosts(
            shards=tuple(self._cost(piece.template, block) for piece in pieces.shards),
            tails=(tail,) * len(pieces.shards),
            partial_decode_bytes=sent.row_bytes,
            partial_prefill_bytes=sent.chunk_bytes,
            wire=sent.wire,
            partial_held_bytes=sent.held_bytes,
        )

    def _split(self, template: str) -> Split | str:
        if template not in self._splits:
            self._splits[template] = split(self.graph.templates[template])
        return self._splits[template]

    def _cost(self, template: Template, block: int) -> BlockCost:
        key = template.id, self.graph.blocks[block].last_row_only
        if key not in self._costs:
            self._costs[key] = cost.template_cost(template, self.precision, self.shapes, key[1])
        return replace(self._costs[key], block=block)
