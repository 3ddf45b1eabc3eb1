"""The paths of the server, and what holds for all of them: the key, the bounds of a body."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from llrun.faces.server import asked, metrics, page
from llrun.faces.server.answering import Answering, error_response, json_response
from llrun.faces.server.choices import Answers
from llrun.faces.server.crossing import crossed
from llrun.faces.server.driver import Condition, Driver, Reading, not_ready
from llrun.faces.server.faults import BROKEN, INVALID, UNAUTHORISED, ApiError
from llrun.faces.server.live import Live, Watched
from llrun.faces.server.notes import Notes
from llrun.faces.server.objects import Head, Kind
from llrun.faces.server.preparing import Prepared, Preparing
from llrun.requests.chat_template import ChatTemplate
from llrun.requests.tokenizer import Tokenizer
from llrun.schema import ModelInfo, Slice

MAX_BODY_BYTES = 8 << 20
BODY_S, READING_S = 30.0, 5.0
OPEN_PATHS = ("/health", *page.PATHS)  # what asks whether the server lives has no key, nor who loads the page


@dataclass(frozen=True)
class Served:
    """What the server has to answer with. `template` None: the model came with none, and chats are refused."""

    driver: Driver
    tokenizer: Tokenizer
    model: ModelInfo
    template: ChatTemplate | None
    created_s: int
    record: Slice
    notes: Notes


def make_app(served: Served, api_key: str | None, origins: Sequence[str] = ()) -> ASGIApp:
    """The server's application. `api_key` None: everybody may ask. `origins`: of other sites whose pages may."""
    paths = _Paths(served)
    live = Live(Watched(served.driver, served.record, served.notes, served.template is not None))
    app = Starlette(
        routes=[
            *page.routes(),
            *live.routes(),
            Route("/health", paths.health, methods=["GET"]),
            Route("/metrics", paths.metrics, methods=["GET"]),
            Route("/v1/models", paths.models, methods=["GET"]),
            Route("/v1/models/{name:path}", paths.one_model, methods=["GET"]),
            Route("/v1/completions", paths.completions, methods=["POST"]),
            Route("/v1/chat/completions", paths.chat, methods=["POST"]),
        ],
        exception_handlers={ApiError: _told, HTTPException: _told_of_path, ClientDisconnect: _gone},
    )
    return crossed(_Keyed(app, api_key) if api_key else app, origins)


class _Keyed:
    """Lets nobody in without the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._wanted = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = b"".join(value for name, value in scope["headers"] if name == b"authorization")
        if scope["path"] in OPEN_PATHS or hmac.compare_digest(given, self._wanted):
            await self._app(scope, receive, send)
            return
        message = "the key is missing or wrong: send `Authorization: Bearer KEY` with the one of --api-key"
        error = ApiError(401, message, UNAUTHORISED, None, "invalid_api_key")
        await error_response(error)(scope, receive, send)


class _Paths:
    def __init__(self, served: Served) -> None:
        self._served = served
        self._preparing = Preparing(served.template, served.tokenizer, served.model)

    async def health(self, _: Request) -> Response:
        condition = self._served.driver.condition
        if condition is not Condition.READY:
            return error_response(not_ready(condition))
        return json_response({"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        driver, reading = self._served.driver, None
        if driver.condition in (Condition.READY, Condition.RECOVERING):
            reading = await self._reading()
        return Response(
            metrics.text(driver.condition, reading), headers={"content-type": metrics.CONTENT_TYPE}
        )

    async def _reading(self) -> Reading | None:
        """None when the session ends meanwhile, or is busy for long."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._served.driver.read()), READING_S)
        except (ApiError, TimeoutError):
            return None

    async def models(self, _: Request) -> Response:
        return json_response({"object": "list", "data": [self._model()]})

    async def one_model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return json_response(self._model())

    async def completions(self, request: Request) -> Answering:
        prompts, wish = asked.completion(await _body(request))
        self._check_ready(wish.model)
        prepared = await asyncio.to_thread(self._preparing.completion, prompts)
        return self._answering(Kind(chat=False), prepared, wish)

    async def chat(self, request: Request) -> Answering:
        messages, wish = asked.chat(await _body(request))
        self._check_ready(wish.model)
        prepared = await asyncio.to_thread(self._preparing.chat, messages, wish)
        return self._answering(Kind(chat=True), prepared, wish)

    def _answering(self, kind: Kind, prepared: Prepared, wish: asked.Asked) -> Answering:
        served = self._served
        answers = Answers(served.driver, served.tokenizer, served.model, prepared, wish)
        head = Head(
            kind,
            kind.prefix + secrets.token_hex(12),
            int(time.time()),
            served.model.name,
            wish.likeliest is not None,
        )
        return Answering(answers, head, len(prepared.ids) * wish.choices, wish.stream, wish.usage)

    def _check_ready(self, model: str | None) -> None:
        condition = self._served.driver.condition
        if condition in (Condition.LOADING, Condition.ENDED):
            raise not_ready(condition)
        if model is not None:
            self._check_model(model)

    def _check_model(self, name: str) -> None:
        own = self._served.model.name
        if name != own:
            message = f"the model {name!r} is not here: this server has {own!r}"
            raise ApiError(404, message, INVALID, "model", "model_not_found")

    def _model(self) -> dict[str, object]:
        served = self._served
        return {
            "id": served.model.name,
            "object": "model",
            "created": served.created_s,
            "owned_by": "llrun",
            "context_length": served.model.shapes.context,
        }


async def _body(request: Request) -> bytes:
    """The whole body of a JSON request. Raises ApiError for another kind, and one that is too large or too slow.

    A page of another site can have a browser send a body of any kind but JSON: so it cannot ask anything here.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the body is {kind or 'of no kind'}: send Content-Type: application/json")
    try:
        return await asyncio.wait_for(_bounded(request), BODY_S)
    except TimeoutError as error:
        raise ApiError(408, f"the body did not come within {BODY_S:g} s") from error


async def _bounded(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", code="too_large")
    return bytes(body)


async def _told(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return error_response(error)


async def _told_of_path(request: Request, error: Exception) -> Response:
    """A path or a method that is not there."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    kind = INVALID if status < 500 else BROKEN
    return error_response(ApiError(status, f"{request.method} {request.url.path} is not served here", kind))


async def _gone(_: Request, error: Exception) -> Response:
    """The client went while it sent its body: nobody reads this."""
    return error_response(ApiError(400, "the body did not come whole"))
