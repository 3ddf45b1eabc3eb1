"""How weights lie in a bundle: the kernels' order, shared by lowering (which reads) and quantizing (which writes)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from llcompile.ir.graph import DTYPE_BYTES, WeightParam

GROUP = 32
BITS = {"q8": 8, "q6": 6, "q5": 5, "q4": 4}  # of a code, for each quantised format


@dataclass(frozen=True)
class Layout:
    """Storage of a matrix (out_features N, in_features K).

    kind `tiled` (linear): rows in tiles of `tile_rows` = R, N padded with zero rows to a multiple of R.
      f32, f16: data (N/R, K, R) - for each input feature, R consecutive rows.
      q8: K padded to a multiple of 32; data int8 (N/R, K/32, 8, R, 4): for each group and each step of 4
        features, R rows of 4 features; values -127..127. scales f16 (N/R, K/32, R).
      q4: data uint8 (N/R, K/32, 4, R, 4): byte (j, r, i) holds feature 8j+i of the group in its low nibble and
        feature 8j+4+i in its high nibble; stored value = q + 8, q in -8..7. scales f16 (N/R, K/32, R).
      q5: data uint8 (N/R, K/32, 5, R, 4): stored value = q + 16, q in -16..15; its four low bits as in q4, and bit s
        of byte (4, r, i) the fifth of feature 4s+i. scales as in q4.
      q6: data uint8 (N/R, K/32, 6, R, 4): stored value = q + 32, q in -32..31; its four low bits as in q4, and bits
        2s..2s+1 of byte (4+h, r, i) the upper two of feature 16h+4s+i. scales as in q4.
    kind `rows` (embedding, read by row): f32, f16: data (N, K). q8: data int8 (N, Kpad), scales f16 (N, Kpad/32).
    kind `plain`: float32, the weight's own shape.
    Weight = scale * q in all quantised formats. How q is chosen, with error feedback or without, is not the layout's.
    """

    kind: str
    format: str
    tile_rows: int = 1


@dataclass(frozen=True)
class PackedParam:
    """One stored tensor: argument of the compiled functions, and entry `name` of a block's safetensors file."""

    name: str
    weight: int
    part: str  # data | scales
    layout: Layout
    dtype: str  # numpy's name
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return DTYPE_BYTES[self.dtype] * prod(self.shape)


def pad(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def packed_params(index: int, name: str, shape: tuple[int, ...], layout: Layout) -> tuple[PackedParam, ...]:
    """The stored tensors of weight number `index` of a template under `layout`, in argument order."""

    def param(part: str, dtype: str, dims: tuple[int, ...]) -> PackedParam:
        return PackedParam(f"{name}.{part}", index, part, layout, dtype, dims)

    if layout.kind == "plain":
        return (param("data", "float32", shape),)
    rows, columns = shape
    floats = {"f32": "float32", "f16": "float16"}.get(layout.format)
    groups = pad(columns, GROUP) // GROUP
    if layout.kind == "rows":
        if floats:
            return (param("data", floats, (rows, columns)),)
        return (
            param("data", "int8", (rows, groups * GROUP)),
            param("scales", "float16", (rows, groups)),
        )
    r = layout.tile_rows
    tiles = pad(rows, r) // r
    if floats:
        return (param("data", floats, (tiles, columns, r)),)
    dtype = "int8" if layout.format == "q8" else "uint8"
    return (
        param("data", dtype, (tiles, groups, BITS[layout.format], r, 4)),
        param("scales", "float16", (tiles, groups, r)),
    )


def layout_of(role: str, quant: str, tile_rows: int) -> Layout:
    """The layout of a weight of `role` in format `quant`.

    Embedding rows are read one a token and cost bandwidth nothing: quantised builds keep them at 8 bits.
    """
    if role == "plain":
        return Layout("plain", "f32")
    if role == "embedding":
        return Layout("rows", "q8" if quant in BITS else quant)
    return Layout("tiled", quant, tile_rows)


def mean_bits(weights: Sequence[WeightParam], quant: str) -> float:
    """Bits of a weight of the matrices that products read, scales included, in a build of format `quant`; 0 without."""
    sizes = [(prod(w.shape), w.format or quant) for w in weights if w.role == "linear"]
    total = sum(size * bits_of(format) for size, format in sizes)
    return total / sum(size for size, _ in sizes) if sizes else 0.0


def bits_of(format: str) -> float:
    """Bits of a weight, a float16 scale for a group of 32 included."""
    return BITS[format] + 16 / GROUP if format in BITS else {"f16": 16.0, "f32": 32.0}[format]


def cut_multiple(quant: str) -> int:
    """At multiples of how many input features a matrix in format `quant` can be cut: a group's share a scale."""
    return GROUP if quant in BITS else 1


KEY_BLOCK = 16  # tokens whose keys lie together, transposed
CACHE_TILE = 128  # a cache has room for a multiple of so many tokens


def cache_arguments(
    kind: str, kv_heads: int, key_dim: int, value_dim: int, context: int
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Dtype and shape, without the axis of slots, of the tensors of one attention node's cache of `kind`.

    Keys (kv_heads, tokens/16, key_dim, 16), values (kv_heads, tokens, value_dim); tokens: the context, padded.
    q8: codes int8 -127..127, then the keys' and the values' scales float16 (kv_heads, tokens), by which the codes
    of a token and head are multiplied.
    """
    tokens = pad(context, CACHE_TILE)
    dtype = {"f32": "float32", "f16": "float16", "q8": "int8"}[kind]
    keys = (dtype, (kv_heads, tokens // KEY_BLOCK, key_dim, KEY_BLOCK))
    values = (dtype, (kv_heads, tokens, value_dim))
    scales = ("float16", (kv_heads, tokens))
    return (keys, values, scales, scales) if kind == "q8" else (keys, values)


def token_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Which axes of a cache argument of `cache_arguments` count positions, outermost first: keys have two."""
    return (1, 3) if len(shape) == 4 else (1,)


def cache_token_bytes(kind: str, kv_heads: int, key_dim: int, value_dim: int) -> int:
    """What one token takes in one attention node's cache of `kind`."""
    elements = key_dim + value_dim
    return kv_heads * {"f32": 4 * elements, "f16": 2 * elements, "q8": elements + 2 * 2}[kind]


@dataclass(frozen=True)
class LoweredTemplate:
    """Calling convention of a template's functions in a library.

    `<id>_decode`: 1 token. `<id>_prefill`: 1 to chunk tokens of one sequence. With caches also `<id>_batch`: 1 to
    llrun.schema.MAX_BATCH tokens n, each of a different sequence, at its own position of position_ids (1, n).

    fn(*inputs, *params, slots, *caches) -> output, or a tuple of outputs when there are several; without caches
    neither slots nor caches. Inputs in the template's order. Caches of all sequences lie side by side: `caches`
    gives for each argument its dtype and its shape without the leading axis, that of slots; tokens are appended in
    place at their positions. slots int64: where the sequence's caches are, (1,); for `_batch` each token's, (n,).
    Arguments of caches: for each attention node what `cache_arguments` says.
    """

    template: str
    params: tuple[PackedParam, ...]
    caches: tuple[tuple[str, tuple[int, ...]], ...]
