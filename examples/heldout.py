# SPDX-License-Identifier: Apache-2.0
"""Which files of this machine's Python standard library the example model is trained and tested on.

The split depends on each file's relative path alone, so a file that was held out when the model was
trained is held out on any machine, whichever Python it has. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
HELDOUT_PERCENT = 3

# Third-party code, tables that are not prose or code (encodings, pydoc_data), and vendored wheels.
_SKIPPED_FOLDERS = frozenset({"site-packages", "encodings", "pydoc_data", "_bundled", "__pycache__"})
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})


def _stdlib_paths() -> list[tuple[str, Path]]:
    """Every candidate file as (relative posix path, absolute path), in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = ((path.relative_to(root), path) for path in root.rglob("*.py"))
    kept = [(rel.as_posix(), path) for rel, path in found if not _SKIPPED_FOLDERS.intersection(rel.parts)]
    return sorted(kept)


def _is_test(relative: str) -> bool:
    """True for the standard library's own tests."""
    return bool(_TEST_FOLDERS.intersection(relative.split("/")))


def _path_hash(relative: str) -> int:
    """A number in [0, 2**32) that depends on the relative path alone."""
    return int.from_bytes(hashlib.sha256(relative.encode()).digest()[:4], "big")


def _is_heldout(relative: str) -> bool:
    """True for the library files kept out of training; tests are never held out."""
    return not _is_test(relative) and _path_hash(relative) % 100 < HELDOUT_PERCENT


def _read(path: Path) -> str:
    """The file's text, or an empty string where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def _texts(paths: list[Path]) -> list[str]:
    """The non-empty texts of the files."""
    return [text for text in map(_read, paths) if text.strip()]


def library_texts() -> list[str]:
    """Training texts: one per library file, held-out files and tests left out."""
    return _texts([path for rel, path in _stdlib_paths() if not _is_test(rel) and not _is_heldout(rel)])


def stdlib_test_texts() -> list[str]:
    """Further training texts: one per file of the standard library's own tests."""
    return _texts([path for rel, path in _stdlib_paths() if _is_test(rel)])


def heldout_paths() -> list[str]:
    """Relative paths of the held-out files, in the order `heldout_text` takes them."""
    return sorted((rel for rel, _ in _stdlib_paths() if _is_heldout(rel)), key=_path_hash)


def heldout_text(max_bytes: int) -> str:
    """At most `max_bytes` UTF-8 bytes of held-out source, files separated by `END_OF_TEXT`.

    The text is cut at a character boundary; the separators count towards `max_bytes`.
    """
    paths = dict(_stdlib_paths())
    joined = END_OF_TEXT.join(_texts([paths[rel] for rel in heldout_paths()]))
    return joined.encode()[:max_bytes].decode(errors="ignore")
