"""Devices like each other on this machine: processes over loopback, or in namespaces with links and quotas."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from shared import bundles
from shared.bundles import Device, Recipe
from shared.fleet import Fleet, Loopback, Places
from shared.machine import native_target
from shared.machines import Link, Machines, why_not
from shared.processes import run

MEMORY_BYTES = 4_000_000_000
_OPTIONS = (
    click.option("--cores", type=float, help="Of each device."),
    click.option("--rate", default=0.0, help="Bytes a second of every link."),
    click.option("--latency", default=0.0, help="Seconds from one device to another."),
)


def emulated(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options that say what devices and links are to be like."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class Cluster:
    """`count` devices like each other, the first the head; `cores`, `rate` (bytes a second) and `latency_s` (one way)
    None or 0: as they are on this machine."""

    def __init__(self, count: int, cores: float | None, rate: float, latency_s: float, quant: str) -> None:
        self.names = [f"device-{number}" for number in range(count)]
        self.cores, self.rate, self.latency_s, self.quant = cores, rate, latency_s, quant

    @property
    def emulated(self) -> bool:
        return bool(self.cores or self.rate or self.latency_s)

    def why_not(self) -> str | None:
        """Why it cannot be emulated here, None where it can."""
        return why_not(bool(self.latency_s), bool(self.cores)) if self.emulated else None

    def recipe(self, used: int, *options: str, like: Device | None = None, threads: int = 1) -> Recipe:
        """A bundle for the first `used` devices, as fast as `like`, else as the target's figures say."""
        given = like or Device("", MEMORY_BYTES, threads=threads)
        rates = given.compute_flops, given.memory_bytes_per_s
        devices = [Device(name, MEMORY_BYTES, *rates, given.threads) for name in self.names[:used]]
        rate, latency_s = self.rate or bundles.LOCAL_RATE, self.latency_s or bundles.LOCAL_LATENCY_S
        words = ("--spare", "none", *options)
        return Recipe("tinyllama", self.quant, devices, rate, latency_s, native_target(), words)

    def bundle(self, used: int, *options: str, like: Device | None = None, threads: int = 1) -> Path:
        return bundles.built(self.recipe(used, *options, like=like, threads=threads))

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

    def bench(self, bundle: Path, sizes: Sequence[str]) -> list[Mapping[str, Any]]:
        """Rows of one run of `llrun bench`, after one that does not count."""
        with self.places() as places, tempfile.TemporaryDirectory() as folder:
            fleet = Fleet(bundle, places, Path(folder), ["--no-verify"])
            with fleet:
                fleet.start()
                head = [sys.executable, "-m", "llrun", "bench", str(bundle / "devices" / self.names[0])]
                options = ["--no-verify", "--timeout", "600", "-r", "1", "-o", "json", *fleet.peers]
                words = places.command(self.names[0], [*head, *sizes, *options])
                found: list[Mapping[str, Any]] = json.loads(run(words).stdout)
                return found
