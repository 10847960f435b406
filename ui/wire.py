"""What the HTTP APIs have in common: mistakes, pictures in JSON, and waiting for jobs as long as the client does."""

import asyncio
import base64
import binascii
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import Request as Http
from fastapi import Response
from fastapi.routing import APIRoute

from diffusion.flags import MAX_FILE
from diffusion.job import ENDED, Job
from ui.service import Service

MAX_PROMPT = 32_000  # characters, as OpenAI's


class ClientLeft(Exception):
    """Nobody is there to be answered any more."""


class Route(APIRoute):
    """Answers whatever goes wrong in the words of an API."""

    def refusal(self, error: Exception) -> Response | None:
        """The answer to what was raised; None for what is no mistake of the client's."""
        raise NotImplementedError

    def get_route_handler(self) -> Callable[[Http], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(http: Http) -> Response:
            try:
                return await handle(http)
            except ClientLeft:
                return Response(status_code=499)
            except Exception as error:
                if (answer := self.refusal(error)) is None:
                    raise
                return answer

        return handler


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def from_base64(text: str, name: str) -> bytes:
    """A file's bytes, of base64 or a data: URL of it. Raises ValueError, in one sentence that begins with `name`."""
    if text.startswith(("http:", "https:", "file:")):
        raise ValueError(f"{name} is an address, and nothing is fetched from here; send the file itself, in base64.")
    head, comma, body = text.partition(",")
    if text.startswith("data:"):
        if not comma or not head.endswith(";base64"):
            raise ValueError(f"{name} is a data: URL without base64; send the file in base64.")
        text = body
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name} is not base64; send the file in base64.") from None
    if not 0 < len(data) <= MAX_FILE:
        raise ValueError(f"{name} has {len(data)} bytes; expected 1 to {MAX_FILE}.")
    return data


async def ended(service: Service, http: Http, jobs: Sequence[Job], key: str | None) -> list[Job]:
    """The jobs, when all have ended.

    Where the client goes away before, they are cancelled, and ClientLeft is raised; with an idempotency key it may
    come back for them, and they go on.
    """
    waiting, leaving = asyncio.ensure_future(_all_ended(service, jobs)), asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise ClientLeft
    finally:
        leaving.cancel()
        if not waiting.done():
            waiting.cancel()
            await asyncio.to_thread(abandon, service, jobs, key)


def abandon(service: Service, jobs: Sequence[Job], key: str | None) -> None:
    """Nobody waits for the jobs any more."""
    if key is None and not service.stopping:
        service.cancel([job.id for job in jobs])


async def _all_ended(service: Service, jobs: Sequence[Job]) -> list[Job]:
    now = {job.id: job for job in jobs}
    async for event in service.follow(now):
        now[event.job.id] = event.job
    assert all(job.state in ENDED for job in now.values())
    return [*now.values()]


async def _left(http: Http) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
