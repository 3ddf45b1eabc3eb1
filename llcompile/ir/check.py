"""What must hold of a graph before and after every step: every violation, in words."""

from __future__ import annotations

from collections.abc import Iterator

from llcompile.ir.graph import DTYPE_BYTES, Block, Graph, Template, TensorSpec

INPUT_IDS, POSITION_IDS, LOGITS = "input_ids", "position_ids", "logits"
ROLES = ("linear", "embedding", "plain")


def check_graph(graph: Graph) -> list[str]:
    """Every violation of what `Graph`, `Block` and `Template` promise; empty when there is none."""
    return [
        *_check_templates(graph),
        *(violation for block in graph.blocks for violation in _check_block(block, graph)),
        *_check_order(graph),
        *_check_crossing(graph),
        *_check_last_rows(graph),
        *_check_positions(graph),
        *_check_output(graph),
    ]


def _check_templates(graph: Graph) -> Iterator[str]:
    used = list(dict.fromkeys(block.template for block in graph.blocks))
    expected = [f"t{i}" for i in range(len(used))]
    if used != expected:
        yield f"templates in order of first use are {', '.join(used)}, not {', '.join(expected)}"
    for id, template in graph.templates.items():
        if template.id != id:
            yield f"template {id} calls itself {template.id}"
        if id not in used:
            yield f"template {id} is used by no block"
        yield from _check_template(template)


def _check_template(template: Template) -> Iterator[str]:
    where = f"template {template.id}"
    specs = (*template.inputs, *template.outputs)
    names = [*(spec.name for spec in specs), *(weight.name for weight in template.weights)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{where}: the name {name} stands for more than one tensor"
    for spec in specs:
        yield from _check_spec(where, spec)
    for weight in template.weights:
        if weight.role not in ROLES:
            yield f"{where}: weight {weight.name} has the role {weight.role}, known are {', '.join(ROLES)}"
        if weight.role != "plain" and len(weight.shape) != 2:
            yield f"{where}: {weight.role} weight {weight.name} has {len(weight.shape)} dimensions, not 2"
    if template.caches and (not template.inputs or template.inputs[-1].name != POSITION_IDS):
        yield f"{where} has a cache, but {POSITION_IDS} is not its last input"
    if not template.onnx:
        yield f"{where} has no ONNX model"
    for field in ("linear_flops", "attention_flops", "activation_bytes"):
        if getattr(template, field) < 0:
            yield f"{where}: {field} is {getattr(template, field)}"
    if bool(template.attention_flops) != bool(template.caches):
        yield f"{where} has {len(template.caches)} caches and {template.attention_flops} attention operations"


def _check_spec(where: str, spec: TensorSpec) -> Iterator[str]:
    if spec.dtype not in DTYPE_BYTES:
        yield f"{where}: tensor {spec.name} has the unknown dtype {spec.dtype}"
    for dim in spec.shape:
        if not (dim in ("n", "c") if isinstance(dim, str) else dim > 0):
            yield f"{where}: tensor {spec.name} has the dimension {dim!r}"


def _check_block(block: Block, graph: Graph) -> Iterator[str]:
    template = graph.templates.get(block.template)
    if template is None:
        yield f"block {block.id} has the unknown template {block.template}"
        return
    for kind, names, specs in (
        ("input", block.inputs, template.inputs),
        ("output", block.outputs, template.outputs),
    ):
        if len(names) != len(specs):
            yield f"block {block.id} has {len(names)} {kind}s, template {template.id} {len(specs)}"
            continue
        for name, expected in zip(names, specs, strict=True):
            spec = graph.tensors.get(name)
            if spec is None:
                yield f"block {block.id}: {kind} {name} has no entry in tensors"
            elif (spec.dtype, spec.shape) != (expected.dtype, expected.shape):
                found, expects = f"{spec.dtype} {spec.shape}", f"{expected.dtype} {expected.shape}"
                yield f"block {block.id}: {kind} {name} is {found}, {template.id} expects {expects}"
    weights, wanted = len(block.weights), len(template.weights)
    if weights != wanted:
        yield f"block {block.id} has {weights} weights, template {template.id} {wanted}"


def _check_order(graph: Graph) -> Iterator[str]:
    """Blocks are numbered, every tensor is made once and before it is read, token ids stay with block 0."""
    tables = [spec.name for spec in graph.positions.outputs] if graph.positions else []
    known = {INPUT_IDS, POSITION_IDS, *tables}
    for number, block in enumerate(graph.blocks):
        if block.id != number:
            yield f"block {block.id} is in place {number}"
        yield from (
            f"block {block.id} reads {name} before it is made" for name in block.inputs if name not in known
        )
        yield from (f"block {block.id} makes {name} again" for name in block.outputs if name in known)
        known.update(block.outputs)
        if (INPUT_IDS in block.inputs) != (number == 0):
            yield f"block {block.id} {'reads' if number else 'does not read'} {INPUT_IDS}; only block 0 must"
        if (LOGITS in block.outputs) != (number == len(graph.blocks) - 1):
            yield f"block {block.id} {'makes' if LOGITS in block.outputs else 'does not make'} {LOGITS}"
    if not graph.blocks:
        yield "the graph has no blocks"


def _check_crossing(graph: Graph) -> Iterator[str]:
    """`tensors` holds what crosses block boundaries, no more, under its own name; nothing is made in vain."""
    read = {name for block in graph.blocks for name in block.inputs}
    crossing = read.union(*(block.outputs for block in graph.blocks))
    for name, spec in graph.tensors.items():
        if spec.name != name:
            yield f"tensor {name} calls itself {spec.name}"
        if name not in crossing:
            yield f"tensor {name} crosses no block boundary"
        yield from _check_spec("tensors", spec)
    for block in graph.blocks:
        for name in block.outputs:
            if name not in read and name != LOGITS:
                yield f"block {block.id} makes {name}, which no block reads"


def _check_last_rows(graph: Graph) -> Iterator[str]:
    needs_all: set[str] = set()
    for block in reversed(graph.blocks):
        template = graph.templates.get(block.template)
        has_cache = bool(template and template.caches)
        all_rows = has_cache or not needs_all.isdisjoint(block.outputs)
        if all_rows:
            needs_all.update(block.inputs)
        if block.last_row_only and all_rows:
            reason = "it has a cache" if has_cache else "a cache follows it"
            yield f"block {block.id} is said to need the last row only, but {reason}"
        if not block.last_row_only and not all_rows:
            yield f"block {block.id} needs the last row only, and is not marked so"


def _check_positions(graph: Graph) -> Iterator[str]:
    template = graph.positions
    if template is None:
        return
    yield from _check_template(template)
    if [spec.name for spec in template.inputs] != [POSITION_IDS]:
        names = ", ".join(spec.name for spec in template.inputs)
        yield f"the positions template reads {names}, not {POSITION_IDS} alone"
    if template.weights or template.caches:
        yield "the positions template has weights or caches"
    for spec in template.outputs:
        if graph.tensors.get(spec.name) != spec:
            yield f"positions tensor {spec.name} is not in tensors as the positions template makes it"


def _check_output(graph: Graph) -> Iterator[str]:
    """What the pieces of the output head make is read by none but them."""
    if not 0 < graph.output_blocks <= max(1, len(graph.blocks) - 1):
        yield f"{graph.output_blocks} blocks are said to make {LOGITS}, of {len(graph.blocks)}"
    for block in graph.blocks[graph.output_start :]:
        if graph.templates.get(block.template) and graph.templates[block.template].caches:
            yield f"block {block.id} makes {LOGITS} and has a cache"
