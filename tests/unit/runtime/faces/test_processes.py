"""What `llrun ps` sees: processes that live, and of nobody else's making."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy_model
import pytest

from llrun.cli import _guarded, llrun
from llrun.errors import RunError
from llrun.faces.processes import folder, listing, noted
from llrun.faces.processes.folder import Record, Role, State

PROGRAM = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy_model
from llrun.cli import _guarded
from llrun.faces.processes.folder import Role, State
from llrun.faces.processes.noted import Doing, noted
import click

@click.command()
def wait():
    stored = SimpleNamespace(
        record=numpy_model.record("anna", ["head", "anna"]), device="anna", bundle=None, folder=Path("anna"))
    with noted(stored, Role.WORKER, "127.0.0.1:5701") as own:
        own.looks(lambda: Doing(State.SERVING, 2))
        print("listening", flush=True)
        time.sleep(60)

sys.exit(_guarded(wait, []))
"""


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch) -> Path:
    """The folder of records, as it is of somebody who is logged in."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "llrun"


@contextmanager
def process() -> Iterator[subprocess.Popen[str]]:
    """One that has written its record."""
    here = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert started.stdout
        assert started.stdout.readline() == "listening\n"
        yield started
    finally:
        started.kill()
        started.communicate()


def listed(capsys) -> dict[str, object]:
    assert _guarded(llrun, ["ps", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_process_is_seen_while_it_lives(capsys, private):
    with process() as started:
        (seen,) = listed(capsys)["processes"]
        assert seen["pid"] == started.pid
        assert (seen["role"], seen["device"], seen["model"]) == ("worker", "anna", "synthetic")
        assert (seen["state"], seen["sequences"]) == ("serving", 2)
        assert (seen["address"], seen["bundle"]) == ("127.0.0.1:5701", numpy_model.BUNDLE)
        assert seen["path"] == str(Path("anna").absolute())
        assert 0 < seen["memory_bytes"] <= seen["peak_memory_bytes"]
        assert 0 <= seen["running_s"] < 60
        assert _guarded(llrun, ["ps"]) == 0
        head, line = capsys.readouterr().out.splitlines()
        assert head.split()[:3] == ["PID", "ROLE", "DEVICE"]
        assert line.endswith("serving 2 sequences")
        started.send_signal(signal.SIGINT)
        assert started.wait(10) == 1
    assert list(private.iterdir()) == []
    assert listed(capsys) == {"processes": []}
    assert _guarded(llrun, ["ps"]) == 0
    assert "no llrun of yours" in capsys.readouterr().out


def test_a_killed_process_leaves_a_record_that_nobody_believes(capsys, private):
    with process() as started:
        started.kill()
        started.wait()
    assert len(list(private.iterdir())) == 1
    assert listed(capsys) == {"processes": []}
    assert list(private.iterdir()) == []


def record(**changes: object) -> Record:
    fields = {
        "pid": os.getpid(), "started_ticks": folder.started_ticks(os.getpid()), "namespace": folder.namespace(),
        "role": Role.HEAD, "bundle": "b", "path": "/p", "model": "m", "device": "d",
    }  # fmt: skip
    return Record(**{**fields, **changes})


def test_another_process_of_the_same_number_is_not_the_one_that_wrote_it(private):
    folder.write(private, record())
    assert [each.pid for each in folder.running(private)] == [os.getpid()]
    folder.write(private, record(started_ticks=1))
    assert folder.running(private) == []
    assert list(private.iterdir()) == []


def test_processes_of_another_numbering_are_neither_shown_nor_removed(private):
    folder.write(private, record(namespace=1))
    assert folder.running(private) == []
    assert len(list(private.iterdir())) == 1


@pytest.mark.parametrize("what", ["link", "open", "file"])
def test_a_folder_that_others_could_write_to_is_refused(private, tmp_path, capsys, what):
    if what == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        private.symlink_to(tmp_path / "elsewhere")
    elif what == "open":
        private.mkdir()
        private.chmod(0o770)
    else:
        private.write_text("x")
    with pytest.raises(RunError, match="not believed") as refused:
        folder.running(private)
    assert refused.value.code == "R150"
    with pytest.raises(OSError, match="llrun"):
        folder.write(private, record())
    assert _guarded(llrun, ["ps"]) == 2
    assert "error[R150]" in capsys.readouterr().err
    stored = SimpleNamespace(record=numpy_model.record("a", ["a"]), device="a", bundle=None, folder=Path("a"))
    with noted.noted(stored, Role.HEAD):  # it runs all the same
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another's folder")
def test_a_folder_of_somebody_else_is_refused(private):
    private.mkdir(mode=0o700)
    os.chown(private, 1234, 1234)
    with pytest.raises(RunError, match="belongs to user 1234"):
        folder.running(private)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b'{"pid": 1}', b"\xff", b"[" * 9999, b'{"pid": "1", "role": "worker"}']
)
def test_what_is_no_record_is_left_alone(private, text):
    folder.write(private, record())
    (private / "1-2.json").write_bytes(text)
    (private / "1-3.json").symlink_to("/proc/self/status")
    os.mkfifo(private / "1-4.json")
    assert [each.pid for each in folder.running(private)] == [os.getpid()]
    assert len(list(private.iterdir())) == 4


def test_a_record_under_another_name_is_not_believed(private):
    folder.write(private, record())
    (private / record().name).rename(private / "1-9.json")
    assert folder.running(private) == []


def test_without_a_folder_of_the_login_it_is_one_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for value in ("", "relative", str(tmp_path / "none")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert folder.run_folder() == tmp_path / f"llrun-{os.getuid()}"


def test_what_it_does_is_written_when_it_changes(private, monkeypatch):
    monkeypatch.setattr(noted, "LOOK_S", 0.01)
    stored = SimpleNamespace(record=numpy_model.record("a", ["a"]), device="a", bundle=None, folder=Path("a"))
    doing = [noted.Doing(State.WAITING)]

    def state() -> tuple[str, int]:
        (one,) = folder.running(private)
        return one.state, one.sequences

    with noted.noted(stored, Role.SERVE, "http://127.0.0.1:8080") as own:
        assert state() == ("loading", 0)
        own.looks(lambda: doing[0])
        assert state() == ("waiting", 0)
        doing[0] = noted.Doing(State.SERVING, 5)
        until = time.monotonic() + 10
        while state() != ("serving", 5):
            assert time.monotonic() < until
    assert folder.running(private) == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90061, "1 d 1:01:01")],
)
def test_ages(seconds, words):
    assert listing.age(seconds) == words


def test_a_record_that_would_steer_a_terminal_does_not(private, capsys):
    folder.write(private, record(model="\x1b[2J"))
    assert _guarded(llrun, ["ps"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_records_say_what_they_are_in_json(private):
    folder.write(private, record())
    (name,) = private.iterdir()
    assert msgspec.json.decode(name.read_bytes())["role"] == "head"
