"""Text to token ids and back, on the head alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import msgspec

from llrun.errors import RunError

NO_TOKENIZER, UNREADABLE = "R106", "R109"
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
PROBES = ("a", "0", ".", "\n")


class Codec(Protocol):
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, hidden ones left out."""

    def hidden(self, token: int) -> bool:
        """Whether decoding leaves the token out wherever it stands."""

    def byte(self, token: int) -> int | None:
        """The byte that the token is, where decoding reads a run of such tokens as one; else None."""


class _Decoder(msgspec.Struct):
    type: str = ""
    decoders: list[_Decoder] = []


class _File(msgspec.Struct):
    decoder: _Decoder | None = None


class Tokenizer:
    """A model's tokenizer.json: `data` is what the file has, `file` its name for errors.

    Encoding adds what it prescribes for the beginning of a text, once: nothing where the text begins with that
    itself, nothing where it continues another. What it prescribes for the end (an end token, as T5's) is
    left out: the model is to go on from there. Decoding leaves special tokens out.

    `vocab_size`: ids that the model has, to refuse another model's tokenizer. Raises RunError R109, naming the
    file, where it cannot be read or encodes to ids that the model lacks.
    """

    def __init__(self, file: str, data: bytes, vocab_size: int) -> None:
        try:
            from tokenizers import Tokenizer as Reader
        except ImportError as error:
            raise RunError(
                NO_TOKENIZER,
                "text needs the package tokenizers: pip install 'llrun[head]', or use --prompt-ids",
            ) from error
        self._file = file
        self._vocab_size = vocab_size
        with self._readable():
            decoder = msgspec.json.decode(data, type=_File).decoder
            self._inner = Reader.from_buffer(data)
            # Meant for training batches, not for a prompt, which they would cut or fill up unseen.
            self._inner.no_truncation()
            self._inner.no_padding()
        self._byte_runs = decoder is not None and _reads_bytes(decoder)
        added = self._inner.get_added_tokens_decoder()
        self._special = frozenset(token for token, meaning in added.items() if meaning.special)
        self._added = frozenset(added) - self._special

    def encode(self, text: str, continued: bool = False) -> list[int]:
        """Token ids of a text, `continued`: of one that goes on from what was said.

        Raises RunError R107 for what the terminal could not decode (lone surrogates), R109.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RunError("R107", f"the prompt is not UTF-8 text: {error}") from error
        before, ids = self._parts(text)
        if not ids and not continued:
            before = next((parts[0] for parts in map(self._parts, PROBES) if parts[1]), [])
        for token in ids:
            if token >= self._vocab_size:
                raise self._unreadable(f"it gives id {token}, the model has {self._vocab_size} ids")
        return ids if continued or ids[: len(before)] == before else [*before, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        with self._readable():
            return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def file_text(self) -> str:
        """What tokenizer.json has, without what cuts or fills up."""
        return str(self._inner.to_str())

    def added_texts(self) -> list[int]:
        """Tokens that were added to the vocabulary and stand for a text that decoding shows, ascending."""
        return sorted(token for token in self._added if token < self._vocab_size)

    def hidden(self, token: int) -> bool:
        return token in self._special or self._inner.id_to_token(token) is None

    def text_of(self, token: int) -> str:
        """How the vocabulary writes the token: of a special one, what stands for it in a text."""
        return self._inner.id_to_token(token) or ""

    def byte(self, token: int) -> int | None:
        match = BYTE.fullmatch(self._inner.id_to_token(token) or "") if self._byte_runs else None
        return int(match[1], 16) if match else None

    def _parts(self, text: str) -> tuple[list[int], list[int]]:
        """Ids put before the text, and its own."""
        with self._readable():
            encoding = self._inner.encode(text)
            ids, added = list(encoding.ids), list(encoding.special_tokens_mask)
        if 0 not in added:
            return [], []
        start = added.index(0)
        stop = len(added) - added[::-1].index(0)
        return ids[:start], ids[start:stop]

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self._unreadable(str(error)) from error
        except Exception as error:
            # The tokenizers library raises bare Exception for what it cannot read: that type exactly is meant.
            if type(error) is not Exception:
                raise
            raise self._unreadable(str(error)) from error

    def _unreadable(self, reason: str) -> RunError:
        return RunError(
            UNREADABLE,
            f"{self._file} is no tokenizer for this model: {reason}. Build the bundle again with the model's own"
            " tokenizer.json, or give token ids: --prompt-ids 1,2,3",
        )


def _reads_bytes(decoder: _Decoder) -> bool:
    return decoder.type == "ByteFallback" or any(map(_reads_bytes, decoder.decoders))
