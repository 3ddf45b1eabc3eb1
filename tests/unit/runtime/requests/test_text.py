"""Streaming text: never half a character, nothing of a stop string, nothing lost."""

from __future__ import annotations

import random

import pytest

from llrun.requests.stream import Stream


class Bytes:
    """Every byte a token: the hardest case for characters that span tokens."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def hidden(self, token: int) -> bool:
        return False

    def byte(self, token: int) -> int | None:
        return None


class Spaced(Bytes):
    """Leaves out a space at the beginning of what it decodes, as sentencepiece models do."""

    def decode(self, ids) -> str:
        return super().decode(ids).removeprefix(" ")


class PerByte(Bytes):
    """Shows each byte of an incomplete character as a U+FFFD of its own."""

    def decode(self, ids) -> str:
        text = bytes(ids).decode("utf-8", errors="surrogateescape")
        return "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in text)


def run(stream: Stream, codec: Bytes, text: str) -> list[str]:
    pieces = []
    for token in codec.encode(text):
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()]


@pytest.mark.parametrize("codec", [Bytes(), PerByte()])
def test_no_half_characters(codec):
    text = "naïve € 😀\u200d👩 end"
    stream = Stream(codec)
    pieces = run(stream, codec, text)
    assert "".join(pieces) == text == stream.text
    assert not any("\ufffd" in piece for piece in pieces)


def test_text_comes_as_soon_as_it_can():
    codec = Bytes()
    assert run(Stream(codec), codec, "a€b") == ["a", "", "", "€", "b", ""]


def test_incomplete_end_is_shown_at_the_end():
    codec = Bytes()
    stream = Stream(codec)
    assert [stream.push(token) for token in "x€".encode()[:-1]] == ["x", "", ""]
    assert stream.finish() == "\ufffd"
    assert stream.text == "x\ufffd"


def test_spaces_between_tokens_survive_a_decoder_that_strips_them():
    codec = Spaced()
    assert "".join(run(Stream(codec), codec, "a b  c")) == "a b  c"


def test_the_prompt_gives_the_context_of_the_first_token():
    codec = Spaced()
    assert run(Stream(codec, prompt=codec.encode("def")), codec, " f")[0] == " "


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["thr", "wo t"], "one t"),
        ("aab", ["ab"], "a"),
        ("ababac", ["abac"], "ab"),
        ("naïve€", ["ï"], "na"),
        ("no stop her", ["here"], "no stop her"),
        ("xyz", ["x"], ""),
    ],
)
def test_stop_strings_straddle_tokens(text, stops, shown):
    codec = Bytes()
    stream = Stream(codec, stops)
    assert "".join(run(stream, codec, text)) == shown == stream.text
    assert stream.stopped


def test_what_may_begin_a_stop_string_is_held_back():
    codec = Bytes()
    stream = Stream(codec, ["\n\n"])
    assert [stream.push(token) for token in b"a\nb\n"] == ["a", "", "\nb", ""]
    assert stream.finish() == "\n"


def test_endless_invalid_bytes_are_not_held_for_ever():
    codec = Bytes()
    stream = Stream(codec)
    shown = "".join(stream.push(0xFF) for _ in range(500)) + stream.finish()
    assert shown == "\ufffd" * 500


def test_random_text_in_random_languages():
    draw = random.Random(2)
    for codec in (Bytes(), PerByte()):
        for _ in range(60):
            text = "".join(chr(draw.choice([65, 0xE9, 0x4E2D, 0x1F600])) for _ in range(draw.randrange(90)))
            assert "".join(run(Stream(codec), codec, text)) == text
