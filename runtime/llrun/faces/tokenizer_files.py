"""The tokenizer's files of a slice, read for the head."""

from __future__ import annotations

from llrun.device.slice import StoredSlice, verified_bytes
from llrun.requests.tokenizer import Tokenizer

TOKENIZER = "tokenizer/tokenizer.json"


def read_tokenizer(stored: StoredSlice) -> Tokenizer | None:
    """The model's tokenizer, None when the bundle has none."""
    if TOKENIZER not in stored.record.files:
        return None
    data = verified_bytes(stored, TOKENIZER)
    return Tokenizer(str(stored.folder / TOKENIZER), data, stored.record.model.vocab_size)
