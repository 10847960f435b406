"""A server of the tiny model in a thread, on a port of its own: what the tests of the HTTP APIs share."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from diffusion.open import open_pipeline
from diffusion.store import Store
from ui.server import Access, create_app
from ui.service import Service


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def service_of(model: Path, folder: Path, max_queue: int = 64) -> Service:
    """One in which a thousand steps may wait."""
    service = Service(open_pipeline(model), Store(folder), max_queue)
    service.budget *= 1000
    return service


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def served(model: Path, folder: Path, access: Access | None = None) -> Iterator[tuple[str, Service]]:
    service = service_of(model, folder)
    with serving(create_app(service, access or Access())) as address:
        yield address, service
