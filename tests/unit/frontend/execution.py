"""Running a canonical graph by onnxruntime, which executes the own operators by their function bodies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from llcompile.ir.model import Model, WeightSource

_STORED = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}


def read(source: WeightSource) -> np.ndarray:
    """The weight in float32, in the graph's shape, from the bytes that the source names."""
    shape = source.shape[::-1] if source.transpose else source.shape
    count = int(np.prod(shape))
    stored = np.fromfile(str(source.path), _STORED[source.dtype], count, offset=source.offset).reshape(shape)
    if source.dtype == "bf16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    values = stored.astype(np.float32)
    return np.ascontiguousarray(values.T if source.transpose else values)


def run(model: Model, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Logits (n, vocabulary) of each prompt."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.onnx, options)
    weights = {name: read(source) for name, source in model.weights.items()}
    results = []
    for ids in prompts:
        inputs = {"input_ids": np.array([ids]), "position_ids": np.arange(len(ids))[None]}
        results.append(session.run(["logits"], inputs | weights)[0][0])
    return results


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
