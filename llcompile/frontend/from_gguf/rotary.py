"""Llama 3's scaled rotary embedding, of which a GGUF file has the result: by what each frequency is divided.

What it was made by is not in the file. Meta's models all have the same two bounds and context; where these and the
largest divisor make exactly the divisors that the file has, it was they.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llcompile.gguf import Header, Tensor
from llcompile.ir.errors import CompileError

FREQUENCIES = "rope_freqs.weight"
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192  # of Llama 3.1 to 3.3
_TOLERANCE = 1e-5


def scaled_rotary(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_scaling` of config.json, nothing where the file divides no frequency. `config`: with `rope_theta` and
    `head_dim`. Raises CompileError F144 for divisors that Llama 3's rule does not make, F143 when none can be read."""
    tensor = header.tensors.get(FREQUENCIES)
    if tensor is None:
        return {}
    found = _read(header, tensor)
    factor = round(float(found.max(initial=1.0)), 4)
    made = divisors(config["rope_theta"], config["head_dim"], factor)
    if found.shape != made.shape or not np.allclose(found, made, rtol=_TOLERANCE, atol=0.0):
        raise CompileError(
            "F144",
            f"{header.path}: tensor {FREQUENCIES} scales the rotary embedding in another way than Llama 3.1 does "
            f"(factor {factor:g}, bounds {_LOW:g} and {_HIGH:g}, context {_ORIGINAL}). Build from the model's Hugging "
            "Face directory.",
        )
    return {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": _LOW,
            "high_freq_factor": _HIGH,
            "original_max_position_embeddings": _ORIGINAL,
        }
    }


def divisors(theta: float, head_size: int, factor: float) -> npt.NDArray[np.float64]:
    """By what each frequency of a head is divided, float64 (head_size / 2,): those of long waves by `factor`, those of
    short ones by 1, between them in between. Source: transformers' `_compute_llama3_parameters`."""
    waves = 2 * np.pi * theta ** (np.arange(0, head_size, 2) / head_size)
    smooth = np.clip((_ORIGINAL / waves - _LOW) / (_HIGH - _LOW), 0.0, 1.0)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _read(header: Header, tensor: Tensor) -> npt.NDArray[np.float32]:
    if tensor.kind != "F32" or len(tensor.shape) != 1:
        raise CompileError(
            "F144",
            f"{header.path}: tensor {tensor.name} is {tensor.kind} {list(tensor.shape)}, not F32 of a row.",
        )
    try:
        with Path(header.path).open("rb") as file:
            raw = os.pread(file.fileno(), tensor.size_bytes, tensor.offset)
    except OSError as error:
        raise CompileError("F143", f"{header.path} cannot be read ({error.strerror}).") from None
    if len(raw) != tensor.size_bytes:
        raise CompileError("F143", f"{header.path} is truncated: tensor {tensor.name} ends behind its end.")
    return np.frombuffer(raw, "<f4")
