"""Before any test module imports a library: importing the compiler switches their telemetry off."""

import llcompile  # noqa: F401
