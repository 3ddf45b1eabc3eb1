"""The model's graph: what programs are written from."""

from __future__ import annotations

from llrun.schema.base import Size, Strict
from llrun.schema.instructions import Tensor
from llrun.schema.values import AllReduceKind, Rows


class GraphBlock(Strict, frozen=True):
    """A block of the model. inputs, outputs: tensor ids in its template's order. `rows`: `last` if nothing after it
    needs more than the newest row."""

    id: Size
    template: str
    inputs: tuple[Size, ...]
    outputs: tuple[Size, ...]
    rows: Rows = Rows.ALL


class GraphPositions(Strict, frozen=True):
    """The template of what is computed from position ids alone, on each device that needs it."""

    template: str
    inputs: tuple[Size, ...]
    outputs: tuple[Size, ...]


class GroupBlock(Strict, frozen=True):
    """A block as a group computes it: each rank's *shard* makes a part of one sum, and the *tail* makes of the sum what
    the block makes.

    `shards`: by rank, the shard's template; `inputs`: what each takes. `partials`: by rank, the tensor that it makes.
    `sums`: what is made of them before the tail: of a star the sum, of a ring the running sums of ranks 0 to 1, 0 to 2
    and so on, of a direct exchange none. `tail`: the tail's template, which takes the last of `sums`, or where there is
    none all partials in the order of ranks, and then `tail_inputs`; it makes the block's outputs.

    On a device the shard of block b has the id B + 2b, the tail B + 2b + 1, B being the number of the graph's blocks;
    of division d of the block 2dB more.
    """

    block: Size
    shards: tuple[str, ...]
    inputs: tuple[Size, ...]
    partials: tuple[Size, ...]
    sums: tuple[Size, ...]
    tail: str
    tail_inputs: tuple[Size, ...]


class GraphGroup(Strict, frozen=True, omit_defaults=True):
    """The blocks that `devices` can compute together with these `shares`, ascending. Sums are made by the template
    `sum_N`, which adds N tensors in the order of its arguments. A block may be cut in several ways, one of which is in
    use at a time: each is a `division` with a number of its own."""

    devices: tuple[str, ...]
    shares: tuple[float, ...]
    all_reduce: AllReduceKind
    root: Size
    blocks: tuple[GroupBlock, ...]
    division: Size = 0


class GraphRecord(Strict, frozen=True, omit_defaults=True):
    """The whole model's dataflow, blocks in the order of execution: with stages and transmissions, all that programs
    are written from.

    `tensors`: what programs speak of, by id. `input_ids`, `position_ids`, `logits`: ids of the model's inputs and of
    its output. `groups`: which blocks devices can compute together, beside what each can alone.
    """

    tensors: tuple[Tensor, ...]
    blocks: tuple[GraphBlock, ...]
    positions: GraphPositions | None
    input_ids: Size
    position_ids: Size
    logits: Size
    groups: tuple[GraphGroup, ...] = ()
