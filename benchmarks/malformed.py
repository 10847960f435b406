"""HTTP requests that are none, and prompts that mean harm, for benchmarks.serving."""

import base64
import json
import random
import socket
import string

LONGEST = 30.0  # seconds that an answer may take
PATHS = (
    "/v1/images/generations", "/v1/images/edits", "/v1/models", "/sdapi/v1/txt2img", "/sdapi/v1/img2img",
    "/sdapi/v1/png-info", "/sdapi/v1/options", "/sdapi/v1/progress", "/sdapi/v1/interrogate", "/pictures/x.png",
    "/health", "/metrics", "/openapi.json", "/", "/gradio_api/queue/join", "/gradio_api/upload",
    "/gradio_api/call/nothing", "/config",
)  # fmt: skip
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'-alert(1)-'",
    "</title></textarea><script>alert(1)</script>",
    "javascript:alert(1)",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "{{constructor.constructor('alert(1)')()}}",
    "${alert(1)} `alert(1)` #{alert(1)}",
    "<a href='jav&#x09;ascript:alert(1)'>x</a>",
    "%3Cscript%3Ealert(1)%3C/script%3E",
    "\u202e<script>alert(1)</script>\u2066",
    "＜script＞alert(1)＜/script＞",
    "<!--<script>alert(1)-->",
    "]]><script>alert(1)</script>",
    '[x](javascript:alert(1)) ![x](x "onerror=alert(1)")',
    "<style>@import'//127.0.0.1/1'</style>",
    "\x00<script>alert(1)</script>",
    "りんご<script>alert(1)</script>",
    "<details open ontoggle=alert(1)>",
)


def exchange(port: int, request: bytes) -> str:
    """Sends bytes as they are; the status of the answer, or why there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=LONGEST) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(64)
    except TimeoutError:
        return "timeout"
    except OSError:
        return "closed"
    parts = answer.split(b" ", 2)
    return parts[1].decode("latin-1") if len(parts) > 1 and parts[0].startswith(b"HTTP/") else "none"


def malformed(draws: random.Random, port: int) -> bytes:
    kind = draws.choice((noise, broken_head, broken_json, wrong_values, broken_multipart, wrong_pictures, cut))
    return kind(draws, port)


def request(port: int, path: str, body: bytes, kind: str = "application/json", method: str = "POST") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def noise(draws: random.Random, port: int) -> bytes:
    return draws.randbytes(draws.randrange(1, 2000)) + b"\r\n\r\n"


def broken_head(draws: random.Random, port: int) -> bytes:
    path, host = draws.choice(PATHS), f"Host: 127.0.0.1:{port}"
    heads = (
        f"GET {path}\r\n\r\n",
        f"GET {path} HTTP/9.9\r\n{host}\r\n\r\n",
        f"{''.join(draws.choices(string.ascii_uppercase, k=9))} {path} HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n",
        f"GET {path}/../../../../etc/passwd HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n",
        f"GET /pictures/..%2f..%2fjobs.sqlite HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n",
        f"GET {path}?{'a' * 70_000} HTTP/1.1\r\n{host}\r\n\r\n",
        f"GET {path} HTTP/1.1\r\n{host}\r\nX: {'a' * 70_000}\r\n\r\n",
        f"GET {path} HTTP/1.1\r\n{host}\r\nX\r\n\r\n",
        f"GET {path} HTTP/1.1\r\n{host}\r\n{host}\r\n\r\n",
        f"POST {path} HTTP/1.1\r\n{host}\r\nContent-Length: -1\r\n\r\n",
        f"POST {path} HTTP/1.1\r\n{host}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        f"POST {path} HTTP/1.1\r\n{host}\r\nContent-Length: 99999999999999999999\r\n\r\n",
        f"POST {path} HTTP/1.1\r\n{host}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        f"POST {path} HTTP/1.1\r\n{host}\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n",
        f"POST {path} HTTP/1.1\r\n{host}\r\nTransfer-Encoding: gzip\r\nConnection: close\r\n\r\nabc",
        f"GET {path} HTTP/1.1\r\n{host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        f"GET {path} HTTP/1.1\r\n{host}\r\nIdempotency-Key: \xff\r\nAuthorization: \xff\r\nConnection: close\r\n\r\n",
        f"GET {path} HTTP/1.1\r\nHost: \xff\r\n\r\n",
        f"GET {path} HTTP/1.1\r\n{host}\r\nOrigin: \xff://[\r\nConnection: close\r\n\r\n",
        f"GET {path}%ff%00%zz HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n",
    )
    return draws.choice(heads).encode("latin-1")


def broken_json(draws: random.Random, port: int) -> bytes:
    whole = json.dumps({"prompt": "a red apple", "n": 2, "size": "64x64", "steps": 3, "seed": 1}).encode()
    bodies = (
        whole[: draws.randrange(len(whole))],
        b"[" * draws.randrange(1, 200_000),
        b'{"a":' * draws.randrange(1, 100_000),
        whole.replace(b"1", draws.randbytes(3)),
        b'{"prompt": "\\ud8' + draws.randbytes(1).hex().encode() + b'"}',
        b'{"prompt": ' + b"9" * draws.randrange(1, 10_000) + b"}",
        b'"' + b"a" * 1_200_000,
        b"",
        draws.randbytes(200),
    )
    return request(port, draws.choice(PATHS), draws.choice(bodies))


def value(draws: random.Random) -> object:
    numbers = (True, -1, 0, 10**30, 1.5, -1e308, float("nan"), float("inf"))
    texts = ("", "a", "\ud800", "\x00", "a" * 5000, "-1", "1e9", draws.choice(HOSTILE))
    rest: tuple[object, ...] = (None, [], {}, [[]], {"a": None}, ["a"] * 50)
    return draws.choice([*numbers, *texts, *rest])


def wrong_values(draws: random.Random, port: int) -> bytes:
    names = (
        "prompt", "n", "size", "seed", "num_inference_steps", "guidance_scale", "negative_prompt", "response_format",
        "output_format", "output_compression", "stream", "partial_images", "model", "steps", "width", "height",
        "sampler_name", "scheduler", "batch_size", "n_iter", "cfg_scale", "override_settings", "alwayson_scripts",
        "script_name", "enable_hr", "hr_scale", "hr_upscaler", "subseed", "subseed_strength", "eta", "s_churn", "mask",
        "init_images", "image", "resize_mode", "inpainting_fill", "sd_model_checkpoint", "data", "fn_index",
        "session_hash",
    )  # fmt: skip
    said = {name: value(draws) for name in draws.sample(names, draws.randrange(1, 9))}
    if draws.random() < 0.7:  # else the prompt alone would be what is missed
        said = {"prompt": "a", "num_inference_steps": 1, "steps": 1, **said}
    kind = draws.choice(("application/json", "application/json", "text/plain", "application/x-www-form-urlencoded"))
    path = draws.choice(PATHS)
    wrong = {**said, "nothing_of_ours": value(draws) or 1}  # so that none is let in by chance
    return request(port, path, json.dumps(wrong).encode("utf-8", "surrogatepass"), kind)


def broken_multipart(draws: random.Random, port: int) -> bytes:
    field = draws.choice(("image", "image[]", "mask", "prompt", "files", "\xff", ""))
    head = f'Content-Disposition: form-data; name="{field}"; filename="../../{"a" * draws.randrange(300)}.png"\r\n\r\n'
    part = b"--x\r\n" + head.encode("latin-1") + draws.randbytes(draws.randrange(3000)) + b"\r\n"
    body = part * draws.randrange(1, 80) + draws.choice((b"--x--\r\n", b"", b"--x", b"--y--\r\n"))
    kind = draws.choice(("multipart/form-data; boundary=x", "multipart/form-data", "multipart/form-data; boundary="))
    return request(port, draws.choice(PATHS), body, kind)


def wrong_pictures(draws: random.Random, port: int) -> bytes:
    heads = (
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"RIFF\x00\x00\x00\x00WEBP",
        b"GIF89a",
        b"%PDF",
        b"PK\x03\x04",
        b"",
    )
    data = base64.b64encode(draws.choice(heads) + draws.randbytes(draws.randrange(2000))).decode()
    text = draws.choice(
        (data, f"data:image/png;base64,{data}", f"data:,{data}", "file:///etc/passwd", "http://127.0.0.1/")
    )
    said = {"prompt": "a", "steps": 1, "init_images": [text], "mask": text, "image": text, "model": "clip"}
    return request(port, draws.choice(PATHS), json.dumps(said).encode())


def cut(draws: random.Random, port: int) -> bytes:
    whole = draws.choice([wrong_values, broken_multipart, wrong_pictures])(draws, port)
    return whole[: draws.randrange(len(whole))]
