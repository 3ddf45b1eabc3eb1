"""The page's files: whole, strict in their headers, of nobody else's, and without a way for markup to get in."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
from served_here import serving

from llrun.faces.server import page

FOLDER = Path(str(files("llrun.faces") / "page"))
SCRIPTS = sorted(FOLDER.glob("*.js"))


@pytest.fixture(scope="module")
def server():
    with serving(api_key="secret") as running:
        yield running


def test_every_file_is_served_and_no_other(server):
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(page.NAMES)
    for path in page.PATHS:
        assert server.get(path).status_code == 200  # without the key
    for path in ("/page/", "/page/none.js", "/page/../page.py", "/page/%2e%2e/page.py", "/page"):
        assert server.get(path).status_code in (401, 404)


def test_headers_let_nothing_else_in(server):
    for path in page.PATHS:
        headers = server.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    assert server.get("/").headers["content-type"].startswith("text/html")
    assert server.get("/page/main.js").headers["content-type"].startswith("text/javascript")
    assert server.post("/", {}).status_code == 405


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_make_no_markup_of_text_and_ask_nobody_else(path):
    text = path.read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(",
                 "Function(", "srcdoc", "createContextualFragment", "localStorage", "importScripts"):  # fmt: skip
        assert word not in text, word
    assert not re.search(r"https?://|//[a-z]+\.", text)
    assert len(text.splitlines()) <= 400


def test_the_page_holds_no_code_and_names_nobody_else():
    text = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|https?://", text)
    assert 'lang="en"' in text
    assert "width=device-width" in text
    assert re.findall(r'(?:src|href)="([^#"]+)"', text) == [
        "page/icon.svg", "page/page.css", "page/main.js", "page/icon.svg"
    ]  # fmt: skip


def test_what_is_shown_has_a_name():
    """Each field is labelled; each place that scripts look for is there."""
    text = (FOLDER / "index.html").read_text()
    ids = re.findall(r'\bid="([\w-]+)"', text)
    assert len(ids) == len(set(ids))
    wanted = {name for path in SCRIPTS for name in re.findall(r'byId\("([\w-]+)"\)', path.read_text())}
    assert wanted <= set(ids)
    fields = re.findall(r'<(?:input|textarea) id="([\w-]+)"', text)
    labelled = set(re.findall(r'<label for="([\w-]+)"', text))
    labelled |= set(re.findall(r'<label[^>]*>[^<]*<(?:input|textarea) id="([\w-]+)"', text))
    assert set(fields) <= labelled
    assert len(fields) == 5
