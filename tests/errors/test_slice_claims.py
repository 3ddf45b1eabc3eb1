"""Slices that were written to do harm, their digests right: refused by name before anything is opened or allocated."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from llrun import schema
from llrun.device.claims import MOST, MOST_BYTES, slice_faults
from llrun.device.library import load_library, sealed_copy
from llrun.device.load import load_device
from llrun.device.slice import StoredSlice, find, open_file, verified_bytes
from llrun.errors import RunError
from llrun.files import open_inside
from llrun.programs.installed import install
from llrun.schema import BlockEntry, CacheArray, FileEntry, Load, Param, Send
from tests.unit.runtime import numpy_model

HUGE = 2**60
RECORD = numpy_model.record("anna", ["head", "anna"])
MODEL, BLOCK = RECORD.model, RECORD.blocks[1]


def write(folder: Path, record: schema.Slice) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "slice.json").write_bytes(schema.encode(record))
    return folder


def refused(folder: Path, record: schema.Slice) -> str:
    """How `find` refuses the slice; it has only the record to go by."""
    with pytest.raises(RunError) as caught:
        find(write(folder, record), None)
    assert caught.value.exit_code == 2
    assert caught.value.code == "R202"
    assert str(folder / "slice.json") in caught.value.message
    assert caught.value.message.isprintable()
    return caught.value.message


def with_shapes(context: int, chunk: int) -> schema.ModelInfo:
    return replace(MODEL, shapes=schema.Shapes(context, chunk))


def with_block(**changes: Any) -> schema.Slice:
    return replace(RECORD, blocks=(RECORD.blocks[0], replace(BLOCK, **changes), *RECORD.blocks[2:]))


ANNA, LINKS = RECORD.envelope.devices["anna"], RECORD.envelope.links


def with_cache(**changes: Any) -> schema.Slice:
    return with_block(caches=(replace(BLOCK.caches[0], **changes),))


def with_envelope(**changes: Any) -> schema.Slice:
    return replace(RECORD, envelope=replace(RECORD.envelope, **changes))


def with_envelope_device(**changes: Any) -> schema.Slice:
    return with_envelope(devices={**RECORD.envelope.devices, "anna": replace(ANNA, **changes)})


def with_device(**changes: Any) -> schema.Slice:
    return replace(RECORD, devices={**RECORD.devices, "anna": replace(RECORD.devices["anna"], **changes)})


def with_program(*instructions: schema.Instruction) -> schema.Slice:
    program = replace(RECORD.program, instructions=(*RECORD.program.instructions, *instructions))
    return replace(RECORD, program=program)


def with_graph(**changes: Any) -> schema.Slice:
    return replace(RECORD, graph=replace(RECORD.graph, **changes))


def with_stage(**changes: Any) -> schema.Slice:
    first, *others = RECORD.stages
    return replace(RECORD, stages=(replace(first, **changes), *others))


def with_file(name: str, size: int = 1) -> schema.Slice:
    return replace(RECORD, files={**RECORD.files, name: FileEntry(size_bytes=size, sha256="")})


def test_the_record_itself_is_fine() -> None:
    assert list(slice_faults(RECORD)) == []


@pytest.mark.parametrize("name", ["../model.so", "/tmp/model.so", "lib/other.so", "lib/../lib/model.so"])
@pytest.mark.parametrize("field", ["library", "runtime_library"])
def test_a_library_that_is_not_among_the_files(tmp_path: Path, field: str, name: str) -> None:
    assert f"{name!r} is not among its files" in refused(tmp_path, replace(RECORD, **{field: name}))


@pytest.mark.parametrize(
    "name", ["../model.so", "/tmp/model.so", "a\0b", "a//b", "lib/./a.so", "\x1b[2J", ""]
)
def test_a_library_whose_name_leads_elsewhere(tmp_path: Path, name: str) -> None:
    assert "the file name" in refused(tmp_path, replace(with_file(name), library=name))


def test_a_library_behind_a_block_that_is_not_loaded(tmp_path: Path) -> None:
    """Weights are not hashed with --no-verify, nor those of blocks that no program loads."""
    extra = BlockEntry(id=99, template="t9", file=RECORD.library, params=(), caches=())
    record = replace(RECORD, blocks=(*RECORD.blocks, extra))
    assert "'lib/model.so' is to be two things at once" in refused(tmp_path, record)


@pytest.mark.parametrize("name", ["../w", "/dev/zero", "weights/none"])
def test_weights_that_are_not_among_the_files(tmp_path: Path, name: str) -> None:
    assert "is not among its files" in refused(tmp_path, with_block(file=name))


ABSURD = [
    (replace(RECORD, model=with_shapes(HUGE, 8)), f"context is {HUGE}, at most"),
    (replace(RECORD, model=with_shapes(MOST["context"], MOST["chunk"] + 1)), "chunk is 65537, at"),
    (replace(RECORD, model=replace(MODEL, vocab_size=HUGE)), f"vocab_size is {HUGE}"),
    (replace(RECORD, model=replace(MODEL, eos_token_ids=(3, 97))), "token 97 is not in the vocabulary of 97"),
    (replace(RECORD, model=replace(MODEL, bos_token_id=-1)), "token -1 is not in the vocabulary"),
    (replace(RECORD, model=replace(MODEL, name="\x1b[31m")), "is not a name"),
    (with_device(threads=100_000), "device anna: threads is 100000, at most 4096"),
    (with_device(memory_bytes=HUGE), f"device anna: memory_bytes is {HUGE}"),
    (with_device(address="1.2.3.4:5\r\n\x07"), "is not a name"),
    (with_device(name="bert"), "device anna is called bert"),
    (replace(RECORD, device="zoe"), "does not describe device zoe"),
    (replace(RECORD, head="zoe"), "does not describe device zoe"),
    (with_file("weights/huge", HUGE), f"'weights/huge' has {HUGE} bytes, at most {MOST_BYTES}"),
    (with_block(id=2), "two blocks have the id 2"),
    (with_block(id=1 << 40), f"the id of a block is {1 << 40}"),
    (with_program(Load(block=3), Load(block=3)), "loads block 3 twice"),
    (with_block(params=(Param(name="w", dtype="float32", shape=(1 << 31, 1 << 31, 1 << 31)),)), "w takes"),
    (with_block(params=(Param(name="w", dtype="float32", shape=(0, 4)),)), "has the shape [0, 4]"),
    (with_block(params=(Param(name="w", dtype="float32", shape=(1,) * 40),)), "has the shape"),
    (with_block(params=(Param(name="w", dtype="object", shape=(1,)),)), "has the dtype 'object'"),
    (with_block(params=(Param(name="w", dtype="float32", shape=(), by_token=True),)), "has no rows"),
    (with_block(caches=(CacheArray(dtype="float32", shape=(1 << 40, 1 << 40), token_axes=(0,)),)), "a cache takes"),
    (with_block(caches=(CacheArray(dtype="float32", shape=(1 << 40,), token_axes=(0,)),) * 9), "the cache of a seq"),
    (with_block(caches=(CacheArray(dtype="complex64", shape=(4,), token_axes=(0,)),)), "has the dtype 'complex64'"),
    (with_cache(token_axes=(1, 1)), "has the token axes [1, 1] of a shape of 3 axes"),
    (with_cache(token_axes=(3,)), "has the token axes [3] of a shape of 3 axes"),
    (with_cache(token_axes=()), "has the token axes []"),
    (with_cache(token_axes=(2,)), "has room for 16 tokens of a context of 256"),
    (with_envelope(links=LINKS[1:]), "not one link for each ordered pair"),
    (with_envelope(links=tuple(replace(each, latency_s=-1.0) for each in LINKS)), "no figures that a link"),
    (with_envelope(links=tuple(replace(each, bytes_per_s=0.0) for each in LINKS)), "no figures that a link"),
    (with_envelope(devices={}), "in its envelope or among its devices, not in both"),
    (with_envelope_device(disk_bytes_per_s=-1.0), "has a figure that no device can have"),
    (with_envelope_device(blocks=ANNA.blocks[::-1]), "blocks are not in order"),
    (with_envelope_device(streamed=(2, 1), ring=1), "what streams is not in order"),
    (with_envelope_device(streamed=(1, 99), ring=1), "what streams is not in order, not there"),
    (with_envelope_device(streamed=(1, 2), ring=3), "fewer than its ring"),
    (with_envelope_device(streamed=(1, 2), ring=0), "2 blocks stream, none of them may be in memory"),
    (with_envelope_device(ring=1), "fewer than its ring"),
    (with_envelope_device(blocks=ANNA.blocks[:-1]), "blocks of anna are not those of its slice"),
    (with_envelope_device(blocks=(*ANNA.blocks, replace(ANNA.blocks[0], id=21))), "not of the graph's 7"),
    (with_block(template="t" * 300), "is not a name"),
    (replace(RECORD, max_payload_bytes=HUGE), f"a message has up to {HUGE} bytes, a chunk of its largest tensor 3104"),
    (with_graph(logits=50), "the graph names tensor 50, which is not in the table"),
    (with_graph(tensors=RECORD.graph.tensors * 2), "the tensor table has a number or a name twice"),
    (with_graph(blocks=RECORD.graph.blocks[:0:-1]), "block 6 stands at 0 of the graph"),
    (with_stage(blocks=(1, HUGE)), f"a stage has the blocks 1 to {HUGE} of 7, 0 is next"),
    (with_stage(devices=("zoe",)), "stages, groups or transmissions name 'zoe'"),
    (replace(RECORD, program=replace(RECORD.program, device="bert")), "its program is of device 'bert'"),
    (replace(RECORD, program=replace(RECORD.program, epoch=HUGE)), f"epoch is {HUGE}"),
    (with_program(Send(tensor=2, destination="zoe")), "speaks to 'zoe'"),
    (
        replace(RECORD, blocks=RECORD.blocks * (MOST["blocks"] // len(RECORD.blocks) + 1)),
        "the number of blocks is",
    ),
    (with_graph(tensors=tuple(replace(t, shape=(-1, 1 << 50)) for t in RECORD.graph.tensors)), "takes"),
]  # fmt: skip


def test_a_chunk_beyond_the_context(tmp_path: Path) -> None:
    text = schema.encode(RECORD).replace(b'"chunk": 8', b'"chunk": 300')
    (tmp_path / "slice.json").write_bytes(text)
    with pytest.raises(RunError, match="a chunk of 300 tokens and a context of 256") as caught:
        find(tmp_path, None)
    assert caught.value.code == "R202"


@pytest.mark.parametrize(("record", "reason"), ABSURD, ids=[reason[:40] for _, reason in ABSURD])
def test_absurd_numbers(tmp_path: Path, record: schema.Slice, reason: str) -> None:
    assert reason in refused(tmp_path, record)


# --- files that are not what they seem ---


def stored_with(folder: Path, **files: bytes) -> StoredSlice:
    """A slice in `folder` of these files, by name with `_` for `/`."""
    entries = {}
    for name, data in files.items():
        path = folder / name.replace("_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        entries[name.replace("_", "/")] = FileEntry(
            size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )
    return StoredSlice(folder, "anna", None, replace(RECORD, files=entries))


def test_a_link_that_leads_out_a_pipe_a_folder_and_a_device(tmp_path: Path) -> None:
    stored = stored_with(tmp_path / "slice", lib_a=b"library")
    (tmp_path / "a").write_bytes(b"library")
    path = tmp_path / "slice/lib/a"

    def reason() -> str:
        with pytest.raises(RunError) as caught:
            open_file(stored, "lib/a")
        assert (caught.value.code, caught.value.exit_code) == ("R202", 2)
        return caught.value.message

    assert verified_bytes(stored, "lib/a") == b"library"
    path.unlink()
    path.symlink_to(tmp_path / "a")
    assert "'lib/a' is a symbolic link, not a plain file" in reason()
    path.unlink()
    os.mkfifo(path)  # opening it for reading would wait for ever
    assert "is a pipe" in reason()
    path.unlink()
    path.mkdir()
    assert "is a folder" in reason()
    path.rmdir()
    path.parent.rmdir()
    path.parent.symlink_to(tmp_path)
    assert "lib is a symbolic link, not a folder" in reason()
    with pytest.raises(RunError, match="is a device, not a plain file"):
        open_inside(Path("/dev"), "null")


@pytest.mark.parametrize("name", ["slice.json", "manifest.json"])
def test_a_pipe_or_a_link_in_place_of_the_record(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(RunError, match="is a pipe"):
        find(tmp_path, None)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(RunError, match="is a symbolic link"):
        find(tmp_path, None)
    (tmp_path / name).unlink()
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RunError, match=f"has {1 << 40} bytes, more than"):
        find(tmp_path, None)


def test_a_size_that_no_disk_has_asks_for_no_memory(tmp_path: Path) -> None:
    stored = stored_with(tmp_path, weights_1=b"short")
    entry = FileEntry(size_bytes=MOST_BYTES, sha256="")
    stored = replace_files(stored, {"weights/1": entry})
    with pytest.raises(RunError, match=f"it has 5 bytes, the bundle says {MOST_BYTES}"):
        open_file(stored, "weights/1")


def replace_files(stored: StoredSlice, files: dict[str, FileEntry]) -> StoredSlice:
    return StoredSlice(stored.folder, stored.device, None, replace(stored.record, files=files))


def test_weights_of_another_size_are_refused_before_memory_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = numpy_model.record("head", ["head"])
    monkeypatch.setattr(
        "llrun.device.reading.side_by_side", lambda sizes: pytest.fail("memory was asked for")
    )
    for name in record.files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"small")
    with pytest.raises(RunError, match="it has 5 bytes"):
        load_device(StoredSlice(tmp_path, "head", None, record), False, lambda done, total: None)


def test_a_library_is_loaded_from_what_was_hashed(tmp_path: Path) -> None:
    stored = stored_with(tmp_path, lib_a=b"\x7fELF the library")
    copy = sealed_copy(stored, "lib/a")
    (tmp_path / "lib/a").write_bytes(b"\x7fELF another one")
    assert os.pread(copy, 100, 0) == b"\x7fELF the library"
    with pytest.raises(PermissionError):
        os.pwrite(copy, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(copy, 0)
    with pytest.raises(RunError, match=r"is built for .*an unknown processor|is built for"):
        load_library(copy, copy, [], [], 1)
    with pytest.raises(RunError, match="is damaged: its sha256 is"):
        sealed_copy(stored, "lib/a")
    os.close(copy)


# --- at random, from a fixed seed ---


def outcome(folder: Path) -> str:
    """The code by which the slice or bundle in `folder` is refused, by `install` at the latest; or `accepted`."""
    try:
        install(find(folder, None).record)
    except RunError as error:
        return error.code if error.message.isprintable() else f"cannot be printed: {error.message!r}"
    return "accepted"


@pytest.mark.parametrize("kind", [schema.Slice, schema.Manifest])
def test_a_thousand_flips_and_truncations_are_refused(tmp_path: Path, kind: type, made_bundle: Path) -> None:
    name = "slice.json" if kind is schema.Slice else "manifest.json"
    source = made_bundle / ("devices/pi/slice.json" if kind is schema.Slice else name)
    good, draw = source.read_bytes(), random.Random(7)
    for number in range(1000):
        data = bytearray(good)
        if number % 4 == 0:
            del data[draw.randrange(len(data)) :]
        else:
            for _ in range(draw.choice([1, 1, 1, 8])):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        if bytes(data) == good:
            continue
        (tmp_path / name).write_bytes(data)
        assert outcome(tmp_path) in ("R201", "R202"), number


VALUES: list[Any] = [
    0,
    -1,
    1,
    2**31,
    2**60,
    2**63 - 1,
    "",
    "../x",
    "/etc/passwd",
    "a\0b",
    "\x1b]0;x\x07",
    "x" * 2000,
]
VALUES += [[], {}, None, True, [2**40, 2**40], ["../x"]]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def test_absurd_values_anywhere_are_refused_or_harmless(tmp_path: Path) -> None:
    """With the digest made right. What is accepted must at least be installed or refused by name."""
    plain = msgspec.to_builtins(RECORD)
    everywhere, draw = places(plain)[1:], random.Random(11)
    outcomes: Counter[str] = Counter()
    for _ in range(1000):
        changed = msgspec.json.decode(msgspec.json.encode(plain))
        *path, last = draw.choice(everywhere)
        inner = changed
        for key in path:
            inner = inner[key]
        inner[last] = draw.choice(VALUES)
        try:
            record = msgspec.convert(changed, schema.Slice)
        except msgspec.ValidationError:
            continue
        write(tmp_path, record)
        outcomes[outcome(tmp_path)] += 1
    assert outcomes.keys() >= {"R202", "accepted"}
    assert outcomes.keys() <= {"R202", "R207", "accepted"}
    assert outcomes["accepted"] < 300
