"""The page as people see it: chromium types, waits, stops and looks, at the width of a desk and of a phone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import numpy_model
import pytest
from browser import Page, browser, executable
from served_here import Server, serving, text_of

from llrun.faces.console import Console
from llrun.faces.server.notes import Notes
from llrun.requests.request import Request
from llrun.requests.sampling import Sampling

pytestmark = pytest.mark.skipif(
    executable() is None, reason="chromium is not installed (Debian: apt install chromium)"
)
DESK, PHONE = (1280, 900), (390, 844)
ENTER, ESCAPE, TAB = ("Enter", 13), ("Escape", 27), ("Tab", 9)
MARKUP = '<img src=x onerror="document.title=1"><b>bold</b>'
READY = "document.getElementById('condition').dataset.state === 'ready'"
DONE = "document.body.dataset.busy === 'false'"
ANSWER = "[...document.querySelectorAll('[data-role=assistant]')].at(-1)"
# What a reader of the page needs to tell text from what is behind it (WCAG 2.2, 1.4.3).
CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const found = rgba(getComputedStyle(each).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const poor = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest('.unseen, .skip, .numbers')) continue;
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push([element.tagName, element.textContent.trim()]);
  }
  return poor;
})()
"""
# Names of what can be worked with, and what has none.
NAMELESS = """
[...document.querySelectorAll('button, input, textarea, summary')].filter((each) => {
  const labels = [...(each.labels ?? [])].map((label) => label.textContent).join('');
  return !(each.textContent.trim() || labels.trim() || each.getAttribute('aria-label'));
}).map((each) => each.id)
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def page(shared) -> Iterator[Page]:
    """A page that nobody has used; nothing may have gone wrong in it."""
    shared.call("Page.navigate", url="about:blank")
    shared.events.clear()
    shared.scheme("light")
    yield shared
    assert shared.said("Runtime.exceptionThrown") == []


@pytest.fixture
def server(cluster) -> Iterator[Server]:
    with serving(cluster(["d0", "d1", "d2"]).session()) as running:
        yield running


def ask(page: Page, text: str) -> None:
    page.run("document.getElementById('message').focus()")
    page.type(text)
    page.press(*ENTER)


def greedy(prompt: str, count: int) -> str:
    return text_of(numpy_model.greedy([ord(letter) - 32 for letter in prompt], count))


def set_up(page: Page, server: Server, size: tuple[int, int] = DESK, tokens: int = 12) -> None:
    page.open(f"{server.url}/", *size)
    page.until(READY)
    page.run(
        f"document.getElementById('temperature').value = 0; document.getElementById('most').value = {tokens}"
    )


def test_an_answer_comes_and_the_cluster_is_seen(page, server):
    """Of a model without a template, whose continuation is known. Nothing is asked of anybody else."""
    with serving(template=None) as plain:
        set_up(page, plain)
        assert "continues your text" in page.run("document.getElementById('where').textContent")
        ask(page, "the cat sat")
        page.until(DONE)
        assert page.run(f"{ANSWER}.querySelector('.body').textContent") == greedy("the cat sat", 12)
        assert "12 tokens" in page.run(f"{ANSWER}.querySelector('.meta').textContent")
        assert page.run("document.getElementById('told').textContent").startswith("Answer ended.")
        asked = {each["request"]["url"] for each in page.said("Network.requestWillBeSent")}
    assert asked
    assert all(url.startswith((f"{plain.url}/", "about:")) for url in asked), asked
    assert not [entry for entry in page.said("Log.entryAdded") if entry["entry"]["level"] == "error"]


def test_a_conversation_sends_all_that_was_said(page, server):
    set_up(page, server)
    ask(page, "hello")
    page.until(DONE)
    ask(page, "more")
    page.until(f"{DONE} && document.querySelectorAll('[data-role=assistant]').length === 2")
    bodies = [json.loads(each["request"]["postData"]) for each in page.said("Network.requestWillBeSent")
              if each["request"]["method"] == "POST"]  # fmt: skip
    assert [message["role"] for message in bodies[1]["messages"]] == ["user", "assistant", "user"]
    assert bodies[1]["messages"][2]["content"] == "more"
    page.run("document.getElementById('fresh').click()")
    assert page.run("document.querySelectorAll('.said').length") == 0
    assert page.run("document.getElementById('welcome').checkVisibility()")


def test_the_cluster_is_seen_while_it_works(page, server):
    set_up(page, server, tokens=30)
    ask(page, "hello")
    page.until("document.querySelectorAll('#way .leg').length === 7")
    assert page.run("[...document.querySelectorAll('#way .leg:not(.hop) .what')].map((e) => e.firstChild.data)") == [
        "d0", "d1", "d2", "d0"
    ]  # fmt: skip
    assert page.run("[...document.querySelectorAll('.device h4')].map((e) => e.childNodes[1].data)") == [
        "d0",
        "d1",
        "d2",
    ]
    shown = page.run("document.getElementById('devices').textContent")
    assert "holds 0, 3–6 too" in shown
    assert "of 1.07 GB, planned 537 MB" in shown
    assert page.run("document.querySelectorAll('#links tr').length") >= 3
    assert page.run("document.querySelector('#map .strip').ariaLabel") == (
        "7 blocks: blocks 0 on d0; blocks 1–2 on d1; blocks 3–4 on d2; blocks 5–6 on d0"
    )


def test_markup_is_shown_as_text(page, server):
    set_up(page, server)
    ask(page, MARKUP)
    page.until(DONE)
    assert page.run("document.querySelector('[data-role=user] .body').textContent") == MARKUP
    assert page.run("document.querySelectorAll('#log img, #log b').length") == 0
    assert page.run("document.title") != "1"


def test_what_the_model_says_is_text_whatever_it_is(page, server):
    page.open(f"{server.url}/", *DESK)
    text = f"a {MARKUP}\n```py\n{MARKUP}\n```\nb"
    shown = page.run(
        "import('/page/text.js').then(({show}) => { const here = document.createElement('div');"
        f"show(here, {json.dumps(text)});"
        "return [...here.querySelectorAll('*')].map((e) => [e.tagName, e.textContent]) })"
    )
    assert shown == [["P", f"a {MARKUP}"], ["PRE", MARKUP], ["CODE", MARKUP], ["P", "b"]]


def test_stopping_keeps_what_came_and_frees_the_slot(page):
    with serving(seconds_a_step=0.05) as slow:
        set_up(page, slow, tokens=200)
        ask(page, "hello")
        page.until(f"{ANSWER}.querySelector('.body').textContent.length > 3")
        assert slow.load() == (1, 0)
        page.press(*ESCAPE)
        page.until(DONE)
        assert page.run(f"{ANSWER}.querySelector('.meta').textContent") == "Stopped."
        end = time.monotonic() + 10
        while slow.load() != (0, 0):
            assert time.monotonic() < end
        ask(page, "again")
        page.until("document.getElementById('stop').checkVisibility()")
        page.run("document.getElementById('stop').click()")
        page.until(DONE)


def test_a_refusal_is_told_and_is_no_part_of_the_conversation(page, server):
    set_up(page, server, tokens=400)
    ask(page, "hello")
    page.until(DONE)
    told = page.run(f"{ANSWER}.querySelector('[role=alert]').textContent")
    assert "256" in told
    page.run("document.getElementById('most').value = 5")
    ask(page, "less")
    page.until(f"{DONE} && {ANSWER}.querySelector('.meta').textContent.includes('5 tokens')")


def test_a_key_is_asked_for_until_it_is_right(page):
    with serving(api_key="secret") as locked:
        page.open(f"{locked.url}/", *PHONE)
        page.until("document.getElementById('ask-key').open")
        page.press(*ESCAPE)
        assert page.run("document.getElementById('ask-key').open")
        page.type("wrong")
        page.press(*ENTER)
        page.until("!document.getElementById('key-wrong').hidden && document.getElementById('ask-key').open")
        page.type("secret")
        page.press(*ENTER)
        page.until(READY)
        assert not page.run("document.getElementById('ask-key').open")
        page.run("document.getElementById('most').value = 5")
        ask(page, "hello")
        page.until(DONE)
        assert "5 tokens" in page.run(f"{ANSWER}.querySelector('.meta').textContent")
        assert page.run("localStorage.length") == 0


def test_a_loss_is_seen_as_it_happens(page, cluster):
    workers = cluster(["d0", "d1", "d2"])
    session = workers.session()
    with serving(session) as running:
        set_up(page, running)
        handle = running.driver.submit(
            Request([1, 2, 3], 250, Sampling(), lambda token: time.sleep(0.02) or True)
        )
        page.until("document.querySelectorAll('#way .leg').length === 7")
        session._cluster.controls.connection("d2").close()
        page.until("document.getElementById('moves').textContent === '1'")
        assert not page.run("document.querySelector('#map .strip').ariaLabel.includes('d2')")
        handle.cancel()


def test_what_happened_is_told_once(page, server):
    notes = Notes(Console(quiet=True))
    notes.note("device pi was lost: it is off")
    lines = [{"number": each.number, "at_s": each.at_s, "text": each.text} for each in notes.told().lines]
    set_up(page, server)
    now = server.get("/cluster").json() | {"events": lines}
    gone = now | {"devices": [*now["devices"][:2], now["devices"][2] | {"alive": False}]}
    shown = page.run(
        f"import('/page/cluster.js').then((it) => {{ {json.dumps([now, now, gone, gone])}.forEach(it.draw);"
        "return [...document.querySelectorAll('#events li')].map((e) => [e.dataset.kind, e.lastChild.textContent]) })"
    )
    assert shown == [
        ["lost", "device d2 is gone; it ran no blocks"],
        ["lost", "device pi was lost: it is off"],
    ]
    assert not page.run("document.getElementById('no-events').checkVisibility()")


def test_a_group_is_one_stage_of_several_and_another_bundle_takes_the_place_of_the_first(page, server):
    set_up(page, server)
    now = server.get("/cluster").json()
    spent = [{"device": name, "compute_s": 0.02, "wait_s": 0.01, "send_s": 0} for name in ("d0", "pi")]
    stages = [
        {"devices": ["d0", "pi"], "shares": [0.75, 0.25], "blocks": [0, 7], "window": 0, "all_reduce": "star"}
    ]
    legs = [{"kind": "stay", "blocks": [0, 7], "spent": spent}]
    devices = [now["devices"][0], now["devices"][1] | {"name": "pi", "alive": False}]
    now |= {"stages": stages, "devices": devices, "token": {"position": 3, "sequences": 2, "legs": legs}}
    shown = page.run(  # at once, for the server goes on telling what really is
        f"import('/page/cluster.js').then((it) => {{ it.draw({json.dumps(now)});"
        "const texts = (wanted) => [...document.querySelectorAll(wanted)].map((e) => e.textContent);"
        "return [document.querySelectorAll('#way .time').length, texts('#way small'), texts('#way-note'),"
        "texts('.legend li'), texts('.device h4'), texts('.device .state')] })"
    )
    bars, told, note, legend, devices, states = shown
    assert (bars, legend) == (2, ["d00–6 (75 %)", "pi0–6 (25 %)"])
    assert "sums by star" in told[0]
    assert "with those of 1 other request" in note[0]
    assert (devices, states) == (["d0head", "pi"], ["ready", "not there"])


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_and_fits(page, server, size, scheme):
    page.scheme(scheme)
    set_up(page, server, size)
    page.run("document.getElementById('settings').open = true")
    ask(page, "x" * 40 + " a text of many words " * 4)
    page.until(f"{DONE} && document.querySelectorAll('#way .leg').length === 7")
    for view in ("chat", "cluster"):
        page.run(f"document.getElementById('view-{view}').click()")
        assert page.run(CONTRAST) == []
        assert page.run("document.documentElement.scrollWidth") <= size[0]
    assert page.run(NAMELESS) == []
    both = page.run("['chat', 'cluster'].map((name) => document.querySelector(`.${name}`).checkVisibility())")
    assert both == ([True, True] if size == DESK else [False, True])


def test_it_can_be_used_with_keys_alone(page, server):
    set_up(page, server)
    found = []
    page.run("document.activeElement.blur()")
    for _ in range(8):
        page.press(*TAB)
        found.append(
            page.run(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
    assert found[0] == "skip"
    assert found.index("log") < found.index("message") < found.index("send") < found.index("fresh")
    page.run("document.getElementById('message').focus()")
    page.type("one")
    page.press(*ENTER, modifiers=8)
    page.type("two")
    page.press(*ENTER)
    page.until(DONE)
    assert page.run("document.querySelector('[data-role=user] .body').textContent") == "one\ntwo"


def test_a_server_that_is_gone_is_told(page):
    with serving() as running:
        set_up(page, running)
    page.until("['gone', 'ended'].includes(document.getElementById('condition').dataset.state)")
    ask(page, "hello")
    page.until(f"{DONE} && !!{ANSWER}.querySelector('[role=alert]')")
    assert "cannot be reached" in page.run(f"{ANSWER}.querySelector('[role=alert]').textContent")
