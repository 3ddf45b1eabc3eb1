"""Matrices in formats of their own: blocks of a template that differ in them become blocks of several templates.

before: 1: t1(q, k, v, o)  2: t2(gate, up, down)  3: t1(q, k, v, o)
after:  1: t1(q, k, v, o)  2: t2(gate, up, down)  3: t3(q: q6, k: q6, v: q8, o)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llcompile.ir.graph import Graph, Template


def with_formats(graph: Graph, formats: Mapping[str, str], divergences: Mapping[str, float]) -> Graph:
    """`graph` whose products read the checkpoint's matrices in `formats`, by name, and the others in the build's.

    Rows of a table that are looked up stay as they are. `divergences`: what each matrix costs the output."""
    templates: dict[str, Template] = {}
    ids: dict[tuple[str, tuple[str, ...]], str] = {}
    blocks = []
    for block in graph.blocks:
        template = graph.templates[block.template]
        pairs = list(zip(template.weights, block.weights, strict=True))
        own = tuple(formats.get(name, "") if w.role == "linear" else w.format for w, name in pairs)
        id = ids.setdefault((template.id, own), f"t{len(ids)}")
        templates.setdefault(id, replace(template.with_formats(own), id=id))
        costs = [divergences[name] for w, name in pairs if w.role == "linear" and name in divergences]
        blocks.append(replace(block, template=id, divergence=sum(costs) if costs else None))
    return replace(graph, blocks=tuple(blocks), templates=templates)
