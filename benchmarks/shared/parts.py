"""The parts of the comparison with llama.cpp: which contests each holds, and its lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from shared import machine, ours, peer
from shared.rounds import Contest, Rates, Series, Spread, play, ratios, spread

# Multiplications of a token in all matrices of the TinyLlama-1.1B shape but the head's, which prefill applies to
# the last token alone: 22 layers of (2048 + 2 * 256 + 2048) * 2048 + 3 * 2048 * 5632.
PREFILL_MACS = 22 * ((2 * 2048 + 2 * 256) * 2048 + 3 * 2048 * 5632)
BATCHES = (1, 2, 4, 8, 16)
DEPTH_CONTEXT = 16384
DEPTHS = ((2048, 2), (8192, 1))  # tokens, rounds at most
_PEERS = {"llama.cpp": ()}
_FLASH = {"llama.cpp -fa 0": ("-fa", "0"), "llama.cpp -fa 1": ("-fa", "1")}
_OURS = "llrun"


@dataclass(frozen=True)
class Settings:
    """What the user chose. `quants` and `threads` are crossed; `long`: the deepest with one thread, too."""

    quants: tuple[str, ...]
    threads: tuple[int, ...]
    rounds: int
    target: str
    long: bool = False


@dataclass(frozen=True)
class Line:
    """A row of a table. `peer`, `ours`: tokens a second; `work`: GB/s read when decoding, GMAC/s in prefill, of
    the two; `share`: of the memory's rate in the same rounds, 0 in prefill."""

    quant: str
    threads: int
    test: str
    peer: Spread
    ours: Spread
    ratio: Spread
    read: Spread
    work: tuple[float, float]
    share: tuple[float, float]
    peer_name: str


Tell = Callable[[str], None]


def rate_lines(chosen: Settings, tell: Tell, folder: str = "build") -> Iterator[Line]:
    """Prefill and decode with an empty cache."""
    for quant in chosen.quants:
        for threads in chosen.threads:
            sizes = ["-p", "512", "-n", "128"]
            yield from _lines(chosen, tell, folder, quant, threads, sizes, 0, None, _PEERS)


def depth_lines(chosen: Settings, tell: Tell) -> Iterator[Line]:
    """Prefill and decode with a deep cache, in q4: the peer with and without flash attention, the better counts, and
    is alone measured at the largest depth. A round takes minutes there: one is run, and two of the other."""
    for threads in chosen.threads:
        peers = _FLASH
        for depth, rounds in DEPTHS:
            if depth > DEPTHS[0][0] and threads == 1 and not chosen.long:
                continue
            fewer = replace(chosen, rounds=min(chosen.rounds, rounds))
            sizes = ["-p", "512", "-n", "32", "-d", str(depth)]
            lines = list(_lines(fewer, tell, "build", "q4", threads, sizes, depth, DEPTH_CONTEXT, peers))
            yield from lines
            peers = {line.peer_name: _FLASH[line.peer_name] for line in lines}


def avx2_lines(chosen: Settings, tell: Tell) -> Iterator[Line]:
    """Both programs built for AVX2, FMA, F16C and BMI2 and nothing later."""
    quants = tuple(quant for quant in chosen.quants if quant != "f16")
    yield from rate_lines(replace(chosen, quants=quants, target="x86-64-v3"), tell, "build-avx2")


def _lines(
    chosen: Settings,
    tell: Tell,
    folder: str,
    quant: str,
    threads: int,
    sizes: Sequence[str],
    depth: int,
    context: int | None,
    peers: dict[str, tuple[str, ...]],
) -> Iterator[Line]:
    bundle = ours.bundle(quant, threads, chosen.target, context)
    programs = {
        name: partial(peer.rates, folder, quant, threads, [*sizes, *options])
        for name, options in peers.items()
    } | {_OURS: partial(ours.rates, bundle, sizes)}
    label = f"{quant}, {threads} threads, {chosen.target}{f', depth {depth}' if depth else ''}"
    contest = Contest(label, programs, partial(machine.read_rate, threads))
    series = play(contest, chosen.rounds, tell)
    weights = (peer.weights_bytes(peer.weights(quant))[1], ours.weights_bytes(bundle)[1])
    for test in series.rates[_OURS]:
        count = int(test[2:])
        held = (depth + count / 2) * ours.cache_bytes_a_token(bundle)
        unit = PREFILL_MACS / 1e9
        work = (unit, unit) if test.startswith("pp") else tuple((w + held) / 1e9 for w in weights)
        name = series.best(list(peers), test)
        yield _line(series, quant, threads, test, name, work, f" @ d{depth}" if depth else "")


def _line(
    series: Series, quant: str, threads: int, test: str, name: str, work: Sequence[float], suffix: str = ""
) -> Line:
    """`work`: what one token takes of the peer and of us, GB or GMAC."""
    theirs, mine = series.rates[name][test], series.rates[_OURS][test]
    done = [[rate * each for rate in rates] for rates, each in zip((theirs, mine), work, strict=True)]
    shares = [0.0, 0.0]
    if not test.startswith("pp"):
        shares = [ratios(rates, series.reads).median for rates in done]
    return Line(
        quant, threads, test + suffix, spread(theirs), spread(mine), ratios(mine, theirs), spread(series.reads),
        (spread(done[0]).median, spread(done[1]).median), (shares[0], shares[1]), name,
    )  # fmt: skip


def batch_lines(chosen: Settings, tell: Tell) -> Iterator[Line]:
    """Decoding several sequences at once: 32 tokens of each after 16 in its cache."""
    prompt, tokens = 16, 32
    for quant in (quant for quant in chosen.quants if quant != "f16"):
        for threads in chosen.threads:
            bundle = ours.bundle(quant, threads, chosen.target)
            programs = {
                "llama.cpp": partial(peer.batch_rates, quant, threads, prompt, tokens, BATCHES),
                _OURS: partial(_our_batches, bundle, prompt, tokens),
            }
            label = f"{quant}, {threads} threads, batches"
            series = play(Contest(label, programs, partial(machine.read_rate, threads)), chosen.rounds, tell)
            weights = (peer.weights_bytes(peer.weights(quant))[1], ours.weights_bytes(bundle)[1])
            held = (prompt + tokens / 2) * ours.cache_bytes_a_token(bundle)
            for count in BATCHES:
                work = [(w / count + held) / 1e9 for w in weights]
                yield _line(series, quant, threads, f"x{count}", "llama.cpp", work)


def _our_batches(bundle: ours.Path, prompt: int, tokens: int) -> Rates:
    sizes = ["-p", "0", "-n", str(tokens), "-d", str(prompt), "--sequences"]
    return {f"x{n}": ours.rates(bundle, [*sizes, str(n)])[f"tg{tokens}"] for n in BATCHES}
