"""Held-out perplexity of a model in every format, through the compiled kernels.

    python benchmarks/quality.py [--model examples/python-llama] [--tokens 8192] [--target x86-64-v3]

Builds the model four times for one device, feeds the held-out text in windows, and prints a table. The
reference row is transformers in float32 on the same tokens.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
from shapes import devices_file, measured, tool
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
WINDOW = 512


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=ROOT / "examples" / "python-llama")
@click.option("--tokens", default=8192, show_default=True)
@click.option("--target", default="x86-64-v3", show_default=True)
@click.option("--score", type=click.Path(path_type=Path), hidden=True, help="Print one bundle's perplexity.")
def main(model: Path, tokens: int, target: str, score: Path | None) -> None:
    """Print held-out perplexity in f32, f16, q8 and q4 beside transformers'."""
    ids = heldout_ids(model, tokens)
    if score:
        sys.stdout.write(f"{perplexity(bundle_logits(score, ids))}\n")
        return
    reference = perplexity(transformers_logits(model, ids))
    rows = [("transformers f32", reference, 0)]
    with tempfile.TemporaryDirectory() as scratch:
        target_file = devices_file(
            Path(scratch) / "devices.json", [{"name": "one", "target": target, "memory_bytes": 4 * 10**9}]
        )
        for quant in ("f32", "f16", "q8", "q4"):
            bundle = Path(scratch) / quant
            measured([tool("llcompile"), "build", str(model), "--target", str(target_file), "--quant", quant,
                      "-o", str(bundle)])  # fmt: skip
            size = sum(f.stat().st_size for f in bundle.glob("devices/*/weights/*"))
            # A process of its own: the runtime library is loaded once a process.
            scored = measured([sys.executable, __file__, "--model", str(model), "--tokens", str(tokens),
                               "--score", str(bundle)])  # fmt: skip
            rows.append((quant, float(scored.stdout), size))
    sys.stdout.write(f"{len(ids) * (WINDOW - 1)} predictions of held-out tokens\n\n")
    sys.stdout.write("| format | weights, MB | perplexity | to transformers |\n|---|---|---|---|\n")
    for name, value, size in rows:
        weight = f"{size / 1e6:.2f}" if size else "-"
        sys.stdout.write(f"| {name} | {weight} | {value:.4f} | {value / reference - 1:+.3%} |\n")


def heldout_ids(model: Path, tokens: int) -> list[list[int]]:
    """Windows of WINDOW token ids of text that training never saw."""
    sys.path.insert(0, str(ROOT / "examples"))
    from heldout import heldout_text

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = tokenizer.encode(heldout_text(tokens * 8)).ids[:tokens]
    return [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]


def perplexity(windows: Iterator[tuple[Sequence[int], np.ndarray]]) -> float:
    """exp of the mean negative log-likelihood of each window's tokens but the first, given those before."""
    total, count = 0.0, 0
    for ids, logits in windows:
        scores = logits[:-1].astype(np.float64)
        top = scores.max(axis=1)
        norm = np.log(np.exp(scores - top[:, None]).sum(axis=1)) + top
        total += float((norm - scores[np.arange(len(ids) - 1), ids[1:]]).sum())
        count += len(ids) - 1
    return float(np.exp(total / count))


def bundle_logits(bundle: Path, windows: list[list[int]]) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    from llrun.app import Where, session_on
    from llrun.console import Console
    from llrun.slice import find

    where = Where(local=True, peers={}, verify=True, timeout_s=60)
    with session_on(find(bundle, None), where, Console(quiet=True)) as session:
        for ids in windows:
            yield ids, session.logits(ids)


def transformers_logits(model: Path, windows: list[list[int]]) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    for ids in windows:
        with torch.no_grad():
            yield ids, reference(input_ids=torch.tensor([ids])).logits[0].numpy()


if __name__ == "__main__":
    main()
