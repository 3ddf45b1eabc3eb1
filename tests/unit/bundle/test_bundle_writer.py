"""What a bundle holds, and that it is the same every time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from llcompile.bundle import read_manifest, verify
from llcompile.ir.errors import CompileError
from llrun import schema
from llrun.device.slice import entry_of, find, open_file, verified_bytes
from llrun.device.table import Table
from llrun.device.weights import Source, read_weights
from llrun.memory import reserve
from llrun.programs.write import write_programs
from tests.unit.bundle import small_bundle
from tests.unit.bundle.small_bundle import CLUSTER, build


def names(bundle: Path) -> list[str]:
    return sorted(p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file())


def read_slice(bundle: Path, device: str) -> schema.Slice:
    return schema.decode((bundle / "devices" / device / "slice.json").read_bytes(), schema.Slice)


def test_the_files_are_those_of_the_design(tmp_path: Path) -> None:
    assert names(build(tmp_path / "bundle")) == [
        "deploy/README.md",
        "deploy/llrun-pi.service",
        "deploy/run-laptop.sh",
        "deploy/run-pi.sh",
        "devices/laptop/lib/libtvm_runtime.so",
        "devices/laptop/lib/model.so",
        "devices/laptop/slice.json",
        "devices/laptop/tokenizer/tokenizer.json",
        "devices/laptop/weights/block-000.safetensors",
        "devices/laptop/weights/block-003.safetensors",
        "devices/pi/lib/libtvm_runtime.so",
        "devices/pi/lib/model.so",
        "devices/pi/slice.json",
        "devices/pi/weights/block-001.safetensors",
        "devices/pi/weights/block-002.safetensors",
        "manifest.json",
        "problem.mps",
        "report.html",
        "tokenizer/tokenizer.json",
    ]


def test_two_bundles_are_byte_identical(tmp_path: Path) -> None:
    one, two = build(tmp_path / "one"), build(tmp_path / "elsewhere" / "two")
    assert names(one) == names(two)
    for name in names(one):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_no_wall_clock_figure_is_in_it(tmp_path: Path) -> None:
    assert small_bundle.PLAN.solve_s > 0
    slow = msgspec.structs.replace  # the record's only clock
    manifest = read_manifest(build(tmp_path / "bundle"))
    assert manifest.plan.solve_s == 0
    assert slow(manifest, plan=slow(manifest.plan, solve_s=0.0)) == manifest


def test_the_manifest_lists_every_other_file_with_size_and_sha256(tmp_path: Path) -> None:
    bundle = build(tmp_path / "bundle")
    manifest = read_manifest(bundle)
    assert sorted([*manifest.files, "manifest.json"]) == names(bundle)
    for name, entry in manifest.files.items():
        data = (bundle / name).read_bytes()
        assert (entry.size_bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert verify(bundle) == []


def test_a_slice_says_all_that_its_device_needs(tmp_path: Path) -> None:
    bundle = build(tmp_path / "bundle")
    manifest, pi = read_manifest(bundle), read_slice(bundle, "pi")
    assert (pi.bundle, pi.head, pi.device) == (manifest.bundle, "laptop", "pi")
    assert pi.program == small_bundle.PROGRAMS["pi"] == manifest.programs["pi"]
    assert set(pi.devices) == {"laptop", "pi"}
    assert (pi.graph.input_ids, pi.graph.position_ids, pi.graph.logits) == (0, 1, 5)
    assert write_programs(pi.graph, pi.stages, pi.transmissions) == manifest.programs  # any device can
    assert pi.max_payload_bytes == 16 * 32 * 4  # a chunk of hidden states
    assert [b.id for b in pi.blocks] == [1, 2]
    assert [p.name for p in pi.blocks[0].params] == ["w.data", "w.scales", "norm.data"]
    assert pi.blocks[0].params[0].shape == (10, 1, 4, 4, 4)
    assert [c.shape for c in pi.blocks[0].caches] == [(1, 64, 16)] * 2
    folder = bundle / "devices" / "pi"
    assert sorted([*pi.files, "slice.json"]) == names(folder)
    assert {pi.library, pi.runtime_library, *(b.file for b in pi.blocks)} == set(pi.files)


@pytest.mark.parametrize("by_row", [False, True])
def test_the_runtime_reads_what_was_written(tmp_path: Path, by_row: bool) -> None:
    bundle = build(tmp_path / "bundle")
    alone = shutil.copytree(bundle / "devices" / "pi", tmp_path / "copied")
    for place in (find(bundle, "pi"), find(alone, None)):
        assert place.device == "pi"
        verified_bytes(place, place.record.library)
        for block in place.record.blocks:
            source = Source(place.folder / block.file, entry_of(place, block.file), block.params)
            file = open_file(place, block.file)
            if by_row:
                arrays = Table(file, source, True, int).arrays
            else:
                into = reserve(source.entry.size_bytes, huge=True)
                arrays = read_weights(file, source, into, True, int)
            assert [array.shape for array in arrays] == [param.shape for param in block.params]
            assert (arrays[2] == 1).all()  # the norm, drawn as ones
    assert find(bundle, None).device == "laptop"


def test_the_tokenizer_is_on_the_head_alone(tmp_path: Path) -> None:
    bundle = build(tmp_path / "bundle")
    assert "tokenizer/tokenizer.json" in read_slice(bundle, "laptop").files
    assert not any("tokenizer" in name for name in read_slice(bundle, "pi").files)


def test_a_block_is_packed_once_for_equal_layouts(tmp_path: Path) -> None:
    packed: list[int] = []

    def pack(path, lowered, template, block, progress, cuts):  # type: ignore[no-untyped-def]
        packed.append(block.id)
        return small_bundle.pack(path, lowered, template, block, progress, cuts)

    bundle = build(tmp_path / "bundle", **small_bundle.with_spares(), pack=pack)
    assert sorted(packed) == [0, 1, 1, 2, 3]  # block 1 for each of two processors
    one, two = (bundle / f"devices/{d}/weights/block-001.safetensors" for d in ("pi", "phone"))
    assert one.read_bytes() == two.read_bytes()
    assert os.stat(one).st_ino == os.stat(two).st_ino
    assert verify(bundle) == []


def test_a_device_that_holds_spares_alone_has_a_slice_and_nothing_to_do(tmp_path: Path) -> None:
    bundle = build(tmp_path / "bundle", **small_bundle.with_spares())
    phone, manifest = read_slice(bundle, "phone"), read_manifest(bundle)
    assert phone.program == schema.DeviceProgram(device="phone", epoch=0, instructions=())
    assert [block.id for block in phone.blocks] == [1, 2]
    assert manifest.plan.spares == {"laptop": (1,), "phone": (1, 2)}
    assert "phone" in manifest.plan.unused
    assert (bundle / "deploy/run-phone.sh").is_file()
    assert manifest.envelope == phone.envelope == read_slice(bundle, "laptop").envelope
    held = {name: [b.id for b in device.blocks] for name, device in manifest.envelope.devices.items()}
    assert held == {"laptop": [0, 1, 3], "phone": [1, 2], "pi": [1, 2]}
    assert phone.devices["phone"].peak_bytes == 5 << 20
    assert [b.id for b in read_slice(bundle, "laptop").blocks] == [0, 1, 3]


def test_the_problem_that_chose_the_spares_is_kept(tmp_path: Path) -> None:
    changes = small_bundle.with_spares()
    changes["plan"] = replace(changes["plan"], spare_problem="NAME spares\nENDATA\n")
    assert (build(tmp_path / "one", **changes) / "spares.mps").read_text() == "NAME spares\nENDATA\n"
    assert not (build(tmp_path / "two") / "spares.mps").exists()


@pytest.mark.parametrize("short", [0, 1])
def test_a_slice_that_its_disk_has_no_room_for_is_refused(tmp_path: Path, short: int) -> None:
    """Libraries are compiled after the plan is made: what they take is known here."""
    whole = build(tmp_path / "whole")
    size = sum(path.stat().st_size for path in (whole / "devices/pi").rglob("*") if path.is_file())
    devices = tuple(replace(d, disk_bytes=size - short) if d.name == "pi" else d for d in CLUSTER.devices)
    if not short:
        assert verify(build(tmp_path / "bundle", cluster=replace(CLUSTER, devices=devices))) == []
        return
    with pytest.raises(CompileError) as caught:
        build(tmp_path / "bundle", cluster=replace(CLUSTER, devices=devices))
    assert (caught.value.code, caught.value.exit_code) == ("B105", 2)
    assert (
        f"the slice of pi has {size} bytes, disk_bytes in devices.json is {size - 1}" in caught.value.message
    )
    assert not (tmp_path / "bundle").exists()


def test_links_fall_back_to_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    linked = build(tmp_path / "one", **small_bundle.with_spares())
    monkeypatch.setattr(os, "link", refuse)
    copied = build(tmp_path / "two", **small_bundle.with_spares())
    assert os.stat(copied / "devices/phone/weights/block-001.safetensors").st_nlink == 1
    assert (linked / "manifest.json").read_bytes() == (copied / "manifest.json").read_bytes()


def test_progress_reaches_the_total_exactly(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    build(tmp_path / "bundle", progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (4 * 40 * 32 + 2 * 32,) * 2


def test_identity_follows_the_content(tmp_path: Path) -> None:
    def pack_other(path, lowered, template, block, progress, cuts):  # type: ignore[no-untyped-def]
        return small_bundle.write_block(path, lowered, template, block, small_bundle.WEIGHTS, seed=2)

    first = read_manifest(build(tmp_path / "one")).bundle
    assert read_manifest(build(tmp_path / "two", pack=pack_other)).bundle != first
    programs = {
        **small_bundle.PROGRAMS,
        "pi": msgspec.structs.replace(small_bundle.PROGRAMS["pi"], epoch=1),
    }
    assert read_manifest(build(tmp_path / "three", programs=programs)).bundle != first


class Tags(HTMLParser):
    """Collects tags; checks that each one is closed."""

    VOID = ("meta", "rect", "!doctype")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_report_is_well_formed_escaped_and_self_contained(tmp_path: Path) -> None:
    text = (build(tmp_path / "bundle") / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.seen.count("svg") == 2
    assert not {"script", "link", "img"} & set(tags.seen)
    assert "tiny &lt;model&gt;" in text
    assert "its link adds &lt;9 ms&gt; a token &amp; saves 2 ms" in text
    for needed in ("laptop", "pi", "h0", "h2", "sequential", "2 × t1", "128 B", "problem.mps"):
        assert needed in text


def test_start_scripts_find_the_slice_and_say_what_is_missing(tmp_path: Path) -> None:
    bundle = build(tmp_path / "bundle")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "llrun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tools / "llrun").chmod(0o755)
    path = f"{tools}:/usr/bin:/bin"

    def run(*arguments: str, path: str = path) -> subprocess.CompletedProcess[str]:
        script = bundle / "deploy" / "run-pi.sh"
        return subprocess.run([script, *arguments], env={"PATH": path}, capture_output=True, text=True)

    assert Path(run().stdout.strip()).samefile(bundle / "devices" / "pi")
    given = run(str(bundle / "devices" / "pi"), "--verbose")
    assert given.stdout.split() == [str(bundle / "devices" / "pi"), "--verbose"]
    wrong = run(str(tmp_path))
    assert (wrong.returncode, "has no slice.json" in wrong.stderr) == (2, True)
    missing = run(path="/usr/bin:/bin")
    assert (missing.returncode, "not installed" in missing.stderr) == (2, True)


def test_service_units_are_for_workers(tmp_path: Path) -> None:
    bundle = build(tmp_path / "bundle")
    unit = (bundle / "deploy" / "llrun-pi.service").read_text()
    assert "ExecStart=/opt/llrun/venv/bin/llrun /opt/llrun/pi\n" in unit
    assert f"MemoryMax={1 << 30}\n" in unit
