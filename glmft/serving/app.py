"""The server: requests in, answers out."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from glmft.errors import OutOfMemory, Unforeseen
from glmft.inference.model_set import ModelSet
from glmft.inference.replies import Reply
from glmft.serving.completions import Pieces, event, model_entry, whole
from glmft.serving.dispatcher import Dispatcher, QueueFull
from glmft.serving.errors import RequestError
from glmft.serving.requests import Completion, read_completion
from glmft.settings.talk import ServeConfig

PATIENCE = 30.0  # seconds that a client may take to send a request
GLANCE = 0.25  # seconds between two looks at whether the client is still there
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def make_app(models: ModelSet, config: ServeConfig) -> FastAPI:
    """OpenAI's `/v1/models` and `/v1/chat/completions` over some models, and `/health`."""
    dispatcher = Dispatcher(models, config.max_queue, config.max_batch_size)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(dispatcher.close)

    app = FastAPI(title="glmft", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.dispatcher = dispatcher
    _add_errors(app)
    _add_routes(app, models, config, dispatcher)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(error.status)
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return JSONResponse(RequestError(error.status_code, str(error.detail)).body, error.status_code)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        told = failure(error)
        return JSONResponse(told.body, told.status)


def _add_routes(app: FastAPI, models: ModelSet, config: ServeConfig, dispatcher: Dispatcher) -> None:
    opened = int(time.time())

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def list_models(request: Request) -> dict[str, Any]:
        check_access(request, config)
        return {"object": "list", "data": [model_entry(name, opened) for name in models.names]}

    @app.get("/v1/models/{name:path}")
    async def one_model(request: Request, name: str) -> dict[str, Any]:
        check_access(request, config)
        if name not in models.members:
            raise RequestError(404, "no such model", "model", "model_not_found")
        return model_entry(name, opened)

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        check_access(request, config)
        data = await read_body(request, config.max_request_bytes)
        completion = await asyncio.to_thread(read_completion, data, models, config.sampling, config.max_context)
        grown = noticed(completion.reply)
        try:
            dispatcher.submit(completion.reply)
        except QueueFull:
            waiting = f"{config.max_queue} requests are waiting already; try again later"
            raise RequestError(429, waiting, code="queue_full") from None
        if completion.stream:
            return EventStream(completion.reply, events(request, completion, grown))
        async for _ in growth(request, completion.reply, grown):
            pass
        if completion.reply.error is not None:
            raise failure(completion.reply.error)
        return JSONResponse(whole(completion))


# ---------------------------------------------------------------------------------------------------- who may


def check_access(request: Request, config: ServeConfig) -> None:
    """Raises RequestError for a wrong key; without one, for a name that is not this host's own.

    A page of the web can have a browser send requests to this host under a name of its own.
    """
    if config.api_key is not None:
        given = request.headers.get("authorization", "")
        if not secrets.compare_digest(given.encode("utf-8", "replace"), f"Bearer {config.api_key}".encode()):
            raise RequestError(401, "the API key is missing or wrong", code="invalid_api_key")
    elif config.is_local:
        name = request.headers.get("host", "").lower()
        if not {name, name.rpartition(":")[0]} & {*LOCAL_NAMES, config.host}:
            raise RequestError(403, "Host is no name of this host; give the server an --api_key", code="wrong_host")


async def read_body(request: Request, most: int) -> bytes:
    """The bytes of a request. Raises RequestError: of another type, too many, or too slow."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "Content-Type must be application/json", code="unsupported_media_type")

    async def read() -> bytes:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > most:
                raise RequestError(413, f"the request is larger than {most} bytes", code="request_too_large")
        return bytes(data)

    try:
        return await asyncio.wait_for(read(), PATIENCE)
    except TimeoutError:
        raise RequestError(408, f"the request did not come within {PATIENCE:g} seconds", code="timeout") from None


# ---------------------------------------------------------------------------------------------------- answers


def noticed(reply: Reply) -> asyncio.Event:
    """Set in this loop whenever a reply has grown."""
    grown, loop = asyncio.Event(), asyncio.get_running_loop()

    def notify() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(grown.set)

    reply.notify = notify
    return grown


async def growth(request: Request, reply: Reply, grown: asyncio.Event) -> AsyncIterator[None]:
    """Yields whenever a reply has grown, until it is finished; cancels it if its client has gone."""
    try:
        while not reply.is_finished:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(grown.wait(), GLANCE)
            if grown.is_set():
                grown.clear()
                yield
            if await request.is_disconnected():
                reply.cancel()
    finally:
        reply.cancel()


class EventStream(StreamingResponse):
    """Server-sent events; whatever ends them cancels their reply."""

    def __init__(self, reply: Reply, content: AsyncIterator[str]):
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.reply = reply

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.reply.cancel()


async def events(request: Request, completion: Completion, grown: asyncio.Event) -> AsyncIterator[str]:
    """A streamed answer as server-sent events."""
    pieces = Pieces(completion)
    yield pieces.first()
    async for _ in growth(request, completion.reply, grown):
        if not completion.reply.is_finished and (piece := pieces.next()):
            yield piece
    if completion.reply.error is not None:
        yield event(failure(completion.reply.error).body)
    else:
        yield pieces.last()


def failure(error: Exception) -> RequestError:
    """What a client is told of a fault of ours."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, OutOfMemory):
        return RequestError(503, error.problems[0], code="out_of_memory")
    logging.getLogger("glmft").error(Unforeseen(error).problems[0])
    return RequestError(500, "a fault in the server; its log has more", code="server_error")
