"""One pass by itself, for whoever writes or reads passes: on a model as far as that pass, or on a saved program."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llcompile import frontend, graph
from llcompile.ir.errors import CompileError
from llcompile.passes import Pass
from llcompile.trace import Stop, Stopped, Trace


@dataclass(frozen=True)
class Listed:
    """A pass as the pipeline runs it: its stage, and how many of its name have run when it has."""

    stage: str
    step: Pass[Any]
    count: int

    @property
    def label(self) -> str:
        return f"{self.step.name}:{self.count}" if self.count > 1 else self.step.name


def passes() -> list[Listed]:
    """Every pass of the pipeline in order."""
    stages = (("export", frontend.passes()), ("graph", graph.PASSES))
    listed: list[Listed] = []
    for stage, steps in stages:
        for step in steps:
            count = sum(other.step.name == step.name for other in listed) + 1
            listed.append(Listed(stage, step, count))
    return listed


def find(label: str) -> Listed:
    """The pass called `label`, NAME or NAME:2 for the second of that name. Raises CompileError E104."""
    listed = {item.label: item for item in passes()}
    if label not in listed:
        near = difflib.get_close_matches(label, listed, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise CompileError("E104", f"there is no pass {label}: {hint}`llcompile passes` lists them all")
    return listed[label]


def stop_after(label: str) -> Stop:
    """Where `--stop-after LABEL` ends. Raises CompileError E104."""
    item = find(label)
    return Stop(item.step.name, item.count)


def run(label: str, program: str, random_seed: int | None, weights: Sequence[str]) -> tuple[str, str]:
    """The texts before and after the pass `label`.

    `program` is a model's directory, GGUF file or hub id, which goes through the passes before it first, or a saved
    program (.onnx, .onnxtxt), on which it runs alone. Raises CompileError of the stages, E104 and E113.
    """
    item, path = find(label), Path(program).expanduser()
    if path.suffix in (".onnx", ".onnxtxt") and not path.is_dir():
        data = frontend.read_program(path)
        if item.stage == "export":
            return frontend.run_pass(item.step, data, weights)
        return graph.run_pass(item.step, data)
    trace = Trace(_ignore, _ignore, stop=Stop(item.step.name, item.count))
    try:
        model = frontend.load_model(program, random_seed, trace.passes(frontend.text))
        graph.build_graph(model, trace.passes(graph.print_dataflow))
    except Stopped as stopped:
        return stopped.before, stopped.after
    raise AssertionError(f"{label} is listed and was not run")


def _ignore(text: str) -> None:
    del text
