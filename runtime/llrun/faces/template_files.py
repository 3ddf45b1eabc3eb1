"""The chat template of a slice, or the user's own, read for the head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from llrun.device.slice import StoredSlice, verified_bytes
from llrun.errors import RunError
from llrun.requests.chat_template import DEFAULT, UNREADABLE_TEMPLATE, ChatTemplate

TEMPLATE = "tokenizer/chat_template.jinja"
# In the order in which they count: the newer file of each kind first.
TEMPLATES_IN_JSON = ("tokenizer/chat_template.json", "tokenizer/tokenizer_config.json")
NAMES_OF_TOKENS = ("tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json")
TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LIMIT_BYTES = 1 << 20


def read_chat_template(stored: StoredSlice, own: Path | None = None) -> ChatTemplate | None:
    """The template in the file `own`, else the model's, None when it came with none: it is to be continued as text.

    Raises RunError R131 for what cannot be read. The template itself is not: `ChatTemplate.check` does that.
    """
    tokens = _tokens(stored)
    if own is not None:
        return ChatTemplate(f"--chat-template {own}", {DEFAULT: _text_of(own)}, tokens)
    if TEMPLATE in stored.record.files:
        text = _decoded(str(stored.folder / TEMPLATE), verified_bytes(stored, TEMPLATE))
        return ChatTemplate(f"the chat template {stored.folder / TEMPLATE}", {DEFAULT: text}, tokens)
    for name in TEMPLATES_IN_JSON:
        templates = _templates(stored, name)
        if templates:
            return ChatTemplate(f"the chat template of {stored.folder / name}", templates, tokens)
    return None


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise RunError(
            UNREADABLE_TEMPLATE, f"--chat-template {path} cannot be read: {error.strerror}"
        ) from error
    return _decoded(f"--chat-template {path}", data)


def _decoded(source: str, data: bytes) -> str:
    if len(data) > LIMIT_BYTES:
        raise RunError(UNREADABLE_TEMPLATE, f"{source} has more than {LIMIT_BYTES} bytes: no template does")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RunError(UNREADABLE_TEMPLATE, f"{source} is not UTF-8 text: {error}") from error


def _templates(stored: StoredSlice, name: str) -> dict[str, str]:
    """By name; empty when the file has none."""
    said = _object(stored, name).get("chat_template")
    if said is None:
        return {}
    if isinstance(said, str):
        return {DEFAULT: said}
    several = said if isinstance(said, list) else [said]
    try:
        named = {each["name"]: each["template"] for each in several}
    except (KeyError, TypeError):
        named = {}
    if not isinstance(named.get(DEFAULT), str) or not all(isinstance(text, str) for text in named.values()):
        raise RunError(
            UNREADABLE_TEMPLATE,
            f"{stored.folder / name}: chat_template is neither a text nor a list of named ones with a {DEFAULT!r}."
            " Give another with --chat-template FILE",
        )
    return named


def _tokens(stored: StoredSlice) -> dict[str, str]:
    """The texts of special tokens by name, as templates read them; one that the files don't have is undefined."""
    tokens: dict[str, str] = {}
    for file in NAMES_OF_TOKENS:
        said = _object(stored, file)
        for name in TOKENS:
            value = said.get(name)
            text = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(text, str):
                tokens[name] = text
    return tokens


def _object(stored: StoredSlice, name: str) -> Mapping[str, Any]:
    """A JSON file of the slice, empty where there is none, or it is no object."""
    if name not in stored.record.files:
        return {}
    try:
        value = msgspec.json.decode(verified_bytes(stored, name))
    except msgspec.MsgspecError:
        return {}
    return value if isinstance(value, dict) else {}
