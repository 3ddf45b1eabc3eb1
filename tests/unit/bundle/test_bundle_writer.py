"""What a bundle holds, and that it is the same every time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from llcompile.bundle import read_manifest, verify
from llrun import schema
from llrun.device.slice import entry_of, find, open_file, verified_bytes
from llrun.device.table import Table
from llrun.device.weights import Source, read_weights
from llrun.memory import reserve
from llrun.programs.write import write_programs
from tests.unit.bundle import small_bundle
from tests.unit.bundle.small_bundle import build


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

    def pack(path, lowered, template, block, progress):  # type: ignore[no-untyped-def]
        packed.append(block.id)
        return small_bundle.pack(path, lowered, template, block, progress)

    bundle = build(tmp_path / "bundle", programs=small_bundle.programs_with_twin(), pack=pack)
    assert sorted(packed) == [0, 1, 2, 3]
    one, two = (bundle / f"devices/{d}/weights/block-001.safetensors" for d in ("pi", "phone"))
    assert one.read_bytes() == two.read_bytes()
    assert os.stat(one).st_ino == os.stat(two).st_ino
    assert verify(bundle) == []


def test_links_fall_back_to_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    linked = build(tmp_path / "one", programs=small_bundle.programs_with_twin())
    monkeypatch.setattr(os, "link", refuse)
    copied = build(tmp_path / "two", programs=small_bundle.programs_with_twin())
    assert os.stat(copied / "devices/phone/weights/block-001.safetensors").st_nlink == 1
    assert (linked / "manifest.json").read_bytes() == (copied / "manifest.json").read_bytes()


def test_progress_reaches_the_total_exactly(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    build(tmp_path / "bundle", progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (4 * 40 * 32 + 2 * 32,) * 2


def test_identity_follows_the_content(tmp_path: Path) -> None:
    def pack_other(path, lowered, template, block, progress):  # type: ignore[no-untyped-def]
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
