"""What makes pictures of a store's jobs: lease => Pipeline.generate => file => done.

A batch job's processes, the server's thread and the actors of a cluster all run this loop.
"""

import threading
from collections.abc import Callable, Iterable, Sequence

import torch

from diffusion.job import Desk, Job
from diffusion.metadata import model_digest
from diffusion.open import AnyPipeline
from diffusion.pipeline import Picture, Progress

LEASE = 60.0  # seconds; of a worker that is lost, the jobs wait so long where it is not known to be dead
BEAT = 0.5  # seconds between two renewals of it
IDLE = 0.05  # seconds between two looks at an empty queue

Seen = Callable[[Job, Progress], None]


class Interrupted(Exception):
    """Raised out of a picture in the making: the worker is to stop, or somebody cancelled the picture."""


class Worker:
    """One loop over one store; a process may have several, each with a pipeline and a name of its own."""

    def __init__(
        self,
        pipeline: AnyPipeline,
        store: Desk,
        name: str,
        *,
        batch: int = 1,
        encode: Callable[[Picture], bytes] = Picture.png,
    ) -> None:
        """`batch` jobs at most are leased, and handed to the pipeline, at a time; `encode` makes their files."""
        self.pipeline = pipeline
        self.store = store
        self.name = name
        self.batch = batch
        self.encode = encode
        self.model = model_digest(pipeline.model)
        self.cancelled: set[str] = set()  # jobs of this worker
        self.seen: dict[str, tuple[int, int]] = {}  # how far those in the making are: evaluation, of how many

    def run(self, stop: threading.Event, seen: Seen | None = None) -> None:
        """Works until `stop` is set; the step in flight ends, and what is unfinished is queued again.

        `seen` is called after every evaluation of the network.
        """
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        beat.start()
        try:
            while not stop.is_set():
                if jobs := self.store.lease(self.name, self.model, self.batch, LEASE):
                    self._make(jobs, stop, seen)
                else:
                    stop.wait(IDLE)
        finally:
            ended.set()
            beat.join()
            self.store.release(self.name)

    def cancel(self, ids: Iterable[str]) -> None:
        """Of jobs that were cancelled in the store: it hears so by itself, too, but up to half a second later."""
        self.cancelled.update(ids)

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            if self.seen:
                self.cancelled |= self.store.renew(self.name, LEASE, self.seen.copy())

    def _make(self, jobs: Sequence[Job], stop: threading.Event, seen: Seen | None) -> None:
        """Jobs of one shape; together as long as that works, and each alone where it does not."""
        self.seen = {job.id: (0, 0) for job in jobs}
        self.cancelled.difference_update(self.seen)  # what was cancelled once, and queued again since
        todo, together = [*jobs], len(jobs)
        while (todo := [job for job in todo if job.id not in self.cancelled]) and not stop.is_set():
            part = todo[:together]
            try:
                for job, picture in zip(part, self._pictures(part, stop, seen), strict=True):
                    self.store.deliver(job, self.name, self.encode(picture))
                    todo.remove(job)
            except Interrupted:
                continue
            except Exception as error:
                short = memory_is_short(error)
                if short and self.batch > 1:
                    self.batch //= 2
                    together = min(together, self.batch)
                    continue
                if together > 1:  # whose mistake it is shows when each is handed over alone
                    together = 1
                    continue
                self.store.fail(part[0], self.name, _sentence(error, short), final=isinstance(error, ValueError))
                todo.remove(part[0])
        self.seen = {}
        if stop.is_set():
            self.store.release(self.name)

    def _pictures(self, jobs: Sequence[Job], stop: threading.Event, seen: Seen | None) -> Iterable[Picture]:
        def progress(made: Progress) -> None:
            job = jobs[made.picture]
            self.seen[job.id] = made.evaluation, made.evaluations
            if seen is not None:
                seen(job, made)
            if job.id in self.cancelled or stop.is_set():
                raise Interrupted

        return self.pipeline.generate([job.request for job in jobs], progress, self.batch)


def memory_is_short(error: BaseException) -> bool:
    """Whether it is for want of memory, on whichever device, that something was raised."""
    cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)  # it has no class of its own
    return cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _sentence(error: Exception, short: bool) -> str:
    if short:
        return "The memory is too small for it, even alone; ask for a smaller picture."
    said = " ".join(str(error).split())
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said:.500}"
