"""The one place where people and programs hand in requests, in the process that holds the pipeline.

    jobs = service.submit(requests)         admitted and queued, or refused at once
    for event in service.watch(ids): ...    how far they are, with previews
    service.picture(job)                    the PNG

All methods may be called from any thread; `follow` is `watch` for coroutines.
"""

import asyncio
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from PIL import Image

from diffusion.holder import holder
from diffusion.job import ENDED, Job
from diffusion.open import AnyPipeline
from diffusion.pipeline import Progress
from diffusion.request import Request, Resolved
from diffusion.store import Store
from diffusion.worker import Worker
from ui.limits import Overloaded, Pace, TooMuch

WAITING = ("queued", "running")
MAX_QUEUE = 64
LOOK = 0.5  # seconds between two looks at jobs that another process may be running
GLANCE = 10.0  # seconds for which previews go on being made after somebody asked for one
SHARE = 0.2  # of the time at most, which previews take


class Stopped(Exception):
    """The service stops; the jobs that wait are kept, for its next start."""


@dataclass(frozen=True)
class Event:
    """What has become of a job."""

    job: Job  # as it is now
    preview: Image.Image | None = None  # what is expected now, where it is running here and previews are asked for


class Service:
    def __init__(self, pipeline: AnyPipeline, store: Store, max_queue: int = MAX_QUEUE, batch: int = 1) -> None:
        """At most `max_queue` pictures wait, and no more work than so many of the model's own size and steps make."""
        self.pipeline = pipeline
        self.store = store
        self.max_queue = max_queue
        self.pace = Pace()
        self.rejections: Counter[str] = Counter()  # why submissions were turned away
        self.made, self.seconds = 0, 0.0  # pictures, and what they took
        self.unit = self.cost(pipeline.resolve(Request("")))  # of a picture as the model makes them
        self.budget = max_queue * self.unit
        desk = _Desk(store, self._ended, self._delivered)
        self.worker = Worker(pipeline, desk, holder(f"server {secrets.token_hex(4)}"), batch=batch)
        self._admission = threading.Lock()  # what is counted is what is there
        self._costs: dict[str, int] = {}  # of the jobs that wait
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.worker.run, args=(self._stop, self._seen), name="worker")
        self._watching_lock = threading.Lock()
        self._watchers: dict[str, set[Callable[[], None]]] = {}  # by job
        self._wanted: dict[str, float] = {}  # the jobs of which previews are made, and until when
        self._previews: dict[str, Image.Image] = {}
        self._next_preview = 0.0

    # the worker

    def start(self) -> None:
        self._thread.start()

    def stop_soon(self) -> None:
        """Lets the step in flight be the last one. A signal's handler may call it."""
        self._stop.set()

    def stop(self) -> None:
        """The step in flight ends; what is unfinished is queued again, for the next start."""
        self.stop_soon()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    @property
    def working(self) -> bool:
        """Whether pictures are being made, or would be."""
        return self._thread.is_alive()

    # requests in

    def submit(self, requests: Sequence[Request], *, key: str | None = None, priority: int = 0) -> list[Job]:
        """Queues a group of requests, all or none; the same idempotency key again gives the same jobs.

        Raises ValueError for a mistake in any, TooMuch for more than may ever wait, Overloaded where there is no room.
        """
        try:
            if (count := len(requests)) > self.max_queue:
                raise TooMuch(f"{count} pictures are asked for at once; at most {self.max_queue} may wait here.")
            if key is None:  # before anything is read: what is turned away shall cost nothing
                self._check_length(count)
            resolved = [self.pipeline.resolve(request) for request in requests]
            costs = [self.cost(request) for request in resolved]
            if (asked := sum(costs)) > self.budget:
                raise TooMuch(
                    f"This is {asked / self.budget:.1f} times the work that may wait here; ask for fewer pictures, "
                    "fewer steps or a smaller size."
                )
            with self._admission:
                if key is None or not self.store.knows(key):
                    self._check_length(count)
                    self._check_work(asked)
                jobs = self.store.submit(resolved, self.pipeline.model, key=key, asked=requests, priority=priority)
                self._costs |= {job.id: cost for job, cost in zip(jobs, costs, strict=True)}
                return jobs
        except (Overloaded, ValueError) as refusal:
            self.rejections[type(refusal).__name__] += 1
            raise

    def cost(self, request: Resolved) -> int:
        """Pixels times evaluations of the network."""
        return pixels(request) * self.pipeline.evaluations(request)

    def waiting(self) -> int:
        """How many pictures wait, those in the making among them."""
        counts = self.store.counts()
        return sum(counts[state] for state in WAITING)

    def _check_length(self, count: int) -> None:
        if (excess := self.waiting() + count - self.max_queue) > 0:
            raise Overloaded(self.pace.time(excess * self.unit))

    def _check_work(self, asked: int) -> None:
        jobs = self.store.jobs(states=WAITING)
        self._costs = {job.id: self._costs.get(job.id) or self.cost(job.request) for job in jobs}
        if (excess := sum(self._costs.values()) + asked - self.budget) > 0:
            raise Overloaded(self.pace.time(excess))

    def cancel(self, ids: Iterable[str]) -> list[str]:
        """Ends what has not ended, within a step; the ids of those that it ended."""
        ended = self.store.cancel([*ids])
        self.worker.cancel(ended)
        self._ended(ended)
        return ended

    # pictures out

    def picture(self, job: Job | str) -> bytes:
        """The PNG as it was written. Raises KeyError for a job that there is not, or that has no picture."""
        job = self.store.get(job) if isinstance(job, str) else job
        if job.file is None:
            raise KeyError(job.id)
        return (self.store.folder / job.file).read_bytes()

    def glance(self, id: str) -> Event:
        """How far a job is; from now on, for a while, with previews. Raises KeyError for one that there is not."""
        event, now = self._event(self.store.get(id)), time.monotonic()
        with self._watching_lock:
            self._wanted = {one: until for one, until in self._wanted.items() if until > now}
            self._wanted[id] = max(self._wanted.get(id, 0), now + GLANCE)
        return event

    def watch(self, ids: Iterable[str], previews: bool = True) -> Iterator[Event]:
        """What happens to jobs, until all have ended; the first events tell how they are now.

        Those that another process runs are seen, too, without previews. Raises KeyError for a job that there is not,
        and Stopped when the service stops.
        """
        changed = threading.Event()
        with self._watching(ids, changed.set, previews) as look:
            while True:
                changed.clear()
                events, over = look()
                yield from events
                if over:
                    return
                self._check_running()
                changed.wait(LOOK)

    async def follow(self, ids: Iterable[str], previews: bool = False) -> AsyncIterator[Event]:
        """`watch` for coroutines, which no thread waits in."""
        changed, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop may just have ended
                loop.call_soon_threadsafe(changed.set)

        with self._watching(ids, wake, previews) as look:
            while True:
                changed.clear()
                events, over = await asyncio.to_thread(look)  # which waits for the disk, at times
                for event in events:
                    yield event
                if over:
                    return
                self._check_running()
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), LOOK)

    @contextmanager
    def _watching(
        self, ids: Iterable[str], wake: Callable[[], None], previews: bool
    ) -> Iterator[Callable[[], tuple[list[Event], bool]]]:
        """A function that gives what has changed since it was last called, and whether all jobs have ended."""
        before: dict[str, tuple[str, int, Image.Image | None]] = {}
        left = dict.fromkeys(ids)
        with self._watching_lock:
            for id in left:
                self._watchers.setdefault(id, set()).add(wake)
                if previews:
                    self._wanted[id] = float("inf")

        def look() -> tuple[list[Event], bool]:
            events = []
            for id in [*left]:
                event = self._event(self.store.get(id))
                now = event.job.state, event.job.evaluation, event.preview
                if before.get(id) != now:
                    events.append(event)
                before[id] = now
                if event.job.state in ENDED:
                    del left[id]
            return events, not left

        try:
            yield look
        finally:
            with self._watching_lock:
                for id in [*before, *left]:
                    watchers = self._watchers.get(id, set())
                    watchers.discard(wake)
                    if not watchers:
                        self._watchers.pop(id, None)
                        self._wanted.pop(id, None)

    def _check_running(self) -> None:
        if self.stopping:
            raise Stopped("The server stops; what waits is kept, and made after its next start.")

    def _event(self, job: Job) -> Event:
        if job.state != "running":
            return Event(job)
        evaluation, evaluations = self.worker.seen.get(job.id, (job.evaluation, job.evaluations))
        return Event(replace(job, evaluation=evaluation, evaluations=evaluations), self._previews.get(job.id))

    def _seen(self, job: Job, progress: Progress) -> None:
        """Called in the worker's thread, the only one that may use the networks."""
        self.pace.evaluated(pixels(job.request), job.started or 0)
        now = time.monotonic()
        if progress.x0 is not None and self._wanted.get(job.id, 0) > now > self._next_preview:
            self._previews[job.id] = self.pipeline.image(progress.x0)
            done = time.monotonic()
            self._next_preview = done + (done - now) / SHARE
        self._wake([job.id])

    def _ended(self, ids: Iterable[str]) -> None:
        ids = [*ids]
        for id in ids:
            self._costs.pop(id, None)
            self._previews.pop(id, None)
        self._wake(ids)

    def _delivered(self, job: Job) -> None:
        self.made += 1
        self.seconds += time.time() - (job.started or 0)

    def _wake(self, ids: Iterable[str]) -> None:
        with self._watching_lock:
            wakes = {wake for id in ids for wake in self._watchers.get(id, ())}
        for wake in wakes:
            wake()


class _Desk:
    """The store as the worker sees it: those who watch hear at once what has become of a job."""

    def __init__(self, store: Store, ended: Callable[[Iterable[str]], None], delivered: Callable[[Job], None]) -> None:
        self.store = store
        self.ended = ended
        self.delivered = delivered

    def lease(self, worker: str, model: str, count: int, seconds: float) -> list[Job]:
        return self.store.lease(worker, model, count, seconds)

    def renew(self, worker: str, seconds: float, seen: Mapping[str, tuple[int, int]]) -> set[str]:
        return self.store.renew(worker, seconds, seen)

    def deliver(self, job: Job, worker: str, data: bytes) -> bool:
        delivered = self.store.deliver(job, worker, data)
        if delivered:
            self.delivered(job)
        self.ended([job.id])
        return delivered

    def fail(self, job: Job, worker: str, error: str, final: bool = False) -> None:
        self.store.fail(job, worker, error, final)
        self.ended([job.id])

    def release(self, worker: str) -> None:
        self.store.release(worker)


def pixels(request: Resolved) -> int:
    """Of a picture; of a larger pass over it, where there is one."""
    return round(request.width * request.height * (request.hires_scale or 1) ** 2)
