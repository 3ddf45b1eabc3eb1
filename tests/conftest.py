"""Before any test module imports a library: importing the compiler switches their telemetry off.

What the tests compile is kept in the folder of pytest's own cache: two of them that build the same compile once.
"""

import os
from pathlib import Path

import llcompile  # noqa: F401

os.environ.setdefault("LLC_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "libraries"))
