"""safetensors headers: what is read, and that everything which does not hold together is refused by name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llcompile.frontend.checkpoint import read_checkpoint, read_header, stored_dtype
from llcompile.ir.errors import CompileError

Header = dict[str, Any]
Edit = Callable[[Header], Header]


def header() -> Header:
    return {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }


def write(path: Path, text: bytes, data: bytes = bytes(32), length: int | None = None) -> Path:
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(name: str, **changes: Any) -> Edit:
    return lambda h: {**h, name: {**h[name], **changes}}


def test_places_agree_with_the_library_that_writes_them(tmp_path: Path) -> None:
    tensors = {f"t{i}": np.random.default_rng(i).random((i + 1, 3), np.float32) for i in range(5)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        place = found[name]
        stored = np.fromfile(place.path, "<f4", tensor.size, offset=place.offset)
        assert np.array_equal(stored.reshape(place.shape), tensor)
        assert stored_dtype(name, place) == "f32"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (entry("a", data_offsets=[0, 20]), "a: offsets 0 to 20, but F32 .* takes 24 bytes"),
        (entry("a", data_offsets=[24, 0]), "a: offsets 24 to 0"),
        (entry("a", data_offsets=[0]), "a: data_offsets are not two places"),
        (entry("a", data_offsets=[-24, 0]), "a: data_offsets are not two places"),
        (entry("a", data_offsets=[0.0, 24.0]), "a: data_offsets are not two places"),
        (entry("b", data_offsets=[20, 28]), "a and b overlap"),
        (entry("b", data_offsets=[1 << 40, (1 << 40) + 8]), "truncated: tensor b ends at byte"),
        (entry("b", data_offsets=[1 << 70, (1 << 70) + 8]), "b: data_offsets are not two places"),
        (entry("b", shape=[1 << 61, 1 << 61]), "b: offsets 24 to 32, but BF16"),
        (entry("b", shape=[-1, -4]), "b: the shape is not a list of sizes"),
        (entry("b", shape=[True, 4]), "b: the shape is not a list of sizes"),
        (entry("b", shape="4"), "b: the shape is not a list of sizes"),
        (entry("b", shape=[1] * 99), "b: the shape is not a list of sizes"),
        (entry("b", dtype=7), "b: dtype 7 is not a name"),
        (entry("b", extra=1), "b: not an object of dtype, shape and data_offsets"),
        (lambda h: {**h, "b": []}, "b: not an object of dtype"),
    ],
)
def test_hostile_entries(tmp_path: Path, edit: Edit, message: str) -> None:
    path = write(tmp_path / "x.safetensors", json.dumps(edit(header())).encode())
    with pytest.raises(CompileError, match=message) as caught:
        read_header(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "not a JSON object"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not a JSON object"),
        (b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": {}}', "a name occurs twice"),
    ],
)
def test_hostile_json(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        read_header(write(tmp_path / "x.safetensors", text))


@pytest.mark.parametrize("length", [1 << 63, 100_000_001, 4096])
def test_header_longer_than_the_file_or_the_limit(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x.safetensors", json.dumps(header()).encode(), length=length)
    with pytest.raises(CompileError, match=f"a header of {length} bytes is announced"):
        read_header(path)


def test_truncated_data_is_found_by_size(tmp_path: Path) -> None:
    text = json.dumps(header()).encode()
    assert len(read_header(write(tmp_path / "x.safetensors", text))) == 2
    with pytest.raises(CompileError, match="truncated: tensor b ends at byte 32 of the data, which has 31"):
        read_header(write(tmp_path / "x.safetensors", text, bytes(31)))


def test_every_cut_and_flipped_header_is_read_or_refused(tmp_path: Path) -> None:
    """No input makes the reader fail in another way than by its own error."""
    whole = write(tmp_path / "whole", json.dumps(header()).encode()).read_bytes()
    draw, path, refused = random.Random(0), tmp_path / "x.safetensors", 0
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(CompileError):
            read_header(path)
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole) - 32)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            read_header(path)
        except CompileError:
            refused += 1
    assert refused > 250


@pytest.mark.parametrize("dtype", ["F64", "I8", "F8_E4M3", "F4"])
def test_dtypes_that_weights_may_not_have(tmp_path: Path, dtype: str) -> None:
    size = {"F64": 8, "I8": 1, "F8_E4M3": 1, "F4": 3}[dtype]
    text = json.dumps({"odd": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}).encode()
    found = read_header(write(tmp_path / "x.safetensors", text, bytes(size)))
    with pytest.raises(CompileError, match=f"tensor odd is {dtype}; weights may be F32, F16 or BF16"):
        stored_dtype("odd", found["odd"])


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "a\0b"]
)
def test_index_that_names_a_file_outside(tmp_path: Path, file: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(CompileError, match="not a plain name inside its folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": {"a": 1}}, []])
def test_index_without_a_map(tmp_path: Path, index: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        CompileError, match=r"model\.safetensors\.index\.json: (no \"weight_map\"|not a JSON object)"
    ):
        read_checkpoint(tmp_path)


def test_index_that_disagrees_with_its_shards(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "s.safetensors", "ghost": "s.safetensors"}}))
    with pytest.raises(CompileError, match=r"s\.safetensors: no such file"):
        read_checkpoint(tmp_path)
    write(tmp_path / "s.safetensors", json.dumps(header()).encode())
    with pytest.raises(CompileError, match="places tensor ghost here, but the file lacks it"):
        read_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "s.safetensors"}}))
    assert set(read_checkpoint(tmp_path)) == {"a"}


def test_pickled_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04never read")
    with pytest.raises(CompileError, match=r"pickled checkpoint \(pytorch_model\.bin\), never read"):
        read_checkpoint(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"holds no weights.*--random-weights SEED") as caught:
        read_checkpoint(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert caught.value.exit_code == 2
