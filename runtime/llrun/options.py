"""The command line's options that belong together: each function here adds those of one thing to a command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import click

from llrun.errors import RunError

Result = TypeVar("Result")
WAIT_S = 2.0  # as head.options has it, which is not imported for --help


def balanced(command: Callable[..., None]) -> Callable[..., None]:
    """Options of Balancing, for `cli.py`'s `_balancing`."""
    for option in (
        click.option("--exact", is_flag=True, expose_value=False,
                     help="The same bits for a token however it is computed: always so, nothing to ask for."),
        click.option("--mirror", is_flag=True,
                     help="Copy caches, as they are made, to the devices that would take a lost one's blocks: then next"
                     " to nothing is computed again."),
        click.option("--wait", "wait_s", type=float, default=WAIT_S, show_default=True, metavar="S",
                     help="How long a lost device that nothing can replace is waited for."),
        click.option("--rebalance", default="auto", show_default=True, metavar="HOW",
                     help="auto: blocks move to where they run faster, when that is worth it. off: only when a device"
                     " is lost. MODULE:FUNCTION or FILE.py:FUNCTION: as your function says."),
    ):  # fmt: skip
        command = option(command)
    return command


def chatting(command: Callable[..., None]) -> Callable[..., None]:
    """Options of Chatting."""
    for option in (
        click.option("--keep-context", is_flag=True,
                     help="Refuse a message for which the context has no room, instead of leaving out the oldest."),
        click.option("--raw", is_flag=True, help="Continue text as it is, though the model has a chat template."),
        click.option("--chat-template", metavar="FILE",
                     help="Use this jinja2 template, not the model's own. Text is asked in it: --prompt, lines of"
                     " standard input, and what is typed."),
        click.option("--system", metavar="TEXT", help="The system's message, before any other."),
    ):  # fmt: skip
        command = option(command)
    return command


def common(command: Callable[..., None]) -> Callable[..., None]:
    """Options of where.Where."""
    for option in (
        click.option("--timeout", type=float, default=120.0, show_default=True, metavar="S",
                     help="Give up when a device is not reached, or nothing comes from any, for this long."),
        click.option("--no-verify", is_flag=True, help="Skip hashing the weights (sizes are still checked)."),
        local_and_peers,
    ):  # fmt: skip
        command = option(command)
    return command


def local_and_peers(command: Callable[..., Result]) -> Callable[..., Result]:
    """Where the devices are."""
    for option in (
        click.option("--peer", "peers", multiple=True, metavar="NAME=HOST:PORT",
                     help="Where a worker listens, when not where the bundle says. On another host: tell the other"
                     " workers too, which connect to no host that they were not told of. Repeatable."),
        click.option("--local", is_flag=True, help="Run every device as a process of this machine."),
    ):  # fmt: skip
        command = option(command)
    return command


def measured(command: Callable[..., None]) -> Callable[..., None]:
    """Options of bench.Plan, and how its rows are printed."""
    whole = click.IntRange(min=0)
    for option in (
        click.option("-o", "output", type=click.Choice(["md", "json"]), default="md", show_default=True),
        click.option("--sequences", type=click.IntRange(min=1, max=64), default=1, show_default=True, metavar="N",
                     help="Sequences in flight at once."),
        click.option("-r", "repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N",
                     help="Runs of each test."),
        click.option("-d", "depth", type=whole, default=0, show_default=True, metavar="N",
                     help="Tokens in the cache before each test."),
        click.option("-n", "tokens", type=whole, default=128, show_default=True, metavar="N",
                     help="Tokens of the tg test; 0: no such test."),
        click.option("-p", "prompt", type=whole, default=512, show_default=True, metavar="N",
                     help="Prompt tokens of the pp test; 0: no such test."),
    ):  # fmt: skip
        command = option(command)
    return command


def listening(command: Callable[..., None]) -> Callable[..., None]:
    """Options of server.serve.Listening."""
    for option in (
        click.option("--cors", "origins", multiple=True, metavar="ORIGIN",
                     help="Let pages of this origin ask from a browser, such as https://chat.example.org; * for all."
                     " Repeatable."),
        click.option("--queue", type=click.IntRange(min=1), default=256, show_default=True, metavar="N",
                     help="Requests that may wait beside them; more are refused."),
        click.option("--slots", type=click.IntRange(min=1), metavar="N",
                     help="Requests that are answered at once.  [default: as many as the devices have room for]"),
        click.option("--api-key", envvar="LLRUN_API_KEY", metavar="KEY",
                     help="Answer only those who send it. Also read from LLRUN_API_KEY, which other users cannot see."),
        click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, metavar="PORT",
                     help="0: one that is free, which is told."),
        click.option("--host", default="127.0.0.1", show_default=True, metavar="HOST",
                     help="Where to listen. Beyond this machine: only with --api-key, on a network you trust."),
    ):  # fmt: skip
        command = option(command)
    return command


def speculating(command: Callable[..., None]) -> Callable[..., None]:
    """Whether tokens are guessed."""
    return click.option(
        "--speculate", type=click.Choice(["auto", "off"]), default="auto", show_default=True,
        help="auto: what followed the same few tokens before is guessed to follow again, and confirmed in one pass,"
        " where that is quicker. The text is the same.",
    )(command)  # fmt: skip


def peers_of(pairs: Sequence[str]) -> dict[str, str]:
    """What --peer says: addresses by name. Raises RunError R107."""
    peers = {}
    for pair in pairs:
        name, sign, address = pair.partition("=")
        if not (name and sign and address):
            raise RunError("R107", f"--peer takes NAME=HOST:PORT, not {pair!r}")
        peers[name] = address
    return peers


def positive(value: float, name: str) -> float:
    """Raises RunError R107 for what is not."""
    if not 0 < value < float("inf"):
        raise RunError("R107", f"{name} is {value}, it must be more than 0")
    return value
