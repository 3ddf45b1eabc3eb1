"""Build the TinyLlama-1.1B shape in q4 for three devices, then run it.

    python benchmarks/tinyllama.py [--target x86-64-v4] [--devices 3] [--quant q4] [-p 128] [-n 32] [-r 3]

Prints the build's seconds by stage and peak memory, and `llrun bench` of the bundle: every device a process
of this machine with one thread.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from shared.shapes import TINYLLAMA, devices_file, measured, model_directory, tool

MEMORY_BYTES = (2_000_000_000, 1_000_000_000, 500_000_000)


@click.command()
@click.option("--target", default="x86-64-v4", show_default=True)
@click.option("--devices", default=3, show_default=True, type=click.IntRange(1, 3))
@click.option("--quant", default="q4", show_default=True)
@click.option("-p", "--prompt", default=128, show_default=True)
@click.option("-n", "--new", default=32, show_default=True)
@click.option("-r", "--runs", default=3, show_default=True)
def main(target: str, devices: int, quant: str, prompt: int, new: int, runs: int) -> None:
    """Build and bench the TinyLlama-1.1B shape with random weights."""
    with tempfile.TemporaryDirectory() as scratch:
        model = model_directory(Path(scratch) / "tinyllama", TINYLLAMA)
        entries = [
            {
                "name": f"device-{i}",
                "target": target,
                "memory_bytes": MEMORY_BYTES[i] if devices > 1 else 8 * 10**9,
            }
            | {"threads": 1}
            for i in range(devices)
        ]
        target_file = devices_file(Path(scratch) / "devices.json", entries)
        bundle = str(Path(scratch) / "bundle")
        command = [tool("llcompile"), "build", str(model), "--target", str(target_file), "-o", bundle]
        build = measured(
            [*command, "--quant", quant, "--random-weights", "1", *(["--use-all"] * (devices > 1))]
        )
        sys.stdout.write(build.stdout)
        sys.stdout.write(f"build: {build.seconds:.1f} s, {build.peak_bytes / 1e9:.2f} GB peak\n")
        bench = [
            tool("llrun"),
            "bench",
            bundle,
            "--local",
            "-p",
            str(prompt),
            "-n",
            str(new),
            "-r",
            str(runs),
        ]
        sys.stdout.write(measured(bench).stdout)


if __name__ == "__main__":
    main()
