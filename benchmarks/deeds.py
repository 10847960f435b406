"""What an enemy can do to the files of a model; `benchmarks.damage` does it."""

import io
import json
import math
import os
import pickle
import random
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Random = random.Random
Header = dict[str, Any]


# To safetensors: (header, data) => file.


def join(header: Header | str | bytes, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(header: Header, rng: Random) -> Header:
    """One tensor's entry, to be changed."""
    value: Header = header[rng.choice(sorted(header.keys() - {"__metadata__"}))]
    return value


def put(key: str, value: Any) -> Callable[[Header, bytes, Random], bytes]:
    """An entry with `key` as `value`."""

    def deed(header: Header, data: bytes, rng: Random) -> bytes:
        entry(header, rng)[key] = value
        return join(header, data)

    return deed


def add(name: str, value: Any) -> Callable[[Header, bytes, Random], bytes]:
    return lambda header, data, rng: join(header | {name: value}, data)


def overlap(header: Header, data: bytes, rng: Random) -> bytes:
    one, other = rng.sample(sorted(header.keys() - {"__metadata__"}), 2)
    header[one]["data_offsets"] = header[other]["data_offsets"]
    return join(header, data)


def shift(header: Header, data: bytes, rng: Random) -> bytes:
    one, by = entry(header, rng), rng.choice([-2, -1, 1, 2, 2**31, 2**63, 2**64])
    one["data_offsets"] = [offset + by for offset in one["data_offsets"]]
    return join(header, data)


def reverse(header: Header, data: bytes, rng: Random) -> bytes:
    entry(header, rng)["data_offsets"].reverse()
    return join(header, data)


def reshape(header: Header, data: bytes, rng: Random) -> bytes:
    """The right number of numbers, in another shape."""
    one = max(header.values(), key=lambda value: len(value.get("shape", ())))
    one["shape"] = [math.prod(one["shape"])]
    return join(header, data)


def retype(header: Header, data: bytes, rng: Random) -> bytes:
    for one in header.values():
        if "dtype" in one:
            one["dtype"] = {"F16": "I16", "F32": "I32", "BF16": "I16"}[one["dtype"]]
    return join(header, data)


def rename(header: Header, data: bytes, rng: Random) -> bytes:
    old = rng.choice(sorted(header.keys() - {"__metadata__"}))
    new = rng.choice(["", "x", old.upper(), old + "\n", old + "\x00", "\ud800", "../" + old, "a" * 10_000, old[:-1]])
    return join({new if name == old else name: value for name, value in header.items()}, data)


def drop(header: Header, data: bytes, rng: Random) -> bytes:
    """A tensor less; the file is sound but the network's weights are not all there."""
    last = max(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    begin, end = header.pop(last)["data_offsets"]
    return join(header, data[:begin] + data[end:])


def twice(header: Header, data: bytes, rng: Random) -> bytes:
    name = rng.choice(sorted(header.keys() - {"__metadata__"}))
    text = json.dumps(header)
    return join(f'{text[:-1]}, "{name}": {json.dumps(header[name])}}}', data)


def constant(header: Header, data: bytes, rng: Random) -> bytes:
    """A number that JSON does not have, or that no reader should take for one."""
    one = entry(header, rng)
    one["shape"] = [*one["shape"][:-1], "@"]
    word = rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "-1", "1.0", "1e3", "true", "null", "9" * 5000, '"4"'])
    return join(json.dumps(header).replace('"@"', word), data)


def nest(opening: str, depth: int) -> Callable[[Header, bytes, Random], bytes]:
    return lambda header, data, rng: join('{"a":' + opening * depth, data)


def configure(header: Header, data: bytes, rng: Random) -> bytes:
    """One number or so of the configurations in a single file's metadata."""
    said = json.loads(header["__metadata__"]["oboro"])
    part = rng.choice(["unet", "vae", "scheduler"])
    keys = next(keys for file, keys in SIZES.items() if file.startswith(part))
    said[part][rng.choice(keys)] = rng.choice([*HUGE, *WRONG])
    header["__metadata__"]["oboro"] = json.dumps(said)
    return join(header, data)


def claim(header: Header, data: bytes, rng: Random) -> bytes:
    """A header that says that it is of another length."""
    text = json.dumps(header)
    return join(text, data, rng.choice([0, 1, len(text) - 1, len(text) + 1, 2**27, 2**31, 2**32, 2**63, 2**64 - 1]))


def encode(header: Header, data: bytes, rng: Random) -> bytes:
    return join(json.dumps(header).encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"])), data)


def poison(header: Header, data: bytes, rng: Random) -> bytes:
    """One number that is none, in a tensor that is there and of the right form."""
    one = next(value for value in header.values() if value.get("dtype") in ("F16", "F32", "BF16"))
    one = rng.choice([value for value in header.values() if value.get("dtype") == one["dtype"]])
    infinity, size = {"F16": (0x7C00, 2), "BF16": (0x7F80, 2), "F32": (0x7F800000, 4)}[one["dtype"]]
    bits = infinity | rng.choice([0, 1, 1 << (8 * size - 1)])  # infinity, not a number, minus infinity
    begin, end = one["data_offsets"]
    at = begin + size * rng.randrange((end - begin) // size)
    return join(header, data[:at] + bits.to_bytes(size, "little") + data[at + size :])


HEADERS: dict[str, Callable[[Header, bytes, Random], bytes]] = {
    "overlapping offsets": overlap,
    "shifted offsets": shift,
    "reversed offsets": reverse,
    "huge shape": put("shape", [2**31, 2**31, 2**31]),
    "empty shape of many sides": put("shape", [0] * 100_000),
    "negative shape": put("shape", [-1, -1]),
    "shape of another kind": put("shape", {"0": 1}),
    "unknown dtype": put("dtype", "F4"),
    "dtype of another kind": put("dtype", ["F32"]),
    "offsets beyond the file": put("data_offsets", [0, 2**62]),
    "three offsets": put("data_offsets", [0, 1, 2]),
    "an entry of another kind": add("x", [1]),
    "an empty entry": add("x", {}),
    "another shape": reshape,
    "whole numbers": retype,
    "another name": rename,
    "a tensor less": drop,
    "a tensor more": add("x", {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
    "a key twice": twice,
    "numbers that are none": constant,
    "deep objects": nest('{"a":', 100_000),
    "deep arrays": nest("[", 1_000_000),
    "giant metadata": add("__metadata__", {"a": "b" * 2_000_000}),
    "metadata of another kind": add("__metadata__", "pt"),
    "metadata within metadata": add("__metadata__", {"a": {"b": "c"}}),
    "a name of a megabyte": add("a" * 1_000_000, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
    "many names": lambda header, data, rng: join({f"{i:06}": {} for i in range(80_000)}, data),
    "many escapes": lambda header, data, rng: join('{"' + r"\u0000" * 500_000 + '": 1}', data),
    "blank space": lambda header, data, rng: join("{" + " " * 5_000_000, data),
    "header of another length": claim,
    "header in another encoding": encode,
    "header that is a list": lambda header, data, rng: join("[]", data),
    "header that is nothing": lambda header, data, rng: join("{}", data),
    "weights that are none": poison,
}
# What leaves some files as good as they were: an embedding's name and shape are its own, and a single file may
# hold more than what is read of it.
LEGAL = {"embeddings": (overlap, rename, reshape), "single": (HEADERS["a tensor more"],)}


# Files of other kinds, under the name of one that is read.


class Payload:
    """Pickled, it is a command; unpickled, it has been run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch '{self.canary}'",)


def others(canary: Path) -> dict[str, bytes]:
    pickles = {f"pickle {protocol}": pickle.dumps(Payload(canary), protocol) for protocol in range(6)}
    zipped, bomb, tarred = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickles["pickle 2"])
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        member = tarfile.TarInfo("../../escaped")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    return {
        **pickles,
        "zip": zipped.getvalue(),
        "zip bomb": bomb.getvalue(),
        "tar": tarred.getvalue(),
        "gzip": b"\x1f\x8b\x08" + bytes(100),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(1000),
        "GGUF": b"GGUF\x03\x00\x00\x00" + bytes(1000),
        "numpy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}",
        "ELF": b"\x7fELF\x02\x01\x01" + bytes(1000),
        "script": b"#!/bin/sh\ntouch '%s'\n" % bytes(canary),
        "web page": b"<!DOCTYPE html><html><title>404</title></html>",
        "pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265146304\n",
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "text": b"weights go here\n",
        "JSON": b'{"model_max_length": []}',
        "zeros": bytes(100_000),
        "empty": b"",
    }


# What is in a file's place is no file, or leads out of the folder.


def link(target: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return damage


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    path.unlink()


def plug(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_RDONLY)  # a socket's address may not be longer than 100 bytes
        try:
            server.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


PLACES: dict[str, Callable[[Path], None]] = {
    "link out of the folder": link("/etc/hostname"),
    "link to a device": link("/dev/zero"),
    "link to itself": link("diffusion_pytorch_model.safetensors"),
    "link to nothing": link("nothing"),
    "pipe": pipe,
    "socket": plug,
    "folder": folder,
    "missing": gone,
}


# Configurations that ask for code, for the world, or for nonsense.

HUGE: list[Any] = [10**9, 10**30, [10**9] * 4, [64] * 10_000]
WRONG: list[Any] = [-1, 0, 0.5, "x", [], {}, None, ["x"], True, 1e300, "\x00\n\n" * 1000]
CODE = {
    "auto_map": {"AutoModel": "evil.Model"},
    "custom_pipeline": "evil",
    "custom_pipelines": {},
    "trust_remote_code": True,
}
SIZES = {
    "unet/config.json": ("block_out_channels", "layers_per_block", "cross_attention_dim", "norm_num_groups",
                         "down_block_types"),
    "vae/config.json": ("block_out_channels", "layers_per_block", "latent_channels"),
    "text_encoder/config.json": ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads",
                                 "intermediate_size"),
    "scheduler/scheduler_config.json": ("num_train_timesteps", "beta_start", "prediction_type"),
}  # fmt: skip
CLASSES: list[Any] = [
    ["os", "system"],
    ["diffusers", "UNet2DModel"],
    ["my_module", "UNet2DConditionModel"],
    "UNet2DConditionModel",
    [None, "x"],
    ["diffusers", "../../evil"],
    ["diffusers"],
    {"a": 1},
    [[], {}],
]


NOT_JSON: dict[str, Callable[[], bytes]] = {
    "deep objects": lambda: b'{"a":' * 100_000,
    "deep arrays": lambda: b'{"a":' + b"[" * 1_000_000,
    "a list": lambda: b"[1, 2]",
    "another encoding": lambda: '{"a": 1}'.encode("utf-16"),
    "broken Unicode": lambda: b'{"a": "\xff\xfe"}',
    "a number of many digits": lambda: b'{"a": ' + b"9" * 1_000_000 + b"}",
    "a large file": lambda: b'{"a": "' + b"x" * 8_000_000 + b'"}',
    "a key twice": lambda: b'{"_class_name": "StableDiffusionPipeline", "_class_name": "x"}',
    "no text": lambda: bytes(1000),
    "nothing": lambda: b"",
}
