"""devices.json and the target files, read as they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llcompile.cluster import load_cluster, targets_dir, with_tokenizer
from llcompile.cluster.strict_json import Faults
from llcompile.cluster.targets import FIGURES, load_target, target_names
from llcompile.ir.cluster import Link, Watts

ROOT = Path(__file__).resolve().parents[3]
NAMES = (
    "aarch64",
    "jetson-orin-nano",
    "pixel-7-pro",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "x86-64-v3",
    "x86-64-v4",
)


def two_devices() -> dict[str, Any]:
    """The contract's own example."""
    return {
        "schema": 1,
        "head": "laptop",
        "devices": [
            {
                "name": "laptop",
                "target": "x86-64-v4",
                "address": "127.0.0.1:5700",
                "memory_bytes": 2000000000,
                "threads": 1,
            },
            {
                "name": "pi",
                "target": "raspberry-pi-5",
                "address": "10.0.0.7:5700",
                "memory_bytes": 3000000000,
                "profile": {"compute_flops": 6.1e10, "memory_bytes_per_s": 9.0e9, "disk_bytes_per_s": 4.0e8},
            },
        ],
        "links": {
            "default": {"bytes_per_s": 3.75e7, "latency_s": 0.001},
            "pairs": [{"between": ["laptop", "pi"], "bytes_per_s": 1.2e7, "latency_s": 0.004}],
        },
    }


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "devices.json"
    path.write_text(json.dumps(content))
    return path


def test_contract_example(tmp_path: Path) -> None:
    cluster = load_cluster(write(tmp_path, two_devices()))
    laptop, pi = cluster.devices
    assert cluster.head == "laptop"
    assert (laptop.memory_bytes, laptop.threads, laptop.address) == (2_000_000_000, 1, "127.0.0.1:5700")
    assert (pi.compute_flops, pi.memory_bytes_per_s, pi.disk_bytes_per_s) == (6.1e10, 9.0e9, 4.0e8)
    assert pi.processor.isa == "neon_dotprod"
    assert cluster.link("pi", "laptop") == cluster.link("laptop", "pi") == Link(1.2e7, 0.004)
    assert cluster.default_link == Link(3.75e7, 0.001)


def test_target_figures_hold_where_none_are_given(tmp_path: Path) -> None:
    content = two_devices()
    content["devices"][1] = {"name": "pi", "target": "raspberry-pi-5", "address": "10.0.0.7:5700"}
    pi = load_cluster(write(tmp_path, content)).device("pi")
    stated = json.loads((targets_dir() / "raspberry-pi-5.json").read_text())
    assert {key: getattr(pi, key) for key in FIGURES} == {key: stated[key]["value"] for key in FIGURES}


def test_what_an_entry_may_say_besides(tmp_path: Path) -> None:
    content = two_devices()
    content["devices"][1] |= {"disk_bytes": 4e9, "standby": True}
    content["devices"][1] |= {"watts": {"busy": 7.5, "idle": 2}, "battery_joules": 60_000}
    laptop, pi = load_cluster(write(tmp_path, content)).devices
    assert (pi.disk_bytes, pi.standby, pi.watts, pi.battery_joules) == (
        4_000_000_000,
        True,
        Watts(7.5, 2.0),
        6e4,
    )
    assert (laptop.disk_bytes, laptop.standby, laptop.watts, laptop.battery_joules) == (
        None,
        False,
        None,
        None,
    )


def test_links_may_be_absent_for_one_device(tmp_path: Path) -> None:
    content = two_devices()
    content["devices"].pop()
    del content["links"]
    assert len(load_cluster(write(tmp_path, content)).devices) == 1


def test_default_link_may_be_absent_when_every_pair_is_given(tmp_path: Path) -> None:
    content = two_devices()
    del content["links"]["default"]
    assert load_cluster(write(tmp_path, content)).link("laptop", "pi") == Link(1.2e7, 0.004)


@pytest.mark.parametrize(
    "address",
    [
        "[::1]:5700",
        "[fe80::1]:1",
        "[fe80::1%eth0]:5700",
        "pi.local:65535",
        "raspberrypi:5700",
        "192.168.1.5:80",
    ],
)
def test_addresses_that_are_good(tmp_path: Path, address: str) -> None:
    content = two_devices()
    content["devices"][1]["address"] = address
    assert load_cluster(write(tmp_path, content)).device("pi").address == address


def test_same_port_on_another_host_and_whole_floats_are_good(tmp_path: Path) -> None:
    content = two_devices()
    content["devices"][0]["memory_bytes"] = 4e9
    assert load_cluster(write(tmp_path, content)).device("laptop").memory_bytes == 4_000_000_000


def test_targets_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = json.loads((targets_dir() / "aarch64.json").read_text())
    (tmp_path / "mine.json").write_text(json.dumps({**stated, "name": "mine"}))
    content = {
        **two_devices(),
        "devices": [{"name": "laptop", "target": "mine", "address": "127.0.0.1:5700"}],
    }
    content["links"] = {}
    path = write(tmp_path, content)
    assert load_cluster(path, tmp_path).devices[0].target == "mine"
    monkeypatch.setenv("LLC_TARGETS", str(tmp_path))
    assert load_cluster(path).devices[0].target == "mine"


# --- the files of this repository ---------------------------------------------------------------------------------


def test_every_target_is_there() -> None:
    assert target_names(targets_dir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_target_file_is_whole(name: str) -> None:
    """Every figure is there, above 0, and says where it comes from."""
    faults = Faults()
    target = load_target(faults, name, targets_dir())
    assert faults.texts == []
    assert target is not None
    assert target.figures.keys() == FIGURES.keys()
    stated = json.loads((targets_dir() / f"{name}.json").read_text())
    for key in FIGURES:
        assert stated[key]["source"].split()[0].rstrip(":") in (
            "published",
            "measured",
            "estimate",
            "assumption",
            "choice",
            "the",
        )


def test_instruction_sets() -> None:
    """What kernels are chosen by; the Pi 4 has no dot product, and plain x86-64-v4 no VNNI."""
    loaded = {name: load_target(Faults(), name, targets_dir()) for name in NAMES}
    processors = {name: target.processor for name, target in loaded.items() if target}
    assert {name: p.isa for name, p in processors.items()} == {
        "aarch64": "neon",
        "jetson-orin-nano": "neon_dotprod",
        "pixel-7-pro": "neon_dotprod",
        "raspberry-pi-4": "neon",
        "raspberry-pi-5": "neon_dotprod",
        "x86-64-v3": "avx2",
        "x86-64-v4": "avx512vnni",
    }
    assert "+avx512vnni" in processors["x86-64-v4"].mattr
    assert all(("+dotprod" in p.mattr) == (p.isa == "neon_dotprod") for p in processors.values())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("devices*.json")), ids=lambda path: path.name
)
def test_examples_are_good(path: Path) -> None:
    assert len(load_cluster(path).devices) >= 2


def test_a_tokenizer_takes_memory_on_the_head_alone(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    path.write_text(json.dumps(two_devices()))
    cluster = load_cluster(path)
    grown = with_tokenizer(cluster, 2_000_000)
    assert grown.device("laptop").runtime_bytes == cluster.device("laptop").runtime_bytes + 34_000_000
    assert grown.device("pi") == cluster.device("pi")
    assert with_tokenizer(cluster, 0) == cluster
