"""Small tokenizers of the kinds that models come with, made with the tokenizers package."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIAL = ["<unk>", "<s>", "</s>"]
LETTERS = "▁abcdefghijklmnopqrstuvwxyzABC.,!'-0123é한안"
TEXT = "def main(arguments): for name in arguments: print('it is a naïve ok', name)" * 20


def _with_bytes() -> Tokenizer:
    """BPE with a token for each byte, a few letters, and words of several."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    for token in [*(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, "▁o", "▁ok", "ab", "▁▁", "🙂"]:
        vocabulary[token] = len(vocabulary)
    merges = [("▁", "o"), ("▁o", "k"), ("a", "b"), ("▁", "▁")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return tokenizer


def begin_with(tokenizer: Tokenizer, template: str) -> Tokenizer:
    names = [
        (name, tokenizer.token_to_id(name)) for name in SPECIAL if tokenizer.token_to_id(name) is not None
    ]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair="$A $B", special_tokens=names
    )
    return tokenizer


def gemma() -> Tokenizer:
    tokenizer = _with_bytes()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return begin_with(tokenizer, "<s> $A")


def llama2() -> Tokenizer:
    tokenizer = _with_bytes()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return begin_with(tokenizer, "<s> $A")


def metaspace() -> Tokenizer:
    """As Mistral's newer ones: the space before the first word is the pre-tokenizer's, and bytes fall back."""
    tokenizer = _with_bytes()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)]
    )
    return begin_with(tokenizer, "<s> $A")


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=SPECIAL
    )
    tokenizer.train_from_iterator([TEXT, "한국어 텍스트 🫨🫷"], trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    pieces = [
        "<unk>",
        "[UNK]",
        "hello",
        "##lo",
        "hel",
        "##s",
        "world",
        "it",
        "'",
        "s",
        ".",
        ",",
        "한",
        "##국",
    ]
    tokenizer = Tokenizer(
        models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer


def t5() -> Tokenizer:
    """Appends an end token to every text."""
    tokenizer = llama2()
    return begin_with(tokenizer, "$A </s>")


KINDS: Mapping[str, Callable[[], Tokenizer]] = {
    make.__name__: make for make in (gemma, llama2, metaspace, byte_level, word_piece, t5)
}


def data(tokenizer: Tokenizer) -> bytes:
    """What its tokenizer.json has."""
    return str(tokenizer.to_str()).encode()
