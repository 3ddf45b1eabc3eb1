"""devices.json and the target files, checked and made into a cluster with every figure filled in."""

from llcompile.cluster.devices import load_cluster, with_tokenizer
from llcompile.cluster.targets import targets_dir

__all__ = ["load_cluster", "targets_dir", "with_tokenizer"]
