"""Records to canonical text and back: sorted keys, sealed by a digest of their own."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec

from llrun.schema.base import SCHEMA
from llrun.schema.manifest import Manifest
from llrun.schema.slice import Slice

Sealed = TypeVar("Sealed", Slice, Manifest)


class SchemaError(ValueError):
    """The file is of another version of the schema: whole perhaps, but not for this version to read."""


class _Version(msgspec.Struct):
    schema: int


def encode(record: Slice | Manifest) -> bytes:
    """Canonical text: sorted keys, two spaces, the digest filled in."""
    bare = msgspec.structs.replace(record, digest="")
    sealed = msgspec.structs.replace(bare, digest=hashlib.sha256(_canonical(bare)).hexdigest())
    return msgspec.json.format(_canonical(sealed), indent=2) + b"\n"


def decode(text: bytes, kind: type[Sealed]) -> Sealed:
    """Parse and check `text`.

    Raises SchemaError for another version, else ValueError that says what is wrong (msgspec.ValidationError is one).
    """
    try:
        version = msgspec.json.decode(text, type=_Version).schema
        if version != SCHEMA:
            raise SchemaError(
                f"it has schema {version}, this version reads schema {SCHEMA}: build the bundle again, or use the "
                "llcompile and llrun of its time"
            )
        record = msgspec.json.decode(text, type=kind)
        damaged = encode(record) != text
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if damaged:
        raise ValueError("the text does not match its digest: the file was damaged or edited")
    return record


def _canonical(record: Slice | Manifest) -> bytes:
    # Through its own type once: an int in a float's place would be written as 3 and read back as 3.0.
    exact = msgspec.convert(msgspec.to_builtins(record), type(record))
    return msgspec.json.encode(exact, order="sorted")
