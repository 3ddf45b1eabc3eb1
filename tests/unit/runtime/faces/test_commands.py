"""The command line's words: which command a line means, and what help says."""

from __future__ import annotations

import inspect

import pytest

from llrun import Session
from llrun.cli import _balancing, _guarded, llrun
from llrun.head.options import Balancing


@pytest.fixture
def said(capsys, monkeypatch, tmp_path):
    """The exit code and what is printed, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = _guarded(llrun, arguments)
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["run", "-h"]])
def test_help_is_of_the_default_command_and_lists_the_others(said, words):
    code, out, err = said(*words)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: llrun [OPTIONS] BUNDLE_OR_SLICE\n")
    assert "--prompt-ids" in out
    assert "llrun bench " in out
    assert "llrun run" not in out


def test_options_are_by_default_what_they_are_from_python(said):
    assert _balancing() == Balancing()
    given = {name: each.default for name, each in inspect.signature(Session).parameters.items()}
    assert Balancing(given["rebalance"], given["wait_s"], given["mirror"]) == Balancing()
    for words in (["-h"], ["bench", "-h"]):
        assert f"[default: {Balancing().wait_s:.1f}]" in " ".join(said(*words)[1].split())


def test_help_of_a_command(said):
    assert said("bench", "-h")[1].startswith("Usage: llrun bench [OPTIONS] BUNDLE\n")


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        ([], "Missing argument 'BUNDLE_OR_SLICE'. See llrun --help."),
        (["bench"], "Missing argument 'BUNDLE'. See llrun bench --help."),
        (["x", "--nonsense"], "See llrun --help."),
        (["bench", "x", "--nonsense"], "See llrun bench --help."),
    ],
)
def test_wrong_use_names_the_command(said, words, usage):
    code, out, err = said(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error[R100]: ")
    assert err.endswith(f"{usage}\n")


@pytest.mark.parametrize("name", ["bench", "run"])
def test_a_path_named_like_a_command_is_still_a_path(said, tmp_path, name):
    (tmp_path / name).mkdir()
    code, _, err = said(f"./{name}", "--prompt-ids", "1")
    assert code == 2
    assert f"error[R201]: {name} is neither a bundle" in err
    assert said("run", name, "--prompt-ids", "1")[2] == err


def test_options_may_come_before_the_path(said):
    assert "nowhere is neither a bundle" in said("--prompt-ids", "1", "nowhere")[2]
