"""Plan a 70-billion Llama from its config alone for eight unequal devices.

    python benchmarks/plan_70b.py

Prints seconds, peak memory, the number of templates, and each device's share against its memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click
from shared.shapes import LLAMA_70B, devices_file, measured, model_directory, tool

DEVICES = [
    {"name": "workstation", "target": "x86-64-v4", "memory_bytes": 12_000_000_000, "threads": 8},
    {"name": "laptop", "target": "x86-64-v3", "memory_bytes": 8_000_000_000, "threads": 4},
    {"name": "orin", "target": "jetson-orin-nano", "memory_bytes": 7_000_000_000},
    {"name": "phone", "target": "pixel-7-pro", "memory_bytes": 8_000_000_000},
    {"name": "pi5-a", "target": "raspberry-pi-5", "memory_bytes": 7_500_000_000},
    {"name": "pi5-b", "target": "raspberry-pi-5", "memory_bytes": 7_500_000_000},
    {"name": "pi4", "target": "raspberry-pi-4", "memory_bytes": 7_500_000_000},
    {"name": "old-laptop", "target": "x86-64-v3", "memory_bytes": 6_000_000_000, "threads": 2},
]


@click.command()
def main() -> None:
    """Print seconds, memory and the plan's shares."""
    with tempfile.TemporaryDirectory() as scratch:
        model = model_directory(Path(scratch) / "llama-70b", LLAMA_70B)
        target = devices_file(Path(scratch) / "devices.json", DEVICES)
        command = [tool("llcompile"), "plan", str(model), "--target", str(target)]
        run = measured([*command, "--random-weights", "1", "--json"])
    plan = json.loads(run.stdout)
    templates = {block["template"] for block in plan["blocks"]}
    rows = [
        f"{run.seconds:.1f} s, {run.peak_bytes / 1e9:.2f} GB peak, {len(plan['blocks'])} blocks, "
        f"{len(templates)} templates, {plan['status']}, gap {plan['gap']:.2%}, "
        f"{1 / plan['tpot_s']:.2f} tokens/s predicted",
        *(
            f"{name}: {load['peak_bytes'] / 1e9:.2f} of {load['memory_bytes'] / 1e9:.2f} GB"
            for name, load in plan["devices"].items()
        ),
        *(f"{name}: unused, {reason}" for name, reason in plan["unused"].items()),
    ]
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
