"""tokenizer.json and tokenizer_config.json of a GGUF file's vocabulary, made by transformers' own converter."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from transformers import TokenizersBackend
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    GGUF_TOKENIZER_MAPPING,
    convert_gguf_tokenizer,
)

from llcompile.frontend.from_gguf.configuration import architecture_of
from llcompile.frontend.from_gguf.metadata import Keys, refuse
from llcompile.gguf import Header
from llcompile.ir.errors import CompileError

_BYTE_LEVEL, _SENTENCEPIECE, _NONE = "gpt2", "llama", ("no_vocab", "none")
# Besides those that transformers knows, by llama.cpp's names: how a byte-level vocabulary splits text before it joins.
_AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais")
_DIGITS_ALONE = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
# Those of Llama 3 and of Mistral take a word that is a token as it is, whatever its parts join to, and begin with BOS.
_WHOLE_WORDS = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "tekken",
)
_WITHOUT_SPACE = ("gemma3",)
_LONGEST_TOKEN = 1024
_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


def tokenizer_of(header: Header) -> tuple[str | None, dict[str, Any]]:
    """(the text of tokenizer.json, None where the file has no vocabulary; tokenizer_config.json).

    Raises CompileError F145 for a tokenizer that is not understood, F161 for a vocabulary that does not hold together.
    """
    keys = Keys(header, "tokenizer.ggml.")
    kind, tokens = keys.text("model"), keys.texts("tokens")
    template = Keys(header).text("tokenizer.chat_template")
    config: dict[str, Any] = {} if template is None else {"chat_template": template}
    if kind in (None, *_NONE) or tokens is None:
        return None, config
    if kind not in (_BYTE_LEVEL, _SENTENCEPIECE):
        raise refuse(
            header,
            f"tokenizer.ggml.model is {kind!r}; {_BYTE_LEVEL} (byte-level) and {_SENTENCEPIECE} (sentencepiece) are",
        )
    _refuse_others(header, keys, kind, tokens)
    config |= _special_tokens(header, keys, tokens) | _begins_and_ends(keys, kind)
    backend = _convert(header, keys, kind)
    if kind == _BYTE_LEVEL:
        backend = _with_tokens_as_written(backend, keys, tokens)
    named = {key: value for key, value in config.items() if key != "chat_template"}
    made = TokenizersBackend(tokenizer_object=backend, **named)
    return _text(header, keys, made.backend_tokenizer, len(tokens)), config


def _text(header: Header, keys: Keys, backend: Tokenizer, count: int) -> str:
    """tokenizer.json of `backend`, which has `count` tokens of the file, with what the converter does not know of it.

    Parsed where something is to be changed alone: half a million merges of Gemma take 0.3 GB as Python's lists.
    """
    text = str(backend.to_str())
    added = max(backend.get_added_tokens_decoder(), default=0)
    whole = keys.text("model") == _BYTE_LEVEL and keys.text("pre") in _WHOLE_WORDS
    space = keys.text("model") == _SENTENCEPIECE and _lacks_space(header, keys)
    if added < count and not whole and not space:
        return text
    document = json.loads(text)
    # The converter's classes add tokens that they are used to where a vocabulary has none of that name.
    document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] < count]
    if whole:
        document["model"]["ignore_merges"] = True
    if space:
        document["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        document["pre_tokenizer"] = None
        parts = document["decoder"]["decoders"]
        document["decoder"]["decoders"] = [part for part in parts if part["type"] != "Strip"]
    return json.dumps(document, ensure_ascii=False)


def _with_tokens_as_written(backend: Tokenizer, keys: Keys, tokens: list[str]) -> Tokenizer:
    """Tokens that are found whole in a text, under their own spelling.

    The converter spells those with other characters than a byte-level vocabulary has ("<｜User｜>") by their bytes and
    does not look for them.
    """
    spelling = bytes_to_unicode()
    alphabet, kinds = set(spelling.values()), keys.numbers("token_type") or []
    whole = [
        (number, token, kind == _CONTROL)
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind in (_CONTROL, _USER_DEFINED) and token and not set(token) <= alphabet
    ]
    if not whole:
        return backend
    document = json.loads(backend.to_str())
    vocabulary = document["model"]["vocab"]
    for number, token, special in whole:
        vocabulary.pop("".join(spelling[byte] for byte in token.encode()), None)
        vocabulary[token] = number
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        document["added_tokens"].append({"id": number, "content": token, "special": special, **flags})
    document["added_tokens"].sort(key=lambda added: added["id"])
    made: Tokenizer = Tokenizer.from_str(json.dumps(document))
    return made


def _lacks_space(header: Header, keys: Keys) -> bool:
    """Whether a text begins without the space that the converter, which looks at the architecture alone, puts there."""
    asked, gemma = keys.flag("add_space_prefix"), architecture_of(header) in _WITHOUT_SPACE
    if asked and gemma:
        raise refuse(header, f"{keys.prefix}add_space_prefix is true, which Gemma's vocabulary does not have")
    return asked is False and not gemma


def _refuse_others(header: Header, keys: Keys, kind: str, tokens: list[str]) -> None:
    """What the converter would read past."""
    split, known = keys.text("pre"), (*GGUF_PRE_TOKENIZER_SPLITS, *_AS_GPT2, *_DIGITS_ALONE)
    if kind == _BYTE_LEVEL and split not in known:
        raise refuse(
            header,
            f"{keys.prefix}pre is {split!r}: how this vocabulary splits text is not known, and its tokens would be "
            "others",
        )
    if keys.flag("remove_extra_whitespaces"):
        raise refuse(header, f"{keys.prefix}remove_extra_whitespaces is not supported")
    longest = max(tokens, key=len, default="")
    if len(longest) > _LONGEST_TOKEN:  # merges are looked for at every place of each token
        raise CompileError(
            "F161",
            f"{header.path}: {keys.prefix}tokens has one of {len(longest)} characters, {_LONGEST_TOKEN} may be: fetch "
            "the file again.",
        )
    for key in ("scores", "token_type"):
        numbers = keys.numbers(key)
        if numbers is not None and len(numbers) != len(tokens):
            raise CompileError(
                "F161",
                f"{header.path}: {keys.prefix}{key} is of {len(numbers)} tokens, there are {len(tokens)}.",
            )
    if len(set(tokens)) != len(tokens):
        raise CompileError(
            "F161", f"{header.path}: {keys.prefix}tokens has a token twice: fetch the file again."
        )


def _special_tokens(header: Header, keys: Keys, tokens: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, key in _SPECIAL.items():
        number = keys.whole(f"{key}_token_id")
        if number is not None and not 0 <= number < len(tokens):
            raise refuse(
                header, f"{keys.prefix}{key}_token_id is {number}, outside the vocabulary of {len(tokens)}"
            )
        found[name] = None if number is None else tokens[number]
    return found


def _begins_and_ends(keys: Keys, kind: str) -> dict[str, bool]:
    """Whether BOS and EOS are put around a text; where the file does not say, as llama.cpp has it."""
    begins, ends = keys.flag("add_bos_token"), keys.flag("add_eos_token")
    usual = kind == _SENTENCEPIECE or keys.text("pre") in _WHOLE_WORDS
    return {"add_bos_token": usual if begins is None else begins, "add_eos_token": bool(ends)}


def _convert(header: Header, keys: Keys, kind: str) -> Tokenizer:
    """The vocabulary as a tokenizer, which splits text as the file says."""
    names = GGUF_TOKENIZER_MAPPING["tokenizer"]
    given = {ours: header.values[key] for key, ours in
             ((f"tokenizer.{theirs}", ours) for theirs, ours in names.items()) if key in header.values}  # fmt: skip
    try:
        backend: Tokenizer = convert_gguf_tokenizer(architecture_of(header), given)[0]
    except Exception as error:
        # The tokenizers library raises bare Exception for a vocabulary it cannot take: that type exactly is meant.
        if type(error) is not Exception and not isinstance(error, _UNREADABLE):
            raise
        reason = " ".join(str(error).split())[:200]
        raise CompileError(
            "F161",
            f"{header.path}: its vocabulary does not hold together ({type(error).__name__}: {reason}).",
        ) from None
    if kind == _BYTE_LEVEL and keys.text("pre") in _DIGITS_ALONE:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return backend
