"""The store of jobs: its promises, held by threads, processes and dead workers."""

import multiprocessing
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion.checkpoint import load_model
from diffusion.job import Job
from diffusion.metadata import digest, model_digest
from diffusion.pipeline import Pipeline
from diffusion.request import Request, Resolved
from diffusion.store import MAX_LOST, Store
from diffusion.texts import encode_picture
from diffusion.worker import Worker, memory_is_short

FILE = b"\x89PNG ..."


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Pipeline:
    return Pipeline(load_model(tiny_model))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def requests(pipeline: Pipeline, count: int, **said: object) -> list[Resolved]:
    return [pipeline.resolve(Request("a red apple", seed=seed, steps=1, **said)) for seed in range(count)]  # type: ignore[arg-type]


def states(store: Store) -> list[str]:
    """Oldest first."""
    return [job.state for job in store.jobs()][::-1]


def test_a_job_from_end_to_end(pipeline: Pipeline, store: Store) -> None:
    submitted = store.submit(requests(pipeline, 3), pipeline.model)
    assert len({job.id for job in submitted}) == 3
    assert len({job.group for job in submitted}) == 1
    kind = model_digest(pipeline.model)
    assert store.lease("a", "another model", 9, 60) == []
    first, second = store.lease("a", kind, 2, 60)
    assert [first.request, second.request] == requests(pipeline, 2)
    assert [job.request.seed for job in store.lease("b", kind, 2, 60)] == [2]
    assert store.lease("c", kind, 2, 60) == []
    assert store.deliver(first, "a", FILE)
    assert (store.folder / f"{digest(first.request, pipeline.model)}.png").read_bytes() == FILE
    assert store.get(first.id).file == first.name
    assert store.get(second.id).file is None
    assert states(store) == ["done", "running", "running"]
    assert store.counts() == {"queued": 0, "running": 2, "done": 1, "failed": 0, "cancelled": 0, "parked": 0}
    store.release("a")
    store.release("b")
    assert [job.tries for job in store.jobs(states=["queued"])] == [0, 0]
    with pytest.raises(KeyError):
        store.get("nothing")


def test_everything_is_there_when_the_folder_is_opened_again(pipeline: Pipeline, store: Store) -> None:
    image = encode_picture(Image.effect_noise((16, 16), 90).convert("RGB"), {})
    asked = requests(pipeline, 2, image=image, strength=1.0, guidance_interval=(0.5, 9.0), schedule=(9.0, 0.0))
    store.submit(asked, pipeline.model)
    store.lease("a", model_digest(pipeline.model), 1, 60)
    store.close()
    again = Store(store.folder)
    assert [job.request for job in again.jobs()][::-1] == asked
    assert states(again) == ["running", "queued"]


def test_priority_then_age_and_one_shape_at_a_time(pipeline: Pipeline, store: Store) -> None:
    small, large = requests(pipeline, 2), requests(pipeline, 2, width=32)
    for request in (small[0], large[0], small[1], large[1]):
        store.submit([request], pipeline.model)
    store.submit(requests(pipeline, 1, guidance=1.0), pipeline.model, priority=1)
    taken = []
    while jobs := store.lease("a", model_digest(pipeline.model), 8, 60):
        taken.append([(job.request.width, job.request.guidance) for job in jobs])
    assert taken == [[(16, 1.0)], [(16, 3.0)] * 2, [(32, 3.0)] * 2]


def test_idempotency_keys(pipeline: Pipeline, store: Store) -> None:
    first = store.submit(requests(pipeline, 2), pipeline.model, key="k")
    store.cancel(first[0].group)
    again = store.submit(requests(pipeline, 2), pipeline.model, key="k")
    assert [job.id for job in again] == [job.id for job in first]
    assert {job.state for job in again} == {"cancelled"}
    with pytest.raises(ValueError, match="idempotency key 'k' came with other requests"):
        store.submit(requests(pipeline, 3), pipeline.model, key="k")
    drawn = [replace(request, seed=request.seed + 10) for request in requests(pipeline, 2)]
    asked = [Request("a red apple", seed=-1)]
    first = store.submit(drawn[:1], pipeline.model, key="drawn", asked=asked)
    assert store.submit(drawn[1:], pipeline.model, key="drawn", asked=asked) == first
    assert len(store.jobs()) == 3


def test_a_lost_lease_is_taken_over_and_finished_once(pipeline: Pipeline, store: Store) -> None:
    store.submit(requests(pipeline, 1), pipeline.model)
    kind = model_digest(pipeline.model)
    (lost,) = store.lease("dead", kind, 1, -1)
    (taken,) = store.lease("alive", kind, 1, 60)
    assert taken.id == lost.id
    assert store.deliver(taken, "alive", FILE)
    assert not store.deliver(lost, "dead", FILE)  # it was only slow
    assert [path.name for path in store.folder.glob("*.png")] == [taken.name]
    assert states(store) == ["done"]


def test_a_file_that_a_lost_worker_left_is_not_made_again(pipeline: Pipeline, store: Store) -> None:
    store.submit(requests(pipeline, 1), pipeline.model)
    (job,) = store.lease("dead", model_digest(pipeline.model), 1, 60)
    (store.folder / job.name).write_bytes(FILE)
    store.lost("dead")
    assert states(store) == ["done"]


def test_renewal_holds_a_lease_and_tells_of_cancelled_jobs(pipeline: Pipeline, store: Store) -> None:
    store.submit(requests(pipeline, 2), pipeline.model)
    kind = model_digest(pipeline.model)
    first, second = store.lease("a", kind, 2, -1)
    assert store.renew("a", 60, {first.id: (3, 4), second.id: (0, 0)}) == set()
    assert store.lease("b", kind, 2, 60) == []
    assert (store.get(first.id).evaluation, store.get(first.id).evaluations) == (3, 4)
    assert store.cancel([second.id]) == [second.id]
    assert store.renew("a", 60, {}) == {second.id}
    assert not store.deliver(second, "a", FILE)
    assert states(store) == ["running", "cancelled"]
    assert store.retry(second.group) == [second.id]
    assert store.renew("a", 60, {}) == set()


def test_what_was_tried_in_vain_is_parked_and_retried_when_asked(pipeline: Pipeline, store: Store) -> None:
    asked = store.submit(requests(pipeline, 3), pipeline.model)
    kind = model_digest(pipeline.model)
    jobs = store.lease("a", kind, 3, 60)
    store.fail(jobs[0], "a", "a mistake", final=True)
    store.fail(jobs[1], "a", "an error")
    assert states(store) == ["failed", "queued", "running"]
    (again,) = store.lease("a", kind, 3, 60)
    store.fail(again, "a", "an error again")
    assert store.get(again.id).error == "an error again"
    for _ in range(MAX_LOST - 1):
        store.lost("a")
        (alone,) = store.lease("a", kind, 3, 60)  # one that was tried comes alone
        assert alone.id == jobs[2].id
    store.lost("a")
    assert states(store) == ["failed", "parked", "parked"]
    assert {*store.retry(asked[0].group)} == {job.id for job in asked}
    assert [job.tries for job in store.jobs()] == [0, 0, 0]


def test_one_that_was_tried_waits_for_no_company_and_gives_none(pipeline: Pipeline, store: Store) -> None:
    store.submit(requests(pipeline, 4), pipeline.model)
    kind = model_digest(pipeline.model)
    assert len(store.lease("a", kind, 2, 60)) == 2
    store.lost("a")
    assert [len(store.lease("b", kind, 4, 60)) for _ in range(3)] == [1, 1, 2]


def test_pages_and_ends_in_order(pipeline: Pipeline, store: Store) -> None:
    jobs = store.submit(requests(pipeline, 5), pipeline.model)
    page = store.jobs(limit=2)
    assert [job.request.seed for job in page] == [4, 3]
    assert [job.request.seed for job in store.jobs(limit=2, before=page[-1].id)] == [2, 1]
    leased = store.lease("a", model_digest(pipeline.model), 5, 60)
    for job in (leased[3], leased[1]):
        store.deliver(job, "a", FILE)
    ended = store.ended(jobs[0].group, after=0)
    assert [job.request.seed for job in ended] == [3, 1]
    store.cancel(jobs[0].id)
    assert [job.id for job in store.ended(jobs[0].group, after=ended[-1].ended or 0)] == [jobs[0].id]


def test_required_pictures_are_there_once(pipeline: Pipeline, store: Store) -> None:
    asked, kind = requests(pipeline, 4), model_digest(pipeline.model)
    assert store.require([*asked, asked[0]], pipeline.model, "first") == 4
    assert states(store) == ["queued"] * 4
    done, deleted, parked = store.lease("a", kind, 3, 60)
    store.deliver(done, "a", FILE)
    store.deliver(deleted, "a", FILE)
    (store.folder / deleted.name).unlink()
    store.fail(parked, "a", "an error", final=True)
    assert store.require(asked, pipeline.model, "second") == 2
    assert states(store) == ["done", "queued", "queued", "queued"]
    assert {job.group for job in store.jobs()} == {"second"}


def test_a_transaction_is_all_or_nothing(pipeline: Pipeline, store: Store) -> None:
    asked = requests(pipeline, 2)
    with pytest.raises(TypeError):
        store.submit([*asked, replace(asked[0], prompt=object())], pipeline.model)  # type: ignore[arg-type]
    assert store.jobs() == []
    assert len(store.submit(asked, pipeline.model)) == 2


def take_all(folder: Path, kind: str, name: str) -> None:
    store = Store(folder)
    while jobs := store.lease(name, kind, 3, 60):
        for job in jobs:
            assert store.deliver(job, name, FILE)


def test_many_processes_take_each_job_once(pipeline: Pipeline, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.submit(requests(pipeline, 60), pipeline.model)
    spawn = multiprocessing.get_context("fork")
    arguments = [(tmp_path, model_digest(pipeline.model), f"worker {i}") for i in range(4)]
    processes = [spawn.Process(target=take_all, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert states(store) == ["done"] * 60
    assert {job.tries for job in store.jobs()} == {1}
    assert {job.ended for job in store.jobs()} == {*range(1, 61)}


def test_other_files_and_later_versions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"no database at all, but long enough to be one" * 100)
    with pytest.raises(ValueError, match="cannot be opened as a store of jobs"):
        Store(tmp_path)
    later = tmp_path / "later"
    Store(later).close()
    connection = sqlite3.connect(later / "jobs.sqlite")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(ValueError, match="is of version 2"):
        Store(later)


class Until:
    """Stops a worker when nothing is queued, or at what `when` says."""

    def __init__(self, store: Store) -> None:
        self.store, self.stop = store, threading.Event()

    def work(self, worker: Worker, **said: object) -> None:
        thread = threading.Thread(target=worker.run, args=(self.stop,), kwargs=said)
        thread.start()
        while thread.is_alive():
            counts = self.store.counts()
            if counts["queued"] + counts["running"] == 0:
                self.stop.set()
            thread.join(0.02)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_worker_makes_the_pipelines_own_pictures(pipeline: Pipeline, store: Store, batch: int) -> None:
    store.submit(requests(pipeline, 4), pipeline.model)
    seen: list[tuple[str, int]] = []
    Until(store).work(Worker(pipeline, store, "a", batch=batch), seen=lambda job, made: seen.append((job.id, 1)))
    assert states(store) == ["done"] * 4
    for job, picture in zip(store.jobs()[::-1], pipeline.generate(requests(pipeline, 4), batch=batch), strict=True):
        assert (store.folder / job.name).read_bytes() == picture.png()
        assert job.seconds
    assert [id for id, _ in seen] == [job.id for job in store.jobs()[::-1]]


def test_a_cancel_stops_the_picture_at_the_next_step(pipeline: Pipeline, store: Store) -> None:
    jobs = store.submit([replace(one, steps=50) for one in requests(pipeline, 2)], pipeline.model)
    worker, steps = Worker(pipeline, store, "a", batch=2), []

    def seen(job: Job, made: object) -> None:
        steps.append(job.id)
        if len(steps) == 3:
            worker.cancel(store.cancel(jobs[0].id))

    Until(store).work(worker, seen=seen)
    assert states(store) == ["cancelled", "done"]
    assert steps == [*(job.id for job in jobs), jobs[0].id] + [jobs[1].id] * 50  # the other one begins anew
    assert {path.name for path in store.folder.glob("*.png")} == {jobs[1].name}


def test_a_cancelled_job_that_is_tried_again_is_made(pipeline: Pipeline, store: Store) -> None:
    (job,) = store.submit(requests(pipeline, 1), pipeline.model)
    worker = Worker(pipeline, store, "a")
    worker.cancel(store.cancel(job.id))
    store.retry(job.id)
    Until(store).work(worker)
    assert states(store) == ["done"]


def test_a_stop_queues_again_what_is_unfinished(pipeline: Pipeline, store: Store) -> None:
    store.submit([replace(one, steps=50) for one in requests(pipeline, 3)], pipeline.model)
    stop, steps = threading.Event(), []

    def seen(job: Job, made: object) -> None:
        steps.append(job.id)
        if len(steps) == 53:
            stop.set()

    Worker(pipeline, store, "a").run(stop, seen)
    assert len(steps) == 53
    assert states(store) == ["done", "queued", "queued"]
    assert [job.tries for job in store.jobs()] == [0, 0, 1]


def test_a_mistake_hurts_nobody_else(pipeline: Pipeline, store: Store) -> None:
    asked = requests(pipeline, 3)
    asked[1] = replace(asked[1], seed=2**70)  # as another version might have taken it
    store.submit(asked, pipeline.model)
    Until(store).work(Worker(pipeline, store, "a", batch=3))
    assert states(store) == ["done", "failed", "done"]
    assert "The seed is 1180591620717411303424" in (store.jobs(states=["failed"])[0].error or "")


def test_an_error_is_tried_twice_and_parked(pipeline: Pipeline, store: Store) -> None:
    store.submit(requests(pipeline, 2), pipeline.model)

    def encode(picture: object) -> bytes:
        raise OverflowError("of the worker's own")

    Until(store).work(Worker(pipeline, store, "a", encode=encode))
    assert states(store) == ["parked", "parked"]
    assert {(job.tries, job.error) for job in store.jobs()} == {(2, "OverflowError: of the worker's own")}


def test_short_memory_halves_the_batch(pipeline: Pipeline, store: Store) -> None:
    store.submit(requests(pipeline, 8), pipeline.model)
    handed: list[tuple[int, int]] = []

    class Small(Pipeline):
        def generate(self, requests, progress=None, batch=1):  # type: ignore[no-untyped-def]
            handed.append((len(requests), batch))
            if batch > 2:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory")
            return super().generate(requests, progress, batch)

    small = Small.__new__(Small)
    small.__dict__ = pipeline.__dict__
    Until(store).work(Worker(small, store, "a", batch=8))
    assert states(store) == ["done"] * 8
    assert handed == [(8, 8), (4, 4), (2, 2), (2, 2), (2, 2), (2, 2)]
    for job, picture in zip(store.jobs()[::-1], pipeline.generate(requests(pipeline, 8), batch=2), strict=True):
        assert (store.folder / job.name).read_bytes() == picture.png()


def test_want_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert memory_is_short(caught.value)
    assert not memory_is_short(RuntimeError("shapes differ"))

