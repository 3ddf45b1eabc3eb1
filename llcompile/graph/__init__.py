"""ONNX -> dataflow graph, blocks, templates."""

from llcompile.graph.build import build_graph

__all__ = ["build_graph"]
