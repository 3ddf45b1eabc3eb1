"""The cluster live: one object, or one after another as it changes, while somebody looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from llrun.faces.server.answering import STREAM_HEADERS, json_response
from llrun.faces.server.cluster import Object, Picture
from llrun.faces.server.driver import Condition, Driver, Reading
from llrun.faces.server.faults import OVERLOADED, ApiError
from llrun.faces.server.notes import Notes
from llrun.schema import Slice

EVERY_S = 0.5  # the session's thread is asked no more often, however many look
AGAIN_S = 5.0  # an object that has not changed is sent again after so long: the connection lives
READING_S = 5.0
MOST_WATCHERS = 32


@dataclass(frozen=True)
class Watched:
    """What is looked at. `chat`: whether the model has a chat template."""

    driver: Driver
    record: Slice
    notes: Notes
    chat: bool


class Live:
    """Looks at the cluster for all who watch: one look serves them all, and without one nothing is looked at."""

    def __init__(self, watched: Watched, now: Callable[[], float] = time.monotonic) -> None:
        self._watched = watched
        self._picture = Picture(watched.record, watched.chat)
        self._now = now
        self._looking = asyncio.Lock()
        self._number = 0
        self._text = b""
        self._taken_at = self._changed_at = float("-inf")
        self._content: Object = {}
        self._watchers = 0

    def routes(self) -> list[Route]:
        return [
            Route("/cluster", self.once, methods=["GET"]),
            Route("/cluster/events", self.events, methods=["GET"]),
        ]

    async def once(self, _: Request) -> Response:
        return json_response(await self._look(), headers={"cache-control": "no-store"})

    async def events(self, _: Request) -> Response:
        """Server-sent events. Raises ApiError where enough watch already."""
        if self._watchers >= MOST_WATCHERS:
            raise ApiError(503, f"{self._watchers} watch already", OVERLOADED, None, "too_many_watchers")
        headers = {name.decode(): value.decode() for name, value in STREAM_HEADERS}
        return StreamingResponse(self._stream(), headers=headers)

    async def _stream(self) -> AsyncIterator[bytes]:
        """Until the session has ended, which is told, or the watcher goes."""
        self._watchers += 1
        seen = 0
        try:
            while True:
                seen, text = await self._next(seen)
                yield b"data: " + text + b"\n\n"
                if self._watched.driver.condition is Condition.ENDED:
                    return
        finally:
            self._watchers -= 1

    async def _next(self, seen: int) -> tuple[int, bytes]:
        """An object that is newer than the one of number `seen`, as JSON."""
        while True:
            async with self._looking:
                if self._number != seen and self._text:
                    return self._number, self._text
                await asyncio.sleep(max(self._taken_at + EVERY_S - self._now(), 0.0))
                await self._take()

    async def _take(self) -> None:
        content = await self._look()
        self._taken_at = now = self._now()
        if _of_interest(content) != _of_interest(self._content) or now - self._changed_at >= AGAIN_S:
            self._number += 1
            self._changed_at, self._content = now, content
            self._text = msgspec.json.encode(content)

    async def _look(self) -> Object:
        reading = await self._reading()
        return self._picture.snapshot(self._watched.driver.condition, reading, self._watched.notes.told())

    async def _reading(self) -> Reading | None:
        """None while there is no session, when it ends meanwhile, or is busy for long."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._watched.driver.read()), READING_S)
        except (ApiError, TimeoutError):
            return None


def _of_interest(content: Object) -> Object:
    """Without the time at which it was looked at."""
    tokens = content.get("tokens")
    return {**content, "tokens": tokens["count"] if isinstance(tokens, dict) else None}
