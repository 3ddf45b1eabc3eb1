"""A Llama of a 70-billion one's width goes through the frontend by its configuration alone, in little memory.

Of ten layers; benchmarks/plan_70b.py plans all eighty.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LAYERS = 10
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}

# A process of its own: its peak memory is the frontend's, imports and export and checks together.
# Not ru_maxrss, which a process that starts another hands on to it.
MEASURE = """
import json, sys
from math import prod
from llcompile.frontend import load_model
from llrun.memory import peak_bytes
model = load_model(sys.argv[1], 1)
print(json.dumps({
    "weights": len(model.weights),
    "parameters": sum(prod(s.shape) for s in model.weights.values()),
    "onnx_bytes": len(model.onnx),
    "peak_bytes": peak_bytes(),
}))
"""


@pytest.mark.slow
def test_the_width_of_seventy_billion_parameters(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["weights"] == 9 * LAYERS + 3
    assert found["parameters"] == 2_101_354_496 + LAYERS * 855_654_400
    assert found["onnx_bytes"] < 2_000_000
    assert found["peak_bytes"] < 1_200_000_000
