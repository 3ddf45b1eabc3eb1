"""The moves that may be made without compiling again: what each device could run, and what it would cost."""

from __future__ import annotations

from llrun.schema.base import Positive, Size, Strict


class EnvelopeBlock(Strict, frozen=True):
    """A block as one device would run it.

    `cache_bytes`: of one sequence with a full context. `activation_bytes`: the peak of a chunk. Seconds as the planner
    predicts them: `decode_s` for a token with a full context, `chunk_s` for a chunk of prompt.
    """

    id: Size
    weights_bytes: Size
    cache_bytes: Size
    activation_bytes: Size
    decode_s: float
    chunk_s: float


class EnvelopeDevice(Strict, frozen=True):
    """`blocks`: all that the device holds on disk, run or spare, in the order of their ids. `runtime_bytes`: what the
    runtime itself takes of `memory_bytes`. `standby`: it runs nothing until something has to be replaced. `streamed`:
    of `blocks`, in the order in which they run, those that are read from disk for each token; `ring`: how many of them
    are in memory at once."""

    memory_bytes: Positive
    runtime_bytes: Size
    disk_bytes_per_s: float
    standby: bool
    blocks: tuple[EnvelopeBlock, ...]
    streamed: tuple[Size, ...] = ()
    ring: Size = 0


class LinkRecord(Strict, frozen=True, rename={"source": "from", "destination": "to"}):
    """What a message from one device to another takes: latency_s + bytes / bytes_per_s."""

    source: str
    destination: str
    bytes_per_s: float
    latency_s: float


class Envelope(Strict, frozen=True):
    """`links`: every ordered pair of `devices`, in the order of names."""

    devices: dict[str, EnvelopeDevice]
    links: tuple[LinkRecord, ...]
