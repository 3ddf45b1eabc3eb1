"""What a template becomes: the kernel calls of its functions, against a committed text.

UPDATE_GOLDEN=1 rewrites it; read the difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llcompile.lower.library import build_module
from llrun.schema import Precision, Shapes
from tests.unit.lower.harness import PROCESSORS, llama_attention, llama_mlp

HERE = Path(__file__).parent


@pytest.mark.parametrize("quant", ["f32", "q4"])
def test_kernel_calls(quant: str) -> None:
    module = build_module(
        [llama_attention(64, 4, 2, 16), llama_mlp(64, 72)],
        Precision.of(quant, "f16"),
        Shapes(256, 32),
        PROCESSORS["avx2"],
    )
    found = "".join(
        module[name].script() + "\n"
        for name in ("t1_decode", "t1_prefill", "t1_batch", "t2_decode", "t2_prefill")
    )
    path = HERE / f"lower_llama_{quant}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()
