"""The tokenizer's files, as the runtime takes them along."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from transformers import AutoTokenizer

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
    older = any(all((directory / name).is_file() for name in names) for names in _SLOW)
    converted = None if main.is_file() or not older else _convert(directory)
    found = [main if main.is_file() else converted, *(directory / name for name in _OTHERS)]
    return tuple(str(path) for path in found if path is not None and path.is_file())


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
