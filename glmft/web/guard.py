"""Who gets what of the page: in front of gradio, which knows many more routes than the page needs.

What is not on the list of the page's own routes is not there: no file of the machine, no upload, no proxy, no API.
"""

import base64
import binascii
import re
import secrets
from collections.abc import Callable, Iterable
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmft.serving.app import LOCAL_NAMES
from glmft.settings.talk import ServingSettings

LARGEST = 1 << 20  # bytes of a request
OWN_ROUTES = re.compile(
    r"/(favicon\.ico)?"
    r"|/(en|zh)(/(config/?|theme\.css|favicon\.ico|(assets|static)/[\w./@-]+"
    r"|gradio_api/(info|app_id|startup-events|login_check|reset|cancel|queue/(join|data)|heartbeat/\w+))?)?"
)
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class TooLarge(Exception):
    """A request of more bytes than it announced."""


class Guard:
    """An ASGI application in front of another."""

    def __init__(self, app: ASGIApp, settings: ServingSettings):
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page has no web sockets
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self.refusal(scope["method"], scope["path"], headers)
        if refusal is not None:
            status, sentence, more = refusal
            await PlainTextResponse(sentence + "\n", status, more)(scope, receive, with_headers(send))
            return
        try:
            await self.app(scope, limited(receive), with_headers(send))
        except TooLarge:
            await PlainTextResponse(too_large() + "\n", 413)(scope, receive, with_headers(send))

    def refusal(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str, dict[str, str]] | None:
        """Status, a sentence and headers for what is not let through; None for what is."""
        if self.settings.api_key is not None:
            if not is_key(headers.get("authorization", ""), self.settings.api_key):
                return 401, "give the api_key as the password; any user name does", {"WWW-Authenticate": "Basic"}
        elif self.settings.is_local and not names_host(headers.get("host", ""), (*LOCAL_NAMES, self.settings.host)):
            # A page of the web can have a browser send requests here under a name of its own.
            return 403, "the Host of this request is no name of this machine", {}
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
            return 403, "this page answers no other site", {}
        if not OWN_ROUTES.fullmatch(path) or ".." in path or "//" in path:
            return 404, "there is no such page", {}
        if method not in ("GET", "HEAD", "POST"):
            return 405, "GET and POST are all there is", {"Allow": "GET, HEAD, POST"}
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdecimal() or len(length) > 18:
            return 400, "Content-Length is no number", {}
        return (413, too_large(), {}) if int(length) > LARGEST else None


def too_large() -> str:
    return f"the request is larger than {LARGEST:,} bytes"


def is_key(given: str, key: str) -> bool:
    """Whether an Authorization header has the key: as a password (Basic) or as it is (Bearer)."""
    kind, _, value = given.partition(" ")
    if kind.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return False
    elif kind.lower() != "bearer":
        return False
    return secrets.compare_digest(value.encode("utf-8", "replace"), key.encode())


def names_host(given: str, names: Iterable[str]) -> bool:
    """Whether a Host header, with or without a port, is one of some names."""
    given = given.lower()
    return bool({given, given.rpartition(":")[0]} & {*names})


def limited(receive: Receive) -> Receive:
    """Raises TooLarge once more has come than a request may have."""
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > LARGEST:
            raise TooLarge
        return message

    return counted


def with_headers(send: Send) -> Callable[[Any], Any]:
    """Adds what tells browsers to keep to this page: nothing is fetched from elsewhere, nobody frames it."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await send(message)

    return sent
