"""What lowering refuses, and how it says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llcompile.ir.cluster import Processor
from llcompile.ir.errors import CompileError
from llcompile.ir.graph import CacheSpec, Template
from llcompile.lower import compile_library, lower_templates
from llrun.schema import Precision, Shapes
from tests.unit.lower.harness import PROCESSORS, TemplateWriter, llama_mlp

X = {"x": ("float32", (1, "n", 64))}


def _one(kind: str, *more: object, inputs: dict | None = None, **attributes: object) -> Template:
    """A template of one operator over x and constants."""
    w = TemplateWriter(inputs or X)
    extra = [w.constant(value, "int64" if isinstance(value, list) else "float32") for value in more]
    return w.finish("t3", (w.op(kind, "x", *extra, **attributes), (1, "n", 64)))


def _linear_over_wrong_width() -> Template:
    w = TemplateWriter(X)
    return w.finish("t3", (w.linear("x", 32, 48), (1, "n", 32)))


def _linear_by_an_activation() -> Template:
    w = TemplateWriter({**X, "y": ("float32", (64, 64))})
    return w.finish("t3", (w.op("Linear", "x", "y", domain="llcompile"), (1, "n", 64)))


def _attention(heads: int, **attributes: object) -> Template:
    w = TemplateWriter(X)
    q = w.heads("x", 4, 16)
    return w.finish("t3", (w.attend(q, q, q, CacheSpec(heads, heads, 16, 16), **attributes), (1, "n", 64)))


def _without_caches() -> Template:
    return replace(_attention(4), caches=())


CASES: dict[str, tuple[Callable[[], Template], str, str]] = {
    "unknown operator": (lambda: _one("Mod", 3.0, fmod=1), "L110", "Mod"),
    "shapes that do not fit": (lambda: _one("Add", [1] * 63), "L111", "Add"),
    "a variable exponent": (lambda: _one("Pow", 1.7), "L112", "Pow"),
    "a slice of the tokens": (lambda: _one("Slice", [1], [9], [1]), "L113", "Slice"),
    "a reshape that mixes tokens": (lambda: _one("Reshape", [-1, 7]), "L114", "Reshape"),
    "a product with an activation": (_linear_by_an_activation, "L115", "Linear"),
    "a product of the wrong width": (_linear_over_wrong_width, "L111", "Linear"),
    "attention without a cache": (_without_caches, "L116", "Attention"),
    "attention that looks ahead": (lambda: _attention(4, causal=0), "L117", "Attention"),
    "attention of other heads": (lambda: _attention(2), "L111", "Attention"),
    "a norm over tokens": (lambda: _one("RMSNormalization", 1.0, axis=1), "L118", "RMSNormalization"),
    "a rotation without heads": (lambda: _one("RotaryEmbedding", 1.0, 1.0), "L119", "RotaryEmbedding"),
    "a product of activations": (lambda: _one("MatMul", 1.0), "L120", "MatMul"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_operator_and_its_template_are_named(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, code, operator = CASES[case]
    with pytest.raises(CompileError) as caught:
        compile_library(
            [llama_mlp(32, 32), make()],
            Precision.of("f32", "f16"),
            Shapes(64, 16),
            PROCESSORS["avx2"],
            tmp_path / "t.so",
        )
    assert caught.value.code == code
    assert operator in caught.value.message
    assert "t3" in caught.value.message
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", ""), "the error is all there is to read"


def test_an_unknown_instruction_set_is_refused_with_those_there_are(tmp_path: Path) -> None:
    processor = Processor("riscv64-linux-gnu", "generic-rv64", (), "rvv")
    for call in (
        lambda: lower_templates([llama_mlp(32, 32)], Precision.of("q4", "f16"), Shapes(64, 16), processor),
        lambda: compile_library(
            [llama_mlp(32, 32)], Precision.of("q4", "f16"), Shapes(64, 16), processor, tmp_path / "t.so"
        ),
    ):
        with pytest.raises(CompileError, match=r"'rvv'.*avx2.*neon") as caught:
            call()
        assert caught.value.code == "L101"


def test_a_linker_that_fails_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        compile_library(
            [llama_mlp(32, 32)],
            Precision.of("f32", "f16"),
            Shapes(64, 16),
            PROCESSORS["avx2"],
            tmp_path / "no/such/folder/t.so",
        )
    assert (caught.value.code, caught.value.exit_code) == ("L130", 1)
    assert "t.so" in caught.value.message
