"""The web page: its files, which are the same for everybody, with headers that let nothing else in."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

INDEX = "index.html"
KINDS = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
NAMES = (
    INDEX,
    "chat.js",
    "cluster.js",
    "dom.js",
    "icon.svg",
    "main.js",
    "net.js",
    "page.css",
    "text.js",
)
PATHS = ("/", *(f"/page/{name}" for name in NAMES))  # without the key: they say nothing of the model
# No script, style or picture of anybody else, none within the page, no other place to send anything to, no frame.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def routes() -> list[Route]:
    """The page's paths. Its files are read now."""
    folder = files("llrun.faces") / "page"
    texts = {name: (folder / name).read_bytes() for name in NAMES}

    async def index(_: Request) -> Response:
        return _file(INDEX, texts[INDEX])

    async def one(request: Request) -> Response:
        name = request.url.path.removeprefix("/page/")
        return _file(name, texts[name])

    return [
        Route("/", index, methods=["GET"]),
        *(Route(f"/page/{name}", one, methods=["GET"]) for name in NAMES),
    ]


def _file(name: str, content: bytes) -> Response:
    return Response(content, headers={**HEADERS, "content-type": KINDS[name.rpartition(".")[2]]})
