"""Libraries that this processor cannot execute are refused, rather than dying by SIGILL."""

from __future__ import annotations

import platform

import pytest

from llrun.device import processor
from llrun.errors import RunError


def test_this_machine_has_what_runs_on_it():
    found = processor.features()
    assert found
    if platform.machine() == "x86_64":
        assert {"fpu", "sse2"} <= found


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(processor, "features", lambda: processor.AVX2)
    processor.require("avx2", "x86-64-v3")
    with pytest.raises(RunError, match=r"x86-64-v4, this processor lacks avx512_vnni, avx512bw") as caught:
        processor.require("avx512vnni", "x86-64-v4")
    assert caught.value.exit_code == 2


def test_unknown_instruction_sets_are_left_to_the_library():
    processor.require("", "custom")
