"""ONNX as nodes and tensors: what the stages that take a graph apart (graph, shard) stand on, and no stage itself.

nodes       operators, tensors, and what each tensor depends on
shapes      dtype and shape of every tensor
canonical   a subgraph in the one form that equal ones share
templates   a subgraph as a template: an ONNX model with canonical names, its operations and bytes
"""
