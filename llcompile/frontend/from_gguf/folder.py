"""What a Hugging Face directory says beside weights, made of a GGUF file and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llcompile.frontend.from_gguf.configuration import configuration_of
from llcompile.frontend.from_gguf.tokenizer import tokenizer_of
from llcompile.gguf import Header
from llcompile.ir.errors import CompileError

_GENERATION = ("bos_token_id", "eos_token_id")
_TEMPLATE = "chat_template"


@dataclass(frozen=True)
class Described:
    """`directory` has config.json, generation_config.json and the tokenizer's files; `config` is the first of them;
    `notes`: what the user should know."""

    directory: Path
    config: Mapping[str, Any]
    notes: tuple[str, ...]


def describe(header: Header) -> Described:
    """Make the folder, named by the hash of what is in it. Raises CompileError F145 for what is not understood, F161
    for a vocabulary that does not hold together, F146 where the folder cannot be written."""
    config, notes = configuration_of(header)
    tokenizer, tokenizer_config = tokenizer_of(header)
    documents = {"config.json": config, "generation_config.json": {key: config[key] for key in _GENERATION}}
    texts = {name: json.dumps(document, indent=1, sort_keys=True) for name, document in documents.items()}
    if tokenizer is None:
        notes = (*notes, f"{header.path} has no vocabulary: the model takes token ids alone")
    else:
        texts["tokenizer.json"] = tokenizer
        template = tokenizer_config.pop(_TEMPLATE, None)
        texts["tokenizer_config.json"] = json.dumps(tokenizer_config, indent=1, sort_keys=True)
        if template is not None:
            texts["chat_template.jinja"] = template
    return Described(_kept(header, texts), config, notes)


@contextmanager
def naming(header: Header, described: Described) -> Iterator[None]:
    """What is wrong with the folder's files is told of the GGUF file that they are made of."""
    try:
        yield
    except CompileError as error:
        message = error.message
        for name in sorted(os.listdir(described.directory)):
            message = message.replace(str(described.directory / name), f"{header.path} (as {name})")
        raise CompileError(error.code, message, error.exit_code) from None


def _kept(header: Header, texts: Mapping[str, str]) -> Path:
    """The folder that holds `texts`, by file name."""
    raw = {name: text.encode("utf-8", "surrogatepass") for name, text in sorted(texts.items())}
    digest = hashlib.sha256()
    for name, data in raw.items():
        digest.update(f"{name}:{len(data)}:".encode() + data)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "llcompile" / "gguf" / digest.hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in raw.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != len(data):
                partial = folder / f"{name}.{os.getpid()}"
                partial.write_bytes(data)
                partial.replace(folder / name)
    except OSError as error:
        raise CompileError(
            "F146",
            f"{error.filename or folder} cannot be written ({error.strerror}): what {header.path} says is kept there. "
            "Make room, or set XDG_CACHE_HOME to another folder.",
        ) from None
    return folder
