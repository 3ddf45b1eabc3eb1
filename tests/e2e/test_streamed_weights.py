"""Blocks that stream from disk: the same text, the same logits, and errors that name the file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llcompile import graph, pipeline
from llcompile.bundle import verify
from llcompile.cluster import load_cluster
from llcompile.partition.rounds import in_rounds
from tests.e2e import harness
from tests.e2e.grouped import planned_as
from tests.models import loaded, prompt, reference_greedy, save

WORKERS = 1
WINDOWS = ("off", "2", "3")


@pytest.fixture(scope="module", params=["q4", "f32"])
def bundles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By window: the worker has all blocks between the model's ends. With a window of 2 one of the three pieces of the
    output head streams, too."""
    folder = tmp_path_factory.mktemp("windows")
    model = save("llama", folder / "llama")
    compiled = harness.compile_model(model, folder / "compiled", request.param)
    target = harness.devices_json(folder / "devices.json", 1 + WORKERS)
    names = [device.name for device in load_cluster(target).devices][1:]
    middle = len(compiled.graph.blocks) - 2
    pins = tuple(
        f"{1 + i * middle // WORKERS}:{1 + (i + 1) * middle // WORKERS}={name}"
        for i, name in enumerate(names)
    )
    for window in WINDOWS:
        wishes = harness.options(model, target, request.param, pins=pins, window=window)
        planned = compiled.bundle(folder / window, load_cluster(target), wishes)
        widest = max(stage.window for stage in planned.plan.stages)
        assert widest == (0 if window == "off" else int(window))
        assert planned.graph.output_blocks == (1 if window == "off" else 3)
        assert planned.plan.stages[-1].window == (2 if window == "2" else 0)
    return {window: folder / window for window in WINDOWS}


@pytest.mark.slow
def test_logits_and_text_are_those_of_blocks_that_stay(bundles: dict[str, Path]) -> None:
    ids = prompt(90)
    expected = harness.logits(bundles["off"], ids)
    asked: Sequence[Sequence[int]] = [ids[:40], ids[3:10], ids[:70]]
    tokens = [each["tokens"] for each in harness.answers(bundles["off"], asked, 12)]
    for window in WINDOWS[1:]:
        np.testing.assert_array_equal(harness.logits(bundles[window], ids), expected)
        assert [each["tokens"] for each in harness.answers(bundles[window], asked, 12)] == tokens


def streamed_file(bundle: Path) -> Path:
    """Of a worker, a file that streams."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    name = next(
        n for n, d in manifest["envelope"]["devices"].items() if d["streamed"] and n != manifest["head"]
    )
    record = json.loads((bundle / "devices" / name / "slice.json").read_bytes())
    block = record["envelope"]["devices"][name]["streamed"][0]
    return bundle / "devices" / name / next(b["file"] for b in record["blocks"] if b["id"] == block)


@pytest.mark.slow
def test_a_damaged_and_a_short_file_are_named(bundles: dict[str, Path]) -> None:
    path = streamed_file(bundles["2"])
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        done = harness.llrun(bundles["2"], "--local", "--prompt-ids", "1,2,3", "-n", "3")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{path.name} is damaged: its sha256" in done.stderr
        os.truncate(path, len(whole) // 2)
        done = harness.llrun(bundles["2"], "--local", "--prompt-ids", "1,2,3", "-n", "3")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{path.name} is damaged: it has {len(whole) // 2} bytes" in done.stderr
    finally:
        path.write_bytes(whole)


GROUPS = Path("/sys/fs/cgroup/memory")


@contextmanager
def limited(limit_bytes: int) -> Iterator[Path]:
    """The tasks of a control group of version 1 with so much memory."""
    if os.geteuid() != 0 or not (GROUPS / "memory.limit_in_bytes").is_file():
        pytest.skip("needs root and control groups of version 1, to make one")
    group = GROUPS / f"llrun-window-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a control group: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield group
    finally:
        group.rmdir()


def worker(bundle: Path, name: str, group: Path) -> subprocess.Popen[str]:
    tasks, slice_ = group / "cgroup.procs", bundle / "devices" / name
    words = ["sh", "-c", f'echo $$ > {tasks} && exec "$@"', "sh", sys.executable, "-m", "llrun", str(slice_)]
    return subprocess.Popen([*words, "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True)


@pytest.mark.root
@pytest.mark.slow
def test_a_limit_of_what_the_plan_says_is_enough_and_a_lower_one_is_refused(bundles: dict[str, Path]) -> None:
    bundle, name = bundles["2"], "d1"
    planned_bytes = json.loads((bundle / "manifest.json").read_bytes())["plan"]["devices"][name]["peak_bytes"]
    with limited(planned_bytes) as group:
        process = worker(bundle, name, group)
        assert process.stderr
        try:
            address = process.stderr.readline().split()[-1]
            asked = [
                "--peer",
                f"{name}={address}",
                "--prompt-ids",
                ",".join(map(str, prompt(150))),
                "-n",
                "90",
            ]
            done = harness.llrun(bundle, *asked, "--json")
            assert done.returncode == 0, done.stderr
            assert len(json.loads(done.stdout)["tokens"]) == 90
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
    with limited(planned_bytes - (30 << 20)) as group:
        _, told = worker(bundle, name, group).communicate(timeout=60)
        assert "not enough memory for device d1: its plan has it take up to" in told
        assert f"of {(planned_bytes - (30 << 20)) >> 20} MiB leaves" in told


@pytest.mark.slow
def test_devices_that_have_several_runs_of_blocks_give_transformers_tokens(tmp_path: Path) -> None:
    """Three rounds over two workers, of whose blocks two are in memory at once."""
    directory, model = loaded("llama")
    target = harness.devices_json(tmp_path / "devices.json", 3)
    options, blocks = harness.options(directory, target, "f32"), graph.build_graph(model)
    middle = len(blocks.blocks) - 2
    rounds = in_rounds({"d1": middle // 2, "d2": middle - middle // 2}, 3, "d0")
    stages = tuple(stage if stage.lead == "d0" else replace(stage, window=2) for stage in rounds)
    assert [stage.lead for stage in stages] == ["d0", *["d1", "d2"] * 3, "d0"]
    planned = planned_as(model, blocks, options, stages)
    pipeline.write(planned, pipeline.compile_targets(planned, tmp_path), tmp_path / "bundle")
    assert verify(tmp_path / "bundle") == []
    prompts = [prompt(n) for n in (1, 150)]
    answers = harness.answers(tmp_path / "bundle", prompts, 12)
    assert [each["tokens"] for each in answers] == [reference_greedy(directory, ids, 12) for ids in prompts]
    assert min(answers[0]["devices"][name]["compute_s"] for name in ("d1", "d2")) > 0
