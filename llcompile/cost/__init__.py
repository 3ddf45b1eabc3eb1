"""Operations and bytes of a block; the devices that compute it and the links between them."""

from llcompile.cost.blocks import block_costs, flows
from llcompile.cost.devices import load_cluster, with_tokenizer
from llcompile.cost.targets import targets_dir

__all__ = ["block_costs", "flows", "load_cluster", "targets_dir", "with_tokenizer"]
