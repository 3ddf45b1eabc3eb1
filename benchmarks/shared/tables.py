"""The results of the comparison with llama.cpp as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from shared.memory import LIMIT_BYTES, Held
from shared.parts import Line
from shared.rounds import Spread

_WORDS = ("format", "test", "program", "weights alone", "llrun", "llama-perplexity")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str] = _WORDS) -> str:
    """A Markdown table; columns of `words` to the left, figures to the right."""
    marks = ["---" if head in words else "---:" for head in heads]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, marks, *rows))


def rates_table(lines: Sequence[Line]) -> str:
    """Tokens a second, ratios, and the work done."""
    heads = [
        "format",
        "threads",
        "test",
        "llama.cpp, t/s",
        "llrun, t/s",
        "ratio",
        "llama.cpp does",
        "llrun does",
    ]
    return table(heads, [_rates_row(line) for line in lines])


def _rates_row(line: Line) -> list[str]:
    flash = f" ({line.peer_name.removeprefix('llama.cpp ')})" if " -fa" in line.peer_name else ""
    return [
        line.quant,
        str(line.threads),
        line.test,
        _spread(line.peer, 1) + flash,
        _spread(line.ours, 1),
        f"**{line.ratio.median:.2f}** ({line.ratio.least:.2f}..{line.ratio.largest:.2f})",
        *(_work(line, side) for side in (0, 1)),
    ]


def _work(line: Line, side: int) -> str:
    if line.test.startswith("pp"):
        return f"{line.work[side]:.0f} GMAC/s"
    return f"{line.work[side]:.1f} GB/s, {line.share[side]:.0%}"


def _spread(values: Spread, digits: int) -> str:
    return f"{values.median:.{digits}f} ({values.least:.{digits}f}..{values.largest:.{digits}f})"


def reads_sentence(lines: Sequence[Line]) -> str:
    """The memory's rate in the rounds of `lines`, by threads."""
    parts = []
    for threads in sorted({line.threads for line in lines}):
        reads = [line.read for line in lines if line.threads == threads]
        least, largest = min(r.least for r in reads), max(r.largest for r in reads)
        words = "1 thread" if threads == 1 else f"{threads} threads"
        parts.append(f"{least:.1f} to {largest:.1f} GB/s with {words}")
    return f"Memory was read at {', '.join(parts)} in these rounds."


def memory_table(lines: Sequence[Held]) -> str:
    """Peaks, and what is held beside weights and cache, against the limit."""
    heads = ["format", "program", "weights of a token", "cache", "peak", "own memory", "mapped files", "beside",
             f"at most {LIMIT_BYTES / 1e6:.0f}"]  # fmt: skip
    rows = []
    for line in lines:
        sizes = (line.weights, line.cache, line.peak, line.anonymous, line.file, line.beside)
        held = "yes" if line.beside <= LIMIT_BYTES else "no"
        rows.append([line.quant, line.program, *(f"{size / 1e6:.1f}" for size in sizes), held])
    return table(heads, rows)
