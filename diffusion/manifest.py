"""What a batch job has made: manifest.jsonl, a row a picture, which appears when the picture's file is on the disk.

    {"path": "0123456789ab.png", "request": {...}, "seed": 7, "seconds": 0.21, "state": "done", "error": null}

A request that cannot be made, or was tried in vain, has a row, too, with its error and no path.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from clip.durable import aside
from diffusion.job import Job
from diffusion.request import to_json
from diffusion.shelf import Shelf
from diffusion.store import Store


class Manifest:
    """Of a group of a store's jobs. The store is the truth: each run writes the manifest anew, then appends to it."""

    def __init__(self, path: Path, store: Store, group: str) -> None:
        self.path = path
        self.store = store
        self.group = group
        self.after = 0  # the last row's `Job.ended`
        self.counts = dict[str, int]()  # of rows, by their state

    @property
    def rows(self) -> int:
        return sum(self.counts.values())

    def begin(self) -> None:
        """The rows of all that has ended."""
        with aside(self.path, f".{self.path.name}.part") as part, part.open("w", encoding="utf-8") as file:
            while jobs := self.store.ended(self.group, self.after):
                file.writelines(self._lines(jobs))

    def follow(self) -> None:
        """The rows of what has ended since; on the disk when this returns."""
        while jobs := self.store.ended(self.group, self.after):
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(self._lines(jobs))
                file.flush()
                os.fsync(file.fileno())

    def _lines(self, jobs: Iterable[Job]) -> Iterable[str]:
        for job in jobs:
            yield row(job, self.store.shelf)
            self.after = job.ended or self.after
            self.counts[job.state] = self.counts.get(job.state, 0) + 1


def row(job: Job, shelf: Shelf) -> str:
    said = {
        "path": job.file and shelf.path(job.file),
        "request": to_json(job.request),
        "seed": job.request.seed,
        "seconds": None if job.seconds is None else round(job.seconds, 3),
        "state": job.state,
        "error": job.error,
    }
    return json.dumps(said, ensure_ascii=False) + "\n"
