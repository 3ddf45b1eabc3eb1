"""What the bundle holds for people: the report page and the files that start each device, from templates/."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import jinja2

from llcompile.explain.sizes import human_bytes, human_seconds
from llcompile.explain.words import device_words, sent, stage_bytes, stage_words, summary
from llcompile.ir.errors import INTERNAL, CompileError
from llrun import schema


def pages(
    model: schema.ModelInfo, plan: schema.PlanRecord, head: str, devices: Mapping[str, schema.DeviceInfo]
) -> dict[str, tuple[bytes, bool]]:
    """What a bundle holds for people, by path: content, and whether it is executable."""
    deploy = {f"deploy/{name}": file for name, file in deploy_files(head, devices).items()}
    return {"report.html": (report_page(model, plan), False), **deploy}


@dataclass(frozen=True)
class Bar:
    """A device's memory bar: parts in percent of its memory, in the order they are drawn."""

    device: str
    label: str
    parts: tuple[tuple[str, float, float], ...]  # kind, offset, width


def report_page(model: schema.ModelInfo, plan: schema.PlanRecord) -> bytes:
    """report.html: self-contained, without scripts, the same for the same plan."""
    stages = [
        (
            device_words(stage),
            stage_words(plan, stage),
            human_bytes(stage_bytes(plan, stage)),
            template_counts(plan, stage),
        )
        for stage in plan.stages
    ]
    bars = [memory_bar(name, load) for name, load in sorted(plan.devices.items())]
    words = {"summary": summary(plan), "sent": sent(plan)}
    return _render("report.html.j2", model=model, plan=plan, stages=stages, bars=bars, **words)


def template_counts(plan: schema.PlanRecord, stage: schema.StageRecord) -> str:
    """`2 x t1, 2 x t2`: how often each template occurs in a stage, in order of first use."""
    start, stop = stage.blocks
    names = [block.template for block in plan.blocks if start <= block.id < stop]
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))


def memory_bar(name: str, load: schema.LoadRecord) -> Bar:
    """Weights, cache and the rest of the peak (activations, runtime) as parts of a device's memory."""
    rest = max(0, load.peak_bytes - load.weights_bytes - load.kv_bytes)
    offset, parts = 0.0, []
    for kind, size in (("weights", load.weights_bytes), ("cache", load.kv_bytes), ("rest", rest)):
        width = round(100 * size / max(1, load.memory_bytes), 2)
        parts.append((kind, round(offset, 2), width))
        offset += width
    label = (
        f"{human_bytes(load.weights_bytes)} weights, {human_bytes(load.kv_bytes)} cache, {human_bytes(rest)} "
        f"activations and runtime: {human_bytes(load.peak_bytes)} of {human_bytes(load.memory_bytes)}"
    )
    return Bar(name, label, tuple(parts))


def deploy_files(head: str, devices: Mapping[str, schema.DeviceInfo]) -> dict[str, tuple[bytes, bool]]:
    """Files of deploy/ by name: content, and whether it is executable. Workers get a service; the head is
    run by its user, at a terminal."""
    files = {"README.md": (_render("deploy.md.j2", head=head, devices=devices), False)}
    for name, device in sorted(devices.items()):
        files[f"run-{name}.sh"] = (_render("run.sh.j2", device=device, head=head), True)
        if name != head:
            files[f"llrun-{name}.service"] = (_render("llrun.service.j2", device=device), False)
    return files


def _render(name: str, **values: object) -> bytes:
    return _environment().get_template(name).render(**values).encode()


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_templates()),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(bytes=human_bytes, seconds=human_seconds)
    return environment


def _templates() -> Path:
    """templates/ of the source tree, or where an installed distribution puts it."""
    folders = [
        Path(__file__).resolve().parents[2] / "templates",
        Path(sys.prefix) / "share/llcompile/templates",
    ]
    templates = next((folder for folder in folders if (folder / "report.html.j2").is_file()), None)
    if templates is None:
        raise CompileError(
            "B131", f"the folder templates/ is missing (looked at {', '.join(map(str, folders))})", INTERNAL
        )
    return templates
