"""What a format of activations on the wire costs: in quality, bits and time.

    python benchmarks/wire.py [--tokens 8192] [--model example] [--model smollm]

The model is computed by transformers in float32, on held-out text of Python's standard library; where a plan of so
many stages would cut it, every row is coded and decoded as llrun does. The divergence is the mean Kullback-Leibler
divergence of the next token's distribution from the one without that, nats. Then what coding takes, beside what it
saves a link.
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from shared.smollm import smollm
from shared.tables import table

import llcompile  # noqa: F401  its import switches the telemetry of libraries off
from llrun.programs.layouts import Layout, layout_of
from llrun.schema import Tensor, WireFormat
from llrun.wire.coding import decode, encode

ROOT = Path(__file__).resolve().parent.parent
WINDOW, BATCH = 256, 4
STAGES = (3, 8)
CODED = (WireFormat.F16, WireFormat.Q8, WireFormat.Q4)
FEATURES, LINK_BYTES_PER_S = 2048, 12.5e6  # 100 Mbit/s
MODELS: dict[str, Callable[[], Path]] = {
    "example": lambda: ROOT / "examples" / "python-llama",
    "smollm": smollm,
}


@click.command()
@click.option("--tokens", default=8192, show_default=True)
@click.option("--model", "models", multiple=True, type=click.Choice(list(MODELS)), default=list(MODELS))
def main(tokens: int, models: Sequence[str]) -> None:
    """Print what every format costs."""
    for name in models:
        sys.stdout.write(quality_table(MODELS[name](), tokens) + "\n\n")
    sys.stdout.write(speed_table() + "\n")


def layout(wire: WireFormat, features: int) -> Layout:
    return layout_of(Tensor(id=0, name="hidden", dtype="float32", shape=(1, -1, features), wire=wire))


def quality_table(path: Path, tokens: int) -> str:
    """Bits a feature and divergence of the model in directory `path`."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    windows = torch.tensor(heldout_ids(path, tokens))
    features, halves = model.config.hidden_size, 2 * model.config.num_hidden_layers
    forms = [layout(wire, features) for wire in CODED]
    cuts = [[round(halves * cut / stages) for cut in range(1, stages)] for stages in STAGES]
    total = np.zeros((len(forms), len(cuts)))
    with torch.no_grad():
        for ids in windows.split(BATCH):
            reference = torch.log_softmax(model(input_ids=ids).logits.double(), -1)
            for (i, form), (k, each) in product(enumerate(forms), enumerate(cuts)):
                with rounded(model, form, each):
                    found = torch.log_softmax(model(input_ids=ids).logits.double(), -1)
                total[i, k] += float((reference.exp() * (reference - found)).sum(-1).mean(-1).sum())
    rows = [
        [form.wire, f"{8 * form.wire_bytes / features:.2f}", *(f"{each:.6f}" for each in mine / len(windows))]
        for form, mine in zip(forms, total, strict=True)
    ]
    return table([path.name, "bits", *(f"{stages} stages" for stages in STAGES)], rows)


@contextmanager
def rounded(model: Any, form: Layout, cuts: Sequence[int]) -> Iterator[None]:
    """Have the residual stream coded and decoded after each half layer of `cuts`, counted from 1."""
    import torch

    def travelled(rows: Any) -> Any:
        flat = rows.numpy().reshape(1, -1, rows.shape[-1])
        return torch.from_numpy(decode(form, encode(form, flat)).reshape(rows.shape))

    residual: dict[int, Any] = {}

    def entered(layer: Any, arguments: Any) -> None:
        residual[id(layer.self_attn)] = arguments[0]

    def attended(attention: Any, _: Any, output: Any) -> Any:
        before = residual[id(attention)]
        return (travelled(before + output[0]) - before, *output[1:])

    def left(_layer: Any, _: Any, output: Any) -> Any:
        return (travelled(output[0]), *output[1:]) if isinstance(output, tuple) else travelled(output)

    with ExitStack() as hooks:
        for cut in cuts:
            layer = model.model.layers[(cut - 1) // 2]
            if cut % 2:
                hooks.callback(layer.register_forward_pre_hook(entered).remove)
                hooks.callback(layer.self_attn.register_forward_hook(attended).remove)
            else:
                hooks.callback(layer.register_forward_hook(left).remove)
        yield


def heldout_ids(path: Path, tokens: int) -> list[list[int]]:
    """Windows of token ids of text that the example model's training never saw."""
    from tokenizers import Tokenizer

    sys.path.insert(0, str(ROOT / "examples"))
    from heldout import heldout_text

    ids = Tokenizer.from_file(str(path / "tokenizer.json")).encode(heldout_text(tokens * 8)).ids[:tokens]
    return [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]


def speed_table() -> str:
    """What coding FEATURES features takes, and what it saves on a link of LINK_BYTES_PER_S."""
    rows = []
    for count in (1, 128):
        given = np.random.default_rng(1).standard_normal((1, count, FEATURES)).astype(np.float32)
        for wire in CODED:
            form = layout(wire, FEATURES)
            coded = encode(form, given)
            spent = [microseconds(partial(encode, form, given)), microseconds(partial(decode, form, coded))]
            saved = (given.nbytes - coded.nbytes) / LINK_BYTES_PER_S * 1e6
            rows.append([str(count), wire, *(f"{each:.0f}" for each in (*spent, saved))])
    return table(
        [f"rows of {FEATURES}", "format", "encode, us", "decode, us", "saved at 100 Mbit/s, us"], rows
    )


def microseconds(work: Callable[[], object]) -> float:
    """The least of many."""
    return min(timeit.repeat(work, number=1, repeat=200)) * 1e6


if __name__ == "__main__":
    main()
