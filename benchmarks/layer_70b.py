"""A 70-billion Llama on eight devices of 3 GB: planned, its blocks timed under the plan's memory, a token simulated.

    sudo python benchmarks/layer_70b.py [--disk 1.0] [--tokens 16] [--also f16,f32]

The shape of Llama 3 70B, 4-bit, context 1024; links of 300 Mbit/s and 1 ms, disks of `--disk` GB/s, one thread a
device. Of the same shape with three layers, random weights, a bundle is built whose devices have one kind of block
each: the model's ends, an attention block, an MLP block; and one has the other two layers, all of which come from its
disk. They run over loopback, one after another as tokens go through them, each under a hard limit of the memory that
the plan says it takes, and the last with reads limited to the disk's rate. Peaks are those after a prompt of a chunk.

The token is reckoned as the planner does, disk by disk and turn by turn, but with the seconds that were measured, and
the three-layer model's own token is reckoned by the same to show what that is worth. `--also`: formats that are planned
alone. Needs root and control groups of version 1; 5 GB of disk.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from shared import bundles, disks, memory_limits
from shared.bundles import CACHE, planned
from shared.fleet import Fleet, Loopback
from shared.machine import native_target, own_description
from shared.ours import sources_digest
from shared.processes import Failed, run
from shared.shapes import LLAMA_70B, model_directory
from shared.tables import table

from llrun.programs.ring import ring_of
from llrun.programs.turns import Turn, token_seconds

LAYERS, DEVICES, MEMORY_BYTES, ENOUGH_BYTES = 80, 8, 3_000_000_000, 8_000_000_000
RATE, LATENCY_S = 3.75e7, 0.001
CONTEXT, CHUNK = "1024", 128
THEIRS_S, THEIRS_BYTES = 26.1, 3.1e9
PARTS = ("ends", "attention", "mlp", "stream")
LEFT = ("device", "plan", "block")
Plan = Mapping[str, Any]
Kind = tuple[int, tuple[str, ...]]


@dataclass(frozen=True)
class Timed:
    """Seconds of a token from end to end, and by device: computing for a token, the most memory."""

    token_s: float
    computing_s: Mapping[str, float]
    peak_bytes: Mapping[str, int]


class Limits(Loopback):
    """Devices over loopback; each command is preceded by what limits it."""

    def __init__(self, before: Mapping[str, list[str]]) -> None:
        super().__init__(list(before))
        self._before = before

    def command(self, name: str, words: Sequence[str]) -> list[str]:
        return [*self._before[name], *words]


def words(
    verb: str, layers: int, names: Sequence[str], memory_bytes: int, disk: float, quant: str
) -> list[str]:
    """`llcompile VERB` for devices like each other."""
    entries = [
        bundles.Device(name, memory_bytes, disk=disk).entry(5700 + i, native_target())
        for i, name in enumerate(names)
    ]
    links = {"default": {"bytes_per_s": RATE, "latency_s": LATENCY_S}}
    CACHE.mkdir(parents=True, exist_ok=True)
    target = CACHE / f"devices-70b-{len(names)}.json"
    target.write_text(json.dumps({"schema": 1, "head": names[0], "devices": entries, "links": links}))
    model = model_directory(CACHE / f"llama-70b-{layers}", LLAMA_70B | {"num_hidden_layers": layers})
    command = [sys.executable, "-m", "llcompile", verb, str(model), "--target", str(target)]
    return [*command, "--quant", quant, "--random-weights", "1", "--context", CONTEXT, "--spare", "none"]


def whole(quant: str, disk: float) -> Plan:
    """The plan of all 80 layers on the eight devices."""
    names = [f"d{number}" for number in range(DEVICES)]
    command = words("plan", LAYERS, names, MEMORY_BYTES, disk, quant)
    found: Plan = json.loads(run([*command, "--time-limit", "30", "--json"]).stdout)
    return found


def parts(disk: float) -> Path:
    """A bundle of three layers, cut by kind; built unless one of the same sources is there."""
    path = CACHE / "llama-70b-parts"
    stamp = path.with_suffix(".stamp")
    said = f"{sources_digest()} {disk}"
    if not (stamp.is_file() and stamp.read_text() == said and path.is_dir()):
        pins = [
            f"--pin={a}:{b}={name}" for a, b, name in ((1, 2, "attention"), (2, 3, "mlp"), (3, 7, "stream"))
        ]
        command = words("build", 3, PARTS, ENOUGH_BYTES, disk, "q4")
        run([*command, *pins, "--window", "3", "--tensor-parallel", "off", "--calibrate", "none", "-o", path])
        stamp.write_text(said)
    return path


@contextmanager
def limits(bundle: Path, disk: float) -> Iterator[Limits]:
    loads = planned(bundle)["devices"]
    with ExitStack() as stack:
        before = {
            name: stack.enter_context(memory_limits.within(loads[name]["peak_bytes"], name)) for name in PARTS
        }
        before["stream"] += stack.enter_context(disks.limited(disk, bundle))
        yield Limits(before)


def timed(bundle: Path, disk: float, prompt: int, tokens: int) -> Timed:
    """One request; with a prompt of one token every pass is a token's."""
    with (
        limits(bundle, disk) as places,
        tempfile.TemporaryDirectory() as folder,
        Fleet(bundle, places, Path(folder)) as fleet,
    ):
        fleet.start()
        head = [
            sys.executable,
            "-m",
            "llrun",
            str(bundle / "devices" / PARTS[0]),
            *fleet.peers,
            "--timeout",
            "600",
        ]
        request = [
            "--prompt-ids",
            ",".join(["1"] * prompt),
            "-n",
            str(tokens),
            "--rebalance",
            "off",
            "--json",
        ]
        said = json.loads(run(places.command(PARTS[0], [*head, *request])).stdout)
    devices = said["devices"]
    return Timed(
        said["tpot_s"],
        {name: devices[name]["compute_s"] / tokens for name in PARTS},
        {name: devices[name]["peak_memory_bytes"] for name in PARTS},
    )


def kind(block: Mapping[str, Any]) -> Kind:
    """What blocks of the same shape share, in a model of three layers and of 80."""
    return block["weights_bytes"], tuple(block["ops"])


def seconds_of(plan: Plan, found: Timed) -> dict[Kind, float]:
    """Of a token in each kind of block. The embedding is a look-up: its device's seconds are the output head's."""
    blocks = plan["blocks"]
    seconds = {kind(blocks[0]): 0.0, kind(blocks[1]): found.computing_s["attention"]}
    seconds[kind(blocks[2])] = found.computing_s["mlp"]
    head = blocks[7:]
    size = sum(block["weights_bytes"] for block in head)
    for block in head:
        seconds[kind(block)] = found.computing_s["ends"] * block["weights_bytes"] / size
    return seconds


def simulated(plan: Plan, seconds: Mapping[Kind, float], rates: Mapping[str, float], network: bool) -> float:
    """Seconds of a token of `plan`; `rates`: bytes a second of each device's disk."""
    blocks = plan["blocks"]
    held: dict[str, list[int]] = {}
    for stage in plan["stages"]:
        if len(stage["devices"]) > 1:
            raise SystemExit("the plan has a group, whose shards are not timed here")
        held.setdefault(stage["devices"][0], []).extend(range(*_span(stage)))
    streams: dict[str, tuple[int, ...]] = {}
    rings: dict[str, int] = {}
    for name, numbers in held.items():
        middle = [number for number in numbers if number not in _ends(blocks)]
        streams[name], rings[name] = ring_of(middle, plan["devices"][name].get("window", 0))

    def cost(name: str, number: int) -> tuple[float, float]:
        loading = blocks[number]["weights_bytes"] / rates[name] if number in streams[name] else 0.0
        return seconds[kind(blocks[number])], loading

    turns = [
        Turn(stage["devices"][0], [cost(stage["devices"][0], number) for number in range(*_span(stage))])
        for stage in plan["stages"]
    ]
    travel_s = sum(LATENCY_S + sent["bytes"] / RATE for sent in plan["transmissions"]) if network else 0.0
    return token_seconds(turns, rings, travel_s)


def _ends(blocks: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Blocks that never stream: the embedding, and an output head that is one block and not several."""
    layers = max(number for number, block in enumerate(blocks) if kind(block) == kind(blocks[2]))
    return (0,) if layers < len(blocks) - 2 else (0, len(blocks) - 1)


def _span(stage: Mapping[str, Any]) -> tuple[int, int]:
    start, stop = stage["blocks"] if "blocks" in stage else (stage["start"], stage["stop"])
    return start, stop


def parts_rows(plan: Plan, found: Timed) -> list[list[str]]:
    rows = []
    for name in PARTS:
        size = sum(plan["blocks"][number]["weights_bytes"] for number in _numbers(plan, name))
        due, peak = plan["devices"][name]["peak_bytes"], found.peak_bytes[name]
        figures = [size / 1e6, 1e3 * found.computing_s[name], due / 1e6, peak / 1e6]
        rows.append([name, *(f"{value:.0f}" for value in figures), f"{peak / due:.2f}"])
    return rows


def _numbers(plan: Plan, name: str) -> list[int]:
    """Blocks that `name` computes; the embedding, which is looked up, aside."""
    spans = [_span(stage) for stage in plan["stages"] if name in stage["devices"]]
    return [number for span in spans for number in range(*span) if number]


def plan_row(name: str, plan: Plan, token_s: float | None) -> list[str]:
    rounds = max(device.get("rounds", 1) for device in plan["devices"].values())
    peak = max(device["peak_bytes"] for device in plan["devices"].values())
    simulated_s = f"{token_s:.2f}" if token_s else "-"
    ratio = THEIRS_S / (token_s or plan["tpot_s"])
    return [name, str(rounds), f"{plan['tpot_s']:.2f}", simulated_s, f"{ratio:.1f}", f"{peak / 1e9:.2f}"]


@click.command()
@click.option("--disk", default=1.0, show_default=True, help="GB a second.")
@click.option("--tokens", default=16, show_default=True)
@click.option("--also", default="f16,f32", show_default=True, help="Formats that are planned alone.")
@click.option("--prepare", is_flag=True, help="Plan and build, and measure nothing.")
def main(disk: float, tokens: int, also: str, prepare: bool) -> None:
    """Plan, time the parts, and reckon the token."""
    for reason in (memory_limits.why_not(), disks.why_not()):
        if reason:
            raise SystemExit(reason)
    rate = disk * 1e9
    bundle = parts(rate)
    if prepare:
        return
    found, small = timed(bundle, rate, 1, tokens), planned(bundle)
    found = replace(found, peak_bytes=timed(bundle, rate, CHUNK, 2).peak_bytes)
    seconds = seconds_of(small, found)
    own = simulated(small, seconds, dict.fromkeys(PARTS, rate), network=False)
    heads = ("device", "weights MB", "computing ms", "plan MB", "peak MB", "peak / plan")
    click.echo("\n".join([*own_description(), "", table(heads, parts_rows(small, found), LEFT), ""]))
    click.echo(f"three layers: a token {1e3 * found.token_s:.0f} ms, reckoned {1e3 * own:.0f} ms\n")
    plan = whole("q4", rate)
    token_s = simulated(plan, seconds, {f"d{number}": rate for number in range(DEVICES)}, network=True)
    rows = [plan_row("q4", plan, token_s)]
    refused = []
    for quant in also.split(",") if also else ():
        try:
            rows.append(plan_row(quant, whole(quant, rate), None))
        except Failed as error:
            refused.append(f"\n{quant}: {str(error).splitlines()[-1]}")
    rows.append(["TPI-LLM, float32", "1", "", f"{THEIRS_S:.1f}", "1.0", f"{THEIRS_BYTES / 1e9:.1f}"])
    heads = ("plan", "runs a device", "predicted s", "simulated s", "times faster", "memory GB")
    click.echo("\n".join([table(heads, rows, LEFT), *refused]))


if __name__ == "__main__":
    main()
