"""llama.cpp on several devices: its RPC servers on all but the first, which runs llama-bench."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from shared import peer
from shared.crews import Crew, host_port
from shared.fleet import Places
from shared.processes import run
from shared.rounds import Rates

BUILD = "build-rpc"

# Of the TinyLlama shape: 22 layers, and the output head, which reads as much as one and a half of them.
_LAYERS, _HEAD_LAYERS = 22, 1.5


def offloaded(devices: int) -> int:
    """Layers, with the output head as one, that go to the servers, so that the first device keeps an equal part."""
    kept = (_LAYERS + _HEAD_LAYERS) / devices
    return _LAYERS + 1 - round(kept)


def rates(places: Places, names: Sequence[str], quant: str, sizes: Sequence[str]) -> Rates:
    """Tokens a second by test; with one device without a server."""
    programs = peer.built(BUILD)
    first, *others = names
    bench: list[str | Path] = [programs / "llama-bench", "-m", peer.weights(quant, BUILD), "-t", "1"]
    with tempfile.TemporaryDirectory() as folder, Crew(places, Path(folder)) as crew:
        for name in others:
            host, port = host_port(places, name)
            server = [programs / "ggml-rpc-server", "-H", host, "-p", port, "-t", "1", "-d", "CPU"]
            crew.start(name, server)
        if others:
            bench += ["--rpc", ",".join(map(places.address, others)), "-ngl", str(offloaded(len(names)))]
            bench += ["-ts", "/".join("1" * len(others))]
        words = [*map(str, bench), *sizes, "-r", "1", "-o", "json"]
        return peer.parse_bench(run(places.command(first, words)).stdout)
