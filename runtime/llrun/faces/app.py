"""What the command line does: the worker's loop, the head's requests, a conversation at a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from llrun.device.load import Device, load_device
from llrun.device.slice import Place, verified_file
from llrun.errors import RunError
from llrun.faces import local
from llrun.faces.bench import Plan, check_plan, run_bench, table
from llrun.faces.console import Console
from llrun.head.session import Session
from llrun.requests.conversation import Conversation, generate
from llrun.requests.request import Result, check_ids, tokens_allowed
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.requests.tokenizer import Stream, Tokenizer
from llrun.wire.transport import Tcp
from llrun.worker.worker import Worker

TOKENIZER = "tokenizer/tokenizer.json"
TOKENIZER_CONFIG = "tokenizer/tokenizer_config.json"
CHAT_TEMPLATE = "tokenizer/chat_template.jinja"


@dataclass(frozen=True)
class Where:
    """Where the devices are. `local`: all on this machine; `peers`: addresses that differ from the
    bundle's."""

    local: bool
    peers: Mapping[str, str]
    verify: bool
    timeout_s: float


@dataclass(frozen=True)
class Wanted:
    """`tokens` None: as many as fit, up to a default."""

    tokens: int | None
    sampling: Sampling
    stops: tuple[str, ...]


def serve(place: Place, listen: str | None, announce: str | None, verify: bool, console: Console) -> None:
    """A worker's life: load, listen, serve until interrupted. `announce`: `FD:PID`, from --local."""
    writing, parent = (int(part) for part in announce.split(":")) if announce else (None, None)
    if parent is not None:
        local.end_with_parent(parent)
    device = load_device(place, verify, console.progress)
    listener = Tcp().listen(listen or place.record.devices[place.device].address)
    note = console.silent if announce else (lambda text: console.note(f"{device.name}: {text}"))
    if writing is None:
        console.note(f"{device.name}: listening on {listener.address}")
    else:
        with os.fdopen(writing, "w", encoding="ascii") as pipe:
            pipe.write(f"{listener.address}\n")
    Worker(device, Tcp(), listener, note).serve()


def read_tokenizer(place: Place) -> Tokenizer | None:
    """The model's tokenizer, None when the bundle has none."""
    return Tokenizer(verified_file(place, TOKENIZER)) if TOKENIZER in place.record.files else None


def has_chat_template(place: Place) -> bool:
    """Whether the model came with a template for conversations. Templates are programs: none is executed
    here."""
    if CHAT_TEMPLATE in place.record.files:
        return True
    if TOKENIZER_CONFIG not in place.record.files:
        return False
    path = verified_file(place, TOKENIZER_CONFIG)
    try:
        return "chat_template" in msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError:
        return False


def encode(texts: Sequence[str], tokenizer: Tokenizer | None) -> list[list[int]]:
    """Token ids of each text. Raises RunError R106 without a tokenizer."""
    if tokenizer is None:
        raise RunError("R106", "this bundle has no tokenizer: give token ids, --prompt-ids 1,2,3")
    return [tokenizer.encode(text) for text in texts]


def check_prompts(prompts: Sequence[Sequence[int]], wanted: Wanted, place: Place) -> None:
    """Refuse bad input before anything is loaded or started."""
    model = place.record.model
    for ids in prompts:
        check_ids(ids, model)
        tokens_allowed(len(ids), wanted.tokens, model)


@contextmanager
def session_on(place: Place, where: Where, console: Console) -> Iterator[Session]:
    """All devices, connected. With `local`, the workers load while the head does."""
    names = sorted(place.record.devices.keys() - {place.record.head})
    unknown = sorted(where.peers.keys() - set(names))
    if unknown:
        raise RunError("R108", f"--peer {unknown[0]}: this bundle's workers are {', '.join(names) or 'none'}")
    if not where.local:
        described = {name: place.record.devices[name].address for name in names}
        device = load_device(place, where.verify, console.progress)
        with Session(device, Tcp(), {**described, **where.peers}, where.timeout_s) as session:
            yield session
        return
    if place.bundle is None:
        raise RunError("R108", f"--local needs the whole bundle, {place.folder} is one device's slice")
    options = () if where.verify else ("--no-verify",)
    with local.workers(place.bundle, names, options) as addresses:
        device = load_device(place, where.verify, console.progress)
        with Session(device, Tcp(), addresses(), where.timeout_s) as session:
            yield session


def answer_all(
    place: Place,
    where: Where,
    wanted: Wanted,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    as_json: bool,
    console: Console,
) -> None:
    """The head's work: every prompt given, or those on stdin, or a conversation at the terminal."""
    tokenizer = read_tokenizer(place)
    if texts and ids:
        raise RunError("R108", "give --prompt or --prompt-ids, not both")
    if wanted.stops and tokenizer is None:
        raise RunError("R106", "--stop needs a tokenizer, and this bundle has none")
    talk = not texts and not ids and at_terminal() and not as_json
    prompts = [] if talk else [list(one) for one in ids] or encode(texts or lines_of_stdin(), tokenizer)
    if not talk and not prompts:
        raise RunError("R103", "no prompt: give --prompt or --prompt-ids, or lines on standard input")
    check_prompts(prompts, wanted, place)
    if talk and tokenizer is None:
        raise RunError("R106", "this bundle has no tokenizer to talk with: use --prompt-ids 1,2,3")
    with session_on(place, where, console) as session:
        scheduler = Scheduler(session)
        if talk and tokenizer:
            if has_chat_template(place):
                console.note(
                    "The model has a chat template, which is not applied: lines are continued as text."
                )
            chat(scheduler, wanted, tokenizer, console)
            return
        answers = []
        for prompt in prompts:
            answers.append(answer(scheduler, prompt, wanted, tokenizer, console))
            console.show("\n")
            if not as_json:
                console.figures(answers[-1][0])
    if as_json:
        console.results(answers)


def measure(place: Place, where: Where, plan: Plan, output: str, console: Console) -> str:
    """The bench's rows as text, Markdown or JSON."""
    check_plan(plan, place.record.model)
    with session_on(place, where, console) as session:
        rows = run_bench(Scheduler(session), plan)
    if output == "json":
        return msgspec.json.encode(rows).decode()
    model = place.record.model
    return table(rows, f"{model.name} {model.quant}", len(place.record.devices))


def answer(
    scheduler: Scheduler, ids: Sequence[int], wanted: Wanted, tokenizer: Tokenizer | None, console: Console
) -> tuple[Result, str | None]:
    """One request, its text shown as it comes; the result and its text (None without a tokenizer)."""
    sink = Sink(tokenizer, wanted.stops, ids, scheduler.session.device, console)
    result = generate(scheduler, ids, wanted.tokens, wanted.sampling, sink.take)
    return result, sink.finish()


class Sink:
    """Shows tokens as text, or as numbers when there is no tokenizer, and stops at a stop string."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stops: Sequence[str],
        prompt: Sequence[int],
        device: Device,
        console: Console,
    ) -> None:
        self._stream = Stream(tokenizer, stops, prompt) if tokenizer else None
        self._ends = frozenset(device.record.model.eos_token_ids)
        self._console = console

    def take(self, token: int) -> bool:
        """Show what `token` adds; False when a stop string is complete."""
        if self._stream is None:
            self._console.show(f"{token} ")
            return True
        if token not in self._ends:
            self._console.show(self._stream.push(token))
        return not self._stream.stopped

    def finish(self) -> str | None:
        if self._stream is None:
            return None
        self._console.show(self._stream.finish())
        return self._stream.text


def chat(scheduler: Scheduler, wanted: Wanted, tokenizer: Tokenizer, console: Console) -> None:
    """A conversation at a terminal: one sequence, every line added to it, until the end of input."""
    console.note("A line is added to the conversation as it is; /new begins another; end with Ctrl-D.")
    model = scheduler.session.device.record.model
    conversation = Conversation(scheduler)
    while (line := console.ask()) is not None:
        if line == "/new":
            conversation.close()
            conversation = Conversation(scheduler)
            continue
        try:
            ids = tokenizer.encode(line)
            check_ids(ids, model)
            count = tokens_allowed(len(ids), wanted.tokens, model, conversation.used)
        except RunError as error:
            console.note(f"{error} (/new begins another conversation)")
            continue
        sink = Sink(tokenizer, wanted.stops, ids, scheduler.session.device, console)
        result = conversation.ask(ids, count, wanted.sampling, sink.take)
        sink.finish()
        console.show("\n")
        console.figures(result)


def at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def lines_of_stdin() -> list[str]:
    """One prompt a line; empty lines are none."""
    if sys.stdin is None:
        return []
    try:
        lines = sys.stdin.buffer.read().decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise RunError("R107", f"standard input is not UTF-8 text: {error}") from error
    return [line for line in lines if line.strip()]
