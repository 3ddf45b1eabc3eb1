"""Pages of other sites: which of them may ask this server from a browser. Without a word none may."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from llrun.errors import USAGE, RunError

ANY = "*"
ORIGIN = re.compile(r"https?://[^\s/?#@*,]+", re.IGNORECASE)


def check_origins(origins: Sequence[str]) -> None:
    """Raises RunError R107 for what is no origin as browsers send them."""
    for origin in origins:
        if origin != ANY and not ORIGIN.fullmatch(origin):
            rule = "http:// or https:// with a host, and a port where it has one, or * for every site"
            raise RunError("R107", f"--cors takes an origin, {rule}; not {origin!r}", USAGE)


def crossed(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, where pages of these origins may ask: also what the key refuses, so that they can say why.

    Nothing of a browser's own is taken for a key: cookies are not asked for.
    """
    if not origins:
        return app
    own = [origin if origin == ANY else origin.lower() for origin in origins]
    return CORSMiddleware(app, allow_origins=own, allow_methods=["GET", "POST"], allow_headers=["*"])
