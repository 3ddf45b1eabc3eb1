"""One cluster of an x86 head and two Arm workers under qemu: the tokens are those of x86 alone.

The workers run the slices that a Raspberry Pi 5 and a Raspberry Pi 4 would get, each on its own processor
model: on the Pi 4's an instruction that it lacks ends the process.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from llcompile import cli
from tests import arm, models

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(arm.missing() is not None, reason=f"no Arm code here: {arm.missing()}"),
]

NEW_TOKENS = 24
WORKERS = {"pi5": ("raspberry-pi-5", arm.CORTEX_A76), "pi4": ("raspberry-pi-4", arm.CORTEX_A72)}
# The whole placement, whatever the planner would choose: int8 activations round differently from processor to
# processor where a float sum is a hair off, and models drawn this wide make other tokens of that somewhere.
PINS = ("--pin", "1:2=laptop", "--pin", "2:4=pi5", "--pin", "4:6=pi4", "--pin", "6:7=laptop")
Build = Callable[[str, bool], Path]  # of a quant, with Arm workers or with x86 ones

# The command line without its check of the processor: what that check prevents can be seen then.
UNCHECKED = (
    "-c",
    "import llrun.device.load as d; d.require = lambda *_: None; from llrun.cli import main; main()",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Build a bundle of `quant` whose workers are Arm devices, or x86 ones with the same blocks."""

    @cache
    def build(quant: str, arm_workers: bool) -> Path:
        folder = tmp_path_factory.mktemp(f"{quant}-{'arm' if arm_workers else 'x86'}")
        cluster = folder / "devices.json"
        cluster.write_text(json.dumps(devices(arm_workers)))
        arguments = [
            "build",
            str(model),
            "--target",
            str(cluster),
            "--quant",
            quant,
            "--context",
            "64",
            "--spare",
            "none",
            "--wire",  # auto prices what each link saves beside its devices' time, which differs
            "f32",
        ]
        # In this process: torch and tvm, loaded by other tests anyway, take longer to load than a build does.
        done = CliRunner().invoke(cli.main, [*arguments, *PINS, "-o", str(folder / "bundle")])
        assert done.exit_code == 0, done.output
        return folder / "bundle"

    return build


@pytest.mark.parametrize("quant", ["f32", "q4"])
def test_arm_workers_and_an_x86_head_produce_the_tokens_of_x86(
    quant: str, bundle: Build, model: Path, tmp_path: Path
) -> None:
    built, prompt = bundle(quant, True), models.prompt(7)
    with workers(built, tmp_path, {name: cpu for name, (_, cpu) in WORKERS.items()}):
        result = finish([*head(built), *generation(prompt)])
    mixed = json.loads(result.stdout)

    if quant == "f32":
        expected = models.reference_greedy(model, prompt, NEW_TOKENS)
    else:
        local = [tool("llrun"), str(bundle(quant, False)), "--local", *generation(prompt)]
        expected = json.loads(finish(local).stdout)["tokens"]

    assert len(set(expected)) > NEW_TOKENS // 2, "a model that repeats itself proves nothing"
    assert mixed["tokens"] == expected
    assert set(mixed["devices"]) == {"laptop", *WORKERS}
    assert all(figures["compute_s"] > 0 for figures in mixed["devices"].values())


def test_code_with_dot_product_dies_on_a_processor_without_it(bundle: Build, tmp_path: Path) -> None:
    built = bundle("q8", True)
    cpus = {"pi5": arm.CORTEX_A72, "pi4": arm.CORTEX_A72}
    with workers(built, tmp_path, cpus, UNCHECKED) as running:
        done = subprocess.run(
            [*head(built), *generation(models.prompt(7))],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        died = running["pi5"].wait(30)
    assert died in (-signal.SIGILL, 128 + signal.SIGILL)
    assert done.returncode == 1
    assert "pi5" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_processor_without_dot_product_is_refused(bundle: Build, tmp_path: Path) -> None:
    slice_folder = str(bundle("q8", True) / "devices/pi5")
    process = arm.start("-m", "llrun", slice_folder, cpu=arm.CORTEX_A72, log=tmp_path / "pi5")
    assert process.wait(60) == 2
    assert "lacks asimddp" in (tmp_path / "pi5").read_text()


def devices(arm_workers: bool) -> dict[str, object]:
    entries = [("laptop", "x86-64-v3")]
    entries += [(name, target if arm_workers else "x86-64-v3") for name, (target, _) in WORKERS.items()]
    return {
        "schema": 1,
        "head": "laptop",
        "devices": [
            {"name": name, "target": target, "address": f"127.0.0.1:{free_port()}", "threads": 1}
            for name, target in entries
        ],
        "links": {"default": {"bytes_per_s": 1e9, "latency_s": 1e-4}},
    }


@contextmanager
def workers(
    bundle: Path, logs: Path, cpus: dict[str, str], entry: tuple[str, ...] = ("-m", "llrun")
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The Arm slices of `bundle`, each served under qemu on its processor, until the end of the block."""
    running = {
        name: arm.start(*entry, str(bundle / "devices" / name), cpu=cpu, log=logs / name)
        for name, cpu in cpus.items()
    }
    try:
        for name, process in running.items():
            wait_until_listening(process, logs / name)
        yield running
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def wait_until_listening(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while "listening" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"not listening after 120 s: {log.read_text()}"
        time.sleep(0.1)


def head(bundle: Path) -> list[str]:
    return [tool("llrun"), str(bundle / "devices/laptop")]


def generation(prompt: list[int]) -> list[str]:
    return ["--prompt-ids", ",".join(map(str, prompt)), "-n", str(NEW_TOKENS), "--temperature", "0", "--json"]


def finish(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
