"""The pieces of an attention and an MLP block for three devices, against a committed text.

UPDATE_GOLDEN=1 rewrites it; read the difference before committing it.
"""

from __future__ import annotations

from llcompile.graph import build_graph
from llcompile.ir.printer import print_pieces
from llcompile.shard import Split, shard, split
from tests.golden.test_graph_golden import compare
from tests.unit.graph.synthetic import decoder


def test_printed_pieces() -> None:
    graph = build_graph(decoder(1, ffn=96))
    texts = []
    for block in graph.blocks[1:3]:
        found = split(graph.templates[block.template])
        assert isinstance(found, Split)
        pieces = shard(found, (0.5, 0.3, 0.2), 3, 1)
        assert not isinstance(pieces, str)
        texts.append(print_pieces(pieces))
    compare("\n\n".join(texts), "shard_llama.txt")
