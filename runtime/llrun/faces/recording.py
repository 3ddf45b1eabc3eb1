"""Answers and a session file: what it has already, what goes on, what is added."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llrun.errors import RunError
from llrun.faces.console import Console
from llrun.faces.printer import Wanted
from llrun.faces.session_file import SessionFile
from llrun.requests.journal import OTHER_RUN, Asked, How, Kind, Message, Turn, faults
from llrun.requests.request import Handle, Result, Sink, tokens_allowed
from llrun.requests.stream import Stream
from llrun.requests.tokenizer import Tokenizer
from llrun.schema import ModelInfo, Slice


@contextmanager
def recording(path: Path | None, record: Slice, kind: Kind, console: Console) -> Iterator[SessionFile | None]:
    """The session file at `path`, None where none is asked for. Raises RunError as SessionFile does."""
    if path is None:
        yield None
        return
    with SessionFile(path, record, kind) as file:
        if file.cut_bytes:
            console.note(
                f"{path}: {file.cut_bytes} bytes at its end were not written whole, and are left out."
            )
        yield file


def asked_for(ids: Sequence[int], wanted: Wanted, messages: Sequence[Mapping[str, Any]] = ()) -> Asked:
    said = tuple(Message(message["role"], message["content"]) for message in messages)
    return Asked(tuple(ids), wanted.tokens, wanted.sampling, wanted.stops, said)


def wanted_by(asked: Asked) -> Wanted:
    return Wanted(asked.tokens, asked.sampling, asked.stops)


def recorded(file: SessionFile | None, sink: Sink) -> Sink:
    """A sink whose tokens are in the file before it shows them."""
    if file is None:
        return sink
    keep = file.token

    def take(token: int) -> bool:
        keep(token)
        return sink(token)

    return take


def how_it_ended(handle: Handle) -> How:
    """Of a request that is done, on a session that goes on."""
    if not handle.begun:
        return How.REFUSED
    if handle.error:
        return How.FAILED
    return How.CANCELLED if handle.cancelled else How.DONE


def is_whole(
    turn: Turn, tokenizer: Tokenizer | None, model: ModelInfo, used: int = 0, ends: Collection[int] = ()
) -> bool:
    """Whether nothing is missing of the answer, be it that the run was cut off before it could say so. `used`: tokens
    of the conversation before it. `ends`: tokens that end an answer besides the model's."""
    asked, tokens = turn.asked, turn.tokens
    if turn.ended is not None or (tokens and tokens[-1] in (*model.eos_token_ids, *ends)):
        return True
    if len(tokens) >= tokens_allowed(len(asked.ids), asked.tokens, model, used):
        return True
    if tokenizer is None or not asked.stops:
        return False
    stream = Stream(tokenizer, asked.stops, asked.ids)
    for token in tokens:
        stream.push(token)
    return stream.stopped


def text_of(turn: Turn, tokenizer: Tokenizer) -> str:
    """The text of an answer, as it was shown."""
    stream = Stream(tokenizer, turn.asked.stops, turn.asked.ids)
    for token in turn.tokens:
        stream.push(token)
    stream.finish()
    return stream.text


def result_of(turn: Turn) -> Result:
    """An answer that was read: nothing was computed for it."""
    count = len(turn.tokens)
    return Result(turn.tokens, len(turn.asked.ids), None, None, {}, token_s=(0.0,) * count)


def check_same(path: Path, turns: Sequence[Turn], asked: Sequence[Asked], sources: Sequence[str]) -> None:
    """Raises RunError R122 unless the turns are the beginning of what is asked now."""
    remedy = "give the prompts and options of that run, or another file"
    if len(turns) > len(asked):
        raise RunError(
            OTHER_RUN,
            f"--session {path} holds the answers to {len(turns)} prompts, and {len(asked)} are given: {remedy}",
        )
    for turn, now, source in zip(turns, asked, sources, strict=False):
        fault = next(faults(turn, now), None)
        if fault:
            raise RunError(OTHER_RUN, f"--session {path} is of another run: {source}: {fault}: {remedy}")
