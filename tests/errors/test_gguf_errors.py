"""GGUF files that are damaged, hostile or not understood: file and key or tensor are named, before any long work."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llcompile import cli
from llcompile.frontend import load_model
from llcompile.frontend.from_gguf import describe, stored_tensors
from llcompile.gguf import read_header
from llcompile.ir.errors import CompileError
from tests.gguf_bytes import F32, Q4_K, Q8_0, Q8_1, VOCABULARY, WIDTH, Entry, File, Raw


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(path: Path) -> None:
    """All that is read of a file before a model is built of it."""
    header = read_header(path)
    stored_tensors(header, describe(header).config)


def refused(path: Path, code: str) -> str:
    with pytest.raises(CompileError) as caught:
        read(path)
    assert (caught.value.code, caught.value.exit_code) == (code, 2)
    assert str(path) in caught.value.message
    return caught.value.message


def test_the_whole_file_is_read(tmp_path: Path) -> None:
    read(File().written(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("file", "named"),
    [
        (File(magic=b"GGML"), "does not begin with GGUF"),
        (File(version=1), "version 1"),
        (File(version=4), "version 4"),
        (File(version=3 << 24), "big-endian"),
        (File(key_count=1 << 40), f"{1 << 40} keys are announced"),
        (File(tensor_count=1 << 40), f"{1 << 40} tensors are announced"),
        (File(key_count=99), "truncated"),
        (File(tensor_count=99), "has 0 dimensions"),
        (File().with_values(split__count=3), "one of 3 parts"),
        (File().with_values(general__alignment=24), "general.alignment is 24"),
        (File().with_values(general__alignment=0), "general.alignment is 0"),
        (File(data_bytes=100), "truncated: tensor"),
        (File().with_values(general__name=b"\xff\xfe"), "not UTF-8"),
        (File(values={"general.\x1b[2J": 1}), "the name 'general.\\x1b[2J' is not printable"),
        (File().with_tensor("a\nb", Entry((8,))), "the name 'a\\nb' is not printable"),
        (File().with_values(general__tags=Raw(struct.pack("<IIQ", 9, 0, 1 << 60))), "list of"),
        (File().with_values(general__tags=Raw(struct.pack("<IIQ", 9, 8, 1 << 21))), "truncated: key general.tags"),
        (File().with_values(general__tags=Raw(struct.pack("<IIQ", 9, 9, 1))), "type 9"),
        (File().with_values(general__tags=Raw(struct.pack("<I", 77))), "type 77"),
        (File().with_values(general__name=Raw(struct.pack("<IQ", 8, 1 << 62))), "truncated: key general.name"),
    ],
)  # fmt: skip
def test_a_damaged_header(file: File, named: str, tmp_path: Path) -> None:
    assert named in refused(file.written(tmp_path / "m.gguf"), "F143")


@pytest.mark.parametrize(
    ("entry", "code", "named"),
    [
        (Entry((40, 64), Q8_1), "F144", "tensor blk.0.attn_q.weight is Q8_1"),
        (Entry((40, 64), 200), "F144", "tensor blk.0.attn_q.weight is type 200"),
        (Entry((1, 100), Q4_K), "F143", "blk.0.attn_q.weight has 100 columns"),
        (Entry((0, 64)), "F143", "tensor blk.0.attn_q.weight has the sizes [0, 64]"),
        (Entry((1 << 40, 1 << 40)), "F143", "tensor blk.0.attn_q.weight has the sizes"),
        (Entry((1,) * 5), "F143", "tensor blk.0.attn_q.weight has 5 dimensions"),
        (Entry((64, 64), offset=0), "F143", "overlap"),
        (Entry((64, 64), offset=1 << 60), "F143", "truncated: tensor blk.0.attn_q.weight"),
        (Entry((6, 64)), "F144", "tensor blk.0.attn_q.weight has 6 rows for 4 heads"),
    ],
)
def test_a_tensor_that_cannot_be(entry: Entry, code: str, named: str, tmp_path: Path) -> None:
    file = File().with_tensor("blk.0.attn_q.weight", entry)
    assert named in refused(file.written(tmp_path / "m.gguf"), code)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("rope_freqs.weight", "rope_freqs.weight scales the rotary embedding"),
        ("rope_factors_long.weight", "rope_factors_long.weight scales the rotary embedding"),
        ("blk.0.attn_sinks.weight", "blk.0.attn_sinks.weight has no place"),
        ("blk.0.attn_q.scale", "blk.0.attn_q.scale has no place"),
        ("blk.01.attn_q.weight", "blk.01.attn_q.weight has no place"),
        ("cls.weight", "cls.weight has no place"),
    ],
)
def test_a_tensor_without_a_place(name: str, named: str, tmp_path: Path) -> None:
    file = File().with_tensor(name, Entry((8,)))
    assert named in refused(file.written(tmp_path / "m.gguf"), "F144")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"general__architecture": "mamba"}, "general.architecture is 'mamba'"),
        ({"general__architecture": None}, "general.architecture is None"),
        ({"general__architecture": 3}, "general.architecture is 3, not a text"),
        ({"general__type": "adapter"}, "general.type 'adapter'"),
        ({"llama__rope__scaling__type": "linear"}, "llama.rope.scaling.type is 'linear'"),
        ({"llama__rope__scaling__type": "yarn"}, "llama.rope.scaling.type is 'yarn'"),
        ({"llama__rope__scaling__factor": 4.0}, "llama.rope.scaling.factor is '4.0'"),
        ({"llama__rope__scaling__attn_factor": 1.5}, "llama.rope.scaling.attn_factor is '1.5'"),
        ({"llama__rope__scaling__original_context_length": 64}, "original_context_length is 64, the context 128"),
        ({"llama__rope__dimension_count": 8, "llama__attention__key_length": 16}, "llama.rope.dimension_count is 8"),
        ({"llama__attention__value_length": 8}, "llama.attention.value_length is 8"),
        ({"llama__attention__scale": 0.5}, "llama.attention.scale is 0.5"),
        ({"llama__attention__head_count": [4, 4]}, "llama.attention.head_count is a list of 2"),
        ({"llama__attention__head_count_kv": None}, "llama.attention.head_count_kv is not given"),
        ({"llama__attention__layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is not given"),
        ({"llama__context_length": "long"}, "llama.context_length is 'long', not a whole number"),
        ({"llama__expert_count": 8}, "llama.expert_count is '8'"),
        ({"llama__attention__causal": False}, "llama.attention.causal is 'False'"),
        ({"llama__logit_scale": 0.25}, "llama.logit_scale, which is not understood"),
        ({"tokenizer__ggml__eos_token_id": VOCABULARY}, f"eos_token_id is {VOCABULARY}, outside"),
        ({"tokenizer__ggml__eot_token_id": -1}, "eot_token_id is -1, outside"),
    ],
)  # fmt: skip
def test_keys_that_are_not_understood(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    assert named in refused(File().with_values(**changes).written(tmp_path / "m.gguf"), "F145")


def gemma(**changes: Any) -> File:
    """The small file's keys as Gemma 3's."""
    own = {key: value for key, value in File().values.items() if not key.startswith("llama.rope.d")}
    values = {key.replace("llama", "gemma3"): value for key, value in own.items()}
    values |= {
        "general.architecture": "gemma3",
        "gemma3.attention.key_length": 256,
        "gemma3.attention.sliding_window": 8,
    }
    return File(values=values).with_values(**changes)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gemma3__attention__key_length": 128}, "heads have 128: by what Gemma 3 scales"),
        (
            {"gemma3__final_logit_softcapping": 30.0},
            "gemma3.final_logit_softcapping, which is not understood",
        ),
        ({"gemma3__attention__sliding_window": None}, "gemma3.attention.sliding_window is not given"),
        ({"gemma3__attention__sliding_window_pattern": 4}, "sliding_window_pattern is not the 6"),
        ({"gemma3__rope__freq_base": None}, "gemma3.rope.freq_base is not given"),
        ({"gemma3__rope__scaling__type": "linear"}, "gemma3.rope.scaling.type is 'linear'"),
    ],
)
def test_what_a_gemma_says_besides(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    read(gemma().written(tmp_path / "whole.gguf"))
    assert named in refused(gemma(**changes).written(tmp_path / "m.gguf"), "F145")


def test_heads_of_their_own_size_where_the_architecture_has_none(tmp_path: Path) -> None:
    own = {key: value for key, value in File().values.items() if not key.startswith("llama.rope.d")}
    values = {key.replace("llama", "qwen2"): value for key, value in own.items()} | {
        "qwen2.attention.key_length": 32
    }
    file = File(values=values | {"general.architecture": "qwen2"})  # fmt: skip
    message = refused(file.written(tmp_path / "m.gguf"), "F145")
    assert "qwen2.attention.key_length is 32, not the 16 of a head" in message


@pytest.mark.parametrize(
    ("file", "code", "named"),
    [
        (File().with_tensor("blk.0.ffn_up.weight", None), "F150", "model.layers.0.mlp.up_proj.weight"),
        (File().with_tensor("blk.0.ffn_up.weight", Entry((95, WIDTH))), "F151", "is [95, 64]"),
        (File().with_tensor("blk.0.attn_q.bias", Entry((WIDTH,))), "F144", "tensor blk.0.attn_q.bias"),
        (File().with_tensor("blk.7.attn_q.weight", Entry((WIDTH, WIDTH))), "F144", "blk.7.attn_q.weight"),
        (File().with_values(llama__block_count=0), "F111", "(as config.json): num_hidden_layers is 0"),
        (File().with_values(llama__embedding_length=1 << 40), "F111", "(as config.json): hidden_size"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model(file: File, code: str, named: str, tmp_path: Path) -> None:
    path = file.written(tmp_path / "m.gguf")
    with pytest.raises(CompileError) as caught:
        load_model(str(path))
    assert caught.value.code == code
    assert named in caught.value.message
    assert str(path) in caught.value.message


def test_what_is_no_gguf_file_is_said_by_the_command(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    command = ["plan", str(tmp_path / "m.gguf"), "--target", "examples/devices.json"]
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 2
    assert "error[F100]" in done.stderr
    assert "no GGUF file" in done.stderr


def test_a_folder_of_gguf_files_names_one(tmp_path: Path) -> None:
    File().written(tmp_path / "b.gguf")
    with pytest.raises(CompileError, match=r"Name one of them: .*b\.gguf") as caught:
        load_model(str(tmp_path))
    assert caught.value.code == "F100"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "cannot be written" in refused(File().written(tmp_path / "m.gguf"), "F146")


def test_no_change_of_a_byte_ends_in_a_traceback(tmp_path: Path) -> None:
    """Any byte of the header, or a few, at random: refused by name, or read as something else that holds together."""
    raw, path = File().written(tmp_path / "m.gguf").read_bytes(), tmp_path / "changed.gguf"
    end, draw, codes = len(File().header()), random.Random(7), set()
    for _ in range(1500):
        changed = bytearray(raw)
        for _ in range(draw.choice((1, 1, 1, 4))):
            changed[draw.randrange(end)] = draw.choice((0, 1, 9, 0x7F, 0xFF, draw.randrange(256)))
        path.write_bytes(changed[: draw.randrange(end)] if draw.random() < 0.1 else changed)
        try:
            read(path)
        except CompileError as error:
            codes.add(error.code)
    assert {"F143", "F144", "F145"} <= codes


def test_q8_rows_are_measured_in_blocks(tmp_path: Path) -> None:
    file = File().with_tensor("token_embd.weight", Entry((VOCABULARY, WIDTH), Q8_0))
    path = file.written(tmp_path / "m.gguf")
    assert read_header(path).tensors["token_embd.weight"].size_bytes == VOCABULARY * WIDTH // 32 * 34
    assert file.tensors["output_norm.weight"].kind == F32
    path.write_bytes(path.read_bytes()[:-1])
    assert "truncated: tensor" in refused(path, "F143")
