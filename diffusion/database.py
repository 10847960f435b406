"""A SQLite file that many processes and threads change, each change on the disk when it is done.

Of what PyPI has, persist-queue (1.1) comes nearest to a store of jobs: it acknowledges, and orders by priority. It has
no leases that run out, no idempotency keys, no states that change in one transaction; and what it keeps, it pickles.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUSY = 60  # seconds that a change waits for those of other processes


class Database:
    """One connection, which the threads of this process take in turn."""

    def __init__(self, path: Path, schema: str, version: int) -> None:
        """Makes the tables where there are none. Raises ValueError for a file of another kind or version."""
        self.path = path
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        try:
            self._write_ahead()
            self._connection.execute("PRAGMA synchronous = FULL")
            with self.change() as change:
                found = self.one("PRAGMA user_version")
                if found == 0:
                    for statement in filter(str.strip, schema.split(";")):
                        change.execute(statement)
                    change.execute(f"PRAGMA user_version = {version}")
                elif found != version:
                    raise ValueError(f"{path} is of version {found} and {version} is read here; use another folder.")
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise ValueError(f"{path} cannot be opened as a store of jobs: {error}.") from None

    def _write_ahead(self) -> None:
        """Readers do not wait for writers then. SQLite waits for no other process here, so it is asked again."""
        for wait in range(100):
            try:
                if self.one("PRAGMA journal_mode") != "wal":
                    self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if wait == 99:
                    raise
                time.sleep(0.05)

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: whatever is raised inside leaves everything as it was."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first value of the first row."""
        with self._lock:
            return self._connection.execute(sql, values).fetchone()[0]

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def marks(values: Sequence[Any]) -> str:
    """Places for so many values in a statement."""
    return ", ".join("?" * len(values))
