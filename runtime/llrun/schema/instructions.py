"""What a device does: the instructions of its program, and the tensors they speak of."""

from __future__ import annotations

from llrun.schema.base import Size, Strict
from llrun.schema.values import Rows, WireFormat


class Load(Strict, frozen=True, tag="load", tag_field="op"):
    """Bring a block's weights into memory (set-up)."""

    block: Size


class Receive(Strict, frozen=True, tag="receive", tag_field="op"):
    """Wait for `tensor` from device `source`. A receive that follows another kind of instruction begins a
    segment: the instructions up to the next such receive, run as one as soon as all the segment's tensors are
    there."""

    tensor: Size
    source: str


class Run(Strict, frozen=True, tag="run", tag_field="op"):
    """Call a template's function: `_decode` (one row), `_prefill`, or `_batch` (a row of each of several).

    `block` is None for the positions template and for a group's sums; a group's shards and tails have ids of their own
    (GroupBlock).

    inputs, outputs: tensor ids in the template's order. `rows`: `last` if only the newest row is needed:
    then it runs on the last row of the last chunk of a prompt, and not at all on the chunks before.
    """

    template: str
    block: Size | None
    inputs: tuple[Size, ...]
    outputs: tuple[Size, ...]
    rows: Rows = Rows.ALL


class Send(Strict, frozen=True, tag="send", tag_field="op"):
    """Send `tensor` to device `destination`; `rows` as for Run."""

    tensor: Size
    destination: str
    rows: Rows = Rows.ALL


class Release(Strict, frozen=True, tag="release", tag_field="op"):
    """`tensor` is not needed any more in this step."""

    tensor: Size


Instruction = Load | Receive | Run | Send | Release


class Tensor(Strict, frozen=True, omit_defaults=True):
    """A tensor of the program: dtype (numpy's name) and shape, with -1 for n, the new tokens. `wire`: how it travels.
    In another format than f32 it is rounded by who makes it, whether or not it travels: so its bits don't depend on
    where blocks run."""

    id: Size
    name: str
    dtype: str
    shape: tuple[int, ...]
    wire: WireFormat = WireFormat.F32


class DeviceProgram(Strict, frozen=True):
    device: str
    epoch: Size
    instructions: tuple[Instruction, ...]
