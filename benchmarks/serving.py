"""`llrun serve` under load: tokens a second beside llama-server, a hundred clients of which some leave, one alone.

    python benchmarks/serving.py [--threads 2] [--rounds 3] [--clients 1,4,16] [--without-peer] [--speculate off]

SmolLM2-135M-Instruct in 4 bits, the same bits in both programs, whole on one device. llama.cpp is built from PyPI's
llama-cpp-python on first use (cmake, a C++ compiler). Programs run by turns, in the opposite order every other round;
ratios are taken within a round. Clients are one process on the same cores.

Tokens a second: of all clients together, from the first request to the last token, prompts among it. A single request:
of the tokens after the first, beside `llrun bench`'s of the same length.
"""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
from shared import machine, ours, peer
from shared.clients import Answer, Ask, ask_all
from shared.processes import run
from shared.quality_weights import peer_file
from shared.rounds import Contest, Rates, Series, play, ratios, spread
from shared.servers import Server, free_port, get, llrun_serve, serving
from shared.shapes import devices_file, tool
from shared.smollm import smollm
from shared.tables import table

CACHE = peer.CACHE / "serving"
CONTEXT, SLOTS, PROMPT, NEW = 1024, 16, 32, 64
FORMAT = "Q4_0 --pure"
LOAD_CLIENTS, LOAD_LEAVING, LOAD_NEW, LEAVE_AFTER = 100, 10, 24, 3
ALONE = 128  # tokens of a single request
OURS, THEIRS, BENCH = "llrun serve", "llama-server", "llrun bench"
PATH = "/v1/completions"


@dataclass(frozen=True)
class Settings:
    threads: int
    rounds: int
    clients: tuple[int, ...]
    with_peer: bool
    options: tuple[str, ...]


def bundle(threads: int) -> Path:
    """The model for one device, built unless one of the same sources is there."""
    path = CACHE / f"bundle-{threads}"
    stamp = path.with_suffix(".sources")
    if not (stamp.is_file() and stamp.read_text() == ours.sources_digest()):
        CACHE.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        device = {
            "name": "one",
            "target": machine.native_target(),
            "memory_bytes": 4 * 10**9,
            "threads": threads,
        }
        target = devices_file(CACHE / f"devices-{threads}.json", [device])
        command = [tool("llcompile"), "build", smollm(), "--target", target, "-o", path]
        run([*command, "--quant", "q4", "--context", str(CONTEXT), "--sequences", str(SLOTS)])
        stamp.write_text(ours.sources_digest())
    return path


def command_of(name: str, chosen: Settings, port: int) -> list[str | Path]:
    if name == OURS:
        return [
            *llrun_serve(bundle(chosen.threads), port, "--no-verify", "--slots", str(SLOTS), *chosen.options)
        ]
    threads = ["-t", str(chosen.threads), "-tb", str(chosen.threads)]
    room = ["-c", str(CONTEXT * SLOTS), "-np", str(SLOTS), "--no-webui"]
    folder = "build-avx512" if machine.native_target() == "x86-64-v4" else "build"
    program = peer.built(folder, "llama-server") / "llama-server"
    return [program, "-m", peer_file(smollm(), FORMAT), "--port", str(port), *threads, *room]


@contextmanager
def started(name: str, chosen: Settings) -> Iterator[Server]:
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(command_of(name, chosen, port), port, Path(folder) / "errors") as server,
    ):
        server.until_healthy()
        yield server


def question(number: int, tokens: int, name: str = OURS) -> Ask:
    """Token ids drawn by `number`, continued greedily to that length."""
    ids = [random.Random(number).randrange(1000, 40000) for _ in range(PROMPT)]
    body = {"prompt": ids, "max_tokens": tokens, "temperature": 0}
    # No prompt is asked twice, so neither has anything of it; theirs would end at a token that ends none here.
    own = {} if name == OURS else {"cache_prompt": False, "ignore_eos": True}
    return Ask(PATH, {**body, **own})


def throughput(name: str, chosen: Settings) -> Rates:
    """Tokens a second by the number of clients."""
    rates = {}
    with started(name, chosen) as server:
        ask_all(server.port, [question(0, 8, name)])
        for count in chosen.clients:
            start = time.perf_counter()
            answers = ask_all(server.port, [question(1000 * count + i, NEW, name) for i in range(count)])
            seconds = time.perf_counter() - start
            rates[f"x{count}"] = sum(map(produced, answers)) / seconds
    return rates


def produced(answer: Answer) -> int:
    """Tokens of an answer that came whole. Raises RuntimeError for another."""
    if not answer.whole or answer.tokens is None:
        raise RuntimeError(f"an answer did not come whole: {answer.status}, {answer.error}")
    return answer.tokens


def single(chosen: Settings) -> Rates:
    """Tokens a second of one request after its first token."""
    with started(OURS, chosen) as server:
        ask_all(server.port, [question(0, 8)])
        [answer] = ask_all(server.port, [question(3, ALONE)])
        return {f"tg{ALONE}": (produced(answer) - 1) / (answer.times[-1] - answer.times[0])}


def bench(chosen: Settings) -> Rates:
    return ours.rates(bundle(chosen.threads), ["-p", "0", "-n", str(ALONE), "-d", str(PROMPT)])


@dataclass(frozen=True)
class Load:
    """Of a hundred clients at once: how many were answered, as each alone, and left.

    After them: slots in use, and requests that wait.
    """

    seconds: float
    answered: int
    same: int
    left: int
    busy: float


def load(chosen: Settings) -> Load:
    asks = [question(100 + i, 8 + i % LOAD_NEW) for i in range(LOAD_CLIENTS)]
    leaving = set(range(0, LOAD_CLIENTS, LOAD_CLIENTS // LOAD_LEAVING))
    together = [
        Ask(ask.path, {**ask.body, "max_tokens": CONTEXT // 2}, LEAVE_AFTER) if i in leaving else ask
        for i, ask in enumerate(asks)
    ]
    with started(OURS, chosen) as server:
        alone = ask_all(server.port, asks, at_once=1)
        start = time.perf_counter()
        found = ask_all(server.port, together)
        seconds = time.perf_counter() - start
        ask_all(server.port, asks[:SLOTS])  # so that whoever left was noticed
        names = ("llrun_requests_running ", "llrun_requests_waiting ")
        lines = get(server.port, "/metrics")[1].splitlines()
        busy = sum(float(line.split()[1]) for line in lines if line.startswith(names))
    stayed = [i for i in range(LOAD_CLIENTS) if i not in leaving]
    same = sum(found[i].whole and found[i].text == alone[i].text for i in stayed)
    return Load(seconds, sum(found[i].whole for i in stayed), same, len(leaving), busy)


def clients_table(series: Series, chosen: Settings) -> str:
    names = list(series.rates)
    rows = []
    for count in chosen.clients:
        test = f"x{count}"
        row = [str(count), *(figure(series.rates[name][test]) for name in names)]
        if len(names) == 2:
            row.append(ratio(series.rates[OURS][test], series.rates[THEIRS][test]))
        rows.append(row)
    heads = ["clients", *(f"{name}, t/s" for name in names), *(["ratio"] if len(names) == 2 else [])]
    return table(heads, rows)


def figure(values: Sequence[float]) -> str:
    found = spread(values)
    return f"{found.median:.1f} ({found.least:.1f}..{found.largest:.1f})"


def ratio(own: Sequence[float], others: Sequence[float]) -> str:
    found = ratios(own, others)
    return f"**{found.median:.3f}** ({found.least:.3f}..{found.largest:.3f})"


def contest(label: str, programs: dict[str, Callable[[], Rates]], chosen: Settings) -> Series:
    held = Contest(label, programs, lambda: machine.read_rate(chosen.threads))
    return play(held, chosen.rounds, lambda text: click.echo(text, err=True))


@click.command()
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--clients", default="1,4,16", show_default=True, help="How many at once, separated by commas.")
@click.option("--only", "parts", multiple=True, type=click.Choice(["clients", "load", "single"]))
@click.option("--without-peer", is_flag=True, help="Without llama-server.")
@click.option("--speculate", default="auto", show_default=True, type=click.Choice(["auto", "off"]))
def main(
    threads: int, rounds: int, clients: str, parts: Sequence[str], without_peer: bool, speculate: str
) -> None:
    """Measure llrun serve under load."""
    # Ended from outside, the servers must end as well: by way of `serving`'s finally.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    counts = tuple(int(count) for count in clients.split(","))
    chosen = Settings(threads, rounds, counts, not without_peer, ("--speculate", speculate))
    click.echo("\n".join(machine.own_description()))
    if not parts or "clients" in parts:
        names = [OURS, THEIRS] if chosen.with_peer else [OURS]
        programs = {name: partial(throughput, name, chosen) for name in names}
        click.echo("\n" + clients_table(contest("clients", programs, chosen), chosen))
    if not parts or "load" in parts:
        found = load(chosen)
        heads = ["clients", "left", "answered", "as alone", "seconds", "slots in use after"]
        row = [
            LOAD_CLIENTS,
            found.left,
            found.answered,
            found.same,
            f"{found.seconds:.1f}",
            f"{found.busy:.0f}",
        ]
        click.echo("\n" + table(heads, [list(map(str, row))]))
    if not parts or "single" in parts:
        series = contest("single", {OURS: partial(single, chosen), BENCH: partial(bench, chosen)}, chosen)
        test = f"tg{ALONE}"
        own, others = series.rates[OURS][test], series.rates[BENCH][test]
        row = [figure(own), figure(others), ratio(own, others)]
        click.echo("\n" + table([f"{OURS}, t/s", f"{BENCH}, t/s", "ratio"], [row]))


if __name__ == "__main__":
    main()
