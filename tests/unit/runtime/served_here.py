"""A server of the numpy model in this process, on a loopback port: its letters are the vocabulary."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import numpy_model
import small_tokenizers

from llrun.device.load import Device
from llrun.faces.console import Console
from llrun.faces.server.app import Served, make_app
from llrun.faces.server.driver import Driver
from llrun.faces.server.notes import Notes
from llrun.faces.server.serve import Ending, listening_socket, run
from llrun.head.options import Balancing
from llrun.head.session import Session
from llrun.requests.chat_template import ChatTemplate
from llrun.requests.tokenizer import Tokenizer
from llrun.wire.transport import Tcp

LETTERS = [chr(code) for code in range(32, 127)]  # ids 0 to 94; two more are texts of several letters
MORE = ["ab", "\n"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer(special: str | None = None) -> Tokenizer:
    """`special`: a letter that ends what somebody says."""
    vocabulary = {text: number for number, text in enumerate([*LETTERS, *MORE])}
    made = small_tokenizers.Tokenizer(small_tokenizers.models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    made.decoder = small_tokenizers.decoders.Sequence(
        [small_tokenizers.decoders.ByteFallback(), small_tokenizers.decoders.Fuse()]
    )
    if special:
        made.add_special_tokens([special])
    return Tokenizer("tokenizer.json", made.to_str().encode(), numpy_model.VOCABULARY)


def text_of(ids: Sequence[int]) -> str:
    return "".join([*LETTERS, *MORE][token] for token in ids)


def part(seconds_a_step: float = 0.0) -> Device:
    """The whole model on one device, of which each step takes so long at least."""

    def slow(*arguments):
        time.sleep(seconds_a_step)
        return numpy_model.mix(*arguments)

    return numpy_model.device("d0", ["d0"], numpy_model.library(t1=slow) if seconds_a_step else None)


@dataclass
class Server:
    url: str
    driver: Driver
    ending: Ending
    thread: threading.Thread

    def client(self, **settings: object) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=20, trust_env=False, **settings)

    def post(self, path: str, body: object, **settings: object) -> httpx2.Response:
        with self.client() as client:
            return client.post(path, json=body, **settings)

    def get(self, path: str, **settings: object) -> httpx2.Response:
        with self.client() as client:
            return client.get(path, **settings)

    def load(self) -> tuple[int, int]:
        """Requests that run, and that wait."""
        reading = self.driver.read().result(10)
        return reading.running, reading.waiting


@contextmanager
def serving(
    session: Session | None = None,
    *,
    slots: int | None = None,
    queue: int = 256,
    api_key: str | None = None,
    template: str | None = TEMPLATE,
    special: str | None = None,
    seconds_a_step: float = 0.0,
    origins: tuple[str, ...] = (),
    wait_for: str = "ready",
) -> Iterator[Server]:
    """A server, as soon as it is ready; it has ended, and its threads with it, after the `with`."""
    own = session or Session(part(seconds_a_step), Tcp(), {}, 20.0, balancing=Balancing("off"))
    with listening_socket("127.0.0.1", 0) as sock:
        chat = ChatTemplate("the template", {"default": template}) if template else None
        ending = Ending()
        driver = Driver(lambda: own, slots, queue, lambda: ending.end() if driver.ended else None)
        notes = Notes(Console(quiet=True))
        served = Served(
            driver, tokenizer(special), own.device.record.model, chat, 1, own.device.record, notes
        )
        app = make_app(served, api_key, origins)
        thread = threading.Thread(target=lambda: asyncio.run(run(app, sock, driver, ending)))
        thread.start()
        try:
            until = time.monotonic() + 20
            while driver.condition != wait_for and time.monotonic() < until:
                time.sleep(0.01)
            assert driver.condition == wait_for
            yield Server(f"http://127.0.0.1:{sock.getsockname()[1]}", driver, ending, thread)
        finally:
            ending.end()
            thread.join(20)
            if chat:
                chat.close()
        assert not thread.is_alive()
        assert not driver.alive
