"""Slices that hold files of a tokenizer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import numpy_model

from llrun.device.slice import StoredSlice
from llrun.schema import FileEntry

RECORD = numpy_model.record("d0", ["d0"])
JINJA, OLDER, CONFIG, MAP = (
    f"tokenizer/{name}"
    for name in (
        "chat_template.jinja",
        "chat_template.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    )
)


def stored(folder: Path, **files: object) -> StoredSlice:
    """A slice with these files, by name: texts, or what JSON is to hold."""
    (folder / "tokenizer").mkdir()
    entries = {}
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
        entries[name] = FileEntry(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return StoredSlice(folder, "d0", None, msgspec.structs.replace(RECORD, files={**RECORD.files, **entries}))
