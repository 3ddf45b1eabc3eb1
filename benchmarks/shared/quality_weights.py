"""A Llama's weights as each program's formats hold them, decoded to float32, under the checkpoint's names."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import gguf
import numpy as np

from llcompile.ir.graph import Graph
from llcompile.ir.model import Model
from llcompile.ir.packing import bits_of, layout_of
from shared.gguf_files import checkpoint_name, halves, write_llama
from shared.peer import CACHE, built, quantise
from shared.processes import run

# llama-quantize's options. By default it holds a tied table in more bits than the format's: Q6_K, or Q8_0 where rows
# are no multiple of 256, as in the small models here, of whose formats of 256 weights others take the place too; --pure
# makes all matrices the same. All but the first two heed an importance matrix.
PEER_FORMATS: Mapping[str, tuple[str, ...]] = {
    "Q8_0": ("Q8_0",),
    "Q4_0 --pure": ("Q4_0", "--pure"),
    "Q4_0": ("Q4_0",),
    "IQ4_XS": ("IQ4_XS",),
    "Q4_K_M": ("Q4_K_M",),
    "Q5_K_M": ("Q5_K_M",),
    "Q6_K": ("Q6_K",),
}
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
RANDOM = "random"  # what a build calibrates on by default


@dataclass(frozen=True)
class Weights:
    """Matrices, float32, under the checkpoint's names, and the bits of a weight of those that products read."""

    values: Mapping[str, np.ndarray]
    bits: float


class Ours:
    """A model whose matrices are rounded for a text, for random tokens, or (None) each weight by itself; read, walked
    through and measured once. Use as a context manager."""

    def __init__(self, model: Path, text: str | None) -> None:
        # Here, for the frontend loads libraries beside which a bundle cannot run: that is done in another process.
        from llcompile import frontend, quantize

        self._loaded = _loaded(str(model))
        self._graph = _graph(str(model))
        sequences = quantize.random_sequences(self._loaded.vocab_size, self._loaded.max_positions)
        if text not in (RANDOM, None):
            ids = frontend.text_ids(text, self._loaded, quantize.TOKENS)
            sequences = quantize.sequences_of(ids, self._loaded.max_positions)
        self._scratch = tempfile.TemporaryDirectory()
        self._calibration = quantize.Calibration({})
        weights = self._loaded.weights
        if text is not None:
            self._calibration = quantize.calibrate(
                self._graph, weights, sequences, Path(self._scratch.name), jobs=2
            )
            self._sets = quantize.measure(self._graph, weights, sequences, jobs=2)

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def weights(self, quant: str, bits: float | None = None) -> Weights:
        """Matrices in `quant`, or those that --bits chooses; the embedding's table as a build of it has it."""
        from llcompile import graph, quantize

        chosen = {} if bits is None else quantize.choose(self._sets, bits).formats
        dataflow = graph.with_formats(self._graph, chosen, {})
        found, stored, count = {}, 0.0, 0
        for block in dataflow.blocks:
            for index, param in enumerate(dataflow.templates[block.template].weights):
                format = param.format or quant
                name, layout = block.weights[index], layout_of(param.role, format, 8)
                fed = param.role == "linear" and quantize.has_feedback(format)
                factors = self._calibration.factors(block, index) if fed else None
                if param.role != "plain":
                    target = _HEAD if param.role == "linear" and name == _TABLE else name
                    found[target] = quantize.dequantised(self._loaded.weights[name], layout, factors=factors)
                if param.role == "linear":
                    stored += bits_of(format) * prod(param.shape)
                    count += prod(param.shape)
        return Weights(found, stored / count)


@cache
def _loaded(model: str) -> Model:
    from llcompile import frontend

    return frontend.load_model(model)


@cache
def _graph(model: str) -> Graph:
    from llcompile import graph

    return graph.build_graph(_loaded(model))


def peer_files(model: Path, text: str) -> dict[str, Path]:
    """GGUF files of the model: F16, and each of PEER_FORMATS, by the importance of weights on `text`."""
    return {"F16": _half(model), **{name: peer_file(model, name, text) for name in PEER_FORMATS}}


def peer_file(model: Path, name: str, text: str | None = None) -> Path:
    """The model's GGUF file in one of PEER_FORMATS, by the importance of weights on `text` if any."""
    format, *options = PEER_FORMATS[name]
    mark = hashlib.sha256(text.encode()).hexdigest()[:8] if text else "plain"
    file = CACHE / f"{model.name}-{mark}-{name.replace(' --', '-')}.gguf"
    if not file.is_file():
        important = ["--imatrix", str(_importance(model, mark, text))] if text else []
        quantise(_half(model), file, format, *important, *options)
    return file


def _half(model: Path) -> Path:
    file = CACHE / f"{model.name}-F16.gguf"
    if not file.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        write_llama(file, model)
    return file


def _importance(model: Path, mark: str, text: str) -> Path:
    """llama.cpp's importance matrix."""
    file = CACHE / f"{model.name}-{mark}.imatrix.gguf"
    if not file.is_file():
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as given:
            given.write(text)
            given.flush()
            program = built("build", "llama-imatrix") / "llama-imatrix"
            run([program, "-m", _half(model), "-f", given.name, "-o", file, "-c", "512"])
    return file


def peer_weights(model: Path, name: str, text: str) -> Weights:
    """Matrices as llama-quantize wrote them, rounded for `text`."""
    config = json.loads((model / "config.json").read_text())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    found, stored, count = {}, 0, 0
    for tensor in gguf.GGUFReader(peer_file(model, name, text)).tensors:
        theirs = checkpoint_name(tensor.name)
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if value.ndim == 2:  # the table is the output's matrix too
            stored, count = stored + int(tensor.n_bytes), count + value.size
            projection = theirs.split(".")[-2]
            found[theirs] = halves(value, heads[projection]) if projection in heads else value
    return Weights(found, 8 * stored / count)
