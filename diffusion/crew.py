"""Workers as processes, each with a pipeline of its own: they are started again when they die, and die with us."""

import argparse
import multiprocessing
import os
import secrets
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from diffusion.flags import open_model
from diffusion.holder import holder
from diffusion.store import Store
from diffusion.worker import Worker

PATIENCE = 60.0  # seconds that a worker may take to end its step
MOST_DEATHS = 10  # in a row, of workers that had no model yet: then it is not a job that kills them
READY = "ready"

# Threads and locks do not survive a fork; a device's context does not either.
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Place:
    """Where a worker works."""

    folder: Path  # of the store
    file: str
    batch: int  # jobs that it takes at a time
    threads: int


@dataclass
class Crew:
    args: argparse.Namespace  # the model, as `open_model` takes it
    place: Place
    store: Store
    size: int
    hands: dict[int, tuple[str, BaseProcess, Connection]] = field(default_factory=dict)
    deaths: int = 0

    def tend(self) -> None:
        """Starts the workers that are not there. The jobs of one that died are free at once.

        Raises ValueError where they die before they have anything to do.
        """
        for i in range(self.size):
            if i in self.hands:
                name, process, line = self.hands[i]
                if process.is_alive():
                    continue
                self.store.lost(name)
                self.deaths = 0 if _was_ready(line) else self.deaths + 1
                if self.deaths >= MOST_DEATHS:
                    raise ValueError(f"The workers die as they start, with {process.exitcode}; try fewer --workers.")
            self.hands[i] = self._start(i)

    def _start(self, index: int) -> tuple[str, BaseProcess, Connection]:
        name = f"batch-{index}-{secrets.token_hex(4)}"
        theirs, ours = SPAWN.Pipe()
        args = argparse.Namespace(**vars(self.args) | {"device": _device(self.args.device, index)})
        process = SPAWN.Process(target=work, args=(name, args, self.place, theirs), daemon=True)
        # Ctrl-C goes to all processes of a terminal, and the driver alone says what it means. What is ignored here
        # stays so in a child, from its first moment.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.start()
        signal.signal(signal.SIGINT, before)
        theirs.close()
        return holder(name, process.pid), process, ours

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def stop(self) -> None:
        """Has every worker end its step and give its jobs back, and waits for that."""
        for _, _, line in self.hands.values():
            with suppress(OSError):  # it is dead
                line.send("stop")
        for name, process, _ in self.hands.values():
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
            self.store.lost(name)
        self.hands.clear()


def work(name: str, args: argparse.Namespace, place: Place, line: Connection) -> None:
    """The whole life of a worker's process. `line` hears that it has its model, and says when to stop; it closes when
    the driver has died."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as with Ctrl-C, the driver says what it means
    stop = threading.Event()
    threading.Thread(target=_listen, args=(line, stop), daemon=True).start()
    torch.set_num_threads(place.threads)
    try:
        worker = Worker(open_model(args), Store(place.folder, place.file), holder(name), batch=place.batch)
        with suppress(OSError):  # the driver is dead, and so shall we be
            line.send(READY)
        worker.run(stop)
    except ValueError as mistake:
        print(f"A worker stopped: {mistake}", file=sys.stderr)
        sys.exit(2)


def _was_ready(line: Connection) -> bool:
    """Whether a worker that has died had its model before."""
    try:
        return line.poll() and line.recv() == READY
    except (EOFError, OSError):
        return False


def _listen(line: Connection, stop: threading.Event) -> None:
    try:
        line.recv()
        stop.set()
    except (EOFError, OSError):
        os._exit(1)  # the driver was killed: the one that follows it counts on our being dead


def _device(name: str, index: int) -> str:
    """Workers take a machine's GPUs in turn, where none is named."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{index % torch.cuda.device_count()}"
    return name
