"""A run goes on after its process was killed at any moment: the same answers, whatever was left of its file."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy_model
import prompts_here
import pytest

from llrun.errors import RunError
from llrun.faces import session_file
from llrun.faces.printer import Wanted
from llrun.faces.prompts import Prompt
from llrun.faces.recording import how_it_ended, recorded
from llrun.faces.session_file import SessionFile
from llrun.requests import journal
from llrun.requests.conversation import Conversation
from llrun.requests.journal import Asked, How, Kind
from llrun.requests.request import Request
from llrun.requests.sampling import Sampling

SCRIPT = Path(prompts_here.__file__)
RECORD = numpy_model.record("d0", ["d0"])
ASKED = Asked((1, 2, 3), 4, Sampling(), ())


def opened(path: Path, kind: Kind = Kind.PROMPTS) -> SessionFile:
    return SessionFile(path, RECORD, kind)


def refused(path: Path, code: str, words: str, kind: Kind = Kind.PROMPTS, exit_code: int = 2) -> None:
    with pytest.raises(RunError, match=words) as error:
        opened(path, kind)
    assert (error.value.code, error.value.exit_code) == (code, exit_code)
    assert str(path) in str(error.value)


# --- runs ---


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[list[tuple[int, ...]], bytes]:
    """The tokens of all answers, and the file of a run that was not cut off."""
    path = tmp_path_factory.mktemp("whole") / "run.session"
    tokens = [result.tokens for result, _ in prompts_here.answers(path)]
    assert tokens == [result.tokens for result, _ in prompts_here.answers(None)]
    assert all(len(set(one)) > 3 for one in tokens)
    return tokens, path.read_bytes()


def test_a_run_cut_off_at_any_line_gives_the_same_and_ends_with_the_same_file(undisturbed, tmp_path, capsys):
    tokens, data = undisturbed
    starts = [0, *(i + 1 for i, byte in enumerate(data) if byte == ord("\n"))]
    draw = random.Random(1)
    for start, stop in zip(starts, [*starts[1:], len(data)], strict=True):
        path = tmp_path / f"{start}.session"
        path.write_bytes(data[: draw.randrange(start, stop + 1)])
        results = [result for result, _ in prompts_here.answers(path)]
        shown = capsys.readouterr().out
        assert [result.tokens for result in results] == tokens, start
        assert shown == "".join("".join(f"{token} " for token in one) + "\n" for one in tokens)
        assert path.read_bytes() == data


def test_a_run_says_what_it_reads_and_what_goes_on(undisturbed, tmp_path, capsys):
    path = tmp_path / "run.session"
    lines = undisturbed[1].splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: 1 + 14 + 1 + 5]))
    prompts_here.answers(path)
    assert capsys.readouterr().err.splitlines() == [
        f"{path}: 1 of 3 answers are read from it.",
        f"{path}: second goes on after 5 tokens.",
    ]


def test_a_whole_run_is_read_without_any_device(undisturbed, tmp_path, monkeypatch):
    tokens, data = undisturbed
    path = tmp_path / "run.session"
    path.write_bytes(data)
    monkeypatch.setattr(prompts_here, "Session", None)
    results = [result for result, _ in prompts_here.answers(path)]
    assert [result.tokens for result in results] == tokens
    assert all(result.ttft_s is None and result.token_s == (0.0,) * 12 for result in results)


def test_a_run_killed_again_and_again_gives_the_same(undisturbed, tmp_path):
    path, draw, killed = tmp_path / "run.session", random.Random(2), 0
    while True:
        command = [sys.executable, str(SCRIPT), "0.002", str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        size, until = path.stat().st_size if path.exists() else 0, time.monotonic() + 20
        more = draw.randrange(1, 700)  # bytes of new lines after which it is killed
        while process.poll() is None and (not path.exists() or path.stat().st_size < size + more):
            assert time.monotonic() < until
            time.sleep(0.0005)
        process.kill()
        shown, told = process.communicate()
        assert "Traceback" not in told
        if process.returncode == 0:
            break
        killed += 1
    assert killed >= 2
    assert shown == "".join("".join(f"{token} " for token in one) + "\n" for one in undisturbed[0])
    assert path.read_bytes() == undisturbed[1]


@pytest.mark.parametrize(
    ("wanted", "prompts", "words"),
    [
        (Wanted(13, prompts_here.WANTED.sampling, ()), 3, "first: -n was 12 and is 13"),
        (Wanted(12, Sampling(1.2, 40, 0.98, 6), ()), 3, "first: --seed was 5 and is 6"),
        (prompts_here.WANTED, 2, "holds the answers to 3 prompts, and 2 are given"),
    ],
)
def test_another_run_is_refused(undisturbed, tmp_path, wanted, prompts, words):
    path = tmp_path / "run.session"
    path.write_bytes(undisturbed[1])
    with pytest.raises(RunError, match=words) as error:
        prompts_here.answers(path, wanted=wanted, prompts=prompts_here.PROMPTS[:prompts])
    assert error.value.code == "R122"
    assert path.read_bytes() == undisturbed[1]


def test_more_prompts_are_answered_after_those_that_were(undisturbed, tmp_path):
    path = tmp_path / "run.session"
    path.write_bytes(undisturbed[1])
    more = [*prompts_here.PROMPTS, Prompt((9, 9), "fourth")]
    tokens = [result.tokens for result, _ in prompts_here.answers(path, prompts=more)]
    assert tokens[:3] == undisturbed[0]
    assert tokens == [result.tokens for result, _ in prompts_here.answers(None, prompts=more)]


# --- the file ---


def add_tokens(file: SessionFile) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        time.sleep(0.01)
        file.token(6)


def test_a_token_is_in_the_file_before_it_is_shown(tmp_path):
    path, there = tmp_path / "a.session", []

    def show(token: int) -> bool:
        there.append(journal.line(journal.Token(token)) in path.read_bytes())
        return token < 7

    with opened(path) as file:
        file.asked(ASKED)
        take = recorded(file, show)
        assert [take(token) for token in (5, 6, 7)] == [True, True, False]
    assert there == [True, True, True]


def test_it_is_the_users_alone_and_one_processs_at_a_time(tmp_path):
    path = tmp_path / "a.session"
    with opened(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        refused(path, "R123", "another llrun has it open")
    with opened(path):
        pass


def test_what_is_no_session_file_stays_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    for data in (b"my notes", b"my notes\n", bytes(100_000)):
        path.write_bytes(data)
        refused(path, "R120", "no session file")
        assert path.read_bytes() == data
    refused(tmp_path, "R124", "Is a directory")
    refused(tmp_path / "none" / "a.session", "R124", "No such file")
    refused(Path("/dev/null"), "R120", "no plain file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "R120", "no plain file")


def test_the_other_kind_is_refused(tmp_path):
    with opened(tmp_path / "a.session"):
        pass
    refused(tmp_path / "a.session", "R122", "holds a run with prompts", Kind.CONVERSATION)


def test_a_piece_of_a_line_is_cut_off_before_anything_is_added(tmp_path):
    path = tmp_path / "a.session"
    with opened(path) as file:
        file.asked(ASKED)
        file.token(5)
    path.write_bytes(path.read_bytes() + b'{"is":"tok')
    with opened(path) as file:
        assert file.cut_bytes == 10
        file.token(6)
        file.ended(How.DONE)
    with opened(path) as file:
        assert file.cut_bytes == 0
        assert file.past.turns[0].tokens == (5, 6)


@pytest.mark.parametrize("at", ["token", "asked"])
def test_a_full_disk_is_told_and_leaves_whole_lines(tmp_path, monkeypatch, at):
    path = tmp_path / "a.session"
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[: max(len(data) - 8, 1)])

    with opened(path) as file:
        file.asked(ASKED)
        file.token(5)
        if at == "asked":
            file.ended(How.DONE)
        monkeypatch.setattr(session_file.os, "write", full)
        for _ in range(2):
            with pytest.raises(RunError, match="No space left on device") as error:
                file.asked(ASKED) if at == "asked" else file.token(6)
            assert (error.value.code, error.value.exit_code) == ("R124", 1)
    monkeypatch.undo()
    with opened(path) as file:
        assert file.cut_bytes == 0
        assert file.past.turns[0].tokens == (5,)


def test_a_disk_that_fails_behind_a_token_is_told_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(session_file, "SYNC_S", 0.01)

    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with opened(tmp_path / "a.session") as file:
        file.asked(ASKED)
        monkeypatch.setattr(session_file.os, "fdatasync", failing)
        file.token(5)
        with pytest.raises(RunError, match="Input/output error"):
            add_tokens(file)
        monkeypatch.undo()


def test_what_is_asked_is_on_the_disk_before_it_is_answered_and_tokens_soon_after(tmp_path, monkeypatch):
    synced: list[int] = []
    sync = os.fdatasync

    def counted(descriptor: int) -> None:
        sync(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(session_file, "SYNC_S", 0.01)
    monkeypatch.setattr(session_file.os, "fdatasync", counted)
    path = tmp_path / "a.session"
    with opened(path) as file:
        for act in (lambda: file.asked(ASKED), lambda: file.ended(How.DONE), file.forgotten):
            act()
            assert synced[-1] == path.stat().st_size
        file.asked(ASKED)
        file.token(5)
        until = time.monotonic() + 10
        while synced[-1] < path.stat().st_size:
            assert time.monotonic() < until
            time.sleep(0.01)


# --- how an answer ended ---


def test_what_was_refused_before_it_began_was_not_said(cluster):
    """A conversation's history has exactly the prompts whose end is not `refused`."""

    def fail(_: int) -> bool:
        raise RunError("R502", "no numbers")

    with cluster(["head", "anna"]).scheduler() as scheduler:
        talk = Conversation(scheduler)
        refused = talk.submit(Request([1, 2], 3))
        refused.cancel()
        failed = talk.submit(Request([3, 4, 5], 3, sink=fail))
        cancelled = talk.submit(Request([6], 50))
        while not cancelled.tokens:
            scheduler.step()
        cancelled.cancel()
        done = talk.submit(Request([7, 8], 2))
        scheduler.run_until(done)
        handles = (refused, failed, cancelled, done)
        assert [how_it_ended(one) for one in handles] == [How.REFUSED, How.FAILED, How.CANCELLED, How.DONE]
        said = [token for one in handles[1:] for token in (*one.request.ids, *one.tokens)]
        assert talk.used == len(said)
        assert scheduler.session.history(0).ids == said
