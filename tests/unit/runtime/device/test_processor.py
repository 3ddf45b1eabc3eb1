"""Libraries that this processor cannot execute are refused, rather than dying by SIGILL."""

from __future__ import annotations

import platform

import numpy_model
import pytest

from llrun import schema
from llrun.device import processor
from llrun.device.slice import find
from llrun.errors import RunError
from llrun.schema import Isa


def test_this_machine_has_what_runs_on_it():
    found = processor.features()
    assert found
    if platform.machine() == "x86_64":
        assert {"fpu", "sse2"} <= found


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(processor, "features", lambda: processor.AVX2)
    processor.require(Isa.AVX2, "x86-64-v3")
    with pytest.raises(RunError, match=r"x86-64-v4, this processor lacks avx512_vnni, avx512bw") as caught:
        processor.require(Isa.AVX512VNNI, "x86-64-v4")
    assert caught.value.exit_code == 2


def test_every_instruction_set_needs_something():
    assert processor.NEEDED.keys() == set(Isa)
    assert all(processor.NEEDED.values())


def test_a_processor_without_anything_runs_none_of_them(monkeypatch):
    monkeypatch.setattr(processor, "features", frozenset)
    for isa in Isa:
        with pytest.raises(RunError, match="is built for some-target, this processor lacks"):
            processor.require(isa, "some-target")


@pytest.mark.parametrize("name", ["", "avx10", "AVX2", "sve"])
def test_a_slice_for_an_unknown_instruction_set_is_refused(tmp_path, name):
    text = schema.encode(numpy_model.record("head", ["head"])).replace(b'"avx2"', f'"{name}"'.encode())
    (tmp_path / "slice.json").write_bytes(text)
    with pytest.raises(RunError, match="isa") as caught:
        find(tmp_path, None)
    assert caught.value.code == "R202"
