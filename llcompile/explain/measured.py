"""What a run measured, read back, and what the plan predicts of that run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from llcompile.ir.errors import CompileError
from llrun import schema


class DeviceFigures(msgspec.Struct, frozen=True):
    peak_memory_bytes: int
    compute_s: float
    wait_s: float
    sent_bytes: int


class Measured(msgspec.Struct, frozen=True):
    """The part of `llrun --json`'s object that a plan predicts. `ttft_s` is None when no token came, `tpot_s`
    also when one did."""

    tokens: list[int]
    prompt_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    devices: dict[str, DeviceFigures]


class Several(msgspec.Struct, frozen=True):
    """What `llrun --json` prints for several prompts; empty for one."""

    results: tuple[Measured, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """What a plan says of a run: `ttft_s` for its own prompt, whose `chunks` are each reckoned as a full portion;
    `tpot_s` with `cached_tokens` in the cache, the most there can be."""

    prompt_tokens: int
    chunks: int
    ttft_s: float
    tpot_s: float
    cached_tokens: int


def predict(record: schema.PlanRecord, prompt_tokens: int) -> Prediction:
    """The first chunk passes through all devices, each further one is the slowest device's or link's seconds behind."""
    chunks = max(1, -(-prompt_tokens // (record.portion or record.shapes.chunk)))
    ttft_s = record.chunk_s + (chunks - 1) * record.slowest_chunk_s
    return Prediction(prompt_tokens, chunks, ttft_s, record.tpot_s, record.shapes.context)


def comparison_json(record: schema.PlanRecord, measured: Measured) -> dict[str, Any]:
    """`measured`, and `predicted` for the same prompt, as plain values."""
    expected = predict(record, measured.prompt_tokens)
    return {"measured": msgspec.to_builtins(measured), "predicted": msgspec.to_builtins(expected)}


def read_measured(path: Path) -> Measured:
    """The figures in `path`, which holds what `llrun --json` printed. Raises CompileError B150 and B151."""
    try:
        data = path.read_bytes()
        several = msgspec.json.decode(data, type=Several).results
        if not several:
            return msgspec.json.decode(data, type=Measured)
    except OSError as error:
        raise CompileError("B150", f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CompileError("B150", f"{path} is not what `llrun --json` prints: {error}") from error
    raise CompileError("B151", f"{path} holds the results of {len(several)} prompts; give the run of one")
