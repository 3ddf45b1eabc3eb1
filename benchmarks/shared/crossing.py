"""The plan with a group and the one without, built and timed on two emulated devices, link by link.

Each device has a core of its own and none of the other's memory: what a quota of processor time would emulate is kinder
to devices that wait, as groups' do, since it pays idle time back. The speeds that the planner is told are those of one
device that has the whole model, timed by the same programs, and links' delays those that plain sockets find.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from llcompile import frontend, graph, pipeline
from llcompile.cluster import load_cluster
from llcompile.ir.cluster import Cluster
from llcompile.ir.cluster import Link as Ends
from llcompile.ir.graph import Graph
from llcompile.ir.model import Model
from llrun.schema import AllReduceKind
from shared.bare_sums import Bare, words
from shared.fleet import Fleet, Loopback, Places
from shared.machine import native_target
from shared.machines import Link, Machines
from shared.ours import parse_bench, sources_digest
from shared.processes import run
from shared.shapes import TINYLLAMA, devices_file, model_directory
from shared.svg import Curve

NAMES = ("head", "worker")
CONTEXT = 256
ROOMY_BYTES = 8_000_000_000
EQUAL = 1.05  # the slower of two plans over the faster one: what is within it is no difference
HERE = Path(__file__).parents[1]
PROBES, WARM, WIDTH = 45, 5, 2048  # sums of so many float32, as one token's of the model
SINGLE, GROUP = "off", str(len(NAMES))
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """Tokens of the prompt, a whole number of chunks, and new ones."""

    prompt: int
    new: int

    @property
    def words(self) -> list[str]:
        return ["-p", str(self.prompt), "-n", str(self.new)]


@dataclass(frozen=True)
class Timed:
    """Seconds of a request and of a further token, as predicted and as measured."""

    predicted_s: float
    measured_s: float
    predicted_token_s: float
    measured_token_s: float


@dataclass(frozen=True)
class Setting:
    """A link's latency and what the plan without a group and the one with it take there; `picks_group`: whether the
    plan that is free to choose has one."""

    latency_s: float
    single: Timed
    group: Timed
    picks_group: bool

    @property
    def is_right(self) -> bool:
        picked, other = (self.group, self.single) if self.picks_group else (self.single, self.group)
        return picked.measured_s <= EQUAL * other.measured_s

    @property
    def row(self) -> Sequence[str]:
        figures = [
            f"{each:.2f}" for one in (self.single, self.group) for each in (one.predicted_s, one.measured_s)
        ]
        tokens = [
            f"{each * 1e3:.1f}"
            for one in (self.single, self.group)
            for each in (one.predicted_token_s, one.measured_token_s)
        ]
        pick, verdict = "group" if self.picks_group else "pipeline", "yes" if self.is_right else "NO"
        return f"{self.latency_s * 1e3:g} ms", *figures, *tokens, pick, verdict


HEADS = ("links", "pipeline: request, s", "measured", "group: request, s", "measured", "pipeline: token, ms",
         "measured", "group: token, ms", "measured", "the plan", "faster, or within 5 %")  # fmt: skip


@dataclass
class Workshop:
    """Plans and bundles of one model for the two devices. `memory_bytes`: what each has, less than the model wants."""

    folder: Path
    layers: int
    quant: str
    memory_bytes: int
    rate: float
    request: Request
    tell: Tell

    @property
    def model(self) -> Path:
        return self.folder / sources_digest()[:16] / f"model-{self.layers}"

    def settings(self, latencies_s: Sequence[float]) -> list[Setting]:
        """Every setting, planned, built and timed."""
        config = {**TINYLLAMA, "num_hidden_layers": self.layers}
        directory = model_directory(self.model, config)
        model = frontend.load_model(str(directory), 1)
        dataflow = graph.build_graph(model)
        cluster = self.calibrated(model, dataflow)
        found = []
        for latency_s in latencies_s:
            given = with_links(cluster, self.delay_s(latency_s), self.rate)
            plans = {wish: self.planned(model, dataflow, given, wish) for wish in (SINGLE, GROUP, "auto")}
            times = {wish: self.timed(plans[wish], latency_s) for wish in (SINGLE, GROUP)}
            picks = any(stage.is_group for stage in plans["auto"].plan.stages)
            setting = Setting(latency_s, times[SINGLE], times[GROUP], picks)
            self.tell(" | ".join(setting.row))
            found.append(setting)
        return found

    def calibrated(self, model: Model, dataflow: Graph) -> Cluster:
        """The devices with the rates at which one of them runs the whole model."""
        entry = {"target": native_target(), "threads": 1}
        alone = devices_file(
            self.model / "one.json", [{**entry, "name": NAMES[0], "memory_bytes": ROOMY_BYTES}]
        )
        planned = self.planned(model, dataflow, load_cluster(alone), SINGLE)
        rates = parse_bench(self._bench(self._bundle(planned), Loopback(NAMES[:1])))
        prefill_s = 128 / rates[f"pp{self.request.prompt}"]
        token_s = 1 / rates[f"tg{self.request.new}"]
        profile = {
            "compute_flops": sum(cost.prefill_flops for cost in planned.costs) / prefill_s,
            "memory_bytes_per_s": sum(cost.decode_bytes for cost in planned.costs) / token_s,
        }
        self.tell(f"one device: {prefill_s:.3f} s a chunk, {token_s * 1e3:.1f} ms a token; {profile}")
        entries = [
            {**entry, "name": name, "memory_bytes": self.memory_bytes, "profile": profile} for name in NAMES
        ]
        return load_cluster(devices_file(self.model / "two.json", entries))

    def delay_s(self, latency_s: float) -> float:
        """What plain sockets find a link of `latency_s` to be: the relay, and waking up, take their time as well."""
        with Machines(NAMES, Link(self.rate, latency_s / 2, large=True)) as machines, ExitStack() as stack:
            bare = Bare(tuple(map(machines.address, NAMES)), AllReduceKind.DIRECT, 0, PROBES, WIDTH)
            command = [sys.executable, "-m", "shared.bare_sums", words(bare)]
            running = []
            for rank, name in enumerate(NAMES):
                started = subprocess.Popen(
                    machines.command(name, [*command, str(rank)]), cwd=HERE, stdout=subprocess.PIPE, text=True
                )
                stack.callback(started.wait)
                stack.callback(started.kill)
                running.append(started)
            found_s = statistics.median(json.loads(running[0].communicate(timeout=60)[0])[WARM:])
        return max(found_s - 4 * WIDTH / self.rate, latency_s)

    def planned(self, model: Model, dataflow: Graph, cluster: Cluster, wish: str) -> pipeline.Planned:
        options = pipeline.BuildOptions(
            str(self.model),
            self.model / "two.json",
            quant=self.quant,
            wire="f32",
            context=CONTEXT,
            spare="none",
            random_seed=1,
            prompt_tokens=self.request.prompt,
            new_tokens=self.request.new,
            tensor_parallel=wish,
            window="off",
        )
        return pipeline.plan_graph(model, dataflow, cluster, options)

    def timed(self, planned: pipeline.Planned, latency_s: float) -> Timed:
        """The plan's request where links have that latency one way."""
        plan, bundle = planned.plan, self._bundle(planned)
        with Machines(NAMES, Link(self.rate, latency_s / 2, large=True)) as machines:
            rates = parse_bench(self._bench(bundle, machines))
        token_s = 1 / rates[f"tg{self.request.new}"]
        measured_s = self.request.prompt / rates[f"pp{self.request.prompt}"] + self.request.new * token_s
        predicted_s = plan.ttft_s + self.request.new * plan.tpot_s
        return Timed(predicted_s, measured_s, plan.tpot_s, token_s)

    def _bundle(self, planned: pipeline.Planned) -> Path:
        """Built once for all plans with the same stages, and kept until the sources change."""
        text = f"{self.layers} {self.quant} {CONTEXT} {planned.plan.stages}"
        folder = self.folder / sources_digest()[:16]
        for old in self.folder.glob("*"):
            if old.is_dir() and old != folder:
                shutil.rmtree(old)
        path = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        if not (path / "manifest.json").is_file():
            self.tell(f"building {text}")
            with tempfile.TemporaryDirectory() as scratch:
                pipeline.write(planned, pipeline.compile_targets(planned, Path(scratch)), path)
        return path

    def _bench(self, bundle: Path, places: Places) -> str:
        with (
            tempfile.TemporaryDirectory() as folder,
            Fleet(bundle, places, Path(folder), ["--no-verify"]) as fleet,
        ):
            fleet.start()
            words = [sys.executable, "-m", "llrun", "bench", str(bundle / "devices" / NAMES[0]), *fleet.peers]
            options = ["--no-verify", "--timeout", "600", "-r", "1", "-o", "json", *self.request.words]
            return run(places.command(NAMES[0], [*words, *options])).stdout


def with_links(cluster: Cluster, latency_s: float, rate: float) -> Cluster:
    """`cluster` with that latency, and that rate if it is not 0, on every link."""

    def changed(link: Ends) -> Ends:
        return Ends(rate or link.bytes_per_s, latency_s)

    links = {way: changed(link) for way, link in cluster.links.items()}
    return replace(cluster, default_link=changed(cluster.default_link), links=links)


def curves(settings: Sequence[Setting]) -> list[Curve]:
    """The figure's lines: milliseconds of latency and seconds of a request."""

    def curve(name: str, colour: str, of: Callable[[Setting], Timed]) -> Curve:
        lines = [(each.latency_s * 1e3, of(each).predicted_s) for each in settings]
        return Curve(name, colour, lines, [(each.latency_s * 1e3, of(each).measured_s) for each in settings])

    return [
        curve("pipeline of 2", "#1f5fa8", lambda each: each.single),
        curve("group of 2", "#c4501b", lambda each: each.group),
    ]
