"""Many clients of an OpenAI-style server at once: each streams an answer, some leave before its end.

On plain sockets of one event loop, so that a hundred of them take little of the processors that the server runs on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Ask:
    """A request. `leave_after`: events with text after which the client goes without a word, None to the end."""

    path: str
    body: Mapping[str, Any]
    leave_after: int | None = None


@dataclass
class Answer:
    """What came. `status` 0 where the connection failed. `whole`: the stream ended in [DONE]. `error`: the error object
    that ended it. `times`: of each event with text, `start` before the request, by time.perf_counter."""

    start: float
    status: int = 0
    text: str = ""
    reason: str | None = None
    tokens: int | None = None
    whole: bool = False
    error: Any = None
    times: list[float] = field(default_factory=list)


def ask_all(port: int, asks: Sequence[Ask], at_once: int | None = None) -> list[Answer]:
    """Answers in the order of `asks`, of which `at_once` are under way at a time, None all."""

    async def all_of_them() -> list[Answer]:
        slots = asyncio.Semaphore(at_once or len(asks))

        async def one(asked: Ask) -> Answer:
            async with slots:
                return await asyncio.wait_for(_ask(port, asked), TIMEOUT_S)

        return list(await asyncio.gather(*map(one, asks)))

    return asyncio.run(all_of_them())


async def _ask(port: int, asked: Ask) -> Answer:
    answer = Answer(time.perf_counter())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        body = json.dumps({**asked.body, "stream": True, "stream_options": {"include_usage": True}}).encode()
        head = (
            f"POST {asked.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        await _read(reader, answer, asked.leave_after)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # what has come says how far it went
    finally:
        writer.transport.abort()  # at once, as a client that goes
    return answer


async def _read(reader: asyncio.StreamReader, answer: Answer, leave_after: int | None) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    answer.status = int(head.split()[1])
    if b"chunked" not in head:
        answer.error = json.loads(await reader.read())["error"]
        return
    pending = b""
    while size := int(await reader.readline(), 16):
        pending += (await reader.readexactly(size + 2))[:-2]
        *events, pending = pending.split(b"\n\n")
        for event in events:
            _take(event.removeprefix(b"data: "), answer)
            if leave_after is not None and len(answer.times) >= leave_after:
                return


def _take(data: bytes, answer: Answer) -> None:
    if data == b"[DONE]":
        answer.whole = True
        return
    event = json.loads(data)
    if "error" in event:
        answer.error = event["error"]
        return
    if event.get("usage"):
        answer.tokens = event["usage"]["completion_tokens"]
    for choice in event["choices"]:
        text = choice.get("text") or choice.get("delta", {}).get("content") or ""
        if text:
            answer.times.append(time.perf_counter())
        answer.text += text
        answer.reason = choice.get("finish_reason") or answer.reason
