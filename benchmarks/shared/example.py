"""The small example model for three or four equal devices, each with an equal part and room for more."""

from __future__ import annotations

from shared.bundles import Device, Recipe

NAMES = ("anna", "bert", "carl", "dora")
MEMORY_BYTES = 140_000_000
# The head's: its own part and little more, so that what a worker had goes to other workers.
HEAD_BYTES = {"q4": 78_600_000, "f32": 86_000_000}
BLOCKS = 14
VOCABULARY = 2048


def recipe(text: str) -> Recipe:
    """`q4-3`: in q4 for three devices."""
    quant, _, count = text.partition("-")
    memory = [HEAD_BYTES[quant], *[MEMORY_BYTES] * (int(count) - 1)]
    devices = [Device(name, size, 6e10, 1.2e10) for name, size in zip(NAMES, memory, strict=False)]
    inner = BLOCKS - 2
    bounds = [0, *(1 + inner * (i + 1) // int(count) for i in range(int(count)))]
    pins = [f"{a}:{b}={one.name}" for one, a, b in zip(devices, bounds, bounds[1:], strict=False)]
    pins.append(f"{BLOCKS - 1}:{BLOCKS}={NAMES[0]}")
    return Recipe("example", quant, devices, options=[word for pin in pins for word in ("--pin", pin)])
