"""What the server promises, shown on a real one: nothing accepted is lost, and overload is answered at once.

    kills       accepted jobs while the server is killed again and again: every one ends in a true state
    overload    ten times as many requests as can be served: who is turned away, how soon; who is let in, how fast
    malformed   requests that are none: no answer of 5xx, no stray file, no job
    prompts     hostile prompts: nothing of them is markup in any answer

All traffic goes to 127.0.0.1, to a server that the command starts and ends itself, in a folder of its own.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

from benchmarks.malformed import HOSTILE, exchange, malformed
from benchmarks.measure import machine
from benchmarks.served import POISON, Server, serving
from diffusion.store import Store
from diffusion.texts import read_texts

CLIENTS = 16
STEPS = 1  # of a picture, where how it looks is no matter
URL = "/v1/images/generations"


# accepted jobs, and kills


def kills(args: argparse.Namespace) -> bool:
    """Clients ask again with the same idempotency key until they have their picture; the server is killed meanwhile."""
    draws, finished, over = random.Random(args.seed), Counter[int](), threading.Event()
    with serving() as server:

        def client(number: int) -> None:
            prompt = POISON if number == 0 else f"picture {number}"
            body = {"prompt": prompt, "seed": number, "num_inference_steps": STEPS}
            while True:
                try:
                    headers = {"Idempotency-Key": f"job {number}"}
                    answer = server.client.post(f"{server.url}{URL}", json=body, headers=headers)
                except httpx2.TransportError:
                    time.sleep(1)
                    continue
                if answer.status_code not in (429, 503):
                    finished[answer.status_code] += 1
                    return
                time.sleep(min(float(answer.headers["retry-after"]), 2))

        def killer() -> None:
            for kill in range(args.kills):
                goal = (kill + draws.random()) * args.count / args.kills
                while finished.total() < goal and not over.is_set():
                    time.sleep(0.01)
                server.end(signal.SIGKILL)
                server.start()

        begun = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as clients:
            killing = threading.Thread(target=killer)
            killing.start()
            [*clients.map(client, range(args.count + 1))]
        over.set()
        killing.join()
        seconds, code = time.monotonic() - begun, server.end(signal.SIGTERM)
        store = Store(server.jobs)
        jobs, states = store.jobs(), store.counts()
        (poison,) = (job for job in jobs if job.request.prompt == POISON)
        files = {path.name for path in server.jobs.iterdir() if not path.name.startswith("jobs.sqlite")}
        expected = {job.name for job in jobs if job.state == "done"}
        whole = sum(read_texts((server.jobs / name).read_bytes()) != {} for name in files & expected)
    answers = ", ".join(f"{count} of status {status}" for status, count in sorted(finished.items()))
    print(f"{args.count} jobs and one poison, killed {args.kills} times, {seconds:.0f} s: {answers}")
    print(
        f"  states: { {state: count for state, count in states.items() if count} }; files: {len(files)}, whole {whole}"
    )
    print(f"  the poison: {poison.state} after {poison.tries} tries: {poison.error}; exit code at SIGTERM {code}")
    once = len({job.request.seed for job in jobs}) == len(jobs) == args.count + 1
    truly = states["done"] == args.count and files == expected and whole == args.count
    return once and truly and (poison.state, poison.tries, code) == ("parked", 2, 0)


# overload


def overload(args: argparse.Namespace) -> bool:
    body = {"prompt": "a red apple", "num_inference_steps": args.steps}
    with serving("--max-queue", "8") as server:

        def ask(seed: int) -> httpx2.Response:
            return server.client.post(f"{server.url}{URL}", json=body | {"seed": seed})

        ask(0)
        begun, unloaded = time.monotonic(), 0
        while time.monotonic() - begun < args.calm or unloaded < 5:
            ask(unloaded)
            unloaded += 1
        capacity = unloaded / (time.monotonic() - begun)
        before = made_in(server, 0)
        last = before[0]
        refused, let_in, wells, sizes = list[float](), list[float](), list[float | None](), list[float]()
        others, threads, over = Counter[int](), list[threading.Thread](), threading.Event()

        def probe() -> None:
            while not over.wait(0.25):
                wells.append(server.health())
                sizes.append(server.memory())

        def once(seed: int) -> None:
            begun = time.monotonic()
            answer = ask(seed)
            seconds = time.monotonic() - begun
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                refused.append(seconds)
            elif answer.status_code == 200:
                let_in.append(seconds)
            else:
                others[answer.status_code] += 1

        probing = threading.Thread(target=probe)
        probing.start()
        begun, rate = time.monotonic(), 10 * capacity
        for number in range(int(rate * args.seconds)):
            time.sleep(max(begun + number / rate - time.monotonic(), 0))
            threads.append(threading.Thread(target=once, args=(1000 + number,)))
            threads[-1].start()
            threads = [thread for thread in threads if thread.is_alive()]
        seconds = time.monotonic() - begun
        for thread in threads:
            thread.join()
        over.set()
        probing.join()
        after = made_in(server, last)
    calm, busy = statistics.median(before[1]), statistics.median(after[1])
    well = [one for one in wells if one is not None]
    tenth = max(len(sizes) // 10, 1)
    early, late = statistics.median(sizes[tenth : 2 * tenth]), statistics.median(sizes[-tenth:])
    print(f"capacity {capacity:.2f} pictures/s; asked {rate:.1f}/s for {seconds:.0f} s")
    print(
        f"  refused: {len(refused)}, median {ms(refused, 50)}, 99 % {ms(refused, 99)}; of other status: {dict(others)}"
    )
    print(
        f"  let in: {len(let_in)}, {len(let_in) / seconds:.2f} pictures/s; made in {busy:.2f} s, unloaded {calm:.2f} s:"
    )
    print(f"  {busy / calm:.2f}x; with the wait in the queue {statistics.median(let_in):.1f} s at the median")
    print(
        f"  /health: {len(well)} of {len(wells)}, median {ms(well, 50)}, 99 % {ms(well, 99)}, largest {ms(well, 100)}"
    )
    print(f"  memory: {early:.0f} MiB after a tenth of the time, {late:.0f} MiB at the end")
    soon = statistics.median(refused) < 0.05 and statistics.quantiles(well, n=100)[-1] < 0.1 and len(well) == len(wells)
    return soon and busy < 1.5 * calm and late < 1.05 * early and not others


def made_in(server: Server, after: int) -> tuple[int, list[float]]:
    """The last job that ended, and the seconds in which those after `after` were made."""
    jobs = [job for job in Store(server.jobs).jobs(states=["done"]) if (job.ended or 0) > after]
    return max(job.ended or 0 for job in jobs), [job.seconds or 0 for job in jobs]


def ms(seconds: Sequence[float], percent: int) -> str:
    ranked = sorted(seconds)
    return f"{1000 * ranked[min(len(ranked) * percent // 100, len(ranked) - 1)]:.0f} ms" if ranked else "none"


# requests that are none


def malformed_requests(args: argparse.Namespace) -> bool:
    statuses, bad = Counter[str](), list[tuple[str, bytes]]()
    with serving("--demo") as server:

        def attack(seed: int) -> None:
            request = malformed(random.Random(f"{args.seed} {seed}"), server.port)
            status = exchange(server.port, request)
            statuses[status] += 1
            if status.startswith("5"):
                bad.append((status, request))

        with ThreadPoolExecutor(4) as clients:
            [*clients.map(attack, range(args.requests))]
        well = server.health()
        jobs = Store(server.jobs).jobs()
        known = {job.name for job in jobs} | {"jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm"}
        server.end(signal.SIGTERM)  # with which what broken uploads left goes, too
        stray = [path.name for path in server.jobs.iterdir() if path.name not in known]
        stray += [path.name for path in (server.folder / "tmp").iterdir()]
        waiting = sum(job.state in ("queued", "running") for job in jobs)
    print(f"{args.requests} malformed requests: answers {dict(sorted(statuses.items()))}")
    print(
        f"  stray files: {stray[:5]}; jobs let in: {len(jobs)}, waiting {waiting}; well afterwards: {well is not None}"
    )
    for status, request in bad[:10]:
        print(f"  {status}: {request[:300]!r}")
    return not bad and not stray and well is not None


def prompts(args: argparse.Namespace) -> bool:
    """Every answer to a hostile prompt, and to it in the place of every other text."""
    faults, answers = list[str](), 0
    with serving("--demo") as server, httpx2.Client(base_url=server.url, timeout=600) as client:

        def check(prompt: str, answer: httpx2.Response) -> httpx2.Response:
            nonlocal answers
            answers += 1
            kind = answer.headers.get("content-type", "")
            page = not kind.startswith(("application/json", "image/png", "text/plain"))
            if answer.headers.get("x-content-type-options") != "nosniff" or answer.status_code >= 500:
                faults.append(f"{answer.status_code} {answer.url}")
            elif page and prompt.strip() in answer.text:
                faults.append(f"{kind} {answer.url}: {prompt!r}")
            return answer

        for number in range(args.prompts):
            prompt = HOSTILE[number % len(HOSTILE)].replace("1", str(number))
            said: dict[str, Any] = {"prompt": prompt, "num_inference_steps": 1, "response_format": "url", "seed": 1}
            made = check(prompt, client.post(URL, json=said))
            if made.status_code == 200:
                (one,) = made.json()["data"]
                check(prompt, client.get(one["url"]))
            for field_name in ("size", "model", "output_format", "nothing"):
                check(prompt, client.post(URL, json=said | {field_name: prompt}))
            asked = {"prompt": prompt, "steps": 1, "width": 64, "height": 64}
            check(prompt, client.post("/sdapi/v1/txt2img", json=asked))
            for field_name in ("sampler_name", "scheduler", "script_name", "styles", "plugin"):
                check(prompt, client.post("/sdapi/v1/txt2img", json=asked | {field_name: prompt}))
            check(prompt, client.get("/" + prompt.encode().hex()))
            check(prompt, client.get("/pictures/x.png", params={"q": prompt}))
            check(prompt, client.get("/", params={"q": prompt}))
    print(f"{args.prompts} hostile prompts: {answers} answers, {len(faults)} with one as markup or at fault")
    for fault in faults[:10]:
        print(f"  {fault}")
    return not faults


SHOWS: dict[str, Callable[[argparse.Namespace], bool]] = {
    "kills": kills,
    "overload": overload,
    "malformed": malformed_requests,
    "prompts": prompts,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("shows", nargs="*", metavar="SHOW", help=f"{', '.join(SHOWS)} (default: all)")
    add("--count", type=int, default=1000, help="jobs (default: %(default)s)")
    add("--kills", type=int, default=10, help="(default: %(default)s)")
    add("--seconds", type=float, default=300, help="of overload (default: %(default)s)")
    add(
        "--calm",
        type=float,
        default=20,
        help="seconds before, in which the capacity is measured (default: %(default)s)",
    )
    add("--steps", type=int, default=20, help="of a picture under overload (default: %(default)s)")
    add("--requests", type=int, default=5000, help="that are malformed (default: %(default)s)")
    add("--prompts", type=int, default=100, help="that are hostile (default: %(default)s)")
    add("--seed", type=int, default=0, help="of what is random (default: %(default)s)")
    args = parser.parse_args(argv)
    if unknown := [*{*args.shows} - {*SHOWS}]:
        parser.error(f"There is no show {unknown[0]!r}; choose of {', '.join(SHOWS)}.")
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}", flush=True)
    held = {name: SHOWS[name](args) for name in args.shows or SHOWS}
    for name, holds in held.items():
        print(f"{name}: {'holds' if holds else 'DOES NOT HOLD'}")
    return int(not all(held.values()))


if __name__ == "__main__":
    sys.exit(main())
