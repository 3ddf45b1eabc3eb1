"""devices.json, malformed and hostile: one error, exit 2, that names every place and what to do there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llcompile.cluster import load_cluster
from llcompile.ir.errors import USAGE, CompileError
from tests.unit.cluster.test_devices import two_devices, write


def error_of(path: Path, targets: Path | None = None) -> CompileError:
    with pytest.raises(CompileError) as caught:
        load_cluster(path, targets)
    assert caught.value.exit_code == USAGE
    return caught.value


def changed(*keys: str | int, to: Any) -> dict[str, Any]:
    """The good example with the value at `keys` replaced."""
    content = two_devices()
    place: Any = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    return content


def without(*keys: str | int) -> dict[str, Any]:
    content = two_devices()
    place: Any = content
    for key in keys[:-1]:
        place = place[key]
    del place[keys[-1]]
    return content


# --- not readable, not JSON ---------------------------------------------------------------------------------------


def test_absent_file(tmp_path: Path) -> None:
    error = error_of(tmp_path / "none.json")
    assert error.code == "C101"
    assert "none.json: No such file or directory" in error.message


def test_directory(tmp_path: Path) -> None:
    assert "Is a directory" in error_of(tmp_path).message


def test_path_that_cannot_be(tmp_path: Path) -> None:
    assert error_of(Path("a\0b")).code == "C101"
    assert error_of(tmp_path / ("x" * 5000)).code == "C101"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path, two_devices())
    path.chmod(0)
    assert "Permission denied" in error_of(path).message


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        (b"", ["not JSON at line 1 column 1"]),
        (b"{\n  'head': 1}", ["not JSON at line 2 column 3"]),
        (b'{"schema": 1', ["not JSON at line 1 column 13"]),
        (b'{"schema": 1} x', ["not JSON at line 1 column 15: Extra data"]),
        (b'{"schema": 1, "head": "\xff"}', ["not UTF-8 at byte 23"]),
        (b"\xef\xbb\xbf{}", ["not JSON at line 1 column 1"]),
        (b"\x00\x01\x02", ["not JSON"]),
        (b"[" * 100_000, ["nested deeper than 32 levels"]),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, ["nested deeper than 32 levels"]),
        (b" " * 1_000_001, ["larger than the 1000000 bytes allowed"]),
    ],
)
def test_not_json(tmp_path: Path, raw: bytes, parts: list[str]) -> None:
    path = tmp_path / "devices.json"
    path.write_bytes(raw)
    error = error_of(path)
    assert error.code == "C101"
    for part in parts:
        assert part in error.message


def test_brackets_in_strings_are_not_depth(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    path.write_text(json.dumps(changed("head", to="[" * 50 + '\\"[' * 20)))
    assert "is not a device" in error_of(path).message


# --- wrong contents -----------------------------------------------------------------------------------------------

CASES: list[tuple[dict[str, Any], list[str]]] = [
    (changed("schema", to=2), ["schema: expected 1, found 2"]),
    (changed("schema", to="1"), ['schema: expected 1, found "1"']),
    (changed("schema", to=True), ["schema: expected 1, found true"]),
    (changed("schema", to=1.0), ["schema: expected 1, found 1.0"]),
    (without("schema"), ["schema: expected 1, found nothing"]),
    (
        changed("heads", to="x"),
        ['heads: unknown key; did you mean "head"?', "Known here: schema, head, devices, links"],
    ),
    (changed("devices", 0, "memory", to=1), ['devices[0].memory: unknown key; did you mean "memory_bytes"?']),
    (changed("devices", 1, "profile", "flops", to=1), ["devices[1].profile.flops: unknown key"]),
    (
        changed("links", "default", "latency", to=1),
        ['links.default.latency: unknown key; did you mean "latency_s"?'],
    ),
    (changed("links", "pairs", 0, "to", to=1), ["links.pairs[0].to: unknown key"]),
    (changed("links", "pair", to=[]), ['links.pair: unknown key; did you mean "pairs"?']),
    (changed("a b\n", to=1), ['"a b\\n": unknown key']),
    (without("head"), ["head: missing", "one of: laptop, pi"]),
    (
        changed("head", to="lptop"),
        ['head: "lptop" is not a device; did you mean "laptop"?', "Devices: laptop, pi"],
    ),
    (changed("head", to=None), ["head: expected a non-empty string, found null"]),
    (changed("head", to=["laptop"]), ["head: expected a non-empty string"]),
    (without("devices"), ["devices: missing"]),
    (changed("devices", to=[]), ["devices: empty"]),
    (changed("devices", to={}), ["devices: expected a list, found {}"]),
    (changed("devices", to=[{}] * 65), ["devices: 65 devices, at most 64"]),
    (changed("devices", 0, to=7), ["devices[0]: expected an object, found 7"]),
    (without("devices", 0, "name"), ["devices[0].name: missing"]),
    (without("devices", 0, "target"), ["devices[0].target: missing"]),
    (without("devices", 0, "address"), ["devices[0].address: missing"]),
    (
        changed("devices", 0, "target", to="x86-64-v5"),
        ['devices[0].target: unknown target "x86-64-v5"', "did you mean", "Known: aarch64, jetson-orin-nano"],
    ),
    (changed("devices", 0, "target", to="../x86-64-v4"), ["devices[0].target: unknown target"]),
    (changed("devices", 0, "target", to=4), ["devices[0].target: expected a non-empty string, found 4"]),
    (changed("devices", 0, "memory_bytes", to=0), ["devices[0].memory_bytes: 0 is not a measurement"]),
    (changed("devices", 0, "memory_bytes", to=-5), ["devices[0].memory_bytes: -5 is not a measurement"]),
    (
        changed("devices", 0, "memory_bytes", to=1.5),
        ["devices[0].memory_bytes: 1.5 is not a whole number of bytes"],
    ),
    (
        changed("devices", 0, "memory_bytes", to=True),
        ["devices[0].memory_bytes: expected a number of bytes, found true"],
    ),
    (
        changed("devices", 0, "memory_bytes", to="2 GB"),
        ['devices[0].memory_bytes: expected a number of bytes, found "2 GB"'],
    ),
    (
        changed("devices", 0, "memory_bytes", to=None),
        ["devices[0].memory_bytes: expected a number of bytes, found null"],
    ),
    (
        changed("devices", 0, "memory_bytes", to=10**19),
        ["devices[0].memory_bytes: 10000000000000000000 is out of range"],
    ),
    (changed("devices", 0, "threads", to=0), ["devices[0].threads: 0 is not a measurement"]),
    (
        changed("devices", 0, "threads", to=10**6),
        ["devices[0].threads: 1000000 is out of range: at most 4096 threads"],
    ),
    (changed("devices", 1, "profile", to=[]), ["devices[1].profile: expected an object, found []"]),
    (
        changed("devices", 1, "profile", "compute_flops", to=0),
        ["devices[1].profile.compute_flops: 0 is not a measurement"],
    ),
    (
        changed("devices", 1, "profile", "disk_bytes_per_s", to=float("nan")),
        ["devices[1].profile.disk_bytes_per_s: a number without bound is out of range"],
    ),
    (
        changed("devices", 1, "profile", "memory_bytes_per_s", to=float("-inf")),
        ["devices[1].profile.memory_bytes_per_s: a number without bound is out of range"],
    ),
    (changed("devices", 1, "disk_bytes", to=0), ["devices[1].disk_bytes: 0 is not a measurement"]),
    (changed("devices", 1, "disk_bytes", to=0.5), ["devices[1].disk_bytes: 0.5 is not a whole number"]),
    (changed("devices", 1, "disk_bytes", to="1G"), ["devices[1].disk_bytes: expected a number of bytes"]),
    (changed("devices", 1, "standby", to=1), ["devices[1].standby: expected true or false, found 1"]),
    (changed("devices", 0, "standby", to=True), ['devices[0].standby: "laptop" is the head', "Leave out"]),
    (
        changed("devices", 1, "stand_by", to=True),
        ['devices[1].stand_by: unknown key; did you mean "standby"?'],
    ),
    (changed("devices", 1, "watts", to=5), ["devices[1].watts: expected an object, found 5"]),
    (changed("devices", 1, "watts", to={"busy": 5}), ["devices[1].watts.idle: missing"]),
    (
        changed("devices", 1, "watts", to={"busy": -5, "idle": 0, "sleep": 1}),
        ["watts.busy: -5 is not a", "watts.idle: 0 is not a", "watts.sleep: unknown key"],
    ),
    (
        changed("devices", 1, "watts", to={"busy": 2, "idle": 5}),
        ["devices[1].watts: idle is 5 W, more than busy, 2 W"],
    ),
    (
        changed("devices", 1, "battery_joules", to=[1]),
        ["devices[1].battery_joules: expected a number of joules"],
    ),
    (
        changed("devices", 1, "battery_joules", to=1e13),
        ["devices[1].battery_joules: 1", "at most 1e+12 joules"],
    ),
    (changed("devices", 1, "name", to="laptop"), ['devices[1].name: "laptop" is also devices[0]']),
    (changed("devices", 1, "name", to="Laptop"), ['devices[1].name: "Laptop" is also devices[0]']),
    (
        changed("devices", 1, "address", to="127.0.0.1:5700"),
        ['devices[1].address: "127.0.0.1:5700" is also the address of devices[0]', "its own port"],
    ),
    (changed("devices", 1, "address", to="localhost:5700"), ["is also the address of devices[0]"]),
    (changed("devices", 1, "address", to="[::ffff:127.0.0.1]:5700"), ["is also the address of devices[0]"]),
    (
        changed("devices", 1, "address", to="0.0.0.0:5701"),
        ['"0.0.0.0:5701" means all addresses of a machine'],
    ),
    (changed("devices", 1, "address", to="[::]:5701"), ["means all addresses of a machine"]),
    (changed("devices", 1, "address", to="[::ffff:0.0.0.0]:5701"), ["means all addresses of a machine"]),
    (changed("devices", 1, "address", to="[fe80::1%]:5701"), ["is not an address"]),
    (without("links"), ["links: missing", "links.default"]),
    (changed("links", to=[]), ["links: expected an object, found []"]),
    (changed("links", "default", to=3), ["links.default: expected an object, found 3"]),
    (without("links", "default", "latency_s"), ["links.default.latency_s: missing"]),
    (changed("links", "default", "latency_s", to=0), ["links.default.latency_s: 0 is not a measurement"]),
    (changed("links", "default", "latency_s", to=1e9), ["links.default.latency_s", "at most 3600 seconds"]),
    (
        changed("links", "default", "bytes_per_s", to=-1),
        ["links.default.bytes_per_s: -1 is not a measurement"],
    ),
    (changed("links", "pairs", to={}), ["links.pairs: expected a list"]),
    (changed("links", "pairs", 0, to="laptop-pi"), ["links.pairs[0]: expected an object"]),
    (
        without("links", "pairs", 0, "between"),
        ["links.pairs[0].between: expected two device names, found null"],
    ),
    (
        changed("links", "pairs", 0, "between", to=["laptop"]),
        ["links.pairs[0].between: expected two device names"],
    ),
    (
        changed("links", "pairs", 0, "between", to=["laptop", 1]),
        ["links.pairs[0].between: expected two device names"],
    ),
    (
        changed("links", "pairs", 0, "between", to=["laptop", "pie"]),
        ['links.pairs[0].between: "pie" is not a device; did you mean "pi"?'],
    ),
    (changed("links", "pairs", 0, "between", to=["pi", "pi"]), ['links.pairs[0].between: "pi" with itself']),
]


@pytest.mark.parametrize(("content", "parts"), CASES)
def test_wrong_contents(tmp_path: Path, content: dict[str, Any], parts: list[str]) -> None:
    error = error_of(write(tmp_path, content))
    assert error.code == "C102"
    for part in parts:
        assert part in error.message, error.message
    assert "Traceback" not in error.message


@pytest.mark.parametrize(
    "name",
    ["", "..", ".", ".hidden", "../pi", "a/b", "a\\b", "a b", "a\0b", "a\nb", "-a", "é", "x" * 65, "a:b"],
)
def test_names_that_cannot_be_folders(tmp_path: Path, name: str) -> None:
    assert "devices[1].name: " in error_of(write(tmp_path, changed("devices", 1, "name", to=name))).message


@pytest.mark.parametrize(
    "address",
    [
        "",
        "10.0.0.7",
        ":5700",
        "10.0.0.7:",
        "10.0.0.7:0",
        "10.0.0.7:65536",
        "10.0.0.7:-1",
        "10.0.0.7:5e3",
        "10.0.0.7:٥٧٠٠",
        "10.0.0.7:00005700",
        "10.0.0:5700",
        "10.0.0.777:5700",
        "::1:5700",
        "[::1]5700",
        "[10.0.0.7]:5700",
        "[zz]:5700",
        "http://pi:5700",
        "pi local:5700",
        "-pi:5700",
        "pi..local:5700",
        "a" * 300 + ":5700",
        "user@pi:5700",
        "pi:5700\n",
    ],
)
def test_addresses_that_are_none(tmp_path: Path, address: str) -> None:
    assert (
        "devices[1].address: "
        in error_of(write(tmp_path, changed("devices", 1, "address", to=address))).message
    )


def test_duplicate_pair_either_way(tmp_path: Path) -> None:
    content = two_devices()
    content["links"]["pairs"].append({"between": ["pi", "laptop"], "bytes_per_s": 1e7, "latency_s": 0.1})
    assert (
        "links.pairs[1].between: pi and laptop are also links.pairs[0]"
        in error_of(write(tmp_path, content)).message
    )


def test_default_link_missing_for_a_pair(tmp_path: Path) -> None:
    content = without("links", "default")
    content["devices"].append({"name": "c", "target": "aarch64", "address": "10.0.0.8:5700"})
    assert (
        "links.default: missing, and no pair gives the link between laptop and c"
        in error_of(write(tmp_path, content)).message
    )


def test_duplicate_keys(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    raw = json.dumps(two_devices()).replace('"head": "laptop"', '"head": "pi", "head": "laptop"')
    path.write_text(raw.replace('"threads": 1', '"threads": 1, "threads": 2'))
    message = error_of(path).message
    assert "head: given more than once" in message
    assert "devices[0].threads: given more than once" in message


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5000, "NaN", "Infinity", "1" + "0" * 31])
def test_numbers_that_python_would_swallow(tmp_path: Path, number: str) -> None:
    path = tmp_path / "devices.json"
    path.write_text(json.dumps(two_devices()).replace("2000000000", number))
    message = error_of(path).message
    assert "devices[0].memory_bytes: " in message
    assert len(message) < 500


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    content = changed("devices", 0, "memory_bytes", to=-1)
    content["head"] = "nobody"
    content["devices"][1]["address"] = "nowhere"
    content["devices"][1]["target"] = "toaster"
    content["links"]["default"]["latency_s"] = "fast"
    content["devices"][0]["standby"] = "yes"
    content["devices"][1]["disk_bytes"] = -1
    content["extra"] = 1
    message = error_of(write(tmp_path, content)).message
    places = [
        "extra",
        "head",
        "devices[0].memory_bytes",
        "devices[0].standby",
        "devices[1].disk_bytes",
        "devices[1].address",
        "devices[1].target",
        "links.default.latency_s",
    ]
    assert all(f"\n  {place}: " in message for place in places), message
    assert "8 problems" in message
