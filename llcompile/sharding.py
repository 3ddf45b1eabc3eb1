"""A graph's blocks cut for groups, and what the pieces cost: the stages shard and cost together, for who plans."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llcompile import cost
from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.ir.graph import Graph, Template
from llcompile.ir.packing import cut_multiple
from llcompile.ir.plan import BlockCost, PieceCosts, Stage
from llcompile.ir.shard import Group, ShardedBlock
from llcompile.shard import Split, shard, split, sum_template
from llrun.schema import Precision, Shapes


@dataclass(frozen=True)
class Sharding:
    """Cuts the blocks of `graph`, each template's cuts made once. `portion`: rows of a chunk that prompts go in, None:
    as many as it holds."""

    graph: Graph
    precision: Precision
    shapes: Shapes
    portion: int | None = None
    _splits: dict[str, Split | str] = field(default_factory=dict)
    _pieces: dict[tuple[str, tuple[float, ...], int], ShardedBlock | str] = field(default_factory=dict)
    _costs: dict[tuple[str, bool, int | None], BlockCost] = field(default_factory=dict)
    _known: dict[tuple[object, ...], PieceCosts] = field(default_factory=dict)

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

    def groups(self, stages: Iterable[Stage]) -> tuple[Group, ...]:
        """Those of `stages` that are on several devices, with the pieces of their blocks.

        Raises CompileError P226, an internal one: who plans asks first what can be cut.
        """
        return tuple(Group(stage, self._blocks(stage)) for stage in stages if stage.is_group)

    def _blocks(self, stage: Stage) -> Mapping[int, ShardedBlock]:
        cut = {block: self.pieces(block, stage.shares, stage.parts) for block in stage.blocks}
        for block, each in cut.items():
            if isinstance(each, str):
                where = ", ".join(stage.devices)
                raise CompileError("P226", f"block {block} cannot be cut for {where}: {each}", INTERNAL)
        return {block: each for block, each in cut.items() if not isinstance(each, str)}

    def _of(self, block: int, pieces: ShardedBlock) -> PieceCosts:
        ids = (*(piece.template.id for piece in pieces.shards), pieces.tail.template.id)
        key = block, self.precision.wire, self.portion, ids
        if key not in self._known:
            self._known[key] = self._costs_of(block, pieces)
        return self._known[key]

    def _costs_of(self, block: int, pieces: ShardedBlock) -> PieceCosts:
        (partial,), chunk = pieces.shards[0].template.outputs, self.shapes.chunk
        tail = self._cost(pieces.tail.template, block)
        sent = cost.message(partial, chunk, self.precision.wire, self.portion)
        return PieceCosts(
            shards=tuple(self._cost(piece.template, block) for piece in pieces.shards),
            tails=(tail,) * len(pieces.shards),
            partial_decode_bytes=sent.row_bytes,
            partial_prefill_bytes=sent.portion_bytes,
            wire=sent.wire,
            partial_held_bytes=sent.held_bytes,
        )

    def _split(self, template: str) -> Split | str:
        if template not in self._splits:
            self._splits[template] = split(self.graph.templates[template])
        return self._splits[template]

    def _cost(self, template: Template, block: int) -> BlockCost:
        key = template.id, self.graph.blocks[block].last_row_only, self.portion
        if key not in self._costs:
            self._costs[key] = cost.template_cost(template, self.precision, self.shapes, key[1], self.portion)
        return replace(self._costs[key], block=block)


def piece_templates(groups: Iterable[Group], devices: Collection[str]) -> tuple[Template, ...]:
    """The templates of all pieces on `devices`, each once, in order."""
    found: dict[str, Template] = {}
    for group in groups:
        for rank, device in enumerate(group.stage.devices):
            if device in devices:
                for _, *both in group.pieces(rank):
                    found.update((piece.template.id, piece.template) for piece in both)
    return tuple(found.values())


def sum_templates(groups: Sequence[Group], names: Collection[str]) -> tuple[Template, ...]:
    """Of the templates that add up parts those that have one of `names`.

    Raises CompileError P226, an internal one, for parts of several shapes: a model has one hidden size.
    """
    specs = {
        (spec.dtype, spec.shape): spec
        for group in groups
        for block in group.blocks.values()
        for spec in block.shards[0].template.outputs
    }
    if len(specs) > 1:
        raise CompileError(
            "P226", f"blocks have sums of different shapes: {sorted(map(str, specs))}", INTERNAL
        )
    counts = range(2, max((len(group.stage.devices) for group in groups), default=0) + 1)
    made = (sum_template(spec, count) for spec in specs.values() for count in counts)
    return tuple(template for template in made if template.id in names)
