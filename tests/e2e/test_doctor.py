"""`llrun doctor` and `llrun ps` as a user runs them on a compiled bundle: each broken set-up has its line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from llrun import schema
from tests.e2e import harness, runtime_bundle

LLRUN = [sys.executable, "-m", "llrun"]
Lines = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_bundle.make(tmp_path_factory.mktemp("doctor"))


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch) -> None:
    """Processes of other tests are not seen: bundles of the same parts are the same, and run as one another."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def slice_of_d1(bundle, tmp_path) -> Path:
    """A copy of a worker's slice, to be broken."""
    return Path(shutil.copytree(bundle / "devices/d1", tmp_path / "d1"))


def doctor(*arguments: object, code: int = 0) -> Lines:
    done = harness.llrun("doctor", *map(str, arguments), "--json")
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told.keys() == {"checks", "ok"}
    assert told["ok"] == (code == 0)
    return {check["name"]: check for check in told["checks"]}


def wrong(lines: Lines) -> Lines:
    return {name: line for name, line in lines.items() if line["status"] != "ok"}


def changed(folder: Path, **changes: object) -> None:
    """Another slice.json in its place, whose digest is right."""
    record = schema.decode((folder / "slice.json").read_bytes(), schema.Slice)
    (folder / "slice.json").write_bytes(schema.encode(replace(record, **changes)))


def record_of(folder: Path) -> schema.Slice:
    return schema.decode((folder / "slice.json").read_bytes(), schema.Slice)


def described(folder: Path, device: str, **changes: object) -> dict[str, schema.DeviceInfo]:
    devices = record_of(folder).devices
    return {**devices, device: replace(devices[device], **changes)}


@contextlib.contextmanager
def workers(*slices: Path) -> Iterator[tuple[dict[str, str], dict[str, subprocess.Popen[str]]]]:
    """Addresses and processes of workers by the names of their slices' folders."""
    running = {
        path.name: subprocess.Popen(
            [*LLRUN, str(path), "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
        )
        for path in slices
    }
    try:
        lines = {name: process.stderr.readline() for name, process in running.items() if process.stderr}
        assert all("listening on" in line for line in lines.values()), lines
        yield {name: line.split()[-1] for name, line in lines.items()}, running
    finally:
        for process in running.values():
            process.kill()
            process.communicate()


def peers(addresses: dict[str, str]) -> list[str]:
    return [word for name, address in addresses.items() for word in ("--peer", f"{name}={address}")]


def test_a_whole_cluster_is_well_and_is_listed(bundle):
    parts = [bundle / "devices" / name for name in ("d1", "d2")]
    with workers(*parts) as (addresses, processes):
        lines = doctor(bundle, "--verify", *peers(addresses))
        assert {name for name in wrong(lines)} <= {"threads"}
        assert {"library", "rate to d1", "rate from d2", "latency to d2", "plan"} <= lines.keys()
        assert "sha256" in lines["files"]["found"]
        here = doctor(parts[0], "--listen", addresses["d1"], "--peer", f"d2={addresses['d2']}")
        assert wrong(here).keys() <= {"threads"}
        assert "listens at" in here["port"]["found"]
        listed = json.loads(harness.llrun("ps", "--json").stdout)["processes"]
        seen = {each["pid"]: each for each in listed if each["pid"] in {p.pid for p in processes.values()}}
        assert {each["device"] for each in seen.values()} == {"d1", "d2"}
        assert {each["address"] for each in seen.values()} == set(addresses.values())
        assert {each["state"] for each in seen.values()} == {"waiting"}
        processes["d1"].send_signal(signal.SIGINT)
        processes["d1"].wait(10)
        processes["d2"].kill()
        processes["d2"].wait()
    listed = json.loads(harness.llrun("ps", "--json").stdout)["processes"]
    assert not {each["pid"] for each in listed} & {p.pid for p in processes.values()}


def test_devices_of_one_machine_are_looked_at_together(bundle):
    lines = doctor(bundle, "--local", "--verify")
    assert {name for name in wrong(lines) if not name.startswith("threads")} == set()
    for name in ("d0", "d1", "d2"):
        assert {f"bundle {name}", f"library {name}", f"files {name}"} <= lines.keys()
    assert not any(name.startswith(("device ", "port")) for name in lines)


def test_a_head_that_runs_is_listed_with_its_workers(bundle):
    words = [*LLRUN, str(bundle), "--local", "-n", "200", *["--prompt-ids", "1,2,3"] * 2000]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout
        assert process.stdout.read(10)
        until = time.monotonic() + 20
        while True:
            found = json.loads(harness.llrun("ps", "--json").stdout)["processes"]
            mine = [each for each in found if str(bundle) in each["path"]]
            if {each["state"] for each in mine} == {"serving"}:
                break
            assert time.monotonic() < until, mine
        assert sorted((each["role"], each["device"]) for each in mine) == [
            ("local", "d0"), ("worker", "d1"), ("worker", "d2")
        ]  # fmt: skip
        assert {each["sequences"] for each in mine} == {1}
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    left = json.loads(harness.llrun("ps", "--json").stdout)["processes"]
    assert not [each for each in left if str(bundle) in each["path"]]


# --- broken set-ups ---


def test_a_port_that_is_taken(slice_of_d1):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        line = wrong(doctor(slice_of_d1, "--listen", address, "--timeout", 1, code=1))["port"]
    assert line["status"] == "fail"
    assert "address already in use" in line["found"]
    assert "another port" in line["remedy"]


def test_an_address_of_another_machine(slice_of_d1):
    line = wrong(doctor(slice_of_d1, "--listen", "203.0.113.9:5000", "--timeout", 1, code=1))["port"]
    assert "cannot listen on 203.0.113.9:5000" in line["found"]


def test_a_worker_that_is_not_there(bundle):
    nobody = ["--peer", "d1=127.0.0.1:1", "--peer", "d2=127.0.0.1:1"]
    lines = wrong(doctor(bundle / "devices/d0", *nobody, code=1))
    assert lines["device d1"]["status"] == lines["device d2"]["status"] == "fail"
    assert "connection refused" in lines["device d1"]["found"]
    assert "llrun d1/" in lines["device d1"]["remedy"]
    assert "--local" in wrong(doctor(bundle, *nobody))["device d1"]["remedy"]


def test_a_worker_of_another_bundle_and_another_device(bundle, tmp_path):
    other = shutil.copytree(bundle.parent / "bare/devices/d1", tmp_path / "d1")
    with workers(other, bundle / "devices/d2") as (addresses, _):
        swapped = {"d1": addresses["d1"], "d2": addresses["d2"]}
        lines = wrong(doctor(bundle, *peers(swapped), code=1))
        assert "does not run bundle" in lines["device d1"]["found"]
        assert "copy the slice of d1" in lines["device d1"]["remedy"]
        assert "device d2" not in lines
        lines = wrong(doctor(bundle, "--peer", f"d1={addresses['d2']}", code=1))
        assert "is device d2, not d1" in lines["device d1"]["found"]


def test_something_else_listens_there(bundle):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        command = (
            f"import socket; s = socket.socket(fileno={other.fileno()}); c, _ = s.accept();"
            " c.sendall(b'HTTP/1.1 400 Bad Request' * 9); c.recv(9999)"
        )
        answering = subprocess.Popen([sys.executable, "-c", command], pass_fds=[other.fileno()])
        line = wrong(doctor(bundle, "--peer", f"d1={address}", code=1))["device d1"]
        answering.wait(10)
    assert "is not device d1: not a frame of this protocol" in line["found"]


def test_a_bundle_of_another_schema(slice_of_d1):
    text = (slice_of_d1 / "slice.json").read_bytes()
    (slice_of_d1 / "slice.json").write_bytes(
        text.replace(f'"schema": {schema.SCHEMA}'.encode(), f'"schema": {schema.SCHEMA + 1}'.encode())
    )
    lines = doctor(slice_of_d1, code=1)
    assert list(lines) == ["bundle"]
    assert f"schema {schema.SCHEMA + 1}" in lines["bundle"]["found"]
    assert "build the bundle again" in lines["bundle"]["found"] + lines["bundle"]["remedy"]


def test_a_library_for_another_processor(slice_of_d1):
    record, path = record_of(slice_of_d1), slice_of_d1 / "lib/model.so"
    data = bytearray(path.read_bytes())
    data[18:20] = (183 if data[18] == 62 else 62).to_bytes(2, "little")
    path.write_bytes(data)
    entry = schema.FileEntry(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    changed(slice_of_d1, files={**record.files, record.library: entry})
    line = wrong(doctor(slice_of_d1, code=1))["library"]
    assert "is built for" in line["found"]


def test_a_processor_that_lacks_what_the_library_uses(slice_of_d1):
    changed(slice_of_d1, devices=described(slice_of_d1, "d1", isa=schema.Isa.NEON, target="raspberry-pi-4"))
    lines = doctor(slice_of_d1, code=1)
    assert "without asimd" in lines["processor"]["found"]
    assert lines["processor"]["expected"] == "neon, for target raspberry-pi-4"
    assert "library" not in lines


def test_less_memory_than_the_plan_takes(slice_of_d1):
    changed(slice_of_d1, devices=described(slice_of_d1, "d1", peak_bytes=1 << 43))
    line = wrong(doctor(slice_of_d1, code=1))["memory"]
    assert "leaves" in line["found"]
    assert "8192.0 GiB" in line["expected"]
    assert "--quant" in line["remedy"]


def test_a_weight_file_that_is_short_missing_or_changed(slice_of_d1):
    weights = next((slice_of_d1 / "weights").iterdir())
    good = weights.read_bytes()
    weights.write_bytes(good[:-10])
    line = wrong(doctor(slice_of_d1, code=1))["files"]
    assert f"{weights.name} is damaged: it has {len(good) - 10} bytes" in line["found"]
    assert line["remedy"] == "copy the slice again"
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert "files" not in wrong(doctor(slice_of_d1))
    line = wrong(doctor(slice_of_d1, "--verify", code=1))["files"]
    assert f"{weights.name} is damaged: its sha256" in line["found"]
    weights.unlink()
    assert "No such file" in wrong(doctor(slice_of_d1, code=1))["files"]["found"]


def test_a_worker_of_another_version(bundle):
    """It speaks the same protocol, and says what it is."""
    program = (
        "import sys, llrun.worker.probing as probing; probing.VERSION = '9.9.9'; import llrun.cli;"
        "sys.exit(llrun.cli._guarded(llrun.cli.llrun, sys.argv[1:]))"
    )
    words = [str(bundle / "devices/d1"), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        address = process.stderr.readline().split()[-1]
        line = wrong(doctor(bundle, "--peer", f"d1={address}"))["device d1"]
    finally:
        process.kill()
        process.communicate()
    assert "it has llrun 9.9.9" in line["found"]
    assert line["remedy"] == "install the same llrun on d1 and here"


# --- use ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "d9"], "d9"),
        (["--listen", "127.0.0.1:0"], "d0 is the head"),
        (["--peer", "d9=127.0.0.1:1"], "--peer d9"),
        (["--peer", "d1"], "NAME=HOST:PORT"),
        (["--peer", "d1=::1:5700"], "is not an address"),
        (["--timeout", "0"], "--timeout"),
        (["--local", "--peer", "d1=127.0.0.1:1"], "--local"),
        (["--local", "--listen", "127.0.0.1:1"], "--local"),
    ],
)
def test_wrong_use(bundle, arguments, words):
    done = harness.llrun("doctor", bundle, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error[R1") or done.stderr.startswith("error[R2")
    assert words in done.stderr


def test_no_bundle_and_a_slice_for_local(bundle, tmp_path):
    for path, words in ((tmp_path, "neither a bundle"), (bundle / "devices/d1", "")):
        done = harness.llrun("doctor", path, "--local")
        assert done.returncode == 2
        assert words in done.stderr


def test_lines_for_people(slice_of_d1):
    weights = next((slice_of_d1 / "weights").iterdir())
    weights.write_bytes(b"")
    done = harness.llrun("doctor", slice_of_d1)
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    at = next(i for i, line in enumerate(lines) if line.startswith("fail files "))
    assert lines[at + 1].strip() == "-> copy the slice again"
    assert sum(line.startswith(("ok ", "warn", "fail")) for line in lines) >= 10
