"""One small model on several devices of this machine: ours beside llama.cpp's RPC, distributed-llama and TPI-LLM.

    python benchmarks/peers.py [--devices 2] [-p 128] [-n 32] [--rounds 1]
    sudo python benchmarks/peers.py --devices 4 --cores 0.5 --rate 3.75e7 --latency 0.001
        [--distributed-llama DIR] [--tpi-llm DIR]

The TinyLlama-1.1B shape with random weights, 4-bit but for TPI-LLM, which has float32 alone. Devices, links and quotas
as in tensor_parallel.py; every program has one thread a device. Programs run by turns, in the opposite order every
other round; ratios are taken within a round.

`plan` is what `llcompile build` decides by itself, told what a device does here: the rates of the row `one device`,
which is measured first. Milliseconds to the first token after a prompt, and a further token. llama.cpp is built from
PyPI's llama-cpp-python (cmake, a C++ compiler); of the others DIR is a folder of their source, from
https://github.com/b4rtaz/distributed-llama (make, a C++ compiler) and https://github.com/Lizonghang/TPI-LLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
from shared import bundles, distributed_llama, llama_rpc, peer, tpi_llm
from shared.bundles import Device
from shared.clusters import MEMORY_BYTES, Cluster, emulated
from shared.machine import description
from shared.rounds import Contest, Rates, Series, play, ratios, spread
from shared.tables import table

FIRST, FURTHER = "TTFT ms", "TPOT ms"
PLAN = "plan"
HEADS = ("program", FIRST, "of ours", FURTHER, "of ours", "tokens/s")
LEFT = HEADS[:1]


@dataclass(frozen=True)
class Request:
    """Tokens of the prompt, and tokens that are made."""

    prompt: int
    new: int

    @property
    def sizes(self) -> list[str]:
        return ["-p", str(self.prompt), "-n", str(self.new)]

    @property
    def options(self) -> list[str]:
        """Of `llcompile build`, so that the plan is for this request."""
        return ["--prompt-tokens", str(self.prompt), "--new-tokens", str(self.new)]

    def of_rates(self, rates: Rates) -> Rates:
        """Milliseconds from tokens a second."""
        prompt, token = rates[f"pp{self.prompt}"], rates[f"tg{self.new}"]
        return {FIRST: 1e3 * self.prompt / prompt, FURTHER: 1e3 / token}


def own(cluster: Cluster, bundle: Path, request: Request) -> Rates:
    rows = cluster.bench(bundle, request.sizes)
    return request.of_rates({row["test"]: float(row["tokens_per_s"]) for row in rows})


def measured_device(cluster: Cluster, request: Request) -> Device:
    """A device with the rates at which one alone takes what was measured: prefill is bound by operations, decode by
    memory, so each rate is the target's times predicted over measured."""
    guess = Device("", MEMORY_BYTES, compute_flops=1e11, memory_bytes_per_s=1e10)
    recipe = cluster.recipe(1, *request.options, like=guess)
    figures = bundles.plan(recipe)
    took = own(cluster, bundles.built(recipe), request)
    speed = 1e3 * figures["ttft_s"] / took[FIRST], 1e3 * figures["tpot_s"] / took[FURTHER]
    return replace(guess, compute_flops=1e11 * speed[0], memory_bytes_per_s=1e10 * speed[1])


def ours(cluster: Cluster, request: Request) -> dict[str, Path]:
    """Bundles: what the planner picks, and all devices in a pipeline and in a group."""
    count, like = len(cluster.names), measured_device(cluster, request)

    def bundle(used: int, *options: str) -> Path:
        return cluster.bundle(used, *request.options, *options, like=like)

    return {
        PLAN: bundle(count),
        "one device": bundle(1),
        f"pipeline of {count}": bundle(count, "--use-all", "--tensor-parallel", "off"),
        f"group of {count}": bundle(count, "--use-all", "--tensor-parallel", str(count)),
    }


def theirs(
    cluster: Cluster, request: Request, sources: Mapping[str, Path | None]
) -> dict[str, Callable[[], Rates]]:
    names = cluster.names

    def llama(used: int) -> Callable[[], Rates]:
        def once() -> Rates:
            with cluster.places() as places:
                found = llama_rpc.rates(places, names[:used], cluster.quant, request.sizes)
                return request.of_rates(found)

        return once

    def distributed(source: Path) -> Rates:
        with cluster.places() as places:
            steps = distributed_llama.steps(places, names, source, request.prompt, request.new)
            return dict(zip((FIRST, FURTHER), distributed_llama.milliseconds(steps), strict=True))

    def tpi(source: Path) -> Rates:
        with cluster.places() as places:
            found = tpi_llm.milliseconds(places, names, source, request.prompt, request.new)
            return dict(zip((FIRST, FURTHER), found, strict=True))

    programs = {"llama.cpp, one device": llama(1), "llama.cpp RPC": llama(len(names))}
    for name, run in (("distributed-llama", distributed), ("TPI-LLM", tpi)):
        source = sources[name]
        if source:
            programs[name] = partial(run, source)
    return programs


def prepared(cluster: Cluster, sources: Mapping[str, Path | None]) -> None:
    """Build programs and models, so that nothing is made while something is measured."""
    peer.built(llama_rpc.BUILD)
    peer.weights(cluster.quant, llama_rpc.BUILD)
    source = sources["distributed-llama"]
    if source:
        distributed_llama.built(source)
        distributed_llama.model()
    source = sources["TPI-LLM"]
    if source:
        tpi_llm.model(source, len(cluster.names))


def rows(series: Series) -> list[list[str]]:
    found = []
    for name, rates in series.rates.items():
        row = [name]
        for test in (FIRST, FURTHER):
            of_ours = ratios(rates[test], series.rates[PLAN][test])
            row += [f"{spread(rates[test]).median:.0f}", f"{of_ours.median:.2f}"]
        found.append([*row, f"{1e3 / spread(rates[FURTHER]).median:.1f}"])
    return found


def stages(bundle: Path) -> str:
    """A plan in a line."""
    found = [
        f"{'+'.join(stage['devices'])} {stage['blocks'][0]}-{stage['blocks'][1] - 1}"
        for stage in bundles.planned(bundle)["stages"]
    ]
    return f"{', '.join(found)}"


@click.command()
@click.option("--devices", default=2, show_default=True, type=click.IntRange(2, 4))
@emulated
@click.option("-p", "--prompt", default=128, show_default=True)
@click.option("-n", "--new", default=32, show_default=True)
@click.option("--rounds", default=1, show_default=True)
@click.option("--distributed-llama", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--tpi-llm", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--prepare", is_flag=True, help="Build and write everything, and measure nothing of the peers.")
def main(
    devices: int,
    cores: float | None,
    rate: float,
    latency: float,
    prompt: int,
    new: int,
    rounds: int,
    distributed_llama: Path | None,
    tpi_llm: Path | None,
    prepare: bool,
) -> None:
    """Time ours and each peer."""
    cluster, request = Cluster(devices, cores, rate, latency, "q4"), Request(prompt, new)
    sources = {"distributed-llama": distributed_llama, "TPI-LLM": tpi_llm}
    reason = cluster.why_not()
    if reason:
        raise SystemExit(reason)
    prepared(cluster, sources)
    found = ours(cluster, request)
    click.echo(f"plan: {stages(found[PLAN])}", err=True)
    if prepare:
        return
    programs: dict[str, Callable[[], Rates]] = {
        name: partial(own, cluster, path, request) for name, path in found.items()
    }
    contest = Contest("peers", programs | theirs(cluster, request, sources), lambda: 0.0)
    series = play(contest, rounds, lambda text: click.echo(text, err=True))
    told = [*description(), f"- plan: {stages(found[PLAN])}", "", table(HEADS, rows(series), LEFT)]
    click.echo("\n".join(told))


if __name__ == "__main__":
    main()
