"""The durable store of requests and their pictures: what is accepted is neither lost nor made twice.

    queued => running => done                     the picture's file is on the disk before the state says so
                      => queued                   its worker stopped, or was lost, or failed once
                      => failed | parked          it cannot be made, or was tried in vain; `retry` queues it again
    queued, running => cancelled

One folder holds jobs.sqlite and the pictures. Any number of processes on one machine share it: every change is one
short transaction, on the disk when it returns. A worker holds its jobs by a lease that it renews; when it is known to
be dead (holder.py), or its lease has run out, another takes them over. Should both finish, they wrote the same bytes
and one row.
"""

import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from diffusion.batching import shape
from diffusion.database import Database, marks
from diffusion.holder import is_dead
from diffusion.job import ENDED, STATES, Job
from diffusion.metadata import Named, digest, model_digest
from diffusion.request import FILES, Request, Resolved, file_name, from_json, to_json
from diffusion.shelf import Folder, Shelf

VERSION = 1
MAX_TRIES = 2  # that end in an error
# Tries that end with their worker. A request that kills it looks like one that stood by when it was killed; those are
# tried again alone, and a third time, for one that stood by twice is likelier than it seems where workers often die.
MAX_LOST = 3
SCHEMA = """
CREATE TABLE clock (ended INTEGER NOT NULL);
INSERT INTO clock VALUES (0);
CREATE TABLE blobs (name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE, "group" TEXT NOT NULL, key TEXT UNIQUE, asked TEXT,
    state TEXT NOT NULL DEFAULT 'queued', request TEXT NOT NULL, shape TEXT NOT NULL, model TEXT NOT NULL,
    name TEXT NOT NULL, priority INTEGER NOT NULL, tries INTEGER NOT NULL DEFAULT 0, error TEXT,
    evaluation INTEGER NOT NULL DEFAULT 0, evaluations INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL, started REAL, finished REAL, ended INTEGER,
    worker TEXT, expires REAL
);
CREATE INDEX turn ON jobs (state, model, priority DESC, number);
CREATE INDEX groups ON jobs ("group", ended);
CREATE INDEX ended ON jobs (ended);
CREATE INDEX leases ON jobs (worker) WHERE worker IS NOT NULL;
"""
COLUMNS = 'id, "group", state, request, model, name, priority, tries, error, evaluation, evaluations'
TIMES = "created, started, finished, ended"


class Store:
    """The jobs of a folder; threads may share it."""

    def __init__(self, folder: Path, file: str = "jobs.sqlite", shelf: Shelf | None = None) -> None:
        """The pictures lie in the folder, too, where no other `shelf` is named."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path, self.shelf = folder, folder / file, shelf or Folder(folder)
        self._database = Database(self.path, SCHEMA, VERSION)

    def close(self) -> None:
        """Ends this process's part in it; a store that is used again is opened again."""
        self._database.close()

    # what is asked for

    def submit(
        self,
        requests: Sequence[Resolved],
        model: Named,
        *,
        key: str | None = None,
        asked: Sequence[Request] | None = None,
        priority: int = 0,
    ) -> list[Job]:
        """Queues a group of requests, all or none.

        The same idempotency key again gives the same jobs, whatever has become of them, and ValueError where other
        requests came with it. `asked` is what is compared, where `requests` hold seeds that were drawn for it.
        """
        said = json.dumps([to_json(request) for request in asked or requests], ensure_ascii=False)
        with self._database.change() as change:
            if key is not None:
                sql = 'SELECT "group", asked FROM jobs WHERE key = ?'
                if found := change.execute(sql, (f"{key} 0",)).fetchone():
                    if found[1] != said:
                        raise ValueError(f"The idempotency key {key!r:.80} came with other requests; use a new one.")
                    return self.jobs(group=found[0])[::-1]
            keys = [key and f"{key} {i}" for i in range(len(requests))]
            ids = self._insert(change, requests, model, _id(), keys, priority)
            change.execute("UPDATE jobs SET asked = ? WHERE key = ?", (said, f"{key} 0"))
            return self._jobs(f"WHERE id IN ({marks(ids)}) ORDER BY number", ids)

    def require(self, requests: Sequence[Resolved], model: Named, group: str) -> int:
        """Has each picture be there once, by its name: what is missing is queued, what failed is tried again.

        All of them then belong to `group`. How many were queued.
        """
        kind, now, queued = model_digest(model), time.time(), 0
        with self._database.change() as change:
            missing = dict[str, Resolved]()
            for request in requests:
                name = f"{digest(request, model)}.png"
                sql = "SELECT number, state FROM jobs WHERE key = ?"
                found = change.execute(sql, (f"{kind} {name}",)).fetchone()
                if found is None:
                    missing[name] = request
                    continue
                number, state = found
                change.execute('UPDATE jobs SET "group" = ? WHERE number = ?', (group, number))
                if state in ENDED and not (state == "done" and self.shelf.holds(name)):
                    queued += len(self._queue(change, "number = ?", (number,), now))
            keys = [f"{kind} {name}" for name in missing]
            self._insert(change, [*missing.values()], model, group, keys, 0)
            return queued + len(missing)

    def _insert(
        self,
        change: sqlite3.Connection,
        requests: Sequence[Resolved],
        model: Named,
        group: str,
        keys: Sequence[str | None],
        priority: int,
    ) -> list[str]:
        kind, now = model_digest(model), time.time()
        blobs = {file_name(data): data for request in requests for data in _files(request)}
        change.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?)", blobs.items())
        rows = []
        for request, key in zip(requests, keys, strict=True):
            said = json.dumps(to_json(request), ensure_ascii=False)
            name = f"{digest(request, model)}.png"
            rows.append((_id(), group, key, said, shape(request), kind, name, priority, now))
        change.executemany(
            'INSERT INTO jobs (id, "group", key, request, shape, model, name, priority, created)'
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        return [row[0] for row in rows]

    def cancel(self, names: str | Iterable[str]) -> list[str]:
        """Ends what has not ended, of jobs and groups by their ids; the ids of those that it ended."""
        with self._database.change() as change:
            numbers = self._named(change, names, ("queued", "running"))
            return self._end(change, numbers, "cancelled", None)

    def retry(self, names: str | Iterable[str] | None = None) -> list[str]:
        """Queues again what failed, was parked or cancelled, of jobs and groups by their ids, or all; their ids."""
        with self._database.change() as change:
            if names is None:
                return self._queue(change, "state IN ('failed', 'parked', 'cancelled')", (), time.time())
            numbers = self._named(change, names, ("failed", "parked", "cancelled"))
            return self._queue(change, f"number IN ({marks(numbers)})", numbers, time.time())

    def dismiss(self, groups: str) -> None:
        """Cancels what groups whose id matches a pattern still wait for; their workers are known to be dead."""
        with self._database.change() as change:
            self._lose(change, "state = 'running' AND \"group\" GLOB ?", (groups,))
            sql = "SELECT number FROM jobs WHERE state = 'queued' AND \"group\" GLOB ?"
            self._end(change, _column(change.execute(sql, (groups,))), "cancelled", None)

    # what workers do

    def lease(self, worker: str, model: str, count: int, seconds: float) -> list[Job]:
        """The next jobs of a model, by priority, then age, for so many seconds: at most `count`, all of one shape.

        One that was tried before comes alone, so that no other suffers for it. `worker` is best a `holder`.
        """
        now = time.time()
        held = _column(self._database.rows("SELECT DISTINCT worker FROM jobs WHERE state = 'running'"))
        dead = [*filter(is_dead, held)]
        if not dead and not self._database.one(
            "SELECT EXISTS (SELECT 1 FROM jobs WHERE state = 'queued' AND model = ?)"
            " OR EXISTS (SELECT 1 FROM jobs WHERE state = 'running' AND expires < ?)",
            (model, now),
        ):
            return []  # without waiting for those who change something
        with self._database.change() as change:
            over = f"state = 'running' AND (expires < ? OR worker IN ({marks(dead)}))"
            self._lose(change, over, (now, *dead))
            turn = "state = 'queued' AND model = ? ORDER BY priority DESC, number"
            first = change.execute(f"SELECT shape, priority, tries FROM jobs WHERE {turn} LIMIT 1", (model,)).fetchone()
            if first is None:
                return []
            alike = "state = 'queued' AND model = ? AND shape = ? AND priority = ? AND tries = ? ORDER BY number"
            limit = 1 if first[2] else count
            numbers = _column(change.execute(f"SELECT number FROM jobs WHERE {alike} LIMIT ?", (model, *first, limit)))
            change.execute(
                "UPDATE jobs SET state = 'running', tries = tries + 1, worker = ?, expires = ?, started = ?,"
                f" evaluation = 0, evaluations = 0 WHERE number IN ({marks(numbers)})",
                (worker, now + seconds, now, *numbers),
            )
            return self._jobs(f"WHERE number IN ({marks(numbers)}) ORDER BY number", numbers)

    def renew(self, worker: str, seconds: float, seen: Mapping[str, tuple[int, int]]) -> set[str]:
        """Extends a worker's leases of those jobs and says how far they are: the evaluation, of how many.

        Which of its jobs were cancelled meanwhile.
        """
        expires = time.time() + seconds
        with self._database.change() as change:
            change.executemany(
                "UPDATE jobs SET evaluation = ?, evaluations = ?, expires = ?"
                " WHERE id = ? AND worker = ? AND state = 'running'",
                [(*evaluations, expires, id, worker) for id, evaluations in seen.items()],
            )
            return {*_column(change.execute("SELECT id FROM jobs WHERE worker = ? AND state = 'cancelled'", (worker,)))}

    def deliver(self, job: Job, worker: str, data: bytes) -> bool:
        """Writes a picture's file, and when it is on the disk says that the job is done; see `finish`."""
        self.shelf.put(job.name, data, _part(job.id, worker))
        return self.finish(job, worker)

    def finish(self, job: Job, worker: str) -> bool:
        """The picture's file is on the disk. False where the job had ended before, by another worker or a cancel."""
        with self._database.change() as change:
            numbers = self._named(change, job.id, ("queued", "running"))
            return bool(self._end(change, numbers, "done", None))

    def fail(self, job: Job, worker: str, error: str, final: bool = False) -> None:
        """The job is queued again after its first error, and parked after the second; failed at once where `final`."""
        with self._database.change() as change:
            sql = "SELECT number, tries FROM jobs WHERE id = ? AND worker = ? AND state = 'running'"
            for number, tries in change.execute(sql, (job.id, worker)).fetchall():
                if final or tries >= MAX_TRIES:
                    self._end(change, [number], "failed" if final else "parked", error)
                else:
                    self._back(change, number, error)

    def release(self, worker: str) -> None:
        """Queues a worker's jobs again, as if they had never been tried: it was asked to stop."""
        with self._database.change() as change:
            sql = "UPDATE jobs SET tries = tries - 1 WHERE worker = ? AND state = 'running' RETURNING number"
            for number in _column(change.execute(sql, (worker,))):
                self._back(change, number, None)

    def lost(self, worker: str) -> int:
        """The worker is known to be dead: its leases end now. How many it had."""
        with self._database.change() as change:
            return self._lose(change, "state = 'running' AND worker = ?", (worker,))

    # what there is

    def knows(self, key: str) -> bool:
        """Whether something was submitted with the idempotency key."""
        return bool(self._database.one("SELECT EXISTS (SELECT 1 FROM jobs WHERE key = ?)", (f"{key} 0",)))

    def get(self, id: str) -> Job:
        """Raises KeyError for a job that there is not."""
        if not (found := self._jobs("WHERE id = ?", (id,))):
            raise KeyError(id)
        return found[0]

    def jobs(
        self,
        *,
        group: str | None = None,
        states: Iterable[str] | None = None,
        limit: int = -1,
        before: str | None = None,
    ) -> list[Job]:
        """Newest first; those that were queued before the one with the id `before`."""
        where, values = ["1"], list[Any]()
        if group is not None:
            where, values = [*where, '"group" = ?'], [*values, group]
        if states is not None:
            states = [*states]
            where, values = [*where, f"state IN ({marks(states)})"], [*values, *states]
        if before is not None:
            where, values = [*where, "number < (SELECT number FROM jobs WHERE id = ?)"], [*values, before]
        return self._jobs(f"WHERE {' AND '.join(where)} ORDER BY number DESC LIMIT ?", [*values, limit])

    def ended(self, group: str, after: int, limit: int = 1000) -> list[Job]:
        """The jobs of a group in the order in which they ended, after the one whose `ended` is `after`."""
        return self._jobs('WHERE "group" = ? AND ended > ? ORDER BY ended LIMIT ?', (group, after, limit))

    def counts(self, group: str | None = None) -> dict[str, int]:
        """How many jobs there are in each state."""
        where, values = ("", ()) if group is None else ('WHERE "group" = ?', (group,))
        rows = self._database.rows(f"SELECT state, count(*) FROM jobs {where} GROUP BY state", values)
        return dict.fromkeys(STATES, 0) | dict(rows)

    def _jobs(self, where: str, values: Sequence[Any]) -> list[Job]:
        rows = self._database.rows(f"SELECT {COLUMNS}, {TIMES} FROM jobs {where}", values)
        requests = [json.loads(row[3]) for row in rows]
        named = {said[field] for said in requests for field in FILES if field in said}
        blobs = {name: self._database.one("SELECT data FROM blobs WHERE name = ?", (name,)) for name in named}
        jobs = []
        for row, said in zip(rows, requests, strict=True):
            files = [blobs[said[field]] for field in FILES if field in said]
            values = [*row[:3], _resolved(said, files), *row[4:]]
            jobs.append(Job(*values))
        return jobs

    # the changes that they are made of

    def _named(self, change: sqlite3.Connection, names: str | Iterable[str], states: Sequence[str]) -> list[int]:
        """The jobs of those ids and groups that are in one of the states."""
        names = [names] if isinstance(names, str) else [*names]
        where = f'(id IN ({marks(names)}) OR "group" IN ({marks(names)})) AND state IN ({marks(states)})'
        return _column(change.execute(f"SELECT number FROM jobs WHERE {where}", [*names, *names, *states]))

    def _end(self, change: sqlite3.Connection, numbers: Sequence[int], state: str, error: str | None) -> list[str]:
        """Jobs end in a state; a cancelled one still names its worker, who is to hear of it."""
        ids = []
        for number in numbers:
            (ended,) = _column(change.execute("UPDATE clock SET ended = ended + 1 RETURNING ended"))
            sql = (
                "UPDATE jobs SET state = ?, error = ?, finished = ?, ended = ?, expires = NULL,"
                " worker = CASE ? WHEN 'cancelled' THEN worker END WHERE number = ? RETURNING id"
            )
            ids += _column(change.execute(sql, (state, error, time.time(), ended, state, number)))
        return ids

    def _back(self, change: sqlite3.Connection, number: int, error: str | None) -> None:
        """A job that is tried again: it waits where it waited before."""
        sql = "UPDATE jobs SET state = 'queued', error = ?, worker = NULL, expires = NULL WHERE number = ?"
        change.execute(sql, (error, number))

    def _queue(self, change: sqlite3.Connection, where: str, values: Sequence[Any], now: float) -> list[str]:
        """Jobs begin anew."""
        sql = (
            "UPDATE jobs SET state = 'queued', tries = 0, error = NULL, evaluation = 0, evaluations = 0, created = ?,"
            f" started = NULL, finished = NULL, ended = NULL, worker = NULL, expires = NULL WHERE {where} RETURNING id"
        )
        return _column(change.execute(sql, (now, *values)))

    def _lose(self, change: sqlite3.Connection, where: str, values: Sequence[Any]) -> int:
        """Leases whose worker is dead: where the file is there, it was the last thing that it did."""
        sql = f"SELECT number, id, name, tries, worker FROM jobs WHERE {where}"
        held = change.execute(sql, values).fetchall()
        for number, id, name, tries, worker in held:
            self.shelf.drop(_part(id, worker))  # half a file, where it died while writing
            if self.shelf.holds(name):
                self._end(change, [number], "done", None)
            elif tries >= MAX_LOST:
                self._end(change, [number], "parked", f"Its worker was lost {tries} times; is the memory too small?")
            else:
                self._back(change, number, "Its worker was lost.")
        return len(held)


def _files(request: Request) -> list[bytes]:
    return [data for field in FILES if (data := getattr(request, field)) is not None]


def _resolved(said: dict[str, Any], files: Iterable[bytes]) -> Resolved:
    request = from_json(said, files)
    return Resolved(**{field.name: getattr(request, field.name) for field in fields(Request)})


def _id() -> str:
    return secrets.token_urlsafe(9)


def _part(id: str, worker: str) -> str:
    """The name that a worker writes a job's file under before it is whole."""
    return f".{id}-{hashlib.sha256(worker.encode()).hexdigest()[:8]}.part"


def _column(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [row[0] for row in rows]
