"""`verify` finds every kind of damage, and says where."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llcompile.bundle import read_manifest, verify
from llcompile.bundle.records import identity
from llcompile.ir.errors import CompileError
from llrun import schema
from tests.unit.bundle.small_bundle import build

LISTED = [
    "deploy/README.md",
    "deploy/run-pi.sh",
    "devices/laptop/lib/libtvm_runtime.so",
    "devices/laptop/lib/model.so",
    "devices/laptop/slice.json",
    "devices/laptop/tokenizer/tokenizer.json",
    "devices/pi/weights/block-001.safetensors",
    "problem.mps",
    "report.html",
    "tokenizer/tokenizer.json",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("made") / "bundle")


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_a_flipped_byte_in_any_file(bundle: Path, name: str, where: float) -> None:
    flip(bundle / name, int(where * (bundle / name).stat().st_size))
    (violation,) = verify(bundle)
    assert violation.startswith(f"{name}: sha256 is ")


@pytest.mark.parametrize("where", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_flipped_byte_in_the_manifest(bundle: Path, where: float) -> None:
    path = bundle / "manifest.json"
    flip(path, int(where * path.stat().st_size))
    (violation,) = verify(bundle)
    assert "manifest.json is damaged" in violation
    with pytest.raises(CompileError) as caught:
        read_manifest(bundle)
    assert (caught.value.code, caught.value.exit_code) == ("B121", 2)


@pytest.mark.parametrize("name", LISTED)
def test_a_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert verify(bundle) == [f"{name}: missing"]


def test_a_missing_manifest_and_a_missing_bundle(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    (violation,) = verify(bundle)
    assert "is not a bundle: cannot read" in violation
    assert "manifest.json: No such file" in violation
    (violation,) = verify(bundle / "nowhere")
    assert "is not a bundle" in violation


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"\xff\xfe", f'{{"schema": {schema.SCHEMA}}}'.encode(), b"[" * 100_000, b"\0" * 64],
)
def test_a_manifest_that_is_something_else(bundle: Path, text: bytes) -> None:
    (bundle / "manifest.json").write_bytes(text)
    (violation,) = verify(bundle)
    assert "manifest.json is damaged" in violation


def test_a_manifest_that_is_no_plain_file_or_far_too_large(bundle: Path, made: Path) -> None:
    path = bundle / "manifest.json"
    path.unlink()
    os.mkfifo(path)  # reading it would wait for ever
    assert "is a pipe, not a plain file" in verify(bundle)[0]
    path.unlink()
    path.symlink_to(made / "manifest.json")
    assert "is a symbolic link, not a plain file" in verify(bundle)[0]
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    assert f"has {1 << 40} bytes, more than" in verify(bundle)[0]


@pytest.mark.parametrize("name", LISTED)
def test_a_truncated_and_a_lengthened_file(bundle: Path, name: str) -> None:
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[:-1])
    assert verify(bundle) == [f"{name}: {len(data) - 1} bytes, the manifest says {len(data)}"]
    (bundle / name).write_bytes(data + b"\n")
    assert verify(bundle) == [f"{name}: {len(data) + 1} bytes, the manifest says {len(data)}"]


def test_files_that_the_manifest_does_not_know(bundle: Path) -> None:
    (bundle / "extra.txt").write_text("x")
    (bundle / "devices/pi/lib/evil.so").write_text("x")
    (bundle / "devices/linked").symlink_to("pi")
    assert verify(bundle) == [
        "devices/linked: not in the manifest",
        "devices/pi/lib/evil.so: not in the manifest",
        "extra.txt: not in the manifest",
    ]


def test_symbolic_links_even_to_equal_content(bundle: Path, made: Path) -> None:
    (bundle / "problem.mps").unlink()
    (bundle / "problem.mps").symlink_to(made / "problem.mps")
    assert verify(bundle) == ["problem.mps: is a symbolic link, not a plain file"]


def test_a_folder_that_is_a_symbolic_link(bundle: Path, made: Path) -> None:
    shutil.rmtree(bundle / "deploy")
    (bundle / "deploy").symlink_to(made / "deploy")
    violations = verify(bundle)
    assert "deploy: not in the manifest" in violations
    assert "deploy/run-pi.sh: deploy is a symbolic link, not a folder" in violations


def test_a_folder_in_place_of_a_file(bundle: Path) -> None:
    (bundle / "problem.mps").unlink()
    (bundle / "problem.mps").mkdir()
    assert verify(bundle) == ["problem.mps: is a folder, not a plain file"]


def test_all_violations_at_once(bundle: Path) -> None:
    (bundle / "report.html").unlink()
    flip(bundle / "problem.mps", 3)
    (bundle / "extra").write_text("")
    assert [v.split(":")[0] for v in verify(bundle)] == ["extra", "problem.mps", "report.html"]


# --- bundles whose digests are right and whose content is not: made by hand, not by accident
# ---------------------


def reseal(bundle: Path, manifest: schema.Manifest) -> None:
    (bundle / "manifest.json").write_bytes(schema.encode(manifest))


def replace_slice(bundle: Path, device: str, /, **changes: object) -> None:
    """Put an edited slice in place, with a manifest that vouches for it."""
    path = bundle / "devices" / device / "slice.json"
    record = msgspec.structs.replace(schema.decode(path.read_bytes(), schema.Slice), **changes)
    text = schema.encode(record)
    path.write_bytes(text)
    manifest = read_manifest(bundle)
    entry = schema.FileEntry(size_bytes=len(text), sha256=hashlib.sha256(text).hexdigest())
    files = {**manifest.files, f"devices/{device}/slice.json": entry}
    reseal(bundle, msgspec.structs.replace(manifest, files=files))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "is outside its folder"),
        ("../secret", "is outside its folder"),
        ("deploy/../../secret", "is outside its folder"),
        ("./problem.mps", "is not written as a path is"),
        ("a//b", "is not written as a path is"),
        ("", "is not written as a path is"),
        ("a\0b", "cannot be printed"),
        ("\x1b[2J", "cannot be printed"),
        ("a" * 300, "is longer than"),
        ("a/" * 600 + "b", "is longer than"),
    ],
)
def test_names_that_leave_the_bundle(bundle: Path, name: str, reason: str) -> None:
    (bundle.parent / "secret").write_text("x")
    manifest = read_manifest(bundle)
    entry = schema.FileEntry(size_bytes=1, sha256="0" * 64)
    reseal(bundle, msgspec.structs.replace(manifest, files={**manifest.files, name: entry}))
    (violation,) = verify(bundle)
    assert reason in violation
    assert violation.isprintable()


def test_a_slice_of_another_bundle(bundle: Path) -> None:
    replace_slice(bundle, "pi", bundle="f" * 64)
    assert verify(bundle) == ["devices/pi/slice.json: bundle differs from the manifest"]


@pytest.mark.parametrize(("field", "value"), [("device", "phone"), ("head", "pi"), ("files", {})])
def test_a_slice_that_contradicts_the_manifest(bundle: Path, field: str, value: object) -> None:
    replace_slice(bundle, "pi", **{field: value})
    assert f"devices/pi/slice.json: {field} differs from the manifest" in verify(bundle)


def test_a_slice_whose_library_is_not_among_its_files(bundle: Path) -> None:
    replace_slice(bundle, "pi", library="../../evil.so")
    assert verify(bundle) == ["devices/pi/slice.json: '../../evil.so' is not among its files"]


def test_a_slice_without_a_block_that_its_program_loads(bundle: Path) -> None:
    replace_slice(bundle, "pi", blocks=())
    said = [
        "the envelope's blocks of pi are not those of its slice",
        "its blocks are not those of the plan's stages, divisions and spares",
        "its program loads block 1, which it lacks",
    ]
    assert verify(bundle) == [f"devices/pi/slice.json: {fault}" for fault in said]


def test_a_slice_with_another_envelope(bundle: Path) -> None:
    record = schema.decode((bundle / "devices/pi/slice.json").read_bytes(), schema.Slice)
    pi = msgspec.structs.replace(record.envelope.devices["pi"], standby=True)
    other = msgspec.structs.replace(record.envelope, devices={**record.envelope.devices, "pi": pi})
    replace_slice(bundle, "pi", envelope=other)
    assert verify(bundle) == ["devices/pi/slice.json: envelope differs from the manifest"]


def test_spares_that_the_slices_do_not_have(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    claimed = msgspec.structs.replace(manifest.plan, spares={"laptop": (2,)})
    reseal(bundle, msgspec.structs.replace(manifest, plan=claimed))
    said = "devices/laptop/slice.json: its blocks are not those of the plan's stages, divisions and spares"
    assert said in verify(bundle)


def test_a_slice_with_another_map_than_the_plan_s(bundle: Path) -> None:
    replace_slice(bundle, "pi", transmissions=())
    assert verify(bundle) == [
        "devices/pi/slice.json: stages or transmissions differ from the manifest's plan"
    ]


def test_a_slice_that_is_no_slice(bundle: Path) -> None:
    replace_slice(bundle, "pi", schema=1)
    assert verify(bundle)[0].startswith(
        f"devices/pi/slice.json: it has schema 1, this version reads schema {schema.SCHEMA}"
    )


def test_a_device_without_a_slice(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    shutil.rmtree(bundle / "devices/pi")
    files = {n: e for n, e in manifest.files.items() if not n.startswith("devices/pi/")}
    reseal(bundle, msgspec.structs.replace(manifest, files=files))
    assert verify(bundle) == ["manifest.json: device pi has no slice"]


def test_an_identity_that_is_not_the_content_s(bundle: Path) -> None:
    """Devices that agree on the identity agree on everything: no slice can be edited alone."""
    record = schema.decode((bundle / "devices/pi/slice.json").read_bytes(), schema.Slice)
    replace_slice(bundle, "pi", max_payload_bytes=record.max_payload_bytes + 1)
    (violation,) = verify(bundle)
    assert "is not that of its content" in violation


def test_the_identity_is_reproduced_from_the_records(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    slices = [
        schema.decode((bundle / "devices" / name / "slice.json").read_bytes(), schema.Slice)
        for name in ("pi", "laptop")
    ]
    assert identity(manifest, slices) == manifest.bundle


VALUES: list[Any] = [
    0,
    -1,
    2**60,
    "",
    "../x",
    "a\0b",
    "\x1b]0;x\x07",
    "x" * 2000,
    [],
    {},
    None,
    True,
    ["../x"],
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def test_absurd_values_anywhere_in_the_manifest_are_violations(bundle: Path) -> None:
    """With the digest made right; from a fixed seed. Words, never a traceback."""
    plain = msgspec.to_builtins(read_manifest(bundle))
    everywhere = [place for place in places(plain)[1:] if place != ("digest",)]
    draw, checked = random.Random(5), 0
    for _ in range(450):
        changed = msgspec.json.decode(msgspec.json.encode(plain))
        *path, last = draw.choice(everywhere)
        inner = changed
        for key in path:
            inner = inner[key]
        inner[last] = draw.choice(VALUES)
        try:
            manifest = msgspec.convert(changed, schema.Manifest)
        except msgspec.ValidationError:
            continue
        checked += 1
        reseal(bundle, manifest)
        violations = verify(bundle)
        assert violations or manifest == msgspec.convert(plain, schema.Manifest)
        assert all(violation.isprintable() for violation in violations)
    assert checked > 50
