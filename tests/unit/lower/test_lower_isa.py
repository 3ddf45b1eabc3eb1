"""Each instruction set of the one table has kernels and tiles."""

from __future__ import annotations

import pytest

from llcompile.ir.errors import CompileError
from llcompile.lower.kernels.isa import isa_of
from llcompile.lower.tiles import TILE_ROWS
from llrun.schema import Isa


def test_every_instruction_set_has_kernels_and_tiles() -> None:
    assert [isa_of(isa).name for isa in Isa] == list(Isa)
    assert TILE_ROWS.keys() == set(Isa)
    assert all(isa_of(isa).rows % isa_of(isa).lanes == 0 for isa in Isa)


def test_an_unknown_one_is_refused_by_name() -> None:
    with pytest.raises(CompileError, match=r"no kernels for instruction set 'sve': use one of .*neon"):
        isa_of("sve")
