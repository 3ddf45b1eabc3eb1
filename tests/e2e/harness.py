"""What whole runs share: clusters, a family compiled once and planned many times, and llrun as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from llcompile import cli, frontend, graph, pipeline, quantize, rounding
from llcompile.cluster import load_cluster
from llcompile.ir.cluster import Cluster
from llcompile.ir.graph import Graph
from llcompile.ir.model import Model

CONTEXT = 256
RATES = (4.0, 1.0, 2.0, 0.5)  # unequal devices


def devices_json(path: Path, count: int, target: str = "x86-64-v3", memory_bytes: int = 400_000_000) -> Path:
    """A cluster of `count` unequal loopback devices; `d0` is the head."""
    devices = [
        {
            "name": f"d{i}",
            "target": target,
            "address": f"127.0.0.1:{5700 + i}",
            "memory_bytes": memory_bytes,
            "threads": 1,
            "profile": {
                "compute_flops": RATES[i] * 1e10,
                "memory_bytes_per_s": RATES[i] * 1e9,
                "disk_bytes_per_s": 1e8,
            },
        }
        for i in range(count)
    ]
    links = {"default": {"bytes_per_s": 1e8, "latency_s": 1e-4}}
    path.write_text(json.dumps({"schema": 1, "head": "d0", "devices": devices, "links": links}))
    return path


@dataclass(frozen=True)
class CompiledModel:
    """A model exported and compiled once; `bundle` plans it for another cluster and writes that bundle."""

    model: Model
    graph: Graph
    compiled: pipeline.Compiled

    def bundle(self, out: Path, cluster: Cluster, options: pipeline.BuildOptions) -> pipeline.Planned:
        planned = pipeline.plan_graph(self.model, self.graph, cluster, options)
        sequences = rounding.calibration_sequences(options, self.model, None)
        with tempfile.TemporaryDirectory() as scratch:
            folder, compiled = Path(scratch), self.compiled
            if (
                planned.graph is not self.graph or planned.groups
            ):  # the output head is in pieces, or others are
                compiled = pipeline.compile_targets(planned, folder)
            calibration = (
                quantize.calibrate(planned.graph, planned.model.weights, sequences, folder / "factors")
                if sequences
                else None
            )
            pipeline.write(planned, compiled, out, calibration=calibration)
        return planned


def options(model: Path, target: Path, quant: str, **wishes: Any) -> pipeline.BuildOptions:
    """Activations travel as they are, so that what comes out can be compared with what others compute."""
    return pipeline.BuildOptions(
        str(model), target, quant=quant, context=CONTEXT, **{"wire": "f32", **wishes}
    )


@lru_cache(maxsize=1)
def _loaded(model: str) -> tuple[Model, Graph]:
    """The model in that directory, which is compiled in several formats one after another."""
    loaded = frontend.load_model(model)
    return loaded, graph.build_graph(loaded)


def compile_model(model: Path, folder: Path, quant: str = "f32", **wishes: Any) -> CompiledModel:
    """Export, cut, and compile the model in directory `model` for x86-64-v3; libraries go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = devices_json(folder / "one.json", 1)
    loaded, dataflow = _loaded(str(model))
    asked = options(model, target, quant, **wishes)
    if asked.bits is not None:
        dataflow = rounding.in_bits(asked, loaded, dataflow, None, None)
    planned = pipeline.plan_graph(loaded, dataflow, load_cluster(target), asked)
    return CompiledModel(loaded, dataflow, pipeline.compile_targets(planned, folder))


def llrun(*arguments: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """`llrun ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "llrun", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
    )


def llcompile(*arguments: str | Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """`llcompile ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "llcompile", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
    )


def llcompile_here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`llcompile ARGUMENTS` in this process, where torch and tvm are loaded already: that takes longer than most plans.

    What would be a traceback is raised.
    """
    done = CliRunner().invoke(cli.main, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(["llcompile", *arguments], done.exit_code, done.stdout, done.stderr)


def answers(bundle: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Mapping[str, Any]]:
    """Run `bundle` on local processes over several prompts in a row; one result for each."""
    asked = [word for ids in prompts for word in ("--prompt-ids", ",".join(map(str, ids)))]
    done = llrun(bundle, "--local", *asked, "-n", str(new_tokens), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    results: list[Mapping[str, Any]] = found["results"] if len(prompts) > 1 else [found]
    assert len(results) == len(prompts)
    return results


def logits(bundle: Path, ids: Sequence[int], small_table_bytes: int | None = None) -> np.ndarray:
    """Logits (n, vocabulary) at every one of n ids, from `bundle` on local processes.

    `small_table_bytes`: tables beyond this size are read row by row; None: beyond the usual one. In a process of its
    own: a process loads one runtime library, and this one may hold the compiler.
    """
    out = bundle.parent / f"{bundle.name}-logits.npy"
    script = (
        "import llrun.device.reading as reading;"
        f"reading.SMALL_TABLE_BYTES = {small_table_bytes or 'reading.SMALL_TABLE_BYTES'}\n"
        "import sys, numpy as np; from pathlib import Path; from llrun.faces.where import Where, session_on;"
        "from llrun.faces.console import Console; from llrun.device.slice import find\n"
        "from llrun.wire.transport import Tcp\n"
        "where = Where(local=True, peers={}, verify=True, timeout_s=60, transport=Tcp())\n"
        "with session_on(find(Path(sys.argv[1]), None), where, Console(quiet=True)) as session:\n"
        "    np.save(sys.argv[2], session.logits([int(i) for i in sys.argv[3].split(',')]))\n"
    )
    command = [sys.executable, "-c", script, str(bundle), str(out), ",".join(map(str, ids))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: np.ndarray = np.load(out)
    return found
