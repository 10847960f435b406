"""What stands before every answer: who may ask, from where, and how much; and what browsers are told about it."""

import base64
import binascii
from collections.abc import Iterable
from secrets import compare_digest
from urllib.parse import urlsplit

from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.openai import envelope

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_BODY = 32  # MiB
OPEN = ("/health", "/pictures/")  # answered without a token: the one says nothing, the others cannot be guessed
# The demo's page is Gradio's, which has scripts and styles of its own inline, and makes functions of templates and of
# shaders; all else are no pages.
PAGE = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; media-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
NO_PAGE = "default-src 'none'; frame-ancestors 'none'; sandbox"
NO_PAGES = ("/v1/", "/sdapi/", "/pictures/", "/health", "/metrics", "/openapi.json")
GRADIO, UPLOAD = "/gradio_api/", "/gradio_api/upload"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class TooLarge(HTTPException):
    """A body that goes on for longer than it may: raised out of its reading, answered as its API answers mistakes."""


class Guard:
    """ASGI middleware."""

    def __init__(
        self, app: ASGIApp, token: str | None = None, hosts: Iterable[str] = LOOPBACK, max_body: int = MAX_BODY
    ) -> None:
        """`hosts`: the names that requests may come under, where no token tells who sent them; `max_body` in MiB."""
        self.app = app
        self.token = token
        self.hosts = {*hosts}
        self.max_body = max_body << 20

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        path, headers, taken = scope["path"], Headers(scope=scope), 0

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    told.setdefault(name, value)
                told.setdefault("Content-Security-Policy", NO_PAGE if path.startswith(NO_PAGES) else PAGE)
            await send(message)

        async def capped_receive() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.max_body:
                raise TooLarge(413, self.too_large, {"Connection": "close"})
            return message

        answer = self.refusal(path, headers) or misread(scope.get("method"), path, headers) or self.app
        await answer(scope, capped_receive, guarded_send)

    def refusal(self, path: str, headers: Headers) -> Response | None:
        """The answer to a request that is not let in."""
        host = headers.get("host", "")
        if self.token is None and _name(host) not in self.hosts:  # a page whose name was made to point here
            return refuse(path, 403, f"The host {host!r:.80} is not served here; allow it by --allow-host.")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:  # a page of another site
            return refuse(path, 403, f"Pages of {origin!r:.80} may not ask here.")
        if self.token is not None and not path.startswith(OPEN) and not self.knows(headers.get("authorization", "")):
            said = "The token is missing or wrong; send it as `Authorization: Bearer TOKEN`."
            return refuse(path, 401, said, {"WWW-Authenticate": 'Basic realm="oboro", charset="UTF-8"'})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body:
            return refuse(path, 413, self.too_large, {"Connection": "close"})
        return None

    def knows(self, authorization: str) -> bool:
        """Whether the token is sent: as a bearer's, or as the password that browsers ask for."""
        scheme, _, said = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                said = base64.b64decode(said, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return compare_digest(said.strip().encode(), (self.token or "").encode())

    @property
    def too_large(self) -> str:
        return f"The body is larger than {self.max_body >> 20} MiB."


def misread(method: str | None, path: str, headers: Headers) -> Response | None:
    """The answer to what Gradio would fail on: it reads JSON, but takes bytes of any kind for it."""
    if method != "POST" or not path.startswith(GRADIO) or path.startswith(UPLOAD):
        return None
    json = headers.get("content-type", "").startswith("application/json")
    return None if json else refuse(path, 415, "This is asked by JSON.")


def refuse(path: str, status: int, said: str, headers: dict[str, str] | None = None) -> Response:
    """In the words of the API that was asked."""
    if path.startswith("/v1/"):
        return envelope(said, status, code="invalid_api_key" if status == 401 else None, headers=headers)
    return JSONResponse({"detail": said}, status, headers)


def _name(host: str) -> str:
    """ "localhost:7860" => "localhost", "[::1]:7860" => "::1"."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
