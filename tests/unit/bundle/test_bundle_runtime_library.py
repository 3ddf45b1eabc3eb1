"""Where the runtime library of a processor comes from."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from llcompile.bundle import runtime_library
from llcompile.ir.errors import CompileError


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LLC_RUNTIME_DIR", raising=False)


def put(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "libtvm_runtime.so").write_bytes(b"x")
    return folder / "libtvm_runtime.so"


def test_this_machine_s_own_is_that_of_the_installed_tvm() -> None:
    path = runtime_library(f"{platform.machine()}-linux-gnu")
    assert path.parts[-3:] == ("tvm", "lib", "libtvm_runtime.so")
    assert path.read_bytes()[:4] == b"\x7fELF"


def test_looking_does_not_import_tvm() -> None:
    code = (
        "import platform, sys; from llcompile.bundle import runtime_library; "
        "runtime_library(platform.machine() + '-linux-gnu'); sys.exit('tvm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triple = "riscv64-linux-gnu"
    cached = put(tmp_path / "cache/llcompile" / triple)
    assert runtime_library(triple) == cached
    fetched = put(tmp_path / "prefix/share/llcompile" / triple)
    assert runtime_library(triple) == fetched
    monkeypatch.setenv("LLC_RUNTIME_DIR", str(tmp_path / "mine"))
    assert runtime_library(triple) == fetched
    assert put(tmp_path / "mine" / triple) == runtime_library(triple)


def test_none_anywhere_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        runtime_library("riscv64-linux-gnu")
    assert (caught.value.code, caught.value.exit_code) == ("B110", 2)
    assert "make setup" in caught.value.message
    assert str(tmp_path / "prefix/share/llcompile/riscv64-linux-gnu") in caught.value.message
