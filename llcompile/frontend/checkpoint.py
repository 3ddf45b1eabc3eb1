"""Where a checkpoint's tensors lie: safetensors headers, read with bounds and believed only after checks.

Format: 8 bytes little-endian header size, a JSON object {name: {dtype, shape, data_offsets}}, then the data.
Nothing of the data is read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from llcompile.ir.errors import CompileError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LARGEST_HEADER_BYTES = 100_000_000
_LARGEST_INDEX_BYTES = 100_000_000
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: absolute `offset` in bytes, `dtype` in safetensors' words (F32, BF16 ...).

    Of a GGUF file it has its `gguf_name` there, and `dtype` may be one of llcompile.gguf.BLOCKS; `pairs` and `added` as
    in WeightSource.
    """

    path: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    gguf_name: str = ""
    pairs: int = 0
    added: float = 0.0


def _refuse(path: Path, what: str) -> CompileError:
    return CompileError("F140", f"{path}: {what}. The file is damaged or hostile: fetch it again.")


def read_checkpoint(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in `directory`, by name; from one file, or from the shards of an index.

    Raises CompileError F140 (files) or F141 (none that can be read).
    """
    single, index = directory / SINGLE, directory / INDEX
    if single.is_file():
        return read_header(single)
    if index.is_file():
        return _read_shards(index)
    pickled = sorted(p.name for pattern in _PICKLED for p in directory.glob(pattern))
    if pickled:
        raise CompileError(
            "F141",
            f"{directory} holds only a pickled checkpoint ({pickled[0]}), never read because unpickling runs "
            "code. Convert it with transformers: from_pretrained(...), then save_pretrained(...).",
        )
    raise CompileError(
        "F141",
        f"{directory} holds no weights ({SINGLE} or {INDEX}). Put them there, or use --random-weights SEED.",
    )


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    shards = _read_weight_map(index)
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(shards.values())):
        path = index.parent / file
        if not path.is_file():
            raise CompileError(
                "F140", f"{path}: no such file, but {INDEX} names it. Fetch the checkpoint again."
            )
        held = read_header(path)
        wanted = [name for name, shard in shards.items() if shard == file]
        missing = [name for name in wanted if name not in held]
        if missing:
            raise CompileError(
                "F140",
                f"{path}: {INDEX} places tensor {missing[0]} here, but the file lacks it "
                f"({len(missing)} such). Fetch the checkpoint again.",
            )
        tensors.update((name, held[name]) for name in wanted)
    return tensors


def _read_weight_map(index: Path) -> dict[str, str]:
    size = index.stat().st_size
    if size > _LARGEST_INDEX_BYTES:
        raise _refuse(index, f"{size} bytes, more than the {_LARGEST_INDEX_BYTES} that an index may have")
    document = _parse(index, index.read_bytes())
    shards = document.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(f, str) for f in shards.values()) or not shards:
        raise _refuse(index, 'no "weight_map" object of tensor names to file names')
    outside = [f for f in shards.values() if f in ("", ".", "..") or "/" in f or "\\" in f or "\0" in f]
    if outside:
        raise _refuse(index, f"names the file {outside[0]!r}, which is not a plain name inside its folder")
    return shards


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file. Raises CompileError F140 when something does not hold together."""
    try:
        size = path.stat().st_size
        raw = _header_bytes(path, size)
    except OSError as error:
        raise CompileError("F140", f"{path} cannot be read ({error.strerror}).") from None
    document = _parse(path, raw)
    start, data = 8 + len(raw), size - 8 - len(raw)
    tensors = {
        name: _tensor(path, name, entry, start) for name, entry in document.items() if name != "__metadata__"
    }
    ends = {name: document[name]["data_offsets"][1] for name in tensors}
    _check_places(path, {n: (t.offset - start, ends[n]) for n, t in tensors.items()}, data)
    return tensors


def _header_bytes(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise _refuse(path, f"{size} bytes, too short for a safetensors header")
        length = int.from_bytes(prefix, "little")
        if length > min(_LARGEST_HEADER_BYTES, size - 8):
            limit = f"the file has {size} and a header may have {_LARGEST_HEADER_BYTES}"
            raise _refuse(path, f"a header of {length} bytes is announced, but {limit}")
        return file.read(length)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _reject_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"not a JSON object ({error})") from None
    if not isinstance(document, dict):
        raise _refuse(path, "not a JSON object")
    return document


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _tensor(path: Path, name: str, entry: object, start: int) -> StoredTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _refuse(path, f"tensor {name}: not an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise _refuse(path, f"tensor {name}: dtype {dtype!r} is not a name")
    if not isinstance(shape, list) or len(shape) > 16 or not all(map(_is_count, shape)):
        raise _refuse(path, f"tensor {name}: the shape is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise _refuse(path, f"tensor {name}: data_offsets are not two places")
    begin, end = offsets
    expected = prod(shape) * _ITEM_BYTES.get(dtype, 0)
    if begin > end or (dtype in _ITEM_BYTES and end - begin != expected):
        raise _refuse(
            path, f"tensor {name}: offsets {begin} to {end}, but {dtype} {shape} takes {expected} bytes"
        )
    return StoredTensor(str(path.resolve()), start + begin, dtype, tuple(shape))


def _check_places(path: Path, places: Mapping[str, tuple[int, int]], data_bytes: int) -> None:
    """No two tensors share a byte, and the file is as long as its last tensor says."""
    ordered = sorted(places.items(), key=lambda item: item[1])
    for (left, (_, end)), (right, (begin, _)) in pairwise(ordered):
        if begin < end:
            raise _refuse(path, f"tensors {left} and {right} overlap")
    for name, (_, end) in ordered:
        if end > data_bytes:
            raise _refuse(
                path, f"truncated: tensor {name} ends at byte {end} of the data, which has {data_bytes}"
            )


def stored_dtype(name: str, tensor: StoredTensor) -> str:
    """f32, f16, bf16, or a type of GGUF's blocks. Raises CompileError F142 for a dtype that weights may not have."""
    known = {"F32": "f32", "F16": "f16", "BF16": "bf16"}.get(tensor.dtype)
    if known is None and tensor.gguf_name:
        return tensor.dtype  # the file's header was read, and it has types that can be read alone
    if known is None:
        raise CompileError(
            "F142",
            f"{tensor.path}: tensor {name} is {tensor.dtype}; weights may be F32, F16 or BF16. "
            "Convert the checkpoint.",
        )
    return known
