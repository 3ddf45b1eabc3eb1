"""The tokenizer's files, as the runtime takes them along."""

from __future__ import annotations

from pathlib import Path

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


def tokenizer_files(directory: Path) -> tuple[str, ...]:
    """Absolute paths of those that `directory` has; without tokenizer.json a model takes token ids only."""
    return tuple(str(directory / name) for name in _FILES if (directory / name).is_file())
