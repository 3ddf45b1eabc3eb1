"""Target files, malformed: the error names the file, the place and what to do there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llcompile.cluster import targets_dir
from llcompile.ir.errors import CompileError
from tests.errors.test_devices_errors import error_of
from tests.unit.cluster.test_devices import two_devices, write


def with_target(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> CompileError:
    stated = json.loads((targets_dir() / "raspberry-pi-5.json").read_text())
    change(stated)
    (tmp_path / "raspberry-pi-5.json").write_text(json.dumps(stated))
    content = {**two_devices(), "head": "pi"}
    content["devices"] = [{"name": "pi", "target": "raspberry-pi-5", "address": "10.0.0.7:5700"}]
    content["links"] = {}
    return error_of(write(tmp_path, content), tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            lambda t: t.pop("memory_bytes_per_s"),
            "devices[0].profile.memory_bytes_per_s: missing: target raspberry-pi-5 has no figure for it. Measure it",
        ),
        (
            lambda t: t.pop("threads"),
            "devices[0].threads: missing: target raspberry-pi-5 has no figure for it",
        ),
        (
            lambda t: t.pop("runtime_bytes"),
            "devices[0].runtime_bytes: missing",
        ),
        (
            lambda t: t["compute_flops"].update(value=0),
            "target file raspberry-pi-5.json: compute_flops.value: 0 is not",
        ),
        (
            lambda t: t["compute_flops"].pop("source"),
            "raspberry-pi-5.json: compute_flops.source: expected a non-empty",
        ),
        (lambda t: t.update(compute_flops=6e10), "raspberry-pi-5.json: compute_flops: expected an object"),
        (lambda t: t.update(name="pi"), 'raspberry-pi-5.json: name: must be "raspberry-pi-5"'),
        (lambda t: t.update(colour="red"), "raspberry-pi-5.json: colour: unknown key"),
        (lambda t: t["processor"].update(isa="sse"), 'processor.isa: unknown instruction set "sse"'),
        (lambda t: t["processor"].update(mattr="+neon"), "processor.mattr: expected a list"),
        (lambda t: t.pop("processor"), "processor: expected an object, found null"),
    ],
)
def test_faults_in_target_files(tmp_path: Path, change: Callable[[dict[str, Any]], None], part: str) -> None:
    error = with_target(tmp_path, change)
    assert error.code == "C102"
    assert part in error.message


def test_target_file_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "x86-64-v4.json").write_text("{")
    error = error_of(write(tmp_path, two_devices()), tmp_path)
    assert (error.code, "x86-64-v4.json: not JSON at line 1" in error.message) == ("C103", True)


def test_no_target_folder(tmp_path: Path) -> None:
    assert "Known: none in" in error_of(write(tmp_path, two_devices()), tmp_path / "none").message
