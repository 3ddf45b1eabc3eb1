"""How packed weights and caches look for a processor; needs no compiler."""

from __future__ import annotations

from collections.abc import Sequence

from llcompile.ir.cluster import Processor
from llcompile.ir.errors import CompileError
from llcompile.ir.graph import Template
from llcompile.ir.packing import (
    CACHES,
    FORMATS,
    LoweredTemplate,
    PackedParam,
    cache_arguments,
    cache_format,
    layout_of,
    packed_params,
)

TILE_ROWS = {"avx512vnni": 16, "avx2": 8, "neon": 8, "neon_dotprod": 8, "neon_i8mm": 8}


def tile_rows(processor: Processor) -> int:
    """Rows of weights a tile holds. Raises CompileError L101 for an unknown instruction set."""
    if processor.isa not in TILE_ROWS:
        known = ", ".join(sorted(TILE_ROWS))
        raise CompileError("L101", f"no kernels for instruction set {processor.isa!r}: use one of {known}")
    return TILE_ROWS[processor.isa]


def lower_templates(
    templates: Sequence[Template], quant: str, processor: Processor, context: int, cache: str = "f16"
) -> tuple[LoweredTemplate, ...]:
    """Calling convention of each template compiled for `processor` in format `quant`; caches of `context` tokens
    in format `cache`, or float32 with float32 weights.

    Raises CompileError L101 (instruction set) or L102 (format).
    """
    if cache not in CACHES:
        raise CompileError("L102", f"unknown cache format {cache!r}: use one of {', '.join(CACHES)}")
    if quant not in FORMATS:
        raise CompileError("L102", f"unknown weight format {quant!r}: use one of {', '.join(FORMATS)}")
    rows = tile_rows(processor)
    return tuple(_lower(template, quant, rows, context, cache) for template in templates)


def _lower(template: Template, quant: str, rows: int, context: int, cache_wish: str) -> LoweredTemplate:
    params: list[PackedParam] = []
    for index, weight in enumerate(template.weights):
        layout = layout_of(weight.role, quant, rows)
        params.extend(packed_params(index, weight.name, weight.shape, layout))
    caches = [
        argument
        for cache in template.caches
        for argument in cache_arguments(
            cache_format(quant, cache_wish), cache.kv_heads, cache.key_dim, cache.value_dim, context
        )
    ]
    return LoweredTemplate(template.id, tuple(params), tuple(caches))
