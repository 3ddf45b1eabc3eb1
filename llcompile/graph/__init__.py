"""ONNX -> dataflow graph, blocks, templates."""

from llcompile.graph.build import PASSES, build_graph, run_pass
from llcompile.graph.formats import with_formats
from llcompile.graph.output import output_in_pieces
from llcompile.graph.printer import print_dataflow

__all__ = ["PASSES", "build_graph", "output_in_pieces", "print_dataflow", "run_pass", "with_formats"]
