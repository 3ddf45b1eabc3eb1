# SPDX-License-Identifier: Apache-2.0
"""Train the example model: a small Llama that writes Python, from the standard library's own source.

Example:
    python examples/train_python_llama.py --minutes 75 --out examples/python-llama
    python examples/train_python_llama.py --eval-only --out examples/python-llama

The schedule follows the wall clock, so a faster machine trains on more tokens. The seed fixes the first
weights and the order of the batches, but two runs need not lengthen the sequences, or stop, at the same one.
"""

from __future__ import annotations

import argparse

import llcompile  # noqa: F401  its import switches the telemetry of libraries off

# isort: split
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from heldout import END_OF_TEXT, heldout_text, library_texts, stdlib_test_texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 2048
MAX_POSITIONS = 1024
EVAL_WINDOW = 512  # tokens
BATCH_TOKENS = 8192  # tokens per optimiser step
LIBRARY_SHARE = 0.7  # of the sequences; the rest come from the library's tests
SHORT_SEQUENCE, LONG_SEQUENCE = 256, 512  # tokens
LONG_FROM = 0.80  # fraction of the time budget after which sequences are long
WARMUP_UNTIL, DECAY_FROM = 0.02, 0.45  # fractions of the time budget
MUON_RATE, ADAM_RATE = 4e-3, 3e-3
SAVE_EVERY_S = 300.0
PROMPT = 'import os\nimport sys\n\ndef read_lines(path, encoding=None):\n    """'


@dataclass(frozen=True)
class Score:
    """Held-out quality: mean loss in nats per token, and bits per UTF-8 byte of source."""

    nats_per_token: float
    bits_per_byte: float

    def __str__(self) -> str:
        perplexity = math.exp(self.nats_per_token)
        return (
            f"perplexity {perplexity:.4f} per token, loss {self.nats_per_token:.4f} nats per token, "
            f"{self.bits_per_byte:.4f} bits per byte"
        )


def log(message: str) -> None:
    """One progress line on stderr."""
    sys.stderr.write(message + "\n")


def tell(message: str) -> None:
    """One result line on stdout."""
    sys.stdout.write(message + "\n")


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCAB_SIZE` tokens; token 0 is `END_OF_TEXT`, used as bos and eos."""
    bpe = Tokenizer(models.BPE())
    # The GPT-2 split keeps a newline together with the indentation after it: one token per indent.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All texts as one array of token ids [tokens] uint16, `END_OF_TEXT` before each text."""
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    start = [tokenizer.bos_token_id]
    return np.concatenate([np.array(start + one.ids, dtype=np.uint16) for one in encoded])


def build_model(bos: int) -> LlamaForCausalLM:
    """A freshly initialised model, f32; every feature dimension is a multiple of 32."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=bos,
        # Compiled, the plain attention trains faster on a CPU than the fused kernel does.
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        # Each block starts as the identity, which makes high learning rates safe from the first step.
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(
        [
            {"params": [model.model.embed_tokens.weight], "weight_decay": 0.1},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=ADAM_RATE,
        betas=(0.9, 0.95),
    )
    optimizers: list[torch.optim.Optimizer] = [muon, adam]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["base_lr"] = group["lr"]
    return optimizers


def rate_factor(progress: float) -> float:
    """Learning-rate factor at a fraction of the time budget: warm up, stay, fall linearly to zero."""
    rising = progress / WARMUP_UNTIL
    falling = (1.0 - progress) / (1.0 - DECAY_FROM)
    return max(0.0, min(1.0, rising + 0.01, falling))


def draw_batch(corpora: list[np.ndarray], length: int, rng: np.random.Generator) -> torch.Tensor:
    """Random windows [BATCH_TOKENS / length, length + 1] int64 out of [library, tests]."""
    rows = []
    for _ in range(BATCH_TOKENS // length):
        tokens = corpora[0] if rng.random() < LIBRARY_SHARE else corpora[1]
        start = int(rng.integers(len(tokens) - length - 1))
        rows.append(tokens[start : start + length + 1])
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def mean_loss(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss in nats over windows [rows, length + 1]."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, max_bytes: int) -> Score:
    """Score the model in its own number type on up to `max_bytes` of held-out source."""
    text = heldout_text(max_bytes)
    ids = torch.tensor([tokenizer.bos_token_id, *tokenizer.backend_tokenizer.encode(text).ids])
    total = 0.0
    for start in range(0, len(ids) - 1, EVAL_WINDOW):
        window = ids[start : start + EVAL_WINDOW + 1]
        with torch.no_grad():
            total += mean_loss(model, window[None]).item() * (len(window) - 1)
    source_bytes = len(text.replace(END_OF_TEXT, "").encode())
    return Score(total / (len(ids) - 1), total / math.log(2) / source_bytes)


def train_step(
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    optimizers: list[torch.optim.Optimizer],
    batch: torch.Tensor,
    micro_rows: int,
) -> float:
    """One optimiser step over `batch` [rows, length + 1]; returns its mean loss in nats."""
    parts = batch.split(micro_rows)
    total = 0.0
    for part in parts:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(part) / len(parts)
        loss.backward()
        total += loss.item()
    params = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return total


def train(
    model: LlamaForCausalLM,
    corpora: list[np.ndarray],
    args: argparse.Namespace,
    checkpoint: Callable[[], None],
) -> int:
    """Train until the time budget is spent, calling `checkpoint` now and then; returns tokens seen."""

    def plain_loss(batch: torch.Tensor) -> torch.Tensor:
        return mean_loss(model, batch)

    loss_of = torch.compile(plain_loss, dynamic=False) if args.compile else plain_loss
    optimizers = build_optimizers(model)
    rng = np.random.default_rng(args.seed)
    began = saved = time.monotonic()
    step, smooth = 0, math.log(VOCAB_SIZE)
    while (progress := (time.monotonic() - began) / (args.minutes * 60)) < 1.0:
        length = LONG_SEQUENCE if progress >= LONG_FROM else SHORT_SEQUENCE
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["base_lr"] * rate_factor(progress)
        loss = train_step(loss_of, optimizers, draw_batch(corpora, length, rng), args.micro_tokens // length)
        step += 1
        smooth += 0.05 * (loss - smooth)
        if step % 25 == 0:
            seconds = time.monotonic() - began
            speed = step * BATCH_TOKENS / seconds
            log(f"{seconds / 60:6.2f} min  step {step}  loss {smooth:.4f}  {speed:.0f} tokens/s")
        if time.monotonic() - saved > SAVE_EVERY_S:
            checkpoint()
            saved = time.monotonic()
    return step * BATCH_TOKENS


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the weights as float16, with the configuration and the tokenizer, to the folder `out`."""
    halved = LlamaForCausalLM(model.config).half()
    halved.load_state_dict(model.state_dict())
    halved.save_pretrained(out)
    tokenizer.save_pretrained(out)


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The saved model, in f32, and its tokenizer."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder)


def sample(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, temperature: float, seed: int) -> str:
    """`PROMPT` and 200 more tokens; a temperature of 0 takes the likeliest token each time."""
    torch.manual_seed(seed)
    prompt = torch.tensor([tokenizer.backend_tokenizer.encode(PROMPT).ids])
    choice = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    ids = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=200,
        pad_token_id=tokenizer.eos_token_id,
        **choice,
    )
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def train_and_save(args: argparse.Namespace) -> None:
    """Train a tokenizer and a model, saving both to `args.out` every few minutes and at the end."""
    library, tests = library_texts(), stdlib_test_texts()
    tokenizer = train_tokenizer(library)
    corpora = [tokenize(tokenizer, library), tokenize(tokenizer, tests)]
    torch.manual_seed(args.seed)
    model = build_model(tokenizer.bos_token_id)
    log(
        f"{sum(p.numel() for p in model.parameters())} parameters; "
        f"{len(corpora[0])} library tokens, {len(corpora[1])} test tokens"
    )

    def checkpoint() -> None:
        save(model, tokenizer, args.out)
        log(f"saved; part of the held-out text: {evaluate(model, tokenizer, 60_000)}")

    tokens = train(model, corpora, args, checkpoint)
    save(model, tokenizer, args.out)
    tell(f"tokens seen: {tokens}")
    tell(f"held out, weights as trained (f32): {evaluate(model, tokenizer, sys.maxsize)}")


def report(folder: Path, seed: int) -> None:
    """Print the saved model's held-out score and two samples."""
    model, tokenizer = load(folder)
    tell(f"held out, weights as saved (f16), computed in f32: {evaluate(model, tokenizer, sys.maxsize)}")
    for temperature in (0.0, 0.8):
        tell(f"--- sample, temperature {temperature} ---")
        tell(sample(model, tokenizer, temperature, seed))


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=75.0, help="training time by the wall clock")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the samples")
    parser.add_argument("--eval-only", action="store_true", help="score the model in --out; no training")
    parser.add_argument("--threads", type=int, default=1, help="processor threads to use")
    parser.add_argument("--micro-tokens", type=int, default=2048, help="tokens per forward pass")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile the training step (needs a C++ compiler)",
    )
    return parser.parse_args()


def main() -> None:
    """Train, unless told only to evaluate, then report on the saved model."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    if not args.eval_only:
        # The tokenizers library starts its own threads; it warns when the compiler forks after that.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        train_and_save(args)
    report(args.out, args.seed)


if __name__ == "__main__":
    main()
