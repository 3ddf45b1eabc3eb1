"""Wrong use and damaged bundles: the right exit code, one clear line, no traceback, nothing left behind."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from llrun import schema
from tests.e2e import runtime_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_bundle.make(tmp_path_factory.mktemp("runtime"))


def llrun(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llrun", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=60)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 2, lines: int = 1) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == lines
    assert done.stderr.startswith("error[R")
    assert done.stdout == ""
    assert not any(character < " " and character != "\n" for character in done.stderr)
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt-ids", "1,x"], ["integers separated by commas", "'x'"]),
        (["--prompt-ids", "1,,2"], ["integers"]),
        (["--prompt-ids", "1.5"], ["'1.5'"]),
        (["--prompt-ids", ""], ["the prompt is empty"]),
        (["--prompt", ""], ["the prompt is empty"]),
        (["--prompt-ids", "1", "--prompt-ids", ""], ["--prompt-ids 2 of 2: the prompt is empty"]),
        (["--prompt", "def", "--prompt", ""], ["--prompt 2 of 2: the prompt is empty"]),
        (["--prompt-ids", "1", "--device", "\x1b[2J\r"], [r"device \x1b[2J\r: it has"]),
        (["--prompt-ids", "5,1000"], ["token 1", "1000", "1000 ids"]),
        (["--prompt-ids", "-1"], ["token 0", "-1"]),
        (["--prompt-ids", "99999999999999999999"], ["99999999999999999999"]),
        (["--prompt-ids", "1,2,3", "-n", "254"], ["3 prompt tokens + 254", "256", "--context"]),
        (["--prompt-ids", ",".join(["1"] * 256)], ["256 prompt tokens", "256"]),
        (["--prompt-ids", "1", "-n", "0"], ["-n"]),
        (["--prompt-ids", "1", "-n", "many"], ["-n"]),
        (["--prompt-ids", "1", "--temperature", "-1"], ["temperature", "-1"]),
        (["--prompt-ids", "1", "--temperature", "nan"], ["temperature"]),
        (["--prompt-ids", "1", "--top-p", "2"], ["top-p", "2"]),
        (["--prompt-ids", "1", "--top-k", "-2"], ["top-k", "-2"]),
        (["--prompt-ids", "1", "--seed", "-2"], ["seed", "-2"]),
        (["--prompt-ids", "1", "--stop", ""], ["--stop"]),
        (["--prompt-ids", "1", "--timeout", "0"], ["--timeout"]),
        (["--prompt-ids", "1", "--prompt", "x"], ["not both"]),
        (["--prompt-ids", "1", "--nonsense"], ["--nonsense"]),
        (["--prompt-ids", "1", "--device", "d9"], ["d9", "d0, d1, d2"]),
        (["--prompt-ids", "1", "--device", "d1"], ["d1 is a worker", "d0"]),
        (["--prompt-ids", "1", "--listen", "127.0.0.1:0"], ["d0 is the head"]),
        (["--prompt-ids", "1", "--peer", "d9=127.0.0.1:1"], ["--peer d9", "d1, d2"]),
        (["--device", "d1", "--peer", "d9=127.0.0.1:1"], ["--peer d9", "d1, d2"]),
        (["--prompt-ids", "1", "--peer", "d1=::1:5700"], ["is not an address", "[ADDRESS]:PORT"]),
        (["--prompt-ids", "1", "--peer", "d1"], ["NAME=HOST:PORT"]),
        (["--device", "d1", "--listen", "nowhere"], ["'nowhere'", "HOST:PORT"]),
        (["--device", "d1", "--session", "x"], ["d1 is a worker", "--session"]),
        (["--device", "d1", "--wait", "3"], ["d1 is a worker", "--wait"]),
        (["--prompt-ids", "1", "--session", "/none/x"], ["--session /none/x", "No such file"]),
        (["--prompt-ids", "1", "--session", "/dev/null"], ["--session /dev/null", "no plain file"]),
        (["--prompt-ids", "1", "--wait", "-1"], ["wait is -1.0", "0 to 86400"]),
        (["--prompt-ids", "1", "--wait", "nan"], ["wait is nan"]),
        (["--prompt-ids", "1", "--stop", os.fsdecode(b"\xff")], ["--stop is not UTF-8"]),
        (["--device", "d1", "--listen", "203.0.113.9:5000"], ["cannot listen on 203.0.113.9:5000"]),
        ([], ["no prompt"]),
        (["--exact"], ["no prompt"]),
    ],
)
def test_wrong_use(bundle, arguments, words):
    refused(llrun(bundle, *arguments), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "300"], ["300", "256"]),
        (["-p", "16", "-n", "16", "-d", "250"], ["depth 250 + 16", "256"]),
        (["-p", "0", "-n", "0"], ["nothing to measure"]),
        (["--sequences", "65"], ["--sequences"]),
        (["-r", "0"], ["-r"]),
        (["-o", "xml"], ["-o"]),
    ],
)
def test_wrong_use_of_bench(bundle, arguments, words):
    refused(llrun("bench", bundle, *arguments), *words)


def test_no_bundle(tmp_path):
    refused(llrun(tmp_path), "neither a bundle")
    refused(llrun(tmp_path / "none"), "neither a bundle")
    refused(llrun(), "BUNDLE_OR_SLICE")
    refused(llrun("bench"), "BUNDLE")


def test_a_slice_is_not_enough_for_local(bundle):
    refused(llrun(bundle / "devices/d0", "--local", "--prompt-ids", "1"), "needs the whole bundle")


def test_input_that_is_not_text(bundle):
    refused(llrun(bundle, stdin=b"abc\xff\xfe\n"), "not UTF-8")
    refused(llrun(bundle, "--prompt", os.fsdecode(b"abc\xff")), "not UTF-8")


def test_a_worker_that_is_not_there(bundle):
    peers = ["--peer", "d1=127.0.0.1:1", "--peer", "d2=127.0.0.1:1"]
    done = llrun(bundle, "--prompt-ids", "1,2", *peers, "--timeout", "1")
    waiting, error = done.stderr.splitlines()
    assert waiting.startswith("waiting for device d1 at 127.0.0.1:1: connection refused")
    assert error.startswith("error[R302]: cannot reach device d1 at 127.0.0.1:1: connection refused")
    assert done.returncode == 1


def files_that_matter(bundle: Path) -> list[Path]:
    """What the head and one worker read."""
    slices = [bundle / "devices/d0", bundle / "devices/d1"]
    found = [path for folder in slices for path in folder.rglob("*") if path.is_file()]
    return [bundle / "manifest.json", *sorted(path for path in found if path.name != "tokenizer_config.json")]


def test_one_flipped_byte_in_any_file_is_found_before_anything_runs(bundle, tmp_path):
    """But for spare blocks, which are read and checked when they are to run."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.parent / "bare", copy)
    listen = ["--device", "d1", "--listen", "127.0.0.1:0"]
    for path in files_that_matter(copy):
        good = path.read_bytes()
        data = bytearray(good)
        data[len(data) * 2 // 3] ^= 0x04
        path.write_bytes(data)
        worker = "devices/d1" in str(path)
        done = llrun(copy, *(listen if worker else ["--prompt-ids", "1,2"]))
        refused(done, path.name, "damaged")
        path.write_bytes(good)


def test_missing_and_short_files(bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    weights = next((copy / "devices/d0/weights").iterdir())
    good = weights.read_bytes()
    weights.write_bytes(good[:-10])
    refused(llrun(copy, "--prompt-ids", "1"), weights.name, f"{len(good) - 10} bytes")
    refused(llrun(copy, "--prompt-ids", "1", "--no-verify"), weights.name, f"{len(good) - 10} bytes")
    weights.unlink()
    refused(llrun(copy, "--prompt-ids", "1"), weights.name, "No such file")
    weights.write_bytes(good)
    (copy / "devices/d0/lib/model.so").unlink()
    refused(llrun(copy, "--prompt-ids", "1"), "model.so")
    (copy / "devices/d0/slice.json").unlink()
    refused(llrun(copy, "--prompt-ids", "1"), "slice.json")


def test_a_damaged_worker_ends_a_local_run_and_is_named(bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    weights = next((copy / "devices/d2/weights").iterdir())
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused(llrun(copy, "--local", "--prompt-ids", "1"), weights.name, "error[R202]: device d2: ", "damaged")
    (copy / "devices/d1/slice.json").write_bytes(b"{}")
    refused(llrun(copy, "--local", "--prompt-ids", "1"), "error[R202]: device d1: ", "slice.json is damaged")


def test_libraries_of_another_processor_are_refused(bundle, tmp_path):
    from llrun.device.library import check_machine
    from llrun.errors import RunError

    library = tmp_path / "model.so"
    data = bytearray((bundle / "devices/d0/lib/model.so").read_bytes()[:64])
    data[18:20] = (183).to_bytes(2, "little") if data[18] == 62 else (62).to_bytes(2, "little")
    library.write_bytes(data)
    with library.open("rb") as file, pytest.raises(RunError, match="is built for"):
        check_machine(file.fileno(), "model.so")


def claim_memory(bundle: Path, of: str, device: str, peak_bytes: int) -> None:
    """Have the slice of `of` say that the plan has `device` take so much, its digests made right."""
    path = bundle / f"devices/{of}/slice.json"
    record = schema.decode(path.read_bytes(), schema.Slice)
    info = replace(record.devices[device], peak_bytes=peak_bytes)
    path.write_bytes(schema.encode(replace(record, devices={**record.devices, device: info})))
    manifest = schema.decode((bundle / "manifest.json").read_bytes(), schema.Manifest)
    data = path.read_bytes()
    entry = schema.FileEntry(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    files = {**manifest.files, f"devices/{of}/slice.json": entry}
    (bundle / "manifest.json").write_bytes(schema.encode(replace(manifest, files=files)))


def test_a_device_without_the_memory_of_its_plan_is_named_with_both_numbers(bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    claim_memory(copy, "d1", "d1", 1 << 43)
    words = ["error[R208]", "not enough memory for device d1", "MiB more", "leaves", "--quant"]
    refused(llrun(copy, "--device", "d1", "--listen", "127.0.0.1:0"), *words, code=1)
    refused(llrun(copy, "--device", "d1", "--listen", "127.0.0.1:0", "--no-verify"), *words, code=1)
    words[0] = "error[R208]: device d1: "
    refused(llrun(copy, "--local", "--prompt-ids", "1"), *words, code=1)
    claim_memory(copy, "d0", "d2", 1 << 43)
    refused(llrun(copy, "--local", "--prompt-ids", "1"), "not enough memory for the 3 devices", code=1)
