"""What was asked and answered, as lines that are only ever added: the text of a session file, without files.

A line is one record as JSON, a space, the CRC-32 of that JSON in eight hexadecimal digits, and a newline. The first
says what the file is; then each request, followed by its tokens one a line and by how it ended. Whoever stops writing
at any byte leaves whole lines and at most a piece of one, which reading leaves out.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from llrun.errors import RunError
from llrun.requests.sampling import Sampling
from llrun.schema import ModelInfo

NO_JOURNAL, OTHER_BUNDLE, OTHER_RUN = "R120", "R121", "R122"
VERSION = 2
READ = (1, VERSION)  # the first had no messages
FIRST_BYTES = 1 << 16  # more than what is left of a first line
DIGITS = 8


class Kind(StrEnum):
    """`conversation`: each request goes on from those before. `prompts`: each is for itself."""

    CONVERSATION = "conversation"
    PROMPTS = "prompts"


class How(StrEnum):
    """How an answer ended. `refused`: before its prompt was taken, so that it is no part of the conversation."""

    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"
    REFUSED = "refused"


class Begun(msgspec.Struct, tag_field="is", tag="llrun session", frozen=True):
    """The first line: the version of the format, the bundle's id, and what its requests are to each other."""

    version: int
    bundle: str
    kind: Kind


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody said in a conversation that a chat template writes."""

    role: str
    content: str


class Asked(
    msgspec.Struct, tag_field="is", tag="asked", frozen=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A request: its token ids, `tokens` to produce (None: as many as fit, up to a default), how they are chosen, and
    the texts that end it. `messages`: those that the ids are of, where a chat template has written them."""

    ids: tuple[int, ...]
    tokens: int | None
    sampling: Sampling
    stops: tuple[str, ...]
    messages: tuple[Message, ...] = ()


class Token(msgspec.Struct, tag_field="is", tag="token", frozen=True, forbid_unknown_fields=True):
    """The next token of the answer."""

    id: int


class Ended(msgspec.Struct, tag_field="is", tag="ended", frozen=True, forbid_unknown_fields=True):
    """Nothing follows in this answer."""

    how: How


class Forgotten(msgspec.Struct, tag_field="is", tag="new", frozen=True, forbid_unknown_fields=True):
    """Another conversation begins."""


Record = Begun | Asked | Token | Ended | Forgotten
_DECODER = msgspec.json.Decoder(Record)
MAGIC = b'{"is":"llrun session",'


@dataclass(frozen=True)
class Turn:
    """A request with the tokens of its answer so far; `ended` None: it was cut off."""

    asked: Asked
    tokens: tuple[int, ...] = ()
    ended: How | None = None


@dataclass(frozen=True)
class Past:
    """What a session file says. `turns`: of the conversation that was going on, or of all prompts; all but the last
    have ended. `size_bytes`: how much of the file that is; what follows is the piece of a line."""

    turns: tuple[Turn, ...]
    size_bytes: int

    @property
    def cut(self) -> Turn | None:
        """The answer that was cut off."""
        return self.turns[-1] if self.turns and self.turns[-1].ended is None else None

    @property
    def said(self) -> list[int]:
        """The tokens of a conversation up to the answer that was cut off: what the caches are to hold."""
        taken = (turn for turn in self.turns if turn.ended not in (None, How.REFUSED))
        return [token for turn in taken for token in (*turn.asked.ids, *turn.tokens)]


NOTHING = Past((), 0)


def line(record: Record) -> bytes:
    text = msgspec.json.encode(record)
    return b"%s %0*x\n" % (text, DIGITS, zlib.crc32(text))


def first_line(bundle: str, kind: Kind) -> bytes:
    return line(Begun(VERSION, bundle, kind))


def read(data: bytes, bundle: str, kind: Kind, model: ModelInfo) -> Past:
    """What `data` says, for a run of `bundle` that is of `kind`.

    An end that a loss of power has left unwritten, or a piece of a line, is left out: of tokens alone, for requests
    are on the disk before they are answered. Raises RunError: R120 for what is no session file, damaged, or of another
    version; R121 when it is another bundle's; R122 when it is of the other kind.
    """
    lines = data.split(b"\n")
    lines.pop()  # what has no newline is no line yet
    if not lines and len(data) <= FIRST_BYTES and _begins(data.rstrip(b"\0")):
        return NOTHING  # its writer was cut off in the first line
    if not data.startswith(MAGIC):
        raise RunError(NO_JOURNAL, "it is no session file of llrun: give another name")
    _check_first(lines[0], bundle, kind)
    reading = _Reading(model)
    size_bytes = len(lines[0]) + 1
    for index, text in enumerate(lines[1:], 1):
        record = _record(text)
        if record is None:
            _check_unwritten(index, lines[index:], reading.in_answer)
            break
        if not reading.take(record):
            raise _damaged(index)
        size_bytes += len(text) + 1
    return Past(tuple(reading.turns()), size_bytes)


def faults(turn: Turn, now: Asked) -> Iterator[str]:
    """In what `now` differs from what the turn was asked for, options as the command line has them."""
    then = turn.asked
    if then.ids != now.ids:
        yield f"its prompt of {len(then.ids)} tokens was not this one of {len(now.ids)}"
    for option, before, after in (
        ("-n", then.tokens, now.tokens),
        ("--temperature", then.sampling.temperature, now.sampling.temperature),
        ("--top-k", then.sampling.top_k, now.sampling.top_k),
        ("--top-p", then.sampling.top_p, now.sampling.top_p),
        ("--seed", then.sampling.seed, now.sampling.seed),
        ("--stop", then.stops or None, now.stops or None),
    ):
        if before != after:
            yield f"{option} was {_shown(before)} and is {_shown(after)}"


@dataclass
class _Reading:
    """Turns as their records come."""

    model: ModelInfo
    _ended: list[Turn] = field(default_factory=list)
    _asked: Asked | None = None
    _tokens: list[int] = field(default_factory=list)

    def take(self, record: Record) -> bool:
        """False for what cannot follow."""
        match record:
            case Asked() if self._asked is None and record.ids and self._known(record.ids):
                self._asked = record
            case Token() if self._asked is not None and self._known((record.id,)):
                self._tokens.append(record.id)
            case Ended() if self._asked is not None:
                self._ended.append(Turn(self._asked, tuple(self._tokens), record.how))
                self._asked, self._tokens = None, []
            case Forgotten() if self._asked is None:
                self._ended.clear()
            case _:
                return False
        return True

    @property
    def in_answer(self) -> bool:
        return self._asked is not None

    def turns(self) -> list[Turn]:
        cut = [Turn(self._asked, tuple(self._tokens))] if self._asked is not None else []
        return self._ended + cut

    def _known(self, ids: Sequence[int]) -> bool:
        return all(0 <= token < self.model.vocab_size for token in ids)


def _begins(text: bytes) -> bool:
    return text.startswith(MAGIC) or MAGIC.startswith(text)


def _check_unwritten(index: int, lines: Sequence[bytes], in_answer: bool) -> None:
    """The first of `lines`, line `index` of the file, cannot be read. Raises RunError R120 when it was on the disk
    once: requests are before anything follows, and with them all that is before them."""
    asked = any(mark in text for text in lines for mark in (b'{"is":"asked"', b'{"is":"new"'))
    if asked or (not in_answer and any(map(_record, lines))):
        raise _damaged(index)


def _check_first(text: bytes, bundle: str, kind: Kind) -> None:
    """Raises RunError unless it is the first line of a file for `bundle` and `kind`."""
    begun = _record(text)
    if isinstance(begun, Begun) and begun.version not in READ:
        raise RunError(
            NO_JOURNAL,
            f"it is of version {begun.version} of session files, this llrun reads versions up to {VERSION}: use the"
            " llrun of its time, or another file",
        )
    if not isinstance(begun, Begun):
        raise _damaged(0)
    if begun.bundle != bundle:
        raise RunError(
            OTHER_BUNDLE,
            f"it is of bundle {begun.bundle[:12]}, this is bundle {bundle[:12]}: run that bundle, or give another"
            " file",
        )
    if begun.kind != kind:
        raise RunError(OTHER_RUN, f"{_HELD[begun.kind]}, or give another file")


def _record(text: bytes) -> Record | None:
    """The record of a whole line; None for what was not written as one."""
    body, digits = text[: -DIGITS - 1], text[-DIGITS - 1 :]
    if digits != b" %0*x" % (DIGITS, zlib.crc32(body)):
        return None
    try:
        record: Record = _DECODER.decode(body)
    except (msgspec.MsgspecError, RunError):  # Sampling says itself what it refuses
        return None
    return record


def _damaged(index: int) -> RunError:
    return RunError(
        NO_JOURNAL, f"line {index + 1} is damaged or was edited: take a copy of it, or another file"
    )


def _shown(value: object) -> str:
    return "not given" if value is None else str(value)


_HELD = {
    Kind.CONVERSATION: "it holds a conversation, not a run with prompts: go on at the terminal, without --prompt",
    Kind.PROMPTS: "it holds a run with prompts, not a conversation: give the same prompts for their answers",
}
