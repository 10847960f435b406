"""Leases of processes that were killed: free at once where the death is certain, and never on doubt."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import free_port

from diffusion.holder import holder, is_dead
from diffusion.metadata import model_digest
from diffusion.open import open_pipeline
from diffusion.request import Request
from diffusion.store import Store

pytestmark = pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="the system does not tell of processes")
ROOT = Path(__file__).parent.parent
SAY = "import sys; from diffusion.holder import holder; print(holder('child'), flush=True); sys.stdin.read()"


def python(*arguments: str) -> "subprocess.Popen[str]":
    pipe, environment = subprocess.PIPE, {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)


def told(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_a_process_has_one_name() -> None:
    with python("-c", SAY) as child:
        assert told(child) == holder("child", child.pid) != holder("child")
        child.kill()


def test_the_living_are_not_dead_and_the_killed_are() -> None:
    assert not is_dead(holder("a"))
    with python("-c", SAY) as child:
        name = told(child)
        assert not is_dead(name)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its parent has not asked for its exit code yet
        assert is_dead(name)
    assert is_dead(name)


def test_the_same_id_of_another_start_is_another_process() -> None:
    name, _, start = holder("a").rpartition("/")
    assert is_dead(f"{name}/{int(start) - 1}")


@pytest.mark.parametrize("part", [0, 1])
def test_of_other_machines_and_containers_nothing_is_known(part: int) -> None:
    with python("-c", SAY) as child:
        name, _, process = told(child).rpartition(" @")
        child.kill()
    parts = process.split("/")
    parts[part] = "another"
    assert is_dead(f"{name} @{process}")
    assert not is_dead(f"{name} @{'/'.join(parts)}")
    assert not is_dead(name)


def test_a_killed_process_holds_no_lease(tiny_model: Path, tmp_path: Path) -> None:
    pipeline, store = open_pipeline(tiny_model), Store(tmp_path)
    kind = model_digest(pipeline.model)
    store.submit([pipeline.resolve(Request("a red apple"))], pipeline.model)
    program = (
        "import sys; from pathlib import Path; from diffusion.holder import holder; from diffusion.store import Store\n"
        f"jobs = Store(Path({str(tmp_path)!r})).lease(holder('a'), {kind!r}, 1, 3600)\n"
        "print(len(jobs), flush=True); sys.stdin.read()"
    )
    with python("-c", program) as child:
        assert told(child) == "1"
        assert store.lease(holder("b"), kind, 1, 3600) == []
        child.kill()
    (job,) = store.lease(holder("b"), kind, 1, 3600)
    assert (job.tries, job.error) == (2, "Its worker was lost.")


def expires(folder: Path) -> float:
    """When the only lease there ends by itself."""
    database = sqlite3.connect(folder / "jobs.sqlite")
    ((found,),) = database.execute("SELECT expires FROM jobs WHERE state = 'running'").fetchall()
    database.close()
    return float(found)


def running(store: Store, tries: int) -> float:
    """When the only job's try began, once it does."""
    while True:
        (job,) = store.jobs()
        assert job.state in ("queued", "running"), job
        if job.state == "running" and job.tries == tries:
            return job.started or 0
        time.sleep(0.05)


def served(model: Path, jobs: Path) -> "subprocess.Popen[str]":
    port = str(free_port())
    process = python("-m", "ui", "--no-demo", "--port", port, "--model", str(model), "--jobs", str(jobs))
    assert told(process)
    return process


@pytest.mark.slow
def test_a_server_makes_at_once_what_the_one_that_was_killed_had_begun(tiny_model: Path, tmp_path: Path) -> None:
    pipeline, store = open_pipeline(tiny_model), Store(tmp_path)
    store.submit([pipeline.resolve(Request("a red apple", steps=1000))], pipeline.model)
    process = served(tiny_model, tmp_path)
    running(store, tries=1)
    process.kill()
    process.wait()
    end = expires(tmp_path)
    process = served(tiny_model, tmp_path)
    assert running(store, tries=2) < end
    process.send_signal(signal.SIGTERM)
    process.wait()
