"""What a format costs on held-out text: perplexity, and divergence from float32, beside llama.cpp's formats.

    python benchmarks/quality.py [--tokens 16384] [--target x86-64-v3] [--no-peer]

The example model (a Llama with tied embeddings). First each format's weights alone, decoded to float32 and computed
with by transformers: what quantising them costs, the same for both programs. Then what the programs compute with them:
llrun's compiled kernels on the same windows, and llama-perplexity by its own measure (the second half of each window).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from shared.processes import run
from shared.quality_weights import PEER_FORMATS, our_weights, peer_files, peer_weights
from shared.shapes import devices_file, tool
from shared.tables import table
from tokenizers import Tokenizer

import llcompile  # noqa: F401  its import switches the telemetry of libraries off

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "python-llama"
WINDOW = 512
Windows = list[list[int]]


@dataclass(frozen=True)
class Score:
    """`perplexity` of each window's tokens but the first, given those before; `divergence`: mean over positions of
    the Kullback-Leibler divergence of the next token's distribution from the reference's, nats."""

    perplexity: float
    divergence: float


@click.command()
@click.option("--tokens", default=16384, show_default=True)
@click.option("--target", default="x86-64-v3", show_default=True)
@click.option("--peer/--no-peer", default=True, help="llama.cpp's formats, too (builds it on first use).")
@click.option(
    "--score",
    type=click.Path(path_type=Path),
    hidden=True,
    help="Save one bundle's log-probabilities beside it.",
)
def main(tokens: int, target: str, peer: bool, score: Path | None) -> None:
    """Print what every format costs."""
    windows = heldout_ids(tokens)
    if score:
        np.save(score.with_suffix(".npy"), np.stack(list(bundle_logits(score, windows))))
        return
    reference = [log_softmax(logits) for logits in transformers_logits(windows, {})]
    sys.stdout.write(f"{len(windows) * (WINDOW - 1)} predictions of held-out tokens.\n\n")
    plain = scored(windows, iter(reference), reference)
    rows = [("float32", plain), *weight_scores(windows, reference, peer)]
    sys.stdout.write(_table("weights alone", rows, plain.perplexity) + "\n\n")
    sys.stdout.write(_table("llrun", kernel_scores(windows, reference, target), plain.perplexity) + "\n")
    if peer:
        sys.stdout.write("\n" + peer_table(tokens) + "\n")


def _table(head: str, rows: Sequence[tuple[str, Score]], reference: float) -> str:
    cells = [
        [name, f"{s.perplexity:.4f}", f"{s.perplexity / reference - 1:+.3%}", f"{max(s.divergence, 0):.5f}"]
        for name, s in rows
    ]
    return table([head, "perplexity", "to float32", "divergence"], cells)


def weight_scores(windows: Windows, reference: Sequence[np.ndarray], peer: bool) -> list[tuple[str, Score]]:
    """Of weights that went through a format, in float32 arithmetic."""
    candidates = [
        ("llrun q8", our_weights(MODEL, "q8")),
        ("llrun q6", our_weights(MODEL, "q6", calibrated=True)),
        ("llrun q5", our_weights(MODEL, "q5", calibrated=True)),
        ("llrun q4", our_weights(MODEL, "q4", calibrated=True)),
        ("llrun q4 --calibrate none", our_weights(MODEL, "q4")),
    ]
    if peer:
        candidates += [(f"llama.cpp {name}", peer_weights(MODEL, name)) for name in PEER_FORMATS]
    return [
        (name, scored(windows, map(log_softmax, transformers_logits(windows, weights)), reference))
        for name, weights in candidates
    ]


def kernel_scores(windows: Windows, reference: Sequence[np.ndarray], target: str) -> list[tuple[str, Score]]:
    """Of bundles, through the compiled kernels."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        device = {"name": "one", "target": target, "memory_bytes": 4 * 10**9}
        target_file = devices_file(Path(scratch) / "devices.json", [device])
        for quant in ("f32", "f16", "q8", "q6", "q5", "q4"):
            bundle = Path(scratch) / quant
            run([tool("llcompile"), "build", MODEL, "--target", target_file, "--quant", quant, "-o", bundle])
            # A process of its own: a process loads one runtime library, and transformers loads the compiler's.
            run([sys.executable, __file__, "--tokens", str(len(windows) * WINDOW), "--score", bundle])
            found = np.load(bundle.with_suffix(".npy"))
            rows.append((quant, scored(windows, iter(found), reference)))
    return rows


def peer_table(tokens: int) -> str:
    """llama-perplexity on the same text, by its own measure: its float16, and its formats to that."""
    from shared.peer import built, parse_perplexity

    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "text"
        text.write_text(heldout(tokens))
        command = [built("build") / "llama-perplexity", "-f", text, "-c", str(WINDOW), "--no-warmup", "-m"]
        found = {
            name: parse_perplexity(run([*command, file], merged=True).stdout)
            for name, file in peer_files(MODEL).items()
        }
    rows = [[name, f"{value:.4f}", f"{value / found['F16'] - 1:+.3%}"] for name, value in found.items()]
    return table(["llama-perplexity", "perplexity", "to F16"], rows)


def heldout_ids(tokens: int) -> Windows:
    """Windows of WINDOW token ids of text that training never saw."""
    ids = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(heldout(tokens)).ids[:tokens]
    return [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]


def heldout(tokens: int) -> str:
    """Text of about that many tokens or more."""
    sys.path.insert(0, str(ROOT / "examples"))
    from heldout import heldout_text

    return heldout_text(tokens * 8)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted, dtype=np.float64).sum(axis=1, keepdims=True))


def scored(windows: Windows, found: Iterator[np.ndarray], reference: Sequence[np.ndarray]) -> Score:
    """Score log-probabilities, by window (tokens, vocabulary), against the reference's."""
    loss, divergence, count = 0.0, [], 0
    for ids, mine, theirs in zip(windows, found, reference, strict=True):
        loss -= float(mine[np.arange(len(ids) - 1), ids[1:]].sum())
        divergence.append(float((np.exp(theirs) * (theirs - mine)).sum(axis=1).mean()))
        count += len(ids) - 1
    return Score(float(np.exp(loss / count)), float(np.mean(divergence)))


def bundle_logits(bundle: Path, windows: Windows) -> Iterator[np.ndarray]:
    """Log-probabilities by a bundle's kernels."""
    from llrun.device.slice import find
    from llrun.faces.console import Console
    from llrun.faces.where import Where, session_on
    from llrun.wire.transport import Tcp

    where = Where(local=True, peers={}, verify=True, timeout_s=60, transport=Tcp())
    with session_on(find(bundle, None), where, Console(quiet=True)) as session:
        for ids in windows:
            yield log_softmax(session.logits(ids))


def transformers_logits(windows: Windows, weights: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Logits with some tensors of the checkpoint replaced; `lm_head.weight` among them unties the head."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    if "lm_head.weight" in weights:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for name, value in weights.items():
            model.get_parameter(name).copy_(torch.from_numpy(value))
        for ids in windows:
            yield model(input_ids=torch.tensor([ids])).logits[0].numpy()


if __name__ == "__main__":
    main()
