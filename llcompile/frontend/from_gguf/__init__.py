"""A GGUF file as a Hugging Face directory: what the file says in a folder, its tensors by a checkpoint's names.

    describe(header) -> a folder of config.json, generation_config.json, tokenizer and chat template
    stored_tensors(header, config) -> where each tensor of the checkpoint lies in the file
    require_all_used(...) -> nothing of the file is left out

What transformers would leave out without a word is refused by name: docs/gguf.md lists what is read.
"""

from llcompile.frontend.from_gguf.folder import Described, describe, naming
from llcompile.frontend.from_gguf.tensors import require_all_used, stored_tensors

__all__ = ["Described", "describe", "naming", "require_all_used", "stored_tensors"]
