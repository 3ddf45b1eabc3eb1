"""Bundles that cannot be written: one clear error, what was there stays, nothing is left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llcompile.bundle import check_destination, verify
from llcompile.bundle.destination import staged
from llcompile.ir.errors import CompileError
from tests.unit.bundle import small_bundle
from tests.unit.bundle.small_bundle import build


def tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def others(folder: Path) -> list[str]:
    """What lies in `folder` beside the bundle's inputs."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith("-inputs"))


def refused(out: Path) -> CompileError:
    """The error of writing at `out`, which must come before any work and leave everything as it was."""
    before = tree(out.parent)
    with pytest.raises(CompileError) as early:
        check_destination(out)
    assert tree(out.parent) == before
    with pytest.raises(CompileError) as late:
        build(out)
    assert str(late.value) == str(early.value)
    assert others(out.parent) == [name for name in before if "/" not in name]
    return early.value


def test_a_folder_that_is_not_a_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    error = refused(tmp_path / "thesis")
    assert (error.code, error.exit_code) == ("B101", 2)
    assert "holds something else than a bundle" in error.message
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


def test_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("x")
    error = refused(tmp_path / "notes")
    assert (error.code, error.exit_code) == ("B101", 2)
    assert "is a file" in error.message


def test_a_dangling_link_is_written_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    build(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert verify(tmp_path / "target") == []


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("x")
    with pytest.raises(CompileError) as caught:
        check_destination(tmp_path / "notes" / "bundle")
    assert (caught.value.code, caught.value.exit_code) == ("B101", 2)
    assert "is not a folder" in caught.value.message


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    error = refused(tmp_path / "closed" / "bundle")
    assert (error.code, error.exit_code) == ("B101", 2)
    assert "no permission" in error.message


def test_an_empty_folder_and_an_older_bundle_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    first = (build(tmp_path / "bundle") / "manifest.json").read_bytes()

    def pack(path, lowered, template, block, progress, cuts):  # type: ignore[no-untyped-def]
        return small_bundle.write_block(path, lowered, template, block, small_bundle.WEIGHTS, seed=2)

    (tmp_path / "bundle" / "stray").write_text("x")
    assert (build(tmp_path / "bundle", pack=pack) / "manifest.json").read_bytes() != first
    assert verify(tmp_path / "bundle") == []
    assert others(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CompileError("Q101", "truncated"), MemoryError()])
def test_a_failure_leaves_nothing_and_the_older_bundle_as_it_was(
    tmp_path: Path, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    with pytest.raises(type(error)):
        build(tmp_path / "new" / "deep" / "bundle", pack=fail)
    assert others(tmp_path / "new" / "deep") == []
    build(tmp_path / "bundle")
    before = tree(tmp_path / "bundle")
    with pytest.raises(type(error)):
        build(tmp_path / "bundle", pack=fail)
    assert tree(tmp_path / "bundle") == before
    assert verify(tmp_path / "bundle") == []
    assert others(tmp_path) == ["bundle", "new"]


def test_parents_made_for_a_build_that_fails_are_removed(tmp_path: Path) -> None:
    def interrupt(folder: Path) -> None:
        (folder / "file").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "a" / "b" / "bundle") as folder:
        interrupt(folder)
    assert tree(tmp_path) == []


@pytest.mark.parametrize(("number", "code", "words"), [
    (errno.ENOSPC, 1, "No space left on device; free some space"),
    (errno.EDQUOT, 1, "free some space"),
    (errno.EACCES, 2, "Permission denied"),
    (errno.EROFS, 1, "Read-only file system"),
])  # fmt: skip
def test_a_file_system_that_refuses(tmp_path: Path, number: int, code: int, words: str) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with pytest.raises(CompileError, match=words) as caught:
        build(tmp_path / "bundle", pack=refuse)
    assert (caught.value.code, caught.value.exit_code) == ("B102", code)
    assert str(tmp_path / "bundle") in caught.value.message
    assert others(tmp_path) == []


def test_inputs_that_cannot_be_read(tmp_path: Path) -> None:
    gone = {target: tmp_path / "gone.so" for target in small_bundle.PROCESSORS}
    with pytest.raises(CompileError, match=r"cannot read .*gone.so: No such file") as caught:
        build(tmp_path / "bundle", libraries=gone)
    assert (caught.value.code, caught.value.exit_code) == ("B103", 2)
    assert others(tmp_path) == []


@pytest.mark.parametrize("name", ["../pi", "a/b", "", ".hidden", "pi;rm", "x" * 65])
def test_device_names_that_cannot_be_folders(tmp_path: Path, name: str) -> None:
    devices = tuple(replace(d, name=name) if d.name == "pi" else d for d in small_bundle.CLUSTER.devices)
    named = {"laptop": "laptop", "pi": name}
    plan = replace(
        small_bundle.PLAN,
        stages=tuple(replace(s, devices=(named[s.lead],)) for s in small_bundle.PLAN.stages),
        devices={named[d]: load for d, load in small_bundle.PLAN.devices.items()},
    )
    with pytest.raises(CompileError) as caught:
        build(tmp_path / "bundle", plan=plan, cluster=replace(small_bundle.CLUSTER, devices=devices))
    assert (caught.value.code, caught.value.exit_code) == ("B104", 2)
    assert others(tmp_path) == []


KILLED = """
import sys, time
from pathlib import Path
from llcompile.bundle.destination import staged
with staged(Path(sys.argv[1])) as folder:
    (folder / "weights").write_bytes(bytes(1000))
    print("ready", flush=True)
    time.sleep(60)
"""


def start_build(out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_left_overs_of_a_killed_build_are_cleaned_and_those_of_a_running_one_are_not(tmp_path: Path) -> None:
    killed, running = start_build(tmp_path / "bundle"), start_build(tmp_path / "bundle")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(others(tmp_path)) == 2
    build(tmp_path / "bundle")
    running_folder, _ = sorted(set(others(tmp_path)) - {"bundle"}), running.kill()
    assert len(running_folder) == 1
    running.wait()
    build(tmp_path / "bundle")
    assert others(tmp_path) == ["bundle"]


def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    process = start_build(tmp_path / "bundle")
    process.send_signal(signal.SIGINT)
    process.wait()
    assert others(tmp_path) == []


def test_a_build_killed_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    bundle = build(tmp_path / "bundle")
    content = tree(bundle)
    bundle.rename(tmp_path / ".bundle.replaced-x1")
    with pytest.raises(CompileError):
        build(bundle, libraries={target: tmp_path / "gone.so" for target in small_bundle.PROCESSORS})
    assert tree(bundle) == content
    assert others(tmp_path) == ["bundle"]
