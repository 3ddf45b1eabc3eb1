"""The tokenizer's files, as the runtime takes them along."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from llcompile.ir.errors import CompileError

_MAIN = "tokenizer.json"
_OTHERS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)
_SLOW = (("vocab.json", "merges.txt"), ("tokenizer.model",))


def tokenizer_files(directory: Path) -> tuple[str, ...]:
    """Absolute paths of the files that there are; without a tokenizer.json a model takes token ids only.

    Where `directory` has a tokenizer of the older kind alone (OPT: vocab.json and merges.txt), tokenizer.json is
    made from it and kept in the user's cache folder, under the hash of its text.
    """
    main = directory / _MAIN
    converted = None if main.is_file() or not _is_older(directory) else _convert(directory)
    paths = [main if main.is_file() else converted, *(directory / name for name in _OTHERS)]
    return tuple(str(path) for path in paths if path is not None and path.is_file())


def _is_older(directory: Path) -> bool:
    return any(all((directory / name).is_file() for name in names) for names in _SLOW)


def open_tokenizer(path: str, remedy: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json. Raises CompileError F161 when it is none, with this `remedy`."""
    try:
        return Tokenizer.from_file(path)
    except Exception as error:
        # The tokenizers library raises bare Exception for files it cannot read: that type exactly is meant.
        if type(error) is not Exception:
            raise
        raise CompileError("F161", f"{path} cannot be read ({error}): {remedy}") from None


def read_tokenizer(
    directory: Path, files: Sequence[str], vocabulary: int
) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """The tokenizer among the `files` of `directory`, None where there is none, and what the user should know of it.

    Raises CompileError F161 (unreadable) or F163 (of another model: its tokens are more than the `vocabulary` of the
    model). Tokens that were added to a tokenizer alone are common, so those may lie beyond.
    """
    path = next((path for path in files if Path(path).name == _MAIN), None)
    if path is None:
        unread = f"the tokenizer in {directory} cannot be made into a tokenizer.json: the model takes token ids alone"
        return None, (unread,) if _is_older(directory) else ()
    tokenizer = open_tokenizer(
        path, "fetch it again, or take it out and use the model by token ids (--prompt-ids)"
    )
    most = max(tokenizer.get_vocab(with_added_tokens=False).values(), default=-1)
    if most >= vocabulary:
        raise CompileError(
            "F163",
            f"{path} makes token ids up to {most}, the model has {vocabulary} (vocab_size): it belongs to another "
            "model. Put the model's own there, or take it out and use the model by token ids (--prompt-ids)",
        )
    added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if i >= vocabulary}
    if not added:
        return tokenizer, ()
    first = min(added)
    return tokenizer, (
        f"{path} has {len(added)} added tokens beyond the model's {vocabulary} (the first: {added[first]!r}, {first}); "
        "text that holds them cannot be used",
    )


def _convert(directory: Path) -> Path | None:
    """tokenizer.json of a slow tokenizer; None when transformers cannot convert it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, use_fast=True, trust_remote_code=False, local_files_only=True
        )
        text = str(tokenizer.backend_tokenizer.to_str())
    except Exception as error:
        # The tokenizers library raises bare Exception for files it cannot read: that type exactly is meant.
        if type(error) is Exception or isinstance(error, _UNREADABLE):
            return None
        raise
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = cache / "llcompile" / "tokenizers" / hashlib.sha256(text.encode()).hexdigest() / _MAIN
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        partial.write_text(text)
        partial.replace(target)
    return target
