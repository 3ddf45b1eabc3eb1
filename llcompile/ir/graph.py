"""The dataflow graph: tensors, blocks, and templates (blocks equal up to their weights)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

DTYPE_BYTES = {"float32": 4, "float16": 2, "int64": 8, "int32": 4, "uint8": 1, "int8": 1, "bool": 1}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's name, dtype (numpy's name) and shape; a dimension is an int, "n" (new tokens) or "c" (context)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def bytes(self, new_tokens: int, context: int) -> int:
        """Size in bytes when `new_tokens` are processed and the cache then holds `context` tokens."""
        sizes = {"n": new_tokens, "c": context}
        return DTYPE_BYTES[self.dtype] * prod(d if isinstance(d, int) else sizes[d] for d in self.shape)


@dataclass(frozen=True)
class CacheSpec:
    """The key and value cache of one attention node. `window`: tokens it looks back over, 0 for all."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int = 0


@dataclass(frozen=True)
class WeightParam:
    """A weight input of a template. `role`: linear ((out, in), quantised), embedding ((rows, columns), read by
    row), plain (norms and biases, always f32). `by_token`: row i is read for token i, and for nothing else. `format`:
    its own where that isn't the build's."""

    name: str
    shape: tuple[int, ...]
    role: str
    by_token: bool = False
    format: str = ""


@dataclass(frozen=True)
class Template:
    """A class of blocks equal up to their weights, compiled once per processor.

    `onnx`: a valid serialized ModelProto with canonical names. Its graph inputs are `inputs` then `weights`, in
    this order; its outputs are `outputs`. `inputs` may hold, beside activations, `input_ids`, `position_ids`
    (int64 (1, n)) and tensors made by the positions template. A template with caches always has
    `position_ids` as its last input. `caches`: one per attention node, in node order. `ops`: operator types, in
    order, for people. `linear_flops` and `attention_flops`: operations a new token, and a new token times cached
    token. `activation_bytes`: peak of live intermediates, inputs and outputs, a new token.
    """

    id: str
    onnx: bytes
    inputs: tuple[TensorSpec, ...]
    weights: tuple[WeightParam, ...]
    outputs: tuple[TensorSpec, ...]
    caches: tuple[CacheSpec, ...]
    ops: tuple[str, ...]
    linear_flops: int
    attention_flops: int
    activation_bytes: int

    def with_formats(self, formats: Iterable[str]) -> Template:
        """The same with each weight in its format, "" for the build's."""
        pairs = zip(self.weights, formats, strict=True)
        return replace(self, weights=tuple(replace(weight, format=format) for weight, format in pairs))


@dataclass(frozen=True)
class Block:
    """The smallest piece placed as one. `inputs`, `outputs`: graph tensor names in the template's order;
    `weights`: keys of Model.weights in the template's order. `last_row_only`: nothing after it needs more than
    the newest token's row (no cache in it or behind it), so a prefill runs it once. `divergence`: of the output's
    distribution, as far as rounding its matrices was found to cost that, nats; None: nobody has looked."""

    id: int
    template: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    last_row_only: bool = False
    divergence: float | None = None


@dataclass(frozen=True)
class Graph:
    """Blocks in execution order. Block 0 consumes `input_ids`, the last one makes `logits`.

    `tensors` holds every tensor that crosses a block boundary: every name in the blocks' inputs and outputs, so
    also the positions tensors, `input_ids`, `position_ids` and `logits`. `positions` is the template of what is
    computed from `position_ids` alone and used by more than one block (rotary tables): run on each device that
    needs it, never sent; None when there is no such thing. Its outputs bear the graph's tensor names.
    `output_blocks`: so many blocks at the end make the logits together, each a piece of them, and are one device's.
    """

    blocks: tuple[Block, ...]
    templates: Mapping[str, Template]
    tensors: Mapping[str, TensorSpec]
    positions: Template | None
    output_blocks: int = 1

    @property
    def output_start(self) -> int:
        """The first of the blocks that make the logits."""
        return len(self.blocks) - self.output_blocks

    def producer(self, tensor: str) -> int | None:
        """Id of the block that makes `tensor`; None for model inputs and positions tensors."""
        return next((b.id for b in self.blocks if tensor in b.outputs), None)

    def consumers(self, tensor: str) -> tuple[int, ...]:
        return tuple(b.id for b in self.blocks if tensor in b.inputs)
