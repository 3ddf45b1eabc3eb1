"""The tokenizer's files of a slice, read for the head."""

from __future__ import annotations

import msgspec

from llrun.device.slice import StoredSlice, verified_bytes
from llrun.requests.tokenizer import Tokenizer

TOKENIZER = "tokenizer/tokenizer.json"
TOKENIZER_CONFIG = "tokenizer/tokenizer_config.json"
CHAT_TEMPLATE = "tokenizer/chat_template.jinja"


def read_tokenizer(stored: StoredSlice) -> Tokenizer | None:
    """The model's tokenizer, None when the bundle has none."""
    if TOKENIZER not in stored.record.files:
        return None
    data = verified_bytes(stored, TOKENIZER)
    return Tokenizer(str(stored.folder / TOKENIZER), data, stored.record.model.vocab_size)


def has_chat_template(stored: StoredSlice) -> bool:
    """Whether the model came with a template for conversations.

    Templates are programs: none is executed here.
    """
    if CHAT_TEMPLATE in stored.record.files:
        return True
    if TOKENIZER_CONFIG not in stored.record.files:
        return False
    text = verified_bytes(stored, TOKENIZER_CONFIG)
    try:
        return "chat_template" in msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError:
        return False
