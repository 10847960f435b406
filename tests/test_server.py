"""The server as a whole: who may ask, how much, what it says of itself, and how it stops."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from fastapi.testclient import TestClient
from servers import free_port, service_of, serving

from diffusion.request import Request
from diffusion.store import Store
from ui.__main__ import arguments, main
from ui.server import Access, create_app
from ui.service import Service

ROOT = Path(__file__).parent.parent
TOKEN = "a secret"
LOCAL = {"base_url": "http://127.0.0.1:7860"}


@pytest.fixture
def service(tiny_model: Path, tmp_path: Path) -> Service:
    return service_of(tiny_model, tmp_path / "jobs")


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service, Access(max_body=1)), raise_server_exceptions=False, **LOCAL) as client:
        yield client


@pytest.fixture
def guarded(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service, Access(TOKEN)), **LOCAL) as client:
        yield client


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer wrong", 401),
        ("Bearer a secre", 401),
        ("Digest a secret", 401),
        (basic("wrong"), 401),
        ("Basic ???", 401),
        ("Bearer a secret", 200),
        ("bearer a secret", 200),
        (basic(TOKEN), 200),  # as browsers send what they ask for
    ],
)
def test_tokens(guarded: TestClient, authorization: str | None, status: int) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for path in ("/v1/models", "/sdapi/v1/options", "/metrics", "/openapi.json"):
        answer = guarded.get(path, headers=headers)
        assert answer.status_code == status
        assert (answer.headers.get("www-authenticate") is None) == (status == 200)
    assert guarded.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Host": "example.com"}, 403),
        ({"Host": "127.0.0.1.example.com"}, 403),
        ({"Host": "localhost:7860@example.com"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://127.0.0.1:7860"}, 200),
        ({"Origin": "http://example.com"}, 403),
        ({"Origin": "http://127.0.0.1:80"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
    ],
)
def test_hosts_and_origins(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.get("/v1/models", headers=headers).status_code == status
    assert client.post("/sdapi/v1/interrupt", headers=headers).status_code == status


def test_a_body_that_is_too_large(client: TestClient, service: Service) -> None:
    body = json.dumps({"prompt": "a", "user": "x" * 2**20}).encode()
    said = client.post("/v1/images/generations", content=body)
    assert (said.status_code, "larger than 1 MiB" in said.json()["error"]["message"]) == (413, True)
    pieces = (body[i : i + 2**16] for i in range(0, len(body), 2**16))  # no length is told
    assert client.post("/sdapi/v1/txt2img", content=pieces).status_code == 413
    assert service.waiting() == 0


def test_what_browsers_are_told(client: TestClient) -> None:
    for path in ("/health", "/v1/models", "/sdapi/v1/nothing", "/pictures/nothing.png"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")


def test_health_and_metrics(client: TestClient, service: Service) -> None:
    client.post("/v1/images/generations", json={"prompt": "a red apple", "seed": 1})
    client.post("/v1/images/generations", json={"prompt": "a red apple", "n": 5, "size": "2048x2048"})
    said = client.get("/metrics").text
    for line in ('oboro_jobs{state="done"} 1.0', "oboro_pictures_total 1.0", 'oboro_rejections_total{why="TooMuch"}'):
        assert line in said
    assert "process_resident_memory_bytes" in said or sys.platform != "linux"
    assert client.get("/health").json() == {"status": "ok"}
    service.stop()
    assert client.get("/health").status_code == 503


def test_faults_say_nothing(client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.store, "counts", lambda: 1 / 0)
    answer = client.post("/v1/images/generations", json={"prompt": "a"})
    assert answer.status_code == 500
    assert "ZeroDivision" not in answer.text
    assert "Traceback" not in answer.text


def test_it_is_documented(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img", "/sdapi/v1/progress", "/health"):
        assert path in paths


HOSTILE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'{"prompt": NaN}',
    b'{"prompt": "\\ud800"}',
    b'{"\\ud800": 1}',
    b'{"prompt": "a", "seed": 1e999}',
    b'{"prompt": "a", "seed": -9}',
    b'{"prompt": "a", "seed": 99999999999999999999999999}',
    b'{"prompt": "a", "model": "\\ud800", "sampler_name": "\\ud800"}',
    b'{"prompt": "a", "\\u0000": {}, "size": "\\u0000"}',
    b'{"prompt": "a", "steps": 1e308, "num_inference_steps": 1e308}',
    b"[" * 100_000,
    b"\xff\xfe",
]


@pytest.mark.parametrize("body", HOSTILE)
def test_bodies_that_are_none(client: TestClient, service: Service, body: bytes) -> None:
    for path in ("/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"):
        for kind in ("application/json", "multipart/form-data; boundary=x", "text/plain"):
            answer = client.post(path, content=body, headers={"Content-Type": kind})
            assert 400 <= answer.status_code < 500, (path, kind, answer.text)
            assert answer.headers["content-type"] == "application/json"
    assert service.store.counts()["queued"] == 0


def test_gradio_is_asked_by_json(client: TestClient) -> None:
    for path, status in (("/gradio_api/queue/join", 415), ("/gradio_api/upload", 404)):  # for there is no demo here
        assert client.post(path, content=b"\xff", headers={"Content-Type": "text/plain"}).status_code == status


def test_prompts_are_not_html(client: TestClient) -> None:
    script = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    for answer in (
        client.post("/v1/images/generations", json={"prompt": "a", "model": script}),
        client.post("/sdapi/v1/txt2img", json={"sampler_name": script}),
        client.get(f"/pictures/{script}.png"),
        client.get(f"/{script}"),
    ):
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "needs a token"),
        (["--max-queue", "0"], "1 or more"),
        (["--model", "nothing"], "nothing"),
        (["--blocklist", "nothing.txt"], "nothing.txt"),
        (["--output-check", "nothing.txt"], "nothing.txt"),
    ],
)
def test_mistakes(
    options: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OBORO_TOKEN", raising=False)
    assert main([*options, "--jobs", str(tmp_path)]) == 2
    said = capfd.readouterr().err
    assert said.startswith("python -m ui: ")
    assert message in said
    assert "Traceback" not in said


def test_help() -> None:
    said = arguments().format_help()
    for text in ("examples:", "--max-queue", "OBORO_TOKEN", "exit codes"):
        assert text in said


def test_gradio_is_imported_for_the_demo_alone(tiny_model: Path, tmp_path: Path) -> None:
    said = ["--no-demo", "--model", str(tiny_model), "--jobs", str(tmp_path)]
    program = (
        "import sys; import ui.__main__ as command\n"
        "command.run = lambda *server: print(sorted({'gradio', 'pandas', 'ui.demo'} & {*sys.modules}))\n"
        f"command.main({said!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def start(model: Path, jobs: Path, *options: str) -> tuple["subprocess.Popen[str]", str]:
    """The command itself, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "ui", "--port", str(port), "--model", str(model), "--jobs", str(jobs)]
    command += ["--max-queue", "1000", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # What a shell runs in its background ignores Ctrl-C, and so would all that it starts.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    while True:
        assert process.poll() is None
        try:
            requests.get(f"{url}/health", timeout=5)
        except requests.ConnectionError:
            time.sleep(0.1)
        else:
            return process, url


@pytest.mark.slow
def test_it_stops_within_a_step(tiny_model: Path, tmp_path: Path) -> None:
    process, url = start(tiny_model, tmp_path, "--no-demo")
    body = {"prompt": "a red apple", "num_inference_steps": 1000, "stream": True, "partial_images": 3}
    with requests.post(f"{url}/v1/images/generations", json=body, stream=True) as answer:
        lines = answer.iter_lines()
        assert next(lines) == b"event: image_generation.partial_image"
        process.send_signal(signal.SIGTERM)
        assert any(b"kept" in line for line in lines)
    assert process.wait(timeout=60) == 0
    assert [job.state for job in Store(tmp_path).jobs()] == ["queued"]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_stops_in_silence_while_a_page_is_open(tiny_model: Path, tmp_path: Path, how: int, code: int) -> None:
    process, url = start(tiny_model, tmp_path)
    with requests.get(f"{url}/gradio_api/heartbeat/page", stream=True) as page:  # as every page of the demo asks
        lines = page.iter_lines()
        assert next(lines) == b"data: ALIVE"
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "")


def test_watching_ends_when_it_stops(service: Service) -> None:
    with serving(create_app(service)) as url:
        body = {"prompt": "a", "seed": 1, "num_inference_steps": 1000}
        service.submit([Request("a", steps=1000)])
        service.stop_soon()
        answer = requests.post(f"{url}/v1/images/generations", json=body)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert service.store.counts()["queued"] == 2
