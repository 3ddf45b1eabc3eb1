"""Builds on a disk that is too small, in a file system of their own: an error that names a file, and nothing left."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.models import save


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """An empty file system of so many bytes at `folder`."""
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("needs root and mount, to make a small file system")
    folder.mkdir()
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size_bytes}", "none", folder], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"cannot mount a small file system: {made.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle as it is where there is room; model and devices.json lie beside it."""
    folder = tmp_path_factory.mktemp("full")
    save("llama", folder / "model")
    harness.devices_json(folder / "devices.json", 2)
    assert build(folder, folder / "bundle").returncode == 0
    return folder / "bundle"


def build(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = ("build", folder / "model", "--target", folder / "devices.json", "-o", out, "--quant", "q8")
    return harness.llcompile_here(*words, "--spare", "none")


def bytes_of(bundle: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in bundle.glob(pattern) if path.is_file())


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize(
    ("written", "half", "named"),
    [
        ("", "devices/*/lib/*", r"bundle, its devices/d\d/lib/\S+"),
        ("devices/*/lib/*", "**/*.safetensors", r"\S+\.safetensors"),
    ],
)
def test_a_bundle_that_there_is_no_room_for(
    tmp_path: Path, whole: Path, written: str, half: str, named: str
) -> None:
    """Libraries come first, then weights: room for what is `written`, and for half of what comes next."""
    size_bytes = (bytes_of(whole, written) if written else 0) + bytes_of(whole, half) // 2
    with small_disk(tmp_path / "small", size_bytes + bytes_of(whole, "*")) as disk:
        done = build(whole.parent, disk / "bundle")
        assert (done.returncode, done.stdout) == (1, "")
        last = done.stderr.splitlines()[-1]
        assert re.match(rf"error\[[BQ]\d+\]: cannot write {disk}/{named}: No space left on device", last), (
            last
        )
        assert list(disk.iterdir()) == []
