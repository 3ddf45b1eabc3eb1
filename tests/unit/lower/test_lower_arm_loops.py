"""The inner loops of the kernels for Arm, as LLVM writes them: nothing on the stack, no load for each broadcast."""

from __future__ import annotations

import pytest
from shared.aarch64_loops import Loop, hottest, inner_loops

from llcompile.lower.kernels.isa import isa_of
from llcompile.lower.kernels.linear import linear_float, linear_quantised
from llcompile.lower.kernels.vector import Extent
from tests.unit.lower.emulated import CPUS
from tests.unit.lower.harness import Kernel, new_tokens

ROWS, COLUMNS = 64, 256
FLOATS = {"f16": "float16", "f32": "float32"}


def _loop(isa: str, form: str, n: Extent) -> Loop:
    if form in FLOATS:
        kernel = linear_float(isa_of(isa), FLOATS[form], n, COLUMNS, ROWS)
    else:
        kernel = linear_quantised(isa_of(isa), int(form[1]), n, COLUMNS, ROWS)
    return hottest(inner_loops(Kernel(kernel, isa).assembly()))


@pytest.mark.parametrize("isa", list(CPUS))
@pytest.mark.parametrize("form", ["q4", "q8", "f16", "f32"])
def test_registers_hold_what_a_turn_needs(form: str, isa: str) -> None:
    for n in (1, new_tokens()):
        loop = _loop(isa, form, n)
        assert loop.products >= 32
        assert loop.stack_accesses == 0, "\n".join(loop.instructions)


@pytest.mark.parametrize("form", ["q4", "q8"])
def test_one_load_of_activations_serves_four_steps(form: str) -> None:
    for n in (1, new_tokens()):
        loop = _loop("neon_dotprod", form, n)
        assert not any(i.startswith("ld1r") for i in loop.instructions)
        dots = [i for i in loop.instructions if i.startswith("sdot")]
        assert dots
        assert all(".4b[" in i for i in dots)


@pytest.mark.parametrize("form", ["q4", "q8"])
def test_pairs_of_tokens_are_multiplied_by_pairs_of_rows(form: str) -> None:
    loop = _loop("neon_i8mm", form, new_tokens())
    tokens = isa_of("neon_i8mm").tokens
    assert sum(i.startswith("smmla") for i in loop.instructions) * 32 == 4 * 32 * tokens
    assert sum(i.startswith("zip") for i in loop.instructions) <= 8, "activations are not shuffled here"


def test_halves_of_registers_are_multiplied_where_they_are() -> None:
    loop = _loop("neon", "q4", 1)
    assert any(i.startswith("smlal2") for i in loop.instructions)
    assert not any(i.startswith("ext") for i in loop.instructions)
