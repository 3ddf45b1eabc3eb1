"""What all records share: strictness, sizes, and a file's entry."""

from __future__ import annotations

from typing import Annotated

import msgspec

SCHEMA = 6
MAX_BATCH = 16  # sequences of which a `<template>_batch` function computes one row each
Size = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every record: immutable, unknown fields refused."""


class FileEntry(Strict, frozen=True):
    size_bytes: Size
    sha256: str
