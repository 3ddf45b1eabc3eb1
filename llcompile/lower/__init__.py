"""Lowering: templates -> packed parameters and one shared library a (processor, format, model).

`lower_templates` says how the functions are called and needs no compiler; `compile_library` compiles and
links; `kept_library` does that too, and keeps what it made for the next build. The compiler is loaded by the first call
that compiles, not by this import.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llcompile.ir.cluster import Processor
from llcompile.ir.graph import Template
from llcompile.lower.store import key_of, stored
from llcompile.lower.tiles import lower_templates
from llrun.schema import Precision, Shapes

__all__ = ["compile_library", "kept_library", "lower_templates"]


def compile_library(
    templates: Sequence[Template],
    precision: Precision,
    shapes: Shapes,
    processor: Processor,
    out: Path,
) -> None:
    """Compile `templates` into the shared library `out`: `<id>_decode` (n = 1) and `<id>_prefill`
    (1 <= n <= chunk) of each, called as `lower_templates` says.

    Raises CompileError L1xx that names the operator and the template for what cannot be compiled.
    """
    from llcompile.lower.library import compile_library as compile_and_link

    compile_and_link(templates, precision, shapes, processor, out)


def kept_library(
    templates: Sequence[Template],
    precision: Precision,
    shapes: Shapes,
    processor: Processor,
    out: Path,
) -> bool:
    """What `compile_library` gives, from an earlier build where there was one; whether there was."""
    key = key_of(templates, precision, shapes, processor)
    return stored(key, out, lambda path: compile_library(templates, precision, shapes, processor, path))
