"""GGUF files written byte by byte, wrong ones among them: what a writer that means well would not write."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

F32, F16, Q8_0, Q4_K, Q8_1 = 0, 1, 8, 12, 9
WIDTH, VOCABULARY = 64, 40


@dataclass(frozen=True)
class Entry:
    """A tensor of the table: `shape` has rows first; `offset` None: behind the one before."""

    shape: tuple[int, ...]
    kind: int = F32
    offset: int | None = None


def _llama() -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.name": "small",
        "llama.context_length": 128,
        "llama.embedding_length": WIDTH,
        "llama.block_count": 1,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": VOCABULARY,
    }


def _tensors() -> dict[str, Entry]:
    narrow = WIDTH // 2
    rows = {
        "attn_q": WIDTH,
        "attn_k": narrow,
        "attn_v": narrow,
        "attn_output": WIDTH,
        "ffn_gate": 96,
        "ffn_up": 96,
    }
    layer = {f"blk.0.{name}.weight": Entry((count, WIDTH)) for name, count in rows.items()}
    layer |= {f"blk.0.{name}.weight": Entry((WIDTH,)) for name in ("attn_norm", "ffn_norm")}
    outside = {"token_embd.weight": Entry((VOCABULARY, WIDTH)), "output_norm.weight": Entry((WIDTH,))}
    return outside | layer | {"blk.0.ffn_down.weight": Entry((WIDTH, 96))}


@dataclass(frozen=True)
class File:
    """A file's parts; `written` makes one. The default is a whole small Llama, zeros in float32."""

    values: Mapping[str, Any] = field(default_factory=_llama)
    tensors: Mapping[str, Entry] = field(default_factory=_tensors)
    magic: bytes = b"GGUF"
    version: int = 3
    key_count: int | None = None
    tensor_count: int | None = None
    data_bytes: int | None = None

    def with_values(self, **changes: Any) -> File:
        """Keys with dots as `__`; None takes one out."""
        values = dict(self.values)
        for name, value in changes.items():
            values[name.replace("__", ".")] = value
        return replace(self, values={key: value for key, value in values.items() if value is not None})

    def with_tensor(self, name: str, entry: Entry | None) -> File:
        tensors = {key: value for key, value in self.tensors.items() if key != name}
        return replace(self, tensors=tensors if entry is None else tensors | {name: entry})

    def written(self, path: Path) -> Path:
        path.write_bytes(self.header() + bytes(self._data()))
        return path

    def header(self) -> bytes:
        """All before the data, which is aligned."""
        counts = (
            len(self.tensors) if self.tensor_count is None else self.tensor_count,
            len(self.values) if self.key_count is None else self.key_count,
        )
        raw = self.magic + struct.pack("<IQQ", self.version, *counts)
        raw += b"".join(text(key) + value(given) for key, given in self.values.items())
        place = 0
        for name, entry in self.tensors.items():
            offset = place if entry.offset is None else entry.offset
            raw += text(name) + struct.pack("<I", len(entry.shape))
            raw += struct.pack(f"<{len(entry.shape)}Q", *entry.shape[::-1]) + struct.pack(
                "<IQ", entry.kind, offset
            )
            place += aligned(_bytes(entry))
        return raw + b"\0" * (-len(raw) % 32)

    def _data(self) -> int:
        if self.data_bytes is not None:
            return self.data_bytes
        return sum(aligned(_bytes(entry)) for entry in self.tensors.values())


def _bytes(entry: Entry) -> int:
    numbers, size = {F32: (1, 4), F16: (1, 2), Q8_0: (32, 34), Q4_K: (256, 144)}.get(entry.kind, (1, 4))
    return min(1 << 24, int(np.prod([min(side, 1 << 12) for side in entry.shape])) // numbers * size)


def aligned(count: int) -> int:
    return -(-count // 32) * 32


def text(word: str | bytes) -> bytes:
    raw = word.encode() if isinstance(word, str) else word
    return struct.pack("<Q", len(raw)) + raw


@dataclass(frozen=True)
class Raw:
    """A value with its type, as it stands in the file."""

    data: bytes


def value(given: object) -> bytes:
    """A value with its type in front."""
    match given:
        case Raw():
            return given.data
        case bool():
            return struct.pack("<I?", 7, given)
        case int():
            return struct.pack("<Iq" if given < 0 else "<IQ", 11 if given < 0 else 10, given)
        case float():
            return struct.pack("<If", 6, given)
        case str() | bytes():
            return struct.pack("<I", 8) + text(given)
        case list() | tuple():
            return _list(given)
    raise TypeError(type(given))


def _list(items: Sequence[Any]) -> bytes:
    first = items[0]
    if isinstance(first, str | bytes):
        return struct.pack("<IIQ", 9, 8, len(items)) + b"".join(map(text, items))
    letter, kind = ("?", 7) if isinstance(first, bool) else ("i", 5) if isinstance(first, int) else ("f", 6)
    return struct.pack("<IIQ", 9, kind, len(items)) + struct.pack(f"<{len(items)}{letter}", *items)
