"""An answer over HTTP: one JSON object, or server-sent events, given up when the client goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llrun.errors import RunError
from llrun.faces.server.choices import Answers, Event
from llrun.faces.server.faults import ApiError, of_run_error
from llrun.faces.server.objects import Head, Object, Whole, usage

DONE = b"data: [DONE]\n\n"
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # proxies are not to wait for more
]


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def error_response(error: ApiError) -> Response:
    return json_response(error.body, error.status, error.headers)


class Answering:
    """The response to one request, as an ASGI application. `choices`: how many answers there are.

    A stream's status is sent with its first event: what is refused before that has a status of its own. Later an error
    is an event, and the last. Every other stream ends in `[DONE]`.
    """

    def __init__(self, answers: Answers, head: Head, choices: int, stream: bool, with_usage: bool) -> None:
        self._answers = answers
        self._head = head
        self._choices = choices
        self._stream = stream
        self._with_usage = with_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._answers.begin()
        except RunError as error:
            await error_response(of_run_error(error))(scope, receive, send)
            return
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        async with self._given_up_when_gone(receive) as gone:
            if self._stream:
                await self._send_events(scope, receive, send, gone)
            else:
                await self._send_whole(scope, receive, send, gone)

    @asynccontextmanager
    async def _given_up_when_gone(self, receive: Receive) -> AsyncIterator[asyncio.Event]:
        """What is set when the client has gone; the answers are cancelled then, and however the body ends."""
        gone = asyncio.Event()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            self._answers.cancel()

        watching = asyncio.create_task(watch())
        try:
            yield gone
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            self._answers.cancel()

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send, gone: asyncio.Event) -> None:
        wholes = [Whole(index) for index in range(self._choices)]
        try:
            async for event in self._answers.events():
                wholes[event.index].add(event)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        if not gone.is_set():
            choices = [whole.object(self._head) for whole in wholes]
            await json_response(self._head.whole(choices, self._usage()))(scope, receive, send)

    async def _send_events(self, scope: Scope, receive: Receive, send: Send, gone: asyncio.Event) -> None:
        begun: set[int] = set()
        try:
            async for event in self._answers.events():
                if not begun:
                    await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
                await _send_body(send, b"".join(map(_event, self._chunks(event, begun))))
                begun.add(event.index)
        except ApiError as error:
            if begun:
                await _send_body(send, _event(error.body), last=True)
            else:
                await error_response(error)(scope, receive, send)
            return
        if not gone.is_set():
            end = _event(self._head.usage_chunk(self._usage())) if self._with_usage else b""
            await _send_body(send, end + DONE, last=True)

    def _chunks(self, event: Event, begun: set[int]) -> list[Object]:
        first = self._head.kind.chat and event.index not in begun
        return [*([self._head.first_chunk(event.index)] if first else []), self._head.chunk(event)]

    def _usage(self) -> Object:
        return usage(self._answers.prompt_tokens, self._answers.tokens, self._answers.reused)


def _event(value: Object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def _send_body(send: Send, body: bytes, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not last})
