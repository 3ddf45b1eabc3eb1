"""Text to token ids and back, on the head alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llrun.errors import USAGE, RunError


class Codec(Protocol):
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class Tokenizer:
    """A model's tokenizer.json, `text`. Encoding adds the special tokens it prescribes; decoding leaves them out."""

    def __init__(self, text: bytes) -> None:
        try:
            from tokenizers import Tokenizer as Reader
        except ImportError as error:
            raise RunError(
                "R106",
                "text needs the package tokenizers: pip install 'llrun[head]', or use --prompt-ids",
                USAGE,
            ) from error
        self._inner = Reader.from_buffer(text)

    def encode(self, text: str) -> list[int]:
        """Token ids. Raises RunError R107 for what the terminal could not decode (lone surrogates)."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RunError("R107", f"the prompt is not UTF-8 text: {error}", USAGE) from error
        return list(self._inner.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._inner.decode(list(ids), skip_special_tokens=True))
