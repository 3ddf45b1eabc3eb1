"""The command lines as their users run them: build, verify, explain, run, bench; and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llcompile.bundle import verify
from tests.e2e import harness
from tests.models import prompt, reference_greedy, save

ESTABLISHED = "01"  # in /proc/net/tcp
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "python-llama"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": None,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration alone (`model`), and a cluster of three (`devices.json`)."""
    folder = tmp_path_factory.mktemp("product")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    harness.devices_json(folder / "devices.json", 3)
    return folder


def build(place: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    model, target = place / "model", place / "devices.json"
    return harness.llcompile("build", model, "--target", target, "-o", out, "--random-weights", "1", *options)


@pytest.fixture(scope="module")
def bundle(place: Path) -> Path:
    done = build(place, place / "bundle", "--use-all", "--quant", "q8", "--spare", "none")
    assert done.returncode == 0, done.stderr
    return place / "bundle"


@pytest.fixture(scope="module")
def spared(place: Path) -> Path:
    """The same with the spares that are the default."""
    done = build(place, place / "spared", "--use-all", "--quant", "q8")
    assert done.returncode == 0, done.stderr
    return place / "spared"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One clear error, no traceback, nothing on stdout."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
    assert len(errors) == 1, done.stderr
    for word in words:
        assert word in done.stderr


# --- build, verify, explain ---


def test_the_same_input_gives_the_same_bytes(
    place: Path, spared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLC_CACHE", "off")  # compiled anew
    done = build(place, tmp_path / "again", "--use-all", "--quant", "q8", "--json", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "optimal"
    assert files_of(tmp_path / "again") == files_of(spared)


def test_verify_and_explain_a_bundle(bundle: Path) -> None:
    assert harness.llcompile("verify", bundle).returncode == 0
    explained = json.loads(harness.llcompile("explain", bundle, "--json").stdout)
    assert sorted(explained["devices"]) == ["d0", "d1", "d2"]
    words = harness.llcompile("explain", bundle).stdout
    assert "Predicted" in words
    assert "d2" in words


def test_plan_prints_the_contract(place: Path) -> None:
    model, target = place / "model", place / "devices.json"
    done = harness.llcompile_here("plan", model, "--target", target, "--random-weights", "1", "--json")
    plan = json.loads(done.stdout)
    keys = "status objective bound gap solve_s ttft_s tpot_s stages devices unused transmissions blocks"
    assert set(keys.split()) <= plan.keys()
    assert plan["stages"][0]["blocks"][0] == 0
    assert plan["stages"][-1]["blocks"][1] == len(plan["blocks"]) == 8
    assert set(plan["devices"]) | set(plan["unused"]) == {"d0", "d1", "d2"}
    assert not set(plan["devices"]) & set(plan["unused"])
    for load in plan["devices"].values():
        assert load["peak_bytes"] <= load["memory_bytes"]


def test_spares_are_packed_and_the_answer_is_the_same(bundle: Path, spared: Path) -> None:
    assert verify(spared) == []
    plan = json.loads(harness.llcompile("explain", spared, "--json").stdout)
    assert plan["spares"]
    assert all(move["possible"] for move in plan["envelope"] if move["event"] == "lost")
    for name, blocks in plan["spares"].items():
        run = {b for s in plan["stages"] if name in s["devices"] for b in range(*s["blocks"])}
        record = json.loads((spared / "devices" / name / "slice.json").read_text())
        assert {block["id"] for block in record["blocks"]} == run | set(blocks)
        assert not run & set(blocks)
    assert json.loads(harness.llcompile("explain", bundle, "--json").stdout)["spares"] == {}
    [without], [with_them] = (harness.answers(b, [[1, 2, 3]], 6) for b in (bundle, spared))
    assert without["tokens"] == with_them["tokens"]


def test_pins_are_kept(place: Path) -> None:
    model, target = place / "model", place / "devices.json"
    arguments = ("plan", model, "--target", target, "--random-weights", "1", "--json", "--pin", "2:4=d2")
    plan = json.loads(harness.llcompile_here(*arguments).stdout)
    stage = next(s for s in plan["stages"] if s["devices"] == ["d2"])
    assert stage["blocks"][0] <= 2
    assert stage["blocks"][1] >= 4


def test_dumps_and_debug_levels_show_every_pass(place: Path, tmp_path: Path) -> None:
    arguments = ("--target", place / "devices.json", "--random-weights", "1", "--dump-dir", tmp_path / "dump")
    assert harness.llcompile_here("plan", place / "model", *arguments).returncode == 0
    names = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert names[:3] == ["00-input.txt", "01-weights-to-inputs.onnx", "01-weights-to-inputs.txt"]
    assert any(name.endswith("-blocks.txt") for name in names)


# --- run ---


def test_several_prompts_in_a_row_and_sequences_in_flight(bundle: Path) -> None:
    first, second = harness.answers(bundle, [[1, 2, 3], [4, 5, 6, 7]], 6)
    assert [len(first["tokens"]), len(second["tokens"])] == [6, 6]
    assert harness.answers(bundle, [[1, 2, 3]], 6)[0]["tokens"] == first["tokens"]
    for figures in first["devices"].values():
        assert set(figures) >= {"peak_memory_bytes", "compute_s", "wait_s", "sent_bytes"}
    options = ("--local", "-p", "16", "-n", "4", "-r", "2", "--sequences", "3", "-o", "json")
    done = harness.llrun("bench", bundle, *options)
    assert done.returncode == 0, done.stderr
    rows: list[Mapping[str, Any]] = json.loads(done.stdout)
    assert [row["test"] for row in rows] == ["pp16", "tg4"]
    assert all(row["tokens_per_s"] > 0 and row["sequences"] == 3 and row["runs"] == 2 for row in rows)


def test_sampling_with_a_seed_repeats(bundle: Path) -> None:
    options = ("--local", "--prompt-ids", "5,6", "-n", "8", "--json", "--temperature", "1.5")
    tokens = [
        json.loads(harness.llrun(bundle, *options, "--seed", seed).stdout)["tokens"]
        for seed in ("1", "1", "2")
    ]
    assert tokens[0] == tokens[1] != tokens[2]


def processes_of(bundle: Path) -> list[int]:
    """Processes of this machine that run `bundle`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if str(bundle).encode() in words and b"llrun" in words:
            found.append(int(entry.name))
    return found


def connections(process: int) -> int:
    """How many TCP connections a process has."""
    files = Path(f"/proc/{process}/fd")
    with suppress(OSError):
        own = {os.readlink(file).removeprefix("socket:[").removesuffix("]") for file in files.iterdir()}
        lines = Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:]
        return sum(words[3] == ESTABLISHED and words[9] in own for words in map(str.split, lines))
    return 0


def start(bundle: Path) -> subprocess.Popen[str]:
    """A long bench under way on local processes."""
    command = [sys.executable, "-m", "llrun", "bench", str(bundle), "--local", "-p", "16", "-n", "64"]
    process = subprocess.Popen(
        [*command, "-r", "10000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while len(processes_of(bundle)) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    # With each worker one for control; one for tensors to the first and one from the last.
    while connections(process.pid) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1)
    return process


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_head(bundle: Path, how: signal.Signals) -> None:
    process = start(bundle)
    process.send_signal(how)
    _, errors = process.communicate(timeout=10)
    assert "Traceback" not in errors
    until = time.monotonic() + 5
    while processes_of(bundle) and time.monotonic() < until:
        time.sleep(0.05)
    assert processes_of(bundle) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_is_named(bundle: Path, how: signal.Signals) -> None:
    process = start(bundle)
    [worker] = [
        pid for pid in processes_of(bundle) if b"d2" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    ]
    subprocess.run(["kill", f"-{how.value}", str(worker)], check=True)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "d2" in errors
    assert "Traceback" not in errors


# --- what is refused ---


def test_prompts_that_do_not_fit_are_refused(bundle: Path) -> None:
    refused(harness.llrun(bundle, "--local", "--prompt-ids", "1,500"), 2, "500")
    refused(harness.llrun(bundle, "--local", "--prompt-ids", "1,-2"), 2, "-2")
    refused(harness.llrun(bundle, "--local", "--prompt-ids", "1,2", "-n", "1000"), 2, "1000", "128")
    refused(harness.llrun(bundle, "--local", "--prompt", "text"), 2, "--prompt-ids")


def test_a_flipped_byte_in_any_file_is_found(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    for name, data in files_of(bundle).items():
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        (copy / name).write_bytes(flipped)
        found = verify(copy)
        assert found, name
        if name == "devices/d2/lib/model.so":
            done = harness.llcompile("verify", copy)
            assert (done.returncode, name in done.stderr, "Traceback" in done.stderr) == (2, True, False)
        if name.startswith(("devices/d0/", "manifest")):
            refused(harness.llrun(copy, "--local", "--prompt-ids", "1"), 2, Path(name).name)
        (copy / name).write_bytes(data)
    assert verify(copy) == []


def test_an_impossible_plan_says_what_is_missing(place: Path, tmp_path: Path) -> None:
    small = harness.devices_json(tmp_path / "small.json", 2, memory_bytes=64_000_000)
    model = place / "model"
    done = harness.llcompile_here("plan", model, "--target", small, "--random-weights", "1")
    refused(done, 3, "error[P201]", "0 bytes free", "KiB")


def test_checkpoints_that_are_damaged_are_refused(place: Path, tmp_path: Path) -> None:
    target = place / "devices.json"
    refused(harness.llcompile("build", place / "model", "--target", target), 2, "--random-weights")
    refused(harness.llcompile_here("build", tmp_path / "nowhere", "--target", target), 2, "nowhere")
    model = save("llama", tmp_path / "model")
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    refused(
        harness.llcompile_here("build", model, "--target", target, "-o", tmp_path / "out"), 2, weights.name
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_checkpoint_runs_as_transformers_does(place: Path, tmp_path: Path) -> None:
    model = save("llama", tmp_path / "model")
    options = ("--quant", "f32", "--context", "128", "-o", tmp_path / "out", "--use-all", "--json")
    done = harness.llcompile_here("build", model, "--target", place / "devices.json", *options)
    assert done.returncode == 0, done.stderr
    result = harness.answers(tmp_path / "out", [prompt(7)], 8)[0]
    assert result["tokens"] == reference_greedy(model, prompt(7), 8)


@pytest.mark.slow
def test_four_bits_are_calibrated_the_same_every_time(place: Path, tmp_path: Path) -> None:
    """By default, and on any number of threads; without it the matrices' bytes are others."""
    found = []
    for index, options in enumerate((("--jobs", "1"), ("--jobs", "3"), ("--calibrate", "none"))):
        arguments = ("build", EXAMPLE, "--target", place / "devices.json", "-o", tmp_path / str(index))
        compile_it = harness.llcompile_here if index == 2 else harness.llcompile
        done = compile_it(*arguments, *options)
        assert done.returncode == 0, done.stderr
        found.append(files_of(tmp_path / str(index)))
    first, again, plain = found
    assert first == again
    assert first.keys() == plain.keys()
    weights = {name for name in first if name.endswith(".safetensors")}
    same = {name for name in weights if first[name] == plain[name]}
    assert same == {"devices/d0/weights/block-000.safetensors"}  # the embedding


def test_a_text_that_cannot_be_read_is_refused_before_any_work(place: Path, tmp_path: Path) -> None:
    arguments = ("build", EXAMPLE, "--target", place / "devices.json", "-o", tmp_path / "out")
    refused(harness.llcompile_here(*arguments, "--calibrate", tmp_path / "gone.txt"), 2, "F160", "gone.txt")
    (tmp_path / "short.txt").write_text("def f(x):")
    refused(harness.llcompile_here(*arguments, "--calibrate", tmp_path / "short.txt"), 2, "F162", "128")
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
