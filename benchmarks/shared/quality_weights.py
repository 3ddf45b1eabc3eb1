"""The example model's weights as each program's formats hold them, decoded to float32, under the checkpoint's names."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from llcompile.ir.packing import layout_of
from shared.gguf_files import checkpoint_name, halves, write_llama
from shared.peer import CACHE, quantise

# llama-quantize's options. By default it holds a tied table in more bits than the format's: Q6_K, or Q8_0 where rows
# are no multiple of 256, as here; --pure makes all matrices the same, which are then llrun's bits.
PEER_FORMATS: Mapping[str, tuple[str, ...]] = {
    "Q8_0": ("Q8_0",),
    "Q4_0 --pure": ("Q4_0", "--pure"),
    "Q4_0": ("Q4_0",),
}
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def our_weights(model: Path, quant: str, calibrated: bool = False) -> dict[str, np.ndarray]:
    """Matrices in `quant`, the embedding's table as a build of it has it; `calibrated` on random tokens."""
    # Here, for the frontend loads libraries beside which a bundle cannot run: that is done in another process.
    from llcompile import frontend, graph, quantize

    loaded = frontend.load_model(str(model))
    dataflow = graph.build_graph(loaded)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        calibration = quantize.Calibration({})
        if calibrated:
            sequences = quantize.random_sequences(loaded.vocab_size, loaded.max_positions)
            calibration = quantize.calibrate(dataflow, loaded.weights, sequences, Path(scratch))
        for block in dataflow.blocks:
            for index, param in enumerate(dataflow.templates[block.template].weights):
                name, layout = block.weights[index], layout_of(param.role, quant, 8)
                factors = calibration.factors(block, index)
                if param.role != "plain":
                    target = _HEAD if param.role == "linear" and name == _TABLE else name
                    found[target] = quantize.dequantised(loaded.weights[name], layout, factors=factors)
    return found


def peer_files(model: Path) -> dict[str, Path]:
    """GGUF files of the model: F16, and each of PEER_FORMATS."""
    half = CACHE / f"{model.name}-F16.gguf"
    if not half.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        write_llama(half, model)
    files = {"F16": half}
    for name, (format, *options) in PEER_FORMATS.items():
        files[name] = CACHE / f"{model.name}-{name.replace(' --', '-')}.gguf"
        if not files[name].is_file():
            quantise(half, files[name], format, *options)
    return files


def peer_weights(model: Path, name: str) -> dict[str, np.ndarray]:
    """Matrices as llama-quantize wrote them."""
    config = json.loads((model / "config.json").read_text())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    found = {}
    for tensor in gguf.GGUFReader(peer_files(model)[name]).tensors:
        theirs = checkpoint_name(tensor.name)
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if value.ndim == 2:
            projection = theirs.split(".")[-2]
            found[theirs] = halves(value, heads[projection]) if projection in heads else value
    return found
