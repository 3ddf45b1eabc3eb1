"""The command line of llrun: options in, exit code out. Only what runs a command imports numpy and the
rest."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from llrun import __version__
from llrun.commands import SETTINGS, doctor, ps
from llrun.errors import INTERNAL, USAGE, RunError, printable
from llrun.options import (
    WAIT_S,
    balanced,
    chatting,
    common,
    listening,
    measured,
    peers_of,
    positive,
    speculating,
)

if TYPE_CHECKING:
    from llrun.device.slice import StoredSlice
    from llrun.head.options import Balancing

RUN_EXAMPLES = """
\b
Examples:
  llrun bundle/ --local --prompt 'def fibonacci(n):' -n 64   every device as a process of this machine
  llrun bundle/ --device pi                                  on the device named pi: a worker, until Ctrl-C
  llrun bundle/ --prompt 'import ' --temperature 0.8         on the head, once the workers listen
  llrun bundle/                                              on the head, at a terminal: a conversation
  llrun bundle/ --system 'Answer in one word.'               the same, of a model with a chat template
  llrun bundle/ --prompt 'import ' --raw                     continue text, though the model has a chat template
  llrun bundle/ --prompt-ids 1,2,3 --json                    token ids in, one JSON object out
  llrun bundle/ --session talk.session                       a conversation that goes on after this program was killed
  llrun bundle/ --prompt 'import ' --session run.session     killed, and given again: the answer goes on where it was
  llrun bundle/ --rebalance night.py:rebalance               your own function moves blocks between the devices
  llrun bundle/ --wait 30                                    wait longer for a lost device that nothing can replace
  llrun bench bundle/ --local -p 128 -n 32                   measure it; see llrun bench --help

`tokens` in the JSON are the ids produced, an end-of-sequence token last where one was produced.
Exit codes: 0 done, 2 wrong use or input, 1 anything else.
"""
BENCH_EXAMPLES = """
\b
Examples:
  llrun bench bundle/ --local                        pp512 and tg128 over loopback
  llrun bench bundle/ --local -p 0 -n 64 -d 1024     decoding behind 1024 tokens
  llrun bench bundle/ --sequences 4 -o json          four sequences at once, their tokens added up

Before each test one run is made that does not count. Token ids are random, from a fixed seed.
"""
SERVE_EXAMPLES = """
\b
Examples:
  llrun serve bundle/ --local                        every device here, at http://127.0.0.1:8080/v1
  llrun serve bundle/ --slots 4 --queue 16           four answers at once, sixteen requests that wait
  LLRUN_API_KEY=... llrun serve bundle/ --host 0.0.0.0    for other machines too, with a key

Paths: / (a page), /v1/chat/completions, /v1/completions, /v1/models, /cluster, /health, /metrics.
"""


def main() -> None:
    """Entry point."""
    # Before numpy loads: its BLAS threads would spin on the cores that kernels run on.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character shows its number
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_guarded(llrun, sys.argv[1:]))


def _guarded(command: click.Command, arguments: Sequence[str]) -> int:
    """Run a command; its exit code. Known failures become one line."""
    try:
        code = command.main(list(arguments), prog_name="llrun", standalone_mode=False)
        sys.stdout.flush()
    except RunError as error:
        click.echo(str(error), err=True)
        return error.exit_code
    except click.UsageError as error:
        name = _shown_name(error.ctx) if error.ctx else "llrun"
        click.echo(printable(f"error[R100]: {error.format_message()} See {name} --help."), err=True)
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        return INTERNAL
    except (
        BrokenPipeError
    ):  # whoever read our output has gone; keep the interpreter's last flush from failing too
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return INTERNAL
    return code if isinstance(code, int) else 0


def _shown_name(context: click.Context) -> str:
    """A command as it is called: the default one has the program's name."""
    return context.command_path.removesuffix(f" {Commands.default}")


class Commands(click.Group):
    """Commands by name; what begins with anything else, a path or an option, is for the command `run`."""

    default = "run"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = args[:1] and args[0] in self.commands
        return super().parse_args(ctx, args if named else [self.default, *args])


class Default(click.Command):
    """The command that needs no name: its help is the program's, and lists the other commands."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(_shown_name(ctx), " ".join(self.collect_usage_pieces(ctx)))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        others = llrun.commands.keys() - {Commands.default}
        rows = [(f"llrun {name}", llrun.commands[name].get_short_help_str()) for name in sorted(others)]
        with formatter.section("Other commands (a path of that name is written ./NAME)"):
            formatter.write_dl(rows)


@click.group(cls=Commands, commands=[doctor, ps], context_settings=SETTINGS)
def llrun() -> None:
    """Run a language model on several devices together."""


@llrun.command(cls=Default, epilog=RUN_EXAMPLES, context_settings=SETTINGS)
@click.argument("path", metavar="BUNDLE_OR_SLICE")
@click.option("--device", metavar="NAME", help="Which device this is; without it, the head.")
@click.option("--listen", metavar="HOST:PORT", help="Worker: listen here instead of the bundle's address.")
@click.option("--announce", hidden=True)
@click.option("--prompt", "texts", multiple=True, metavar="TEXT", help="A prompt. Repeatable.")
@click.option("--prompt-ids", multiple=True, metavar="1,2,3", help="A prompt as token ids. Repeatable.")
@click.option(
    "-n",
    "tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens to produce.  [default: 128, or what fits]",
)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    metavar="T",
    help="0: always the likeliest token.",
)
@click.option("--top-k", type=int, default=0, metavar="K", help="Choose among the K likeliest; 0: all.")
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    metavar="P",
    help="Choose among the likeliest that together have probability P.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="S", help="Of the random choices.")
@click.option("--stop", "stops", multiple=True, metavar="STR", help="End before this text. Repeatable.")
@click.option(
    "--session",
    metavar="FILE",
    help="Keep what is asked and each token in FILE, and go on with what it holds: the conversation, or with"
    " prompts the same run, its answers read where they are there.",
)
@chatting
@speculating
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
@balanced
@common
@click.version_option(__version__, prog_name="llrun", message="%(prog)s %(version)s")
def run(path: str, device: str | None, listen: str | None, announce: str | None,
        texts: tuple[str, ...], prompt_ids: tuple[str, ...], tokens: int | None, temperature: float,
        top_k: int, top_p: float, seed: int, stops: tuple[str, ...], session: str | None, as_json: bool, local: bool,
        peers: tuple[str, ...], no_verify: bool, timeout: float, rebalance: str, wait_s: float, mirror: bool,
        system: str | None, chat_template: str | None, raw: bool, keep_context: bool,
        speculate: str) -> None:  # fmt: skip
    """Run a bundle, or one device's slice of it: the head answers prompts, a worker serves the head.

    Prompts come from --prompt or --prompt-ids, else line by line from standard input, else from a
    conversation at the terminal. A model with a chat template is asked in it, a base model continues text.

    A device that is lost is replaced by those that hold its blocks, and the answer goes on as it would have been.
    """
    from pathlib import Path

    from llrun.faces.answering import Given, answer_all
    from llrun.faces.console import Console
    from llrun.faces.local import Announcer, reasons_told
    from llrun.faces.printer import Wanted
    from llrun.faces.serving import serve
    from llrun.faces.templated import AS_THE_MODEL, Chatting
    from llrun.faces.where import Where
    from llrun.requests.sampling import Sampling
    from llrun.wire.transport import Tcp

    console = Console(quiet=as_json)
    announcer = Announcer(announce) if announce else None
    with reasons_told(announcer):
        stored = _stored(path, device)
        wanted = Wanted(
            tokens, Sampling(temperature, top_k, top_p, seed), _checked_stops(stops), speculate == "auto"
        )
        balancing = _balancing(rebalance, wait_s, mirror)
        template = Path(chat_template) if chat_template is not None else None
        chatting = Chatting(template, system, raw, keep_context)
        if stored.device != stored.record.head:
            if (
                texts
                or prompt_ids
                or local
                or session
                or balancing != _balancing()
                or chatting != AS_THE_MODEL
            ):
                raise RunError(
                    "R108",
                    f"{stored.device} is a worker: prompts, chats, --local, --session, --rebalance, --wait and"
                    f" --mirror are for {stored.record.head}",
                )
            serve(stored, listen, announcer, not no_verify, peers_of(peers), Tcp(), console)
            return
    if listen:
        raise RunError("R108", f"{stored.device} is the head, which does not listen: --listen is for workers")
    where = Where(local, peers_of(peers), not no_verify, positive(timeout, "--timeout"), Tcp())
    given = Given(texts, [_ids(text) for text in prompt_ids])
    path_of_session = Path(session) if session else None
    answer_all(stored, where, wanted, given, as_json, console, balancing, path_of_session, chatting)


@llrun.command(epilog=BENCH_EXAMPLES, context_settings=SETTINGS)
@click.argument("path", metavar="BUNDLE")
@measured
@balanced
@common
def bench(path: str, prompt: int, tokens: int, depth: int, repeats: int, sequences: int, output: str,
          local: bool, peers: tuple[str, ...], no_verify: bool, timeout: float,
          rebalance: str, wait_s: float, mirror: bool) -> None:  # fmt: skip
    """Measure prompt processing and text generation, in rows as llama-bench names them."""
    from llrun.faces.bench import Plan, measure
    from llrun.faces.console import Console
    from llrun.faces.where import Where
    from llrun.wire.transport import Tcp

    stored = _stored(path, None)
    where = Where(local, peers_of(peers), not no_verify, positive(timeout, "--timeout"), Tcp())
    plan = Plan(prompt, tokens, depth, repeats, sequences)
    balancing = _balancing(rebalance, wait_s, mirror)
    measure(stored, where, plan, output == "json", Console(quiet=True), balancing)


@llrun.command(epilog=SERVE_EXAMPLES, context_settings=SETTINGS)
@click.argument("path", metavar="BUNDLE")
@listening
@speculating
@balanced
@common
def serve(path: str, host: str, port: int, api_key: str | None, slots: int | None, queue: int, origins: tuple[str, ...],
          local: bool, peers: tuple[str, ...], no_verify: bool, timeout: float,
          rebalance: str, wait_s: float, mirror: bool, speculate: str) -> None:  # fmt: skip
    """Answer requests over HTTP, as OpenAI's API has them, from the head."""
    from llrun.faces.console import Console
    from llrun.faces.where import Where
    from llrun.wire.transport import Tcp

    try:
        from llrun.faces.server.serve import Listening, serve_http
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("starlette", "uvicorn", "prometheus_client"):
            raise
        needs = f"serve needs the package {package}: pip install 'llrun[head,serve]'"
        raise RunError("R140", needs) from error
    if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable()):
        raise RunError("R107", "--api-key takes printable ASCII characters, at least one")
    stored = _stored(path, None)
    where = Where(local, peers_of(peers), not no_verify, positive(timeout, "--timeout"), Tcp())
    balancing = _balancing(rebalance, wait_s, mirror)
    listening = Listening(host, port, api_key, slots, queue, origins, speculate == "auto")
    serve_http(stored, where, balancing, listening, Console(quiet=True))


def _stored(path: str, device: str | None) -> StoredSlice:
    from pathlib import Path

    from llrun.device.slice import find

    return find(Path(path), device)


def _ids(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    for part in parts:
        digits = part.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()):
            raise RunError("R107", f"--prompt-ids takes integers separated by commas, not {part!r}")
    return [int(part) for part in parts]


def _balancing(rebalance: str = "auto", wait_s: float = WAIT_S, mirror: bool = False) -> Balancing:
    """What the options ask for. Raises RunError for what they cannot mean, before anything is loaded."""
    from llrun.head.hook import load_hook
    from llrun.head.options import BUILT_IN, Balancing

    decides = rebalance if rebalance in BUILT_IN else load_hook(rebalance)
    return Balancing(decides, wait_s, mirror)


def _checked_stops(stops: tuple[str, ...]) -> tuple[str, ...]:
    if "" in stops:
        raise RunError("R107", "--stop needs a text that is not empty")
    for stop in stops:
        if not stop.isascii() and any("\ud800" <= character <= "\udfff" for character in stop):
            raise RunError("R107", f"--stop is not UTF-8 text: {stop!r}")
    return stops
