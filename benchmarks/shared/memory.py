"""Resident memory of both programs: what they hold at most, beside the weights that a token needs and the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shared import ours, peer
from shared.parts import Settings, Tell
from shared.processes import run

PROMPT, TOKENS = 512, 32
LIMIT_BYTES = 100_000_000


@dataclass(frozen=True)
class Held:
    """Bytes. `weights`: those of a token, without the embedding's table, which need not be held; `cache`: of the
    tokens fed. `anonymous`, `file`: the most of the process's own memory, and of mapped files."""

    quant: str
    program: str
    weights: int
    cache: int
    peak: int
    anonymous: int
    file: int

    @property
    def beside(self) -> int:
        """What is held beside the weights and the cache."""
        return self.peak - self.weights - self.cache

    @classmethod
    def load(cls, record: dict[str, Any]) -> Held:
        return cls(**record)


def memory_lines(chosen: Settings, tell: Tell) -> Iterator[Held]:
    """Peaks of a run of 512 tokens of prompt and 32 of decoding with the largest of the chosen thread counts."""
    threads = max(chosen.threads)
    sizes = ["-p", str(PROMPT), "-n", str(TOKENS), "-r", "1"]
    for quant in chosen.quants:
        bundle = ours.bundle(quant, threads, chosen.target)
        cache = PROMPT * ours.cache_bytes_a_token(bundle)
        model = peer.weights(quant)
        bench = [peer.built("build") / "llama-bench", "-m", model, "-t", str(threads)]
        commands = {
            "llama.cpp": ([*bench, *sizes], peer.weights_bytes(model)[1]),
            "llrun": (ours.bench(bundle, sizes[:4]), ours.weights_bytes(bundle)[1]),
        }
        for program, (command, weights) in commands.items():
            done = run(command, watch=True)
            tell(f"memory: {quant}: {program}: {done.peak_bytes / 1e6:.0f} MB")
            yield Held(quant, program, weights, cache, done.peak_bytes, done.anonymous_bytes, done.file_bytes)
