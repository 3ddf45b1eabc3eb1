"""Which tokens begin and end a text.

The rule: ends are those of generation_config.json where it says any ("eos_token_id", null included), else those of
config.json; and besides, the one that tokenizer_config.json calls eos_token, because chat models often end an answer
with it and say so nowhere else. The beginning is that of generation_config.json, else of config.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PretrainedConfig

from llcompile.frontend.configuration import read_object, text_part
from llcompile.ir.errors import CompileError

_BEGIN, _END = "bos_token_id", "eos_token_id"


def begin_and_ends(
    directory: Path, config: PretrainedConfig, tokenizer: Tokenizer | None
) -> tuple[int | None, tuple[int, ...]]:
    """(beginning, ends) of text. Raises CompileError F110 (malformed), F111 (no token of the vocabulary)."""
    begin = next(_named(directory, config, _BEGIN), None)
    ends = [*_named(directory, config, _END), *_of_tokenizer(directory, config, tokenizer)]
    return begin, tuple(dict.fromkeys(ends))


def _named(directory: Path, config: PretrainedConfig, key: str) -> Iterator[int]:
    """The ids that generation_config.json, else config.json gives; one that transformers takes by default counts where
    the vocabulary has it."""
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        document = text_part(read_object(path)) if path.is_file() else {}
        if key in document:
            yield from (_checked(path, key, value, config) for value in _listed(document[key]))
            return
    yield from (value for value in _listed(getattr(config, key, None)) if value in range(config.vocab_size))


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _checked(path: Path, key: str, value: object, config: PretrainedConfig) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CompileError("F111", f"{path}: {key}: token id {value!r} is not a number from 0.")
    if value >= config.vocab_size:
        raise CompileError(
            "F111",
            f"{path}: {key}: token {value} is outside the vocabulary of {config.vocab_size}. Correct it.",
        )
    return value


def _of_tokenizer(directory: Path, config: PretrainedConfig, tokenizer: Tokenizer | None) -> Iterator[int]:
    """The id of tokenizer_config.json's eos_token; none where the tokenizer does not know it."""
    path = directory / "tokenizer_config.json"
    if tokenizer is None or not path.is_file():
        return
    token = read_object(path).get("eos_token")
    text = token.get("content") if isinstance(token, Mapping) else token
    if text is not None and not isinstance(text, str):
        raise CompileError("F111", f"{path}: eos_token {text!r} is not a text. Correct it.")
    token_id = tokenizer.token_to_id(text) if text else None
    if token_id is not None:
        yield _checked(path, "eos_token", token_id, config)
