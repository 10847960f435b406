"""Workers as actors of a Ray cluster, in place of processes on this machine: see docs/cluster.md.

The driver alone touches the store: it leases jobs in the name of each actor, hands them over, and says that they are
done when their pictures are on the disk. An actor that is lost gives its jobs back at once, for the driver hears of it.
So everything that holds on one machine holds on many, and nothing besides has to be right.

Ray Data was the other choice: `map_batches` over a streaming input, with a class of actors. It retries blocks of rows,
so that what had been made of a block is made again, and it keeps no state that a new driver could go on from.
"""

import argparse
import os
import secrets
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from diffusion.crew import MOST_DEATHS
from diffusion.flags import open_model
from diffusion.holder import holder
from diffusion.job import Job
from diffusion.metadata import model_digest
from diffusion.shelf import Shared
from diffusion.store import Store
from diffusion.worker import Worker

AHEAD = 2  # calls that an actor has at a time, so that it never waits for the next
FOREVER = 1e9  # seconds: it is from Ray that the driver hears that a lease is over
QUIET = 30.0  # seconds without any actor, after which that is said


class Maker:
    """An actor: it loads the model once."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.set_num_threads(max(int(args.cpus_per_worker), 1))
        self.pipeline = open_model(args)
        self.shelf = Shared(args.pictures) if args.pictures else None
        self.batch = args.batch

    def model(self) -> str:
        return model_digest(self.pipeline.model)

    def make(self, jobs: Sequence[Job]) -> "Errand":
        errand = Errand([*jobs], self.shelf)
        worker = Worker(self.pipeline, errand, "maker", batch=self.batch)
        worker.run(errand.stop)
        self.batch = worker.batch  # smaller, where the memory was short
        errand.shelf = errand.stop = None
        return errand


class Errand:
    """A few jobs and what came of them: all of a store that an actor sees."""

    def __init__(self, jobs: list[Job], shelf: Shared | None) -> None:
        self.jobs = jobs
        self.shelf: Shared | None = shelf
        self.stop: Any = threading.Event()
        self.made: dict[str, bytes | None] = {}  # None: the file is in shared storage already
        self.failed: dict[str, tuple[str, bool]] = {}

    def lease(self, worker: str, model: str, count: int, seconds: float) -> list[Job]:
        jobs, self.jobs = self.jobs, []
        if not jobs:
            self.stop.set()
        return jobs

    def renew(self, worker: str, seconds: float, seen: Mapping[str, tuple[int, int]]) -> set[str]:
        return set()

    def deliver(self, job: Job, worker: str, data: bytes) -> bool:
        if self.shelf:
            self.shelf.put(job.name, data)
        self.made[job.id] = None if self.shelf else data
        return True

    def fail(self, job: Job, worker: str, error: str, final: bool = False) -> None:
        self.failed[job.id] = error, final

    def release(self, worker: str) -> None:
        pass


@dataclass
class Hand:
    """An actor, and what it has to do."""

    name: str
    actor: Any
    hired: Any  # a reference: the digest of its model, once it has loaded it
    calls: dict[Any, list[Job]] = field(default_factory=dict)
    ready: bool = False


class RayCrew:
    """As `crew.Crew`: at most `size` actors, as many as the cluster has room for at the moment."""

    def __init__(self, args: argparse.Namespace, store: Store, model: str, size: int) -> None:
        """Raises ValueError where no cluster is at the address `args.ray`."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
        try:
            import ray
        except ImportError:
            raise ValueError("--ray needs Ray: pip install 'oboro[ray]'.") from None
        self.ray, self.args, self.store, self.model, self.size = ray, args, store, model, size
        try:
            ray.init(address=args.ray, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(f"There is no Ray cluster at {args.ray}: {str(error).splitlines()[0]}") from None
        self.hands: dict[int, Hand] = {}
        self.deaths = 0
        self.heard = time.monotonic()

    def tend(self) -> None:
        """Takes what was made, replaces who was lost, and gives everyone something to do."""
        for i in range(self.size):
            if i in self.hands:
                self._gather(i)
            if i not in self.hands:
                self.hands[i] = self._hire()
            hand = self.hands[i]
            while hand.ready and len(hand.calls) < AHEAD:
                if not (jobs := self.store.lease(hand.name, self.model, self.args.batch, FOREVER)):
                    break
                hand.calls[hand.actor.make.remote(jobs)] = jobs
        if any(hand.ready for hand in self.hands.values()):
            self.heard = time.monotonic()
        elif time.monotonic() - self.heard > QUIET:
            cpus, gpus = self.args.cpus_per_worker, self.args.gpus_per_worker
            tqdm.write(f"Waiting for a node that has {cpus:g} CPUs and {gpus:g} GPUs free.", file=sys.stderr)
            self.heard = time.monotonic()

    def wait(self, seconds: float) -> None:
        """Until something was made, or so long."""
        references = [each for hand in self.hands.values() for each in (*hand.calls, *self._hiring(hand))]
        if references:
            self.ray.wait(references, timeout=seconds)

    def stop(self) -> None:
        for i in [*self.hands]:
            self._gather(i)
        for hand in self.hands.values():
            with suppress(self.ray.exceptions.RayError):
                self.ray.kill(hand.actor)
            self.store.release(hand.name)
        self.hands.clear()
        self.ray.shutdown()

    def _hire(self) -> Hand:
        maker = self.ray.remote(Maker).options(num_cpus=self.args.cpus_per_worker, num_gpus=self.args.gpus_per_worker)
        actor = maker.remote(self.args)
        return Hand(holder(f"batch-ray-{secrets.token_hex(4)}"), actor, actor.model.remote())

    def _hiring(self, hand: Hand) -> list[Any]:
        return [] if hand.ready else [hand.hired]

    def _gather(self, index: int) -> None:
        """What one actor has finished."""
        hand = self.hands[index]
        references = [*hand.calls, *self._hiring(hand)]
        finished = self.ray.wait(references, num_returns=len(references), timeout=0)[0] if references else []
        try:
            for reference in finished:
                if reference is hand.hired:
                    self._check(self.ray.get(reference))
                    hand.ready = True
                else:
                    self._take(hand, hand.calls[reference], self.ray.get(reference))
                    del hand.calls[reference]
                    self.deaths = 0
        except self.ray.exceptions.RayError as error:
            del self.hands[index]
            self.deaths = 0 if self.store.lost(hand.name) else self.deaths + 1
            if self.deaths >= MOST_DEATHS:
                said = " ".join(str(error).split())[-300:]
                raise ValueError(f"The cluster's actors die as they start: {said}") from None

    def _check(self, model: str) -> None:
        if model != self.model:
            raise ValueError(f"A node has another {self.args.model} than this machine; copy the same one to all.")

    def _take(self, hand: Hand, jobs: Sequence[Job], errand: Errand) -> None:
        for job in jobs:
            if job.id in errand.failed:
                error, final = errand.failed[job.id]
                self.store.fail(job, hand.name, error, final)
            elif (data := errand.made[job.id]) is None:
                self.store.finish(job, hand.name)
            else:
                self.store.deliver(job, hand.name, data)
