"""What each block costs: operations, bytes and memory; and the tensors that flow between blocks."""

from llcompile.cost.blocks import block_costs, flows, message, template_cost

__all__ = ["block_costs", "flows", "message", "template_cost"]
