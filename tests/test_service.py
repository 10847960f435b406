"""The service: admission, watching, cancelling, stopping."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffusion.checkpoint import load_model
from diffusion.pipeline import Pipeline
from diffusion.request import Request
from diffusion.store import Store
from ui.limits import Overloaded, Pace, TooMuch
from ui.service import Event, Service

LONG = {"steps": 1000, "schedule": "karras"}


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Pipeline:
    return Pipeline(load_model(tiny_model))


@pytest.fixture
def idle(pipeline: Pipeline, tmp_path: Path) -> Service:
    """One that makes nothing yet."""
    return Service(pipeline, Store(tmp_path / "jobs"), max_queue=4)


@pytest.fixture
def service(idle: Service) -> Iterator[Service]:
    idle.budget *= 1000
    idle.start()
    yield idle
    idle.stop()


def last(events: Iterator[Event]) -> Event:
    *_, event = events
    return event


def test_a_picture_is_the_command_lines(service: Service) -> None:
    (job,) = service.submit([Request("a red apple", seed=3)])
    assert job.state == "queued"
    event = last(service.watch([job.id]))
    assert event.job.state == "done"
    (picture,) = service.pipeline.generate([Request("a red apple", seed=3)])
    assert service.picture(event.job) == picture.png() == service.picture(job.id)
    with pytest.raises(KeyError):
        service.picture("nothing")


def test_progress_and_previews_while_somebody_watches(service: Service) -> None:
    (job,) = service.submit([Request("a red apple", **LONG)])  # type: ignore[arg-type]
    cancelled, previews = [], []
    for event in service.watch([job.id]):
        previews += [event.preview] if event.preview else []
        if len(previews) > 1 and not cancelled:
            cancelled = service.cancel([job.id])
    assert cancelled == [job.id]
    assert event.job.state == "cancelled"
    assert previews[0].size == (16, 16)
    assert service.cancel([job.id]) == []


def test_no_previews_when_nobody_asks(service: Service) -> None:
    (job,) = service.submit([Request("a red apple", **LONG)])  # type: ignore[arg-type]
    for event in service.watch([job.id], previews=False):
        assert event.preview is None
        if event.job.evaluation > 3:
            service.cancel([job.id])


def test_stopping_keeps_the_queue(pipeline: Pipeline, service: Service) -> None:
    first, second = service.submit([Request("a red apple", **LONG), Request("a blue star")])  # type: ignore[arg-type]
    next(event for event in service.watch([first.id]) if event.job.evaluation)
    service.stop()
    assert not service.working
    assert [service.store.get(job.id).state for job in (first, second)] == ["queued", "queued"]
    service.cancel([first.id])
    again = Service(pipeline, Store(service.store.folder))
    again.start()
    assert last(again.watch([second.id])).job.state == "done"
    again.stop()


def test_a_full_queue(idle: Service) -> None:
    idle.submit([Request("a red apple")] * 3)
    idle.pace.pixels, idle.pace.seconds = 1, 1e-2
    with pytest.raises(Overloaded) as refusal:
        idle.submit([Request("a red apple")] * 2)
    assert refusal.value.retry_after == 11  # one of 16 x 16 pixels and 4 evaluations, each 1e-2 s
    idle.submit([Request("a red apple")])
    with pytest.raises(Overloaded):
        idle.submit([Request("a red apple")])
    assert idle.rejections == {"Overloaded": 2}
    assert idle.waiting() == 4


def test_more_work_than_may_wait(idle: Service) -> None:
    with pytest.raises(TooMuch, match="at most 4"):
        idle.submit([Request("a red apple")] * 5)
    with pytest.raises(TooMuch, match="times the work"):
        idle.submit([Request("a red apple", width=64, height=64)])
    idle.submit([Request("a red apple", width=32, height=16)])  # half of what may wait
    with pytest.raises(Overloaded):
        idle.submit([Request("a red apple", width=32, height=32)])


def test_mistakes_queue_nothing(idle: Service) -> None:
    with pytest.raises(ValueError, match="no sampler"):
        idle.submit([Request("a red apple"), Request("a red apple", sampler="none")])
    assert idle.waiting() == 0


def test_idempotency(idle: Service) -> None:
    requests = [Request("a red apple", seed=-1)] * 4
    jobs = idle.submit(requests, key="a")
    again = idle.submit(requests, key="a")  # although the queue is full
    assert [job.id for job in again] == [job.id for job in jobs]
    with pytest.raises(ValueError, match="came with other requests"):
        idle.submit([Request("a blue star")], key="a")
    with pytest.raises(Overloaded):
        idle.submit(requests, key="b")


def test_all_watchers_hear_of_the_end(service: Service) -> None:
    jobs = service.submit([Request("a red apple", seed=seed) for seed in range(3)])
    ends: list[Event] = []
    watch = lambda: ends.append(last(service.watch([job.id for job in jobs])))
    threads = [threading.Thread(target=watch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [end.job.state for end in ends] == ["done"] * 8
    assert not service._watchers


def test_the_pace_leaves_out_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pace, now = Pace(), [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    for begun in range(1000, 3000, 500):  # a job begins every 500 s, and has ten evaluations of 2 s
        for step in range(10):
            now[0] = begun + 2.0 * (step + 1)
            pace.evaluated(100, begun)
    assert pace.time(100 * 10) == pytest.approx(20, rel=0.02)
