"""Text to ids: one beginning, no end, and files that are no tokenizer of this model."""

from __future__ import annotations

import contextlib
import json

import pytest
import small_tokenizers
from transformers import PreTrainedTokenizerFast

from llrun.errors import RunError
from llrun.requests.tokenizer import Tokenizer

BEGIN, END = 1, 2


def tokenizer(made: small_tokenizers.Tokenizer, vocab_size: int = 1000) -> Tokenizer:
    return Tokenizer("here/tokenizer.json", small_tokenizers.data(made), vocab_size)


@pytest.mark.parametrize("kind", ["gemma", "llama2", "metaspace"])
@pytest.mark.parametrize("text", ["ab ok", "한국 🫨🫷", "", " "])
def test_a_text_is_as_transformers_has_it(kind, text):
    inner = small_tokenizers.KINDS[kind]()
    oracle = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert tokenizer(inner).encode(text) == oracle(text)["input_ids"]


@pytest.mark.parametrize("kind", ["gemma", "llama2", "metaspace"])
def test_a_text_that_begins_with_the_beginning_has_one(kind):
    made = tokenizer(small_tokenizers.KINDS[kind]())
    ids = made.encode("<s>ab ok")
    assert ids.count(BEGIN) == 1
    assert ids[0] == BEGIN
    assert made.decode(ids) == "ab ok"


def test_a_text_that_continues_another_has_no_beginning():
    made = tokenizer(small_tokenizers.gemma())
    assert made.encode("ab ok") + made.encode(" ok\n", continued=True) == made.encode("ab ok ok\n")
    assert made.encode("", continued=True) == []


@pytest.mark.parametrize(
    ("template", "begins"), [("$A </s>", []), ("<s> $A </s>", [BEGIN]), ("<s> <s> $A", [1, 1])]
)
def test_what_is_put_behind_a_text_is_left_out(template, begins):
    made = tokenizer(small_tokenizers.begin_with(small_tokenizers.gemma(), template))
    body = made.encode("ab ok", continued=True)
    assert END not in body
    assert made.encode("ab ok") == [*begins, *body]
    assert made.encode("") == begins
    assert made.encode("ab</s>") == [*begins, *made.encode("ab", continued=True), END]  # the user's own


def test_nothing_is_cut_or_filled_up():
    inner = small_tokenizers.gemma()
    inner.enable_truncation(4)
    inner.enable_padding(length=12)
    assert len(tokenizer(inner).encode("abcdefgh")) == 8
    assert tokenizer(inner).encode("c") == [BEGIN, inner.token_to_id("c")]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[1",
        b"[]",
        b"{}",
        b"null",
        b'{"decoder": 3}',
        b'{"version": "1.0", "model": {"type": "Unheard"}}',
        json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}).encode(),
        b'{"decoder": ' + b'{"type": "Sequence", "decoders": [' * 3000,
    ],
    ids=range(10),
)
def test_a_file_that_cannot_be_read_is_named(data):
    with pytest.raises(RunError, match="--prompt-ids") as refused:
        Tokenizer("here/tokenizer.json", data, 1000)
    assert refused.value.code == "R109"
    assert "here/tokenizer.json is no tokenizer" in refused.value.message


def test_damaged_files_are_refused_or_read():
    """Never anything but a RunError, wherever the file is cut or changed."""
    good = small_tokenizers.data(small_tokenizers.llama2())
    for position in range(0, len(good), 97):
        for data in (
            good[:position],
            good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :],
        ):
            with contextlib.suppress(RunError):
                Tokenizer("here/tokenizer.json", data, 1000).encode("ab ok 🫨")


def test_another_models_tokenizer_is_told():
    made = tokenizer(small_tokenizers.gemma(), 290)
    with pytest.raises(RunError, match=r"no tokenizer for this model: it gives id \d+, the model has 290"):
        made.encode("ok 한")


def test_a_text_that_the_tokenizer_cannot_encode():
    made = tokenizer(small_tokenizers.Tokenizer(small_tokenizers.models.WordLevel({"a": 0}, unk_token="x")))
    with pytest.raises(RunError) as refused:
        made.encode("b")
    assert refused.value.code == "R109"
