"""One application: the HTTP APIs, the pictures, health and metrics, over one service."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Response
from fastapi import Request as Http
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusion.embeddings import Embeddings
from diffusion.metadata import VERSION
from ui import a1111, openai
from ui.guard import LOOPBACK, MAX_BODY, Guard
from ui.metrics import registry
from ui.service import Service

GRACE = 5  # seconds for answers that are under way when the server is asked to stop
LAST_WORDS = 1  # second of them, for streams to say that it stops
LOOK = 0.5  # seconds between two looks of a stream at whether it does
ABOUT = """Pictures from texts, by two interfaces that other programs speak: OpenAI's images API, and AUTOMATIC1111's.
Where the server was given a token, it is sent as `Authorization: Bearer TOKEN`."""


@dataclass(frozen=True)
class Access:
    """Who may ask, and how much."""

    token: str | None = None
    hosts: Iterable[str] = LOOPBACK
    max_body: int = MAX_BODY  # MiB


def create_app(
    service: Service,
    access: Access = Access(),
    *,
    clip: Path | None = None,
    loras: Path | None = None,
    embeddings: Embeddings | None = None,
) -> FastAPI:
    """The application, which starts and stops the service with itself.

    `clip` is the folder of one that says what pictures show; `loras` and `embeddings` are listed for programs.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await run_in_threadpool(service.stop)

    app = FastAPI(title="oboro", version=VERSION, description=ABOUT, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Ending, service=service)
    app.add_middleware(Guard, token=access.token, hosts=access.hosts, max_body=access.max_body)
    app.include_router(openai.router(service))
    app.include_router(a1111.router(service, clip, loras, embeddings))
    figures = registry(service)

    @app.get("/health", tags=["the server"])
    async def health() -> Response:
        """Whether pictures are being made, or would be: 200, or 503 where the worker has died or the server stops."""
        well = service.working and not service.stopping
        return JSONResponse({"status": "ok" if well else "stopped"}, 200 if well else 503)

    @app.get("/metrics", tags=["the server"])
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(await run_in_threadpool(generate_latest, figures), media_type=CONTENT_TYPE_LATEST)

    @app.get("/pictures/{id}.{format}", tags=["the server"])
    def picture(id: str, format: str) -> Response:
        """The picture of a job, by its id, as png, jpeg or webp."""
        try:
            data = openai.converted(service.picture(id), format)
        except (KeyError, OSError):
            raise HTTPException(404, "There is no such picture.") from None
        headers = {"Cache-Control": "private, max-age=31536000, immutable"}  # it is the same for ever
        return Response(data, media_type=f"image/{format}", headers=headers)

    @app.exception_handler(Exception)
    async def fault(http: Http, error: Any) -> Response:  # its traceback is in the server's log alone
        return JSONResponse({"detail": "The server made a mistake; its log says more."}, 500)

    return app


class Ending:
    """ASGI middleware: what has heard its client out and listens until that leaves, as the streams of the demo's open
    pages do, hears that it has left when the service stops."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = False

        async def receive_or_end() -> Message:
            nonlocal whole
            if not whole:
                heard = await receive()
                whole = not heard.get("more_body", False)
                return heard
            message = asyncio.ensure_future(receive())
            try:
                while not message.done():
                    stopping = self.service.stopping
                    await asyncio.wait([message], timeout=LAST_WORDS if stopping else LOOK)
                    if stopping and not message.done():
                        return {"type": "http.disconnect"}
                return message.result()
            finally:
                message.cancel()

        await self.app(scope, receive_or_end if scope["type"] == "http" else receive, send)


class Server(uvicorn.Server):
    """Lets the service know at once that it is to stop, so that nobody waits for pictures until then."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.stop_soon()
        super().handle_exit(sig, frame)


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """What uploads leave in the temporary folder where they break off goes with the server; for all that it mounts."""
    with tempfile.TemporaryDirectory(prefix="oboro-") as folder:
        tempfile.tempdir = folder
        yield


def run(app: FastAPI, service: Service, host: str, port: int) -> None:
    """Serves until SIGTERM or Ctrl-C, which let the step in flight end."""
    config = uvicorn.Config(app, host, port, log_level="warning", server_header=False, timeout_graceful_shutdown=GRACE)
    # uvicorn raises the signal anew when it is done; that shall not end the process with an error.
    signal.signal(signal.SIGTERM, lambda *_: None)
    Server(config, service).run()
