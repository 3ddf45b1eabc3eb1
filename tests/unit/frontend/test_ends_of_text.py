"""Which tokens begin and end a text: generation_config.json, config.json and tokenizer_config.json, in that order."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from llcompile.frontend.configuration import read_configuration
from llcompile.frontend.ends import begin_and_ends
from llcompile.ir.errors import CompileError

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TOKENIZER = Tokenizer(models.WordLevel({"a": 0, "<|im_end|>": 7, "</s>": 2, "<far>": 900}, "a"))
Files = dict[str, Any]


def ends(
    folder: Path, config: Files, generation: Files | None = None, tokenizer: Files | None = None
) -> object:
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    for name, document in (("generation_config", generation), ("tokenizer_config", tokenizer)):
        if document is not None:
            (folder / f"{name}.json").write_text(json.dumps(document))
    return begin_and_ends(folder, read_configuration(folder / "config.json"), TOKENIZER)


GIVEN = {"bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "expected"),
    [
        (GIVEN, None, None, (1, (2,))),
        (GIVEN, {"eos_token_id": [5, 6], "bos_token_id": 4}, None, (4, (5, 6))),
        (GIVEN, {"eos_token_id": 5}, None, (1, (5,))),
        (GIVEN, {"eos_token_id": None}, None, (1, ())),
        (GIVEN, None, {"eos_token": "<|im_end|>"}, (1, (2, 7))),
        (GIVEN, {"eos_token_id": [5, 7]}, {"eos_token": {"content": "<|im_end|>"}}, (1, (5, 7))),
        (GIVEN, {"eos_token_id": None}, {"eos_token": "</s>"}, (1, (2,))),
        (GIVEN, None, {"eos_token": None}, (1, (2,))),
        (GIVEN, None, {"eos_token": "not in the tokenizer"}, (1, (2,))),
        ({}, None, None, (1, (2,))),  # what transformers takes for a Llama
        ({"vocab_size": 2}, None, None, (1, ())),  # and the vocabulary does not have
        ({"bos_token_id": None, "eos_token_id": None}, None, None, (None, ())),
    ],
)
def test_beginning_and_ends_of_text(
    tmp_path: Path, config: Files, generation: Files | None, tokenizer: Files | None, expected: object
) -> None:
    assert ends(tmp_path, config, generation, tokenizer) == expected


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "message"),
    [
        (
            {"eos_token_id": 500},
            None,
            None,
            r"/config\.json: eos_token_id: token 500 is outside the vocabulary of 500",
        ),
        ({"eos_token_id": [2, 10**12]}, None, None, "token 1000000000000 is outside"),
        ({"bos_token_id": 501}, None, None, "bos_token_id: token 501 is outside"),
        ({}, {"eos_token_id": 500}, None, r"generation_config\.json: eos_token_id: token 500 is outside"),
        ({}, {"eos_token_id": "2"}, None, "token id '2' is not a number from 0"),
        ({}, {"eos_token_id": -1}, None, "token id -1 is not a number from 0"),
        ({}, {"eos_token_id": True}, None, "token id True is not"),
        ({}, None, {"eos_token": "<far>"}, r"tokenizer_config\.json: eos_token: token 900 is outside"),
        ({}, None, {"eos_token": 5}, "eos_token 5 is not a text"),
    ],
)
def test_ends_that_cannot_be(
    tmp_path: Path, config: Files, generation: Files | None, tokenizer: Files | None, message: str
) -> None:
    with pytest.raises(CompileError) as caught:
        ends(tmp_path, config, generation, tokenizer)
    assert caught.value.code == "F111"
    assert re.search(message, caught.value.message)
