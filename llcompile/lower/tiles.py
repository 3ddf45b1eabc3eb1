"""How packed weights and caches look for a processor; needs no compiler."""

from __future__ import annotations

from collections.abc import Sequence

from llcompile.ir.cluster import Processor
from llcompile.ir.errors import CompileError
from llcompile.ir.graph import Template
from llcompile.ir.packing import (
    LoweredTemplate,
    PackedParam,
    cache_arguments,
    layout_of,
    packed_params,
)
from llrun.schema import Isa, Precision, Shapes

TILE_ROWS = {Isa.AVX512VNNI: 16, Isa.AVX2: 8, Isa.NEON: 8, Isa.NEON_DOTPROD: 8, Isa.NEON_I8MM: 8}


def tile_rows(processor: Processor) -> int:
    """Rows of weights a tile holds. Raises CompileError L101 for an unknown instruction set."""
    if processor.isa not in TILE_ROWS:
        known = ", ".join(sorted(TILE_ROWS))
        raise CompileError("L101", f"no kernels for instruction set {processor.isa!r}: use one of {known}")
    return TILE_ROWS[processor.isa]


def lower_templates(
    templates: Sequence[Template], precision: Precision, shapes: Shapes, processor: Processor
) -> tuple[LoweredTemplate, ...]:
    """Calling convention of each template compiled for `processor`: weights and caches in the formats of
    `precision`, caches of the context's tokens. Raises CompileError L101 (instruction set)."""
    rows = tile_rows(processor)
    return tuple(_lower(template, precision, rows, shapes.context) for template in templates)


def _lower(template: Template, precision: Precision, rows: int, context: int) -> LoweredTemplate:
    params: list[PackedParam] = []
    for index, weight in enumerate(template.weights):
        layout = layout_of(weight.role, weight.format or precision.weights, rows)
        params.extend(packed_params(index, weight.name, weight.shape, layout))
    caches = [
        argument
        for cache in template.caches
        for argument in cache_arguments(
            precision.cache, cache.kv_heads, cache.key_dim, cache.value_dim, context
        )
    ]
    return LoweredTemplate(template.id, tuple(params), tuple(caches))
