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

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from shared import bundles
from shared.bundles import Device, Recipe
from shared.fleet import Fleet, Loopback, Places
from shared.machine import native_target, own_description
from shared.machines import Link, Machines, why_not
from shared.ours import parse_bench
from shared.processes import run
from shared.rounds import Contest, Rates, Series, play, ratios, spread
from shared.tables import table

MEMORY_BYTES = 4_000_000_000
HEADS = ("plan", "test", "t/s", "least", "most", "beside the first row")


class Cluster:
    """`count` devices like each other; `cores`, `rate` (bytes a second) and `latency_s` (one way) None or 0: as they
    are on this machine."""

    def __init__(self, count: int, cores: float | None, rate: float, latency_s: float, quant: str) -> None:
        self.names = [f"device-{number}" for number in range(count)]
        self.cores, self.rate, self.latency_s, self.quant = cores, rate, latency_s, quant

    @property
    def emulated(self) -> bool:
        return bool(self.cores or self.rate or self.latency_s)

    def bundle(self, used: int, *options: str, threads: int = 1) -> Path:
        """A bundle for the first `used` devices."""
        devices = [Device(name, MEMORY_BYTES, threads=threads) for name in self.names[:used]]
        rate, latency_s = self.rate or bundles.LOCAL_RATE, self.latency_s or bundles.LOCAL_LATENCY_S
        everybody = ("--use-all", "--spare", "none")
        target = native_target()
        return bundles.built(
            Recipe("tinyllama", self.quant, devices, rate, latency_s, target, (*everybody, *options))
        )

    @contextmanager
    def places(self) -> Iterator[Places]:
        """Where the devices are."""
        if not self.emulated:
            yield Loopback(self.names)
            return
        with Machines(self.names, Link(self.rate, self.latency_s / 2)) as machines:
            for name in self.names if self.cores else ():
                machines.quota(name, self.cores)
            yield machines

    def rates(self, bundle: Path, sizes: Sequence[str]) -> Rates:
        """Tokens a second of one run of `llrun bench`."""
        with self.places() as places, tempfile.TemporaryDirectory() as folder:
            fleet = Fleet(bundle, places, Path(folder), ["--no-verify"])
            with fleet:
                fleet.start()
                head = [
                    sys.executable,
                    "-m",
                    "llrun",
                    "bench",
                    str(bundle / "devices" / self.names[0]),
                    *sizes,
                ]
                options = ["--no-verify", "--timeout", "600", "-r", "1", "-o", "json", *fleet.peers]
                return parse_bench(run(places.command(self.names[0], [*head, *options])).stdout)


def plans(cluster: Cluster) -> dict[str, Path]:
    """Bundles by what their plan is called."""
    count = len(cluster.names)
    found = {"one device": cluster.bundle(1)}
    if count == 2 and not cluster.emulated:
        found["one device, two threads"] = cluster.bundle(1, threads=2)
    found[f"pipeline of {count}"] = cluster.bundle(count, "--tensor-parallel", "off")
    for size in sorted({2, count}):
        found[f"group of {size}"] = cluster.bundle(size, "--tensor-parallel", str(size))
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
@click.option("--cores", type=float, help="Of each device.")
@click.option("--rate", default=0.0, help="Bytes a second of every link.")
@click.option("--latency", default=0.0, help="Seconds from one device to another.")
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
    reason = why_not(bool(latency), bool(cores)) if cluster.emulated else None
    if reason:
        raise SystemExit(reason)
    sizes = ["-p", str(prompt), "-n", str(new)]
    found = plans(cluster)

    def program(bundle: Path) -> Callable[[], Rates]:
        return lambda: cluster.rates(bundle, sizes)

    contest = Contest("plans", {name: program(path) for name, path in found.items()}, lambda: 0.0)
    series = play(contest, rounds, lambda text: click.echo(text, err=True))
    click.echo("\n".join([*own_description(), "", table(HEADS, rows(series, list(found)), HEADS[:2])]))


if __name__ == "__main__":
    main()
