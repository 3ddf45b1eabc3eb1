"""Numbers, texts and lists of a GGUF file's header, one after another, none of them beyond its end."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from llcompile.ir.errors import CompileError

Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]

# Far beyond the largest vocabularies: 262,144 words with scores and kinds take 7 MB.
_LARGEST_HEADER_BYTES, _MOST_ITEMS = 1 << 26, 1 << 22
_SHOWN_BYTES = 80
# Types of values, by their number in files, as struct writes them.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_BOOL, _TEXT, _LIST = 7, 8, 9
_LEAST_TEXT_BYTES = 8


class Cursor:
    """A place in the header of the file of `size` bytes at `path`. What leads out of it raises CompileError F143."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.size, self.place = path, size, 0
        self._file = file

    def damaged(self, what: str) -> CompileError:
        return CompileError("F143", f"{self.path}: {what}. The file is damaged or hostile: fetch it again.")

    def require(self, count: int, what: str) -> None:
        """Raises CompileError F143 when fewer than `count` bytes are left for `what`."""
        end = self.place + count
        if end > self.size:
            raise self.damaged(f"truncated: {what} ends at byte {end}, the file has {self.size}")
        if end > _LARGEST_HEADER_BYTES:
            raise self.damaged(
                f"{what} ends at byte {end}; keys and tensors may take {_LARGEST_HEADER_BYTES}"
            )

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes, of `what`."""
        self.require(count, what)
        raw = self._file.read(count)
        if len(raw) < count:
            raise self.damaged(f"truncated: it ends within {what}")
        self.place += count
        return raw

    def number(self, kind: str, what: str) -> int:
        """The next whole number, of struct's type `kind`."""
        return int(struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}"), what))[0])

    def text(self, what: str) -> str:
        """The next text, of `what`."""
        raw = self.take(self.number("Q", what), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is not UTF-8: {raw[:_SHOWN_BYTES]!r}") from None

    def name(self, what: str) -> str:
        """The next text, which is the name of `what` and can be shown."""
        name = self.text(f"the name of {what}")
        if not name.isprintable():
            raise self.damaged(f"the name {name[:_SHOWN_BYTES]!r} is not printable")
        return name

    def value(self, key: str) -> Value:
        """The next value with its type, of `key`."""
        what = f"key {key}"
        kind = self.number("I", what)
        if kind == _TEXT:
            return self.text(what)
        if kind != _LIST:
            return self._numbers(kind, 1, what)[0]
        kind, count = self.number("I", what), self.number("Q", what)
        if count > _MOST_ITEMS:
            raise self.damaged(f"{what} is a list of {count}, which may have {_MOST_ITEMS}")
        if kind != _TEXT:
            return self._numbers(kind, count, what)
        self.require(count * _LEAST_TEXT_BYTES, what)
        return [self.text(what) for _ in range(count)]

    def _numbers(self, kind: int, count: int, what: str) -> list[bool] | list[int] | list[float]:
        if kind not in _NUMBERS:
            raise self.damaged(f"{what} is of type {kind}, which a value cannot be")
        letter = _NUMBERS[kind]
        self.require(count * struct.calcsize(f"<{letter}"), what)
        raw = self.take(count * struct.calcsize(f"<{letter}"), what)
        numbers = list(struct.unpack(f"<{count}{letter}", raw))
        return [bool(number) for number in numbers] if kind == _BOOL else numbers
