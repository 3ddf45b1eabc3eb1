"""Functions that read tables: they hold the rows of their tokens for the time of a call, and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llrun.device.library import Library
from llrun.device.table import Table


@dataclass(frozen=True)
class Lookup:
    """A template whose argument number `ids`, token ids, says which rows it reads of `tables`, those of its blocks
    that are in use."""

    template: str
    ids: int
    tables: Callable[[], Sequence[Table]]


def by_rows(library: Library, lookups: Sequence[Lookup]) -> Library:
    """`library` with the functions of templates that read tables holding no more of them than the rows of these
    tokens, and those for the time of a call."""
    reads = {lookup.template: lookup for lookup in lookups}

    def held_for_a_call(function: Callable[..., Any], lookup: Lookup) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            tables = lookup.tables()
            try:
                for table in tables:
                    table.hold(np.unique(library.unwrap(arguments[lookup.ids])).tolist())
                return function(*arguments)
            finally:
                for table in tables:
                    table.release()

        return call

    functions = {
        name: held_for_a_call(function, lookup)
        if (lookup := reads.get(name.rpartition("_")[0]))
        else function
        for name, function in library.functions.items()
    }
    return replace(library, functions=functions)
