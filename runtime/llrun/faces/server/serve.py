"""`llrun serve`: listen, load, answer until interrupted."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import uvicorn
from starlette.types import ASGIApp

from llrun.device.slice import StoredSlice
from llrun.errors import INTERNAL, RunError
from llrun.faces.console import Console
from llrun.faces.server.app import Served, make_app
from llrun.faces.server.crossing import check_origins
from llrun.faces.server.driver import Condition, Driver
from llrun.faces.server.notes import Notes
from llrun.faces.template_files import read_chat_template
from llrun.faces.tokenizer_files import read_tokenizer
from llrun.faces.where import Where, check_peers, session_on
from llrun.head.options import Balancing
from llrun.requests.tokenizer import NO_TOKENIZER
from llrun.wire.addresses import show_address, why_not_listening

SIGNALS = (signal.SIGINT, signal.SIGTERM)
END_S = 3  # for answers that are cut off to say so
BACKLOG = 128


@dataclass(frozen=True)
class Listening:
    """Where and for whom. `slots`: requests that run at once, None as many as the devices have room for; `queue`: those
    that may wait beside them; `origins`: of pages of other sites that may ask; `speculate`: whether tokens are
    guessed."""

    host: str
    port: int
    api_key: str | None
    slots: int | None
    queue: int
    origins: tuple[str, ...] = ()
    speculate: bool = True


def serve_http(
    stored: StoredSlice, where: Where, balancing: Balancing, listening: Listening, console: Console
) -> None:
    """Serve until Ctrl-C or SIGTERM, which raise KeyboardInterrupt here once everything has ended.

    Raises RunError for what is wrong with the bundle or the address, before anything is started, and what ended the
    devices' session.
    """
    check_peers(stored, where.peers)
    check_origins(listening.origins)
    tokenizer = read_tokenizer(stored)
    if tokenizer is None:
        raise RunError(NO_TOKENIZER, "this bundle has no tokenizer, and a server answers in text")
    template = read_chat_template(stored)
    with listening_socket(listening.host, listening.port) as sock, template or nullcontext():
        if template:
            template.check()
        ending, notes = Ending(), Notes(console)
        serving = replace(where, serves=f"http://{show_address(sock.getsockname())}")
        driver = Driver(
            lambda: session_on(stored, serving, notes, balancing),
            listening.slots,
            listening.queue,
            lambda: told(),
            listening.speculate,
        )

        def told() -> None:
            if driver.condition is Condition.ENDED:
                ending.end()
            else:
                console.note(f"{stored.record.model.name}: ready")

        served = Served(
            driver, tokenizer, stored.record.model, template, int(time.time()), stored.record, notes
        )
        console.note(f"listening on {serving.serves}; the model is being loaded")
        asyncio.run(
            run(make_app(served, listening.api_key, listening.origins), sock, driver, ending, SIGNALS)
        )
    if driver.error:
        raise driver.error
    if not ending.asked:
        raise RunError("R501", "the devices' session ended by a fault of llrun", INTERNAL)
    raise KeyboardInterrupt


class Ending:
    """How the server is asked to end: by a signal, or as the session has. From any thread."""

    def __init__(self) -> None:
        self.asked = False
        self._server: uvicorn.Server | None = None
        self._ended = False

    def attach(self, server: uvicorn.Server) -> None:
        self._server = server
        server.should_exit = self._ended

    def end(self) -> None:
        self._ended = True
        if self._server:
            self._server.should_exit = True

    def ask(self) -> None:
        """Someone wants it to end."""
        self.asked = True
        self.end()


class _Server(uvicorn.Server):
    """Signals are not its own, and answers under way end when it does."""

    def __init__(self, config: uvicorn.Config, driver: Driver) -> None:
        super().__init__(config)
        self._driver = driver

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping = asyncio.create_task(asyncio.to_thread(self._driver.stop))
        await super().shutdown(sockets)
        await stopping


async def run(
    app: ASGIApp,
    sock: socket.socket,
    driver: Driver,
    ending: Ending,
    signals: tuple[signal.Signals, ...] = (),
) -> None:
    """Serve `app` at `sock`, with the driver's session, until `ending` or one of `signals`."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=END_S,
    )
    server = _Server(config, driver)
    ending.attach(server)
    for number in signals:
        asyncio.get_running_loop().add_signal_handler(number, ending.ask)
    driver.start()
    await server.serve([sock])


@contextmanager
def listening_socket(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens there. Raises RunError when none can."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, kind, protocol, _, end = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise why_not_listening(address, error) from error
    with sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(end)
            sock.listen(BACKLOG)
        except OSError as error:
            raise why_not_listening(address, error) from error
        yield sock
