"""Graphs without ONNX: chains as Llama's, layers with a skipping tensor as GPT-NeoX's, and tables of positions."""

from __future__ import annotations

from llcompile.ir.graph import Block, CacheSpec, Graph, Template, TensorSpec

ROW = TensorSpec("x", "float32", (1, "n", 8))
TABLE = TensorSpec("cos", "float32", (1, "n", 2))
IDS = TensorSpec("input_ids", "int64", (1, "n"))
POSITIONS = TensorSpec("position_ids", "int64", (1, "n"))
LOGITS = TensorSpec("logits", "float32", (1, "n", 32))


def template(id_: str, inputs: tuple[TensorSpec, ...], output: TensorSpec, cache: bool = False) -> Template:
    caches = (CacheSpec(2, 2, 4, 4),) if cache else ()
    made = TensorSpec("y", output.dtype, output.shape)
    return Template(id_, b"onnx", inputs, (), (made,), caches, (), 10, int(cache), 100)


POSITIONS_TEMPLATE = Template(
    "positions",
    b"onnx",
    (POSITIONS,),
    (),
    (TABLE, TensorSpec("sin", "float32", (1, "n", 2))),
    (),
    (),
    0,
    0,
    0,
)


def layered(layers: int, parallel: bool = False) -> Graph:
    """Embedding, attention and MLP of each layer, output head. `parallel`: the MLP reads the layer's input as well as
    the attention's output. The last MLP and the head need the last row only."""
    sin = POSITIONS_TEMPLATE.outputs[1]
    mlp_inputs = (ROW, TensorSpec("a", "float32", ROW.shape)) if parallel else (ROW,)
    templates = {
        "t0": template("t0", (IDS,), ROW),
        "t1": template("t1", (ROW, TABLE, sin, POSITIONS), ROW, cache=True),
        "t2": template("t2", mlp_inputs, ROW),
        "t3": template("t3", (ROW,), LOGITS),
    }
    blocks = [Block(0, "t0", ("input_ids",), ("x0",), ())]
    for layer in range(layers):
        came, made = f"x{layer}", f"a{layer}"
        blocks.append(Block(len(blocks), "t1", (came, "cos", "sin", "position_ids"), (made,), ()))
        inputs = (came, made) if parallel else (made,)
        last = layer == layers - 1
        blocks.append(Block(len(blocks), "t2", inputs, (f"x{layer + 1}",), (), last_row_only=last))
    blocks.append(Block(len(blocks), "t3", (f"x{layers}",), ("logits",), (), last_row_only=True))
    names = {name: ROW for block in blocks for name in block.outputs}
    tensors = {name: TensorSpec(name, spec.dtype, spec.shape) for name, spec in names.items()}
    tensors |= {spec.name: spec for spec in (IDS, POSITIONS, *POSITIONS_TEMPLATE.outputs, LOGITS)}
    return Graph(tuple(blocks), templates, tensors, POSITIONS_TEMPLATE)


def with_pieces(graph: Graph, count: int) -> Graph:
    """The graph with `count` blocks that each make a piece of the logits, the last one of them all."""
    head, piece = graph.blocks[-1], TensorSpec("piece", "float32", (1, "n", 32))
    names = [f"logits.{number}" for number in range(count - 1)]
    first, last = len(graph.templates) - 1, len(graph.templates)
    templates = {id: each for id, each in graph.templates.items() if id != head.template}
    templates[f"t{first}"] = template(f"t{first}", (ROW,), piece)
    templates[f"t{last}"] = template(f"t{last}", (ROW, *(piece for _ in names)), LOGITS)
    pieces = [
        Block(head.id + number, f"t{first}", head.inputs, (name,), (), last_row_only=True)
        for number, name in enumerate(names)
    ]
    joined = Block(head.id + count - 1, f"t{last}", (*head.inputs, *names), ("logits",), (), True)
    tensors = {**graph.tensors, **{name: TensorSpec(name, piece.dtype, piece.shape) for name in names}}
    return Graph((*graph.blocks[:-1], *pieces, joined), templates, tensors, graph.positions, count)
