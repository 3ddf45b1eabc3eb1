"""Write constraints.txt: the versions, as installed here, of all that llcompile[dev] and llrun[head] need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OWN = frozenset({"llcompile", "llrun"})
TOOLS = ("pip", "setuptools")
HEADER = "# Written by `make lock`. What `make setup` installs, at the versions the tests ran with.\n"


def closure(roots: tuple[str, ...]) -> Iterator[str]:
    """Names of all distributions that `roots` (requirement strings) need here, themselves included."""
    pending, seen = [Requirement(root) for root in roots], set[tuple[str, str]]()
    while pending:
        wanted = pending.pop()
        name = canonicalize_name(wanted.name)
        for extra in wanted.extras | {""}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in distribution(name).requires or ():
                need = Requirement(text)
                if need.marker is None or need.marker.evaluate({"extra": extra}):
                    pending.append(need)
    yield from {name for name, _ in seen} - OWN


def main() -> int:
    names = sorted({*closure(("llcompile[dev]", "llrun[head]")), *TOOLS})
    # A local version (torch's +cpu) exists in one index only, and `==2.13.0` matches it.
    pins = (f"{name}=={distribution(name).version.split('+')[0]}\n" for name in names)
    path = Path(__file__).resolve().parent.parent / "constraints.txt"
    path.write_text(HEADER + "".join(pins))
    sys.stderr.write(f"lock: {len(names)} packages in {path.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
