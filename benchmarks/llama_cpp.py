"""llrun beside llama.cpp on one device: the TinyLlama-1.1B shape, same bits, same threads, by turns.

    python benchmarks/llama_cpp.py [--only rates] [--rounds 3] [--long] [-o docs/llama_cpp.md]

Builds llama.cpp once, from the source archive of llama-cpp-python on PyPI (needs cmake and a C++ compiler), and the
shape with random weights for both. Every run's result goes to stderr as it ends; the tables of the parts that were
run, now or earlier, are written to the file. What is built and measured is kept in .cache/peer.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from shared import machine, memory, parts
from shared.parts import Line, Settings, Tell
from shared.peer import BUILDS, CACHE, FORMATS, ROOT, built
from shared.processes import Failed, run
from shared.rounds import Spread
from shared.tables import memory_table, rates_table, reads_sentence

RESULTS = CACHE / "results"


@dataclass(frozen=True)
class Text:
    """Lines of a part that come as Markdown."""

    text: str


def quality_text(chosen: Settings, tell: Tell) -> Iterator[Text]:
    """What benchmarks/quality.py prints."""
    done = run([sys.executable, Path(__file__).with_name("quality.py"), "--target", chosen.target])
    tell(f"{done.seconds:.0f} s")
    yield Text(done.stdout.strip())


# Name: heading, what its table shows, lines.
PARTS: dict[str, tuple[str, str, Callable[[Settings, Tell], Iterator[Any]]]] = {
    "rates": ("Prefill and decode", "An empty cache.", parts.rate_lines),
    "depth": (
        "Depth",
        "q4 with that many tokens in the cache before each test (float16 in both programs); llama.cpp with flash "
        "attention or without, whichever is faster (judged at 2048; two rounds there, one at 8192).",
        parts.depth_lines,
    ),
    "batches": (
        "Batches",
        "xN: N sequences decoded at once, tokens a second of all of them together; llama-batched-bench beside "
        "`llrun bench --sequences N`. GB/s counts the weights once a pass.",
        parts.batch_lines,
    ),
    "avx2": (
        "AVX2",
        "Target x86-64-v3 beside a build with `-DGGML_NATIVE=OFF`, AVX2, FMA, F16C and BMI2, and no AVX-512.",
        parts.avx2_lines,
    ),
    "memory": (
        "Resident memory",
        f"MB (10^6 bytes), of {memory.PROMPT} tokens of prompt and {memory.TOKENS} decoded. Own memory: anonymous "
        "pages; beside: the peak less the weights that a token needs (all but the embedding's table) and the cache "
        "of the tokens fed. The kinds are sampled, each at its own peak.",
        memory.memory_lines,
    ),
    "quality": (
        "Quality",
        "The example model on held-out text. In Q4_0 llama-quantize holds its tied table in Q8_0, the other matrices "
        "in 4.5 bits; with --pure all matrices have llrun's bits.",
        quality_text,
    ),
}


@click.command()
@click.option("--only", "names", multiple=True, type=click.Choice(list(PARTS)), help="A part; repeatable.")
@click.option("--quant", "quants", multiple=True, type=click.Choice(list(FORMATS)), default=list(FORMATS))
@click.option("--threads", multiple=True, type=click.IntRange(min=1), default=[1, 2], show_default=True)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--target", default=machine.native_target, help="Of targets/; this processor's by default.")
@click.option("--long", is_flag=True, help="Depth 8192 with one thread, too: ten minutes more.")
@click.option("--build-only", is_flag=True, help="Build llama.cpp and stop.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=ROOT / "docs" / "llama_cpp.md")
def main(
    names: Sequence[str],
    quants: Sequence[str],
    threads: Sequence[int],
    rounds: int,
    target: str,
    long: bool,
    build_only: bool,
    output: Path,
) -> None:
    """Measure llrun beside llama.cpp and write the tables to a file."""
    # Ended from outside, the measured program must end as well: by way of `run`'s finally.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen = Settings(tuple(quants), tuple(threads), rounds, target, long)
    for folder in BUILDS:
        built(folder)
    failed = []
    for name in () if build_only else names or PARTS:
        try:
            measure(name, chosen)
            output.write_text(document())
        except Failed as error:  # the other parts can still be had
            failed.append(f"{name} failed: {error}")
    if failed:
        sys.exit("\n".join(failed))


def measure(name: str, chosen: Settings) -> None:
    """Run one part and keep its lines."""
    start = time.perf_counter()

    def tell(text: str) -> None:
        sys.stderr.write(f"[{time.perf_counter() - start:5.0f} s] {name}: {text}\n")

    if (load := os.getloadavg()[0]) > 0.5 * (os.cpu_count() or 1):
        tell(f"load {load:.1f}: other programs are running, and a peer that waits by spinning suffers most")
    lines = [asdict(line) for line in PARTS[name][2](chosen, tell)]
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "rounds": chosen.rounds,
        "machine": machine.description(),
        "lines": lines,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1))


def document() -> str:
    """The Markdown of all parts that have results."""
    records = {
        name: json.loads(file.read_text()) for name in PARTS if (file := RESULTS / f"{name}.json").is_file()
    }
    latest = max(records.values(), key=lambda record: record["date"])
    text = [
        "# Beside llama.cpp",
        "Written by `make bench`. Both programs run the TinyLlama-1.1B shape (22 layers, hidden size 2048) with random "
        "weights, whole and on one device, with the same threads, one after the other in each round and in the "
        "opposite order in the next; the memory's read rate is measured between them. Figures are medians over the "
        "rounds with the least and the largest; ratios are taken within a round. llama.cpp runs as it does by default "
        "(weights repacked for this processor when loaded; Q4_0 with its output matrix in Q6_K, as llama-quantize "
        "writes it). In decode, GB/s is what a token reads (weights and cache) times tokens a second, with its share "
        "of the measured rate; in prefill, GMAC/s counts the layers' matrices.",
        "\n".join(latest["machine"]),
        *(_section(name, record) for name, record in records.items()),
    ]
    return "\n\n".join(text) + "\n"


def _section(name: str, record: dict[str, Any]) -> str:
    heading, explained, _ = PARTS[name]
    measured = f"Measured {record['date']}"
    if name == "quality":
        return f"## {heading}\n\n{explained} {measured}. {record['lines'][0]['text']}"
    if name == "memory":
        body = memory_table([memory.Held.load(line) for line in record["lines"]])
        return f"## {heading}\n\n{explained} {measured}.\n\n{body}"
    lines = [_line(each) for each in record["lines"]]
    rounds = f"{measured}, {record['rounds']} round{'s' * (record['rounds'] > 1)}."
    return f"## {heading}\n\n{explained} {rounds} {reads_sentence(lines)}\n\n{rates_table(lines)}"


def _line(record: dict[str, Any]) -> Line:
    spreads = {key: Spread(**record[key]) for key in ("peer", "ours", "ratio", "read")}
    return Line(**{**record, **spreads})


if __name__ == "__main__":
    main()
