"""ONNX -> dataflow graph, blocks, templates."""

from llcompile.graph.build import build_graph
from llcompile.graph.printer import print_dataflow

__all__ = ["build_graph", "print_dataflow"]
