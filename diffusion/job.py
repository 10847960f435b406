"""A request that waits for its picture, or has it: what the store, those who watch it and the workers speak of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from diffusion.request import Resolved

STATES = ("queued", "running", "done", "failed", "cancelled", "parked")
ENDED = STATES[2:]


@dataclass(frozen=True)
class Job:
    """A request, which is one picture, and how far it is."""

    id: str  # random, safe in a URL
    group: str  # what it was submitted with
    state: str  # one of STATES
    request: Resolved
    model: str  # `metadata.model_digest` of the one that it is for
    name: str  # of the picture's file in the folder: `metadata.digest` and .png
    priority: int  # the highest goes first
    tries: int
    error: str | None  # of the last try
    evaluation: int  # of the network, the last one reported
    evaluations: int  # how many there will be; 0 before the first
    created: float  # seconds since 1970
    started: float | None  # the last try
    finished: float | None
    ended: int | None  # a number that grows with every job that ends

    @property
    def file(self) -> str | None:
        """Its name in the folder, once the picture is there."""
        return self.name if self.state == "done" else None

    @property
    def seconds(self) -> float | None:
        """How long the last try took; jobs of one batch share its time."""
        return self.finished - self.started if self.finished and self.started else None


class Desk(Protocol):
    """What a worker asks of a store."""

    def lease(self, worker: str, model: str, count: int, seconds: float) -> list[Job]: ...
    def renew(self, worker: str, seconds: float, seen: Mapping[str, tuple[int, int]]) -> set[str]: ...
    def deliver(self, job: Job, worker: str, data: bytes) -> bool: ...
    def fail(self, job: Job, worker: str, error: str, final: bool = False) -> None: ...
    def release(self, worker: str) -> None: ...
