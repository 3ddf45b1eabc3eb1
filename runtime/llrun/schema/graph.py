"""The model's graph: what programs are written from."""

from __future__ import annotations

from llrun.schema.base import Size, Strict
from llrun.schema.instructions import Tensor
from llrun.schema.values import Rows


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


class GraphRecord(Strict, frozen=True):
    """The whole model's dataflow, blocks in the order of execution: with stages and transmissions, all that programs
    are written from.

    `tensors`: what programs speak of, by id. `input_ids`, `position_ids`, `logits`: ids of the model's inputs and of
    its output.
    """

    tensors: tuple[Tensor, ...]
    blocks: tuple[GraphBlock, ...]
    positions: GraphPositions | None
    input_ids: Size
    position_ids: Size
    logits: Size
