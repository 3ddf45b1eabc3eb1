"""A small model with a tokenizer, compiled for three devices: what the runtime's command line is tested on."""

from __future__ import annotations

import json
from pathlib import Path

from llcompile.cluster import load_cluster
from tests.e2e import harness
from tests.models import save

TEXT = "def main(arguments):\n    for name in arguments:\n        print(name, '€', 'naïve')\n" * 20


def make(folder: Path, count: int = 3) -> Path:
    """The bundle's path; beside it lie `bare`, the same without spare blocks, and `standing`, which is that with one
    more device, on standby."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model = save("llama", folder / "model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(model / "tokenizer.json"))
    target = harness.devices_json(folder / "devices.json", count)
    compiled = harness.compile_model(model, folder / "compiled")
    wishes = harness.options(model, target, "f32", use_all=True)
    compiled.bundle(folder / "bundle", load_cluster(target), wishes)
    bare = harness.options(model, target, "f32", use_all=True, spare="none")
    compiled.bundle(folder / "bare", load_cluster(target), bare)
    more = harness.devices_json(folder / "standing.json", count + 1)
    described = json.loads(more.read_text())
    described["devices"][count]["standby"] = True
    more.write_text(json.dumps(described))
    compiled.bundle(folder / "standing", load_cluster(more), bare)
    return folder / "bundle"
