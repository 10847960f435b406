"""A server on this machine that benchmarks start, ask, kill and end, with a folder of its own.

The module is also what runs there, unless another is named: `python -m ui` around a pipeline that one prompt breaks.
"""

import argparse
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from diffusion.open import open_pipeline
from diffusion.pipeline import Picture, Report
from diffusion.request import Request
from diffusion.store import Store
from ui.safety import Safe
from ui.server import Access, create_app, own_temporary_folder, run
from ui.service import MAX_QUEUE, Service

POISON = "poison"


@dataclass
class Server:
    """A command in a process of its own, which can be killed and started again."""

    folder: Path
    module: str
    options: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    client: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=600, limits=httpx2.Limits()))

    def start(self) -> None:
        if not self.port:
            with socket.socket() as found:
                found.bind(("127.0.0.1", 0))
                self.port = found.getsockname()[1]
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", self.module, "--port", str(self.port), "--jobs", str(self.jobs)]
        environment = {**os.environ, "TMPDIR": str(self.folder / "tmp")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log, env=environment)
        while self.health() is None:
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def jobs(self) -> Path:
        return self.folder / "jobs"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def end(self, how: int) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait()

    def health(self) -> float | None:
        """How long it takes to say that it is well; None where it does not."""
        begun = time.monotonic()
        try:
            answer = self.client.get(f"{self.url}/health", timeout=10)
        except httpx2.TransportError:
            return None
        return time.monotonic() - begun if answer.status_code == 200 else None

    def memory(self) -> float:
        """MiB that it holds."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s*(\d+)", status)
        return int(found[1]) / 1024 if found else 0.0


@contextmanager
def serving(*options: str, module: str = "benchmarks.served") -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), module, [*options])
        server.start()
        try:
            yield server
        finally:
            if server.process and server.process.poll() is None:
                server.end(signal.SIGTERM)


class Poisoned(Safe):
    """A pipeline that one prompt breaks, as faults of a library or a device do: by no mistake of the request's."""

    def generate(
        self, requests: Iterable[Request], progress: Report | None = None, batch: int = 1
    ) -> Iterator[Picture]:
        requests = [*requests]
        if any(request.prompt == POISON for request in requests):
            raise RuntimeError("a fault")
        return super().generate(requests, progress, batch)


def main() -> None:
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--port", type=int)
    add("--jobs", type=Path)
    add("--max-queue", type=int, default=MAX_QUEUE)
    add("--demo", action="store_true")
    args = parser.parse_args()
    service = Service(Poisoned(open_pipeline()), Store(args.jobs), args.max_queue)
    app = create_app(service, Access(max_body=1))
    with own_temporary_folder():
        if args.demo:  # whose library takes longer to start than all else
            importlib.import_module("ui.demo").mount(app, service)
        run(app, service, "127.0.0.1", args.port)


if __name__ == "__main__":
    main()
