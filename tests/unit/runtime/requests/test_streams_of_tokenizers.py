"""Streaming with real tokenizers: the pieces joined are the whole decoded, each token decoded a few times."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import small_tokenizers

from llrun.requests.stream import WINDOW, Stream
from llrun.requests.tokenizer import Tokenizer

ALPHABET = [
    "a",
    "ab",
    " ",
    "  ",
    "ok",
    "\n",
    "é",
    "한",
    "국",
    "어",
    "𓀀",
    "𓂀",
    "🫨",
    "🫷",
    "🙂",
    "👩\u200d💻",
    ".",
    "<tool>",
]
BYTE_KINDS = ["gemma", "llama2", "metaspace", "t5"]


@pytest.fixture(scope="module")
def codecs() -> dict[str, Tokenizer]:
    kinds = small_tokenizers.KINDS.items()
    return {name: Tokenizer(name, small_tokenizers.data(make()), 10**6) for name, make in kinds}


def pieces_of(codec: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    stream = Stream(codec, (), prompt)
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("kind", BYTE_KINDS)
@pytest.mark.parametrize("text", ["🫨🫷 ok", "한국어 텍스트", "𓀀𓂀𓁿", "a👩\u200d💻b 🫨", "ok\n\n𓀀"])
def test_neighbouring_byte_characters_are_all_there(codecs, kind, text):
    codec = codecs[kind]
    ids = codec.encode(text)
    assert any(codec.byte(token) is not None for token in ids)
    assert "".join(pieces_of(codec, ids)) == text


@pytest.mark.parametrize("kind", small_tokenizers.KINDS)
def test_pieces_are_the_whole_for_any_text(codecs, kind):
    codec, draw = codecs[kind], random.Random(7)
    for _ in range(150):
        ids = codec.encode("".join(draw.choices(ALPHABET, k=draw.randrange(1, 40))))
        assert "".join(pieces_of(codec, ids)) == codec.decode(ids)


@pytest.mark.parametrize("kind", small_tokenizers.KINDS)
def test_pieces_are_the_whole_for_any_ids(codecs, kind):
    """Invalid bytes, special tokens and ids that the tokenizer lacks among them."""
    codec, draw = codecs[kind], random.Random(8)
    for _ in range(150):
        ids = [draw.randrange(0, draw.choice([5, 280, 420])) for _ in range(draw.randrange(1, 40))]
        assert "".join(pieces_of(codec, ids)) == codec.decode(ids)


@pytest.mark.parametrize("kind", ["gemma", "byte_level"])
def test_long_runs_of_bytes_that_are_no_text(codecs, kind):
    codec, draw = codecs[kind], random.Random(9)
    wrong = [token for token in range(300) if codec.decode([token]) == "\ufffd"]
    assert len(wrong) >= 128
    for _ in range(10):
        ids = draw.choices(wrong, k=3 * WINDOW)
        assert "".join(pieces_of(codec, ids)) == codec.decode(ids)


@pytest.mark.parametrize("kind", small_tokenizers.KINDS)
def test_an_answer_goes_on_from_its_prompt(codecs, kind):
    codec, draw = codecs[kind], random.Random(10)
    for _ in range(100):
        prompt, ids = (codec.encode("".join(draw.choices(ALPHABET, k=draw.randrange(1, 20)))) for _ in "ab")
        whole, before = codec.decode(prompt + ids), codec.decode(prompt)
        assert whole.startswith(before)
        assert "".join(pieces_of(codec, ids, prompt)) == whole[len(before) :]


def test_a_prompt_that_ends_within_a_character_after_others(codecs):
    codec = codecs["gemma"]
    ids = codec.encode("ok 🫨🫷한")
    assert "".join(pieces_of(codec, ids[10:], ids[:10])) == "🫷한"


@pytest.mark.parametrize("kind", [*BYTE_KINDS, "byte_level"])
@pytest.mark.parametrize("stop", ["🫷", "🫨🫷", "𓀀", "k🫨", "\n"])
def test_stop_strings_of_byte_characters_fire_at_once(codecs, kind, stop):
    codec = codecs[kind]
    text = "a ok🫨🫷\n𓀀𓀀 ok"
    ids = codec.encode(text)
    stream = Stream(codec, [stop])
    count = 0
    while not stream.stopped:
        stream.push(ids[count])
        count += 1
    assert stream.text == text[: text.index(stop)]
    assert stop in codec.decode(ids[:count])
    assert stop not in codec.decode(ids[: count - 1])


@pytest.mark.parametrize("kind", ["gemma", "llama2", "byte_level", "word_piece"])
def test_decoding_is_linear(codecs, kind):
    """Tokens given to the decoder, for streams of one kind of token and of many."""
    real = codecs[kind]
    decoded = 0

    class Counting:
        hidden, byte = real.hidden, real.byte

        def decode(self, ids: Sequence[int]) -> str:
            nonlocal decoded
            decoded += len(ids)
            return real.decode(ids)

    draw = random.Random(11)
    for text in ("𓀀" * 2000, "ok " * 2000, "".join(draw.choices(ALPHABET, k=3000))):
        ids = real.encode(text)
        decoded = 0
        stream = Stream(Counting())
        shown = "".join([*map(stream.push, ids), stream.finish()])
        assert shown == real.decode(ids)
        assert decoded <= 8 * len(ids)
