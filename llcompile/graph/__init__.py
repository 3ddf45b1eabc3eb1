"""ONNX -> dataflow graph, blocks, templates."""

from llcompile.graph.build import PASSES, build_graph, run_pass
from llcompile.graph.printer import print_dataflow

__all__ = ["PASSES", "build_graph", "print_dataflow", "run_pass"]
