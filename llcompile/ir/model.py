"""What the frontend hands over: an ONNX graph without weights, and where each weight's bytes lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class WeightSource:
    """One tensor of the checkpoint, by reference.

    `shape` is the shape the graph uses. `path`, `offset` (absolute, bytes) and `dtype` (f32 | f16 | bf16, or a type of
    a GGUF file's blocks: Q4_K ...) say where the stored bytes are; with `transpose` the file holds the matrix the
    other way round (GPT-2's Conv1D) and `shape` is the one after transposing. `path` is None for random weights: then
    `init` (normal | ones | zeros) and `std` say how to draw them, seeded by (seed, name). `rows_before`, `rows_after`:
    where it is a part of the tensor, the rows that lie before and behind it there. `pairs`: the number of heads whose
    rows the file has in another order, 0 for none: of a head's 2 d rows there, row 2 i is row i of `shape` and row
    2 i + 1 is row d + i. `added`: what the file's numbers are larger by.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: str | None = None
    offset: int = 0
    transpose: bool = False
    init: str = "normal"
    std: float = 0.02
    rows_before: int = 0
    rows_after: int = 0
    pairs: int = 0
    added: float = 0.0

    @property
    def stored_rows(self) -> int:
        """Rows of the whole tensor."""
        return self.rows_before + self.shape[0] + self.rows_after

    def part(self, start: int, stop: int) -> WeightSource:
        """Its rows start..stop-1."""
        before, after = self.rows_before + start, self.rows_after + self.shape[0] - stop
        return replace(self, shape=(stop - start, *self.shape[1:]), rows_before=before, rows_after=after)


@dataclass(frozen=True)
class Model:
    """A language model as a graph over token ids and their positions.

    `onnx` is a serialized ModelProto, checked, simplified, canonical (llcompile.frontend's docstring lists the
    operators): inputs `input_ids` and `position_ids`, int64 (1, n), then one input per weight under its
    checkpoint name; one output `logits`, float32 (1, n, vocab_size). `weights` maps each weight input to its
    source; a tied weight is one input with several consumers. `tokenizer_bytes`: size of
    tokenizer.json. `random_seed` is None when a checkpoint is read. `positions_reason`: why `max_positions` is less
    than config.json says, "" where it isn't. `notes`: what the user should know, a sentence each.
    """

    name: str
    architecture: str
    onnx: bytes
    weights: Mapping[str, WeightSource]
    vocab_size: int
    hidden_size: int
    max_positions: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    tokenizer_files: tuple[str, ...]
    tokenizer_bytes: int = 0
    random_seed: int | None = None
    positions_reason: str = ""
    notes: tuple[str, ...] = ()
