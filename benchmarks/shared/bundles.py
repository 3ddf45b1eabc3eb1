"""Bundles that the benchmarks of losses and moves run, kept in .cache/balancing until the sources change."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.ours import sources_digest
from shared.peer import ROOT
from shared.processes import run
from shared.shapes import TINYLLAMA, TINYLLAMA_128K, model_directory

CACHE = ROOT / ".cache" / "balancing"
EXAMPLE = ROOT / "examples" / "python-llama"
SHAPES = {"tinyllama": TINYLLAMA, "tinyllama-128k": TINYLLAMA_128K}
LOCAL_RATE, LOCAL_LATENCY_S = 1.0e9, 5e-5


@dataclass(frozen=True)
class Device:
    """An entry of devices.json; the rates are its profile, None where the target's own figures hold."""

    name: str
    memory_bytes: int
    compute_flops: float | None = None
    memory_bytes_per_s: float | None = None
    threads: int = 1
    disk: float | None = None  # bytes a second

    def slowed(self, slowness: float) -> Device:
        """The same device when everything takes `slowness` times as long."""
        assert self.compute_flops
        assert self.memory_bytes_per_s
        rates = self.compute_flops / slowness, self.memory_bytes_per_s / slowness
        return replace(self, compute_flops=rates[0], memory_bytes_per_s=rates[1])

    def entry(self, port: int, target: str) -> dict[str, Any]:
        rates = {
            "compute_flops": self.compute_flops,
            "memory_bytes_per_s": self.memory_bytes_per_s,
            "disk_bytes_per_s": self.disk,
        }
        profile = {key: value for key, value in rates.items() if value is not None}
        return {
            "name": self.name,
            "target": target,
            "address": f"127.0.0.1:{port}",
            "memory_bytes": self.memory_bytes,
            "threads": self.threads,
        } | ({"profile": profile} if profile else {})


@dataclass(frozen=True)
class Recipe:
    """What a bundle is built of. `shape`: example (the small model that was trained) or one of SHAPES (random weights);
    the first device is the head. `options`: more words for llcompile."""

    shape: str
    quant: str
    devices: Sequence[Device]
    bytes_per_s: float = LOCAL_RATE
    latency_s: float = LOCAL_LATENCY_S
    target: str = "x86-64-v3"
    options: Sequence[str] = field(default=())

    def command(self, verb: str, folder: Path) -> list[str]:
        """`llcompile build|plan` without the output's place; writes model and devices.json into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        model, drawn = EXAMPLE, []
        if self.shape in SHAPES:
            model = model_directory(folder / self.shape, SHAPES[self.shape])
            drawn = ["--random-weights", "1"]
        links = {"default": {"bytes_per_s": self.bytes_per_s, "latency_s": self.latency_s}}
        entries = [device.entry(5700 + i, self.target) for i, device in enumerate(self.devices)]
        cluster = {"schema": 1, "head": self.devices[0].name, "devices": entries, "links": links}
        text = json.dumps(cluster, indent=2)
        target = folder / f"devices-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        target.write_text(text)
        words = [sys.executable, "-m", "llcompile", verb, str(model), "--target", str(target)]
        return [*words, "--quant", self.quant, *drawn, *self.options]


def built(recipe: Recipe) -> Path:
    """The bundle of `recipe`, built unless one of the same sources is there."""
    digest = hashlib.sha256(f"{sources_digest()} {recipe}".encode()).hexdigest()[:16]
    path = CACHE / f"{recipe.shape}-{recipe.quant}-{len(recipe.devices)}-{digest}"
    if not (path / "manifest.json").is_file():
        for old in CACHE.glob(f"{recipe.shape}-{recipe.quant}-{len(recipe.devices)}-*.sources"):
            if old.read_text() != sources_digest():
                shutil.rmtree(old.with_suffix(""), ignore_errors=True)
                old.unlink()
        run([*recipe.command("build", CACHE), "-o", path])
        path.with_suffix(".sources").write_text(sources_digest())
    return path


def plan(recipe: Recipe) -> Mapping[str, Any]:
    """What `llcompile plan --json` says of `recipe`."""
    found: Mapping[str, Any] = json.loads(run([*recipe.command("plan", CACHE), "--json"]).stdout)
    return found


def planned(bundle: Path) -> Mapping[str, Any]:
    """The plan of a bundle: its manifest's."""
    found: Mapping[str, Any] = json.loads((bundle / "manifest.json").read_bytes())["plan"]
    return found


def head_of(bundle: Path) -> str:
    return str(json.loads((bundle / "manifest.json").read_bytes())["head"])


def workers(bundle: Path) -> list[str]:
    """Names of all that have a slice but the head, sorted."""
    return sorted({path.name for path in (bundle / "devices").iterdir()} - {head_of(bundle)})
