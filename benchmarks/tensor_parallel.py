"""One model on several devices of this machine: as a pipeline, as groups, and on the best one alone.

    python benchmarks/tensor_parallel.py [--devices 2] [-p 128] [-n 64] [--rounds 3] [--quant q4]
    sudo python benchmarks/tensor_parallel.py --devices 4 --cores 0.4 --rate 1.25e7 --latency 0.002

The TinyLlama-1.1B shape with random weights. Without `--cores`, `--rate` and `--latency`: devices are processes over
loopback with one thread each, and with two devices there is a row for one process with two threads. With any of them:
network namespaces with links of that rate and that delay one way, and quotas of processor time (root; see
shared/machines.py). Every plan has the layers on all devices that it names, embedding and output head on the first.
Programs run by turns, in the opposite order every other round; ratios are taken within a round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click
from shared.clusters import Cluster, emulated
from shared.machine import own_description
from shared.rounds import Contest, Rates, Series, play, ratios, spread
from shared.tables import table

EVERYBODY = "--use-all"
HEADS = ("plan", "test", "t/s", "least", "most", "beside the first row")


def plans(cluster: Cluster) -> dict[str, Path]:
    """Bundles by what their plan is called."""
    count = len(cluster.names)
    found = {"one device": cluster.bundle(1)}
    if count == 2 and not cluster.emulated:
        found["one device, two threads"] = cluster.bundle(1, threads=2)
    found[f"pipeline of {count}"] = cluster.bundle(count, EVERYBODY, "--tensor-parallel", "off")
    for size in sorted({2, count}):
        found[f"group of {size}"] = cluster.bundle(size, EVERYBODY, "--tensor-parallel", str(size))
    return found


def rows(series: Series, names: Sequence[str]) -> list[list[str]]:
    found = []
    for test in series.rates[names[0]]:
        for name in names:
            one, base = series.rates[name][test], series.rates[names[0]][test]
            whole, ratio = spread(one), ratios(one, base)
            figures = [f"{value:.1f}" for value in (whole.median, whole.least, whole.largest)]
            found.append([name, test, *figures, f"{ratio.median:.2f}"])
    return found


@click.command()
@click.option("--devices", default=2, show_default=True, type=click.IntRange(2, 8))
@emulated
@click.option("-p", "--prompt", default=128, show_default=True)
@click.option("-n", "--new", default=64, show_default=True)
@click.option("--quant", default="q4", show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(
    devices: int,
    cores: float | None,
    rate: float,
    latency: float,
    prompt: int,
    new: int,
    quant: str,
    rounds: int,
) -> None:
    """Time every plan."""
    cluster = Cluster(devices, cores, rate, latency, quant)
    reason = cluster.why_not()
    if reason:
        raise SystemExit(reason)
    sizes = ["-p", str(prompt), "-n", str(new)]
    found = plans(cluster)

    def program(bundle: Path) -> Callable[[], Rates]:
        return lambda: {row["test"]: float(row["tokens_per_s"]) for row in cluster.bench(bundle, sizes)}

    contest = Contest("plans", {name: program(path) for name, path in found.items()}, lambda: 0.0)
    series = play(contest, rounds, lambda text: click.echo(text, err=True))
    click.echo("\n".join([*own_description(), "", table(HEADS, rows(series, list(found)), HEADS[:2])]))


if __name__ == "__main__":
    main()
