"""Attention over caches that are appended to in place."""

from llcompile.lower.kernels.attention.kernel import Inputs
from llcompile.lower.kernels.attention.prompt import prompt_attention
from llcompile.lower.kernels.attention.spec import AttentionSpec
from llcompile.lower.kernels.attention.step import step_attention, workspace

__all__ = ["AttentionSpec", "Inputs", "prompt_attention", "step_attention", "workspace"]
