"""safetensors in and out, and no other kind of weights.

A file is read in one pass, tensor by tensor, which also takes its SHA-256: what is used is what was hashed, nothing
is held twice, and no other program can change it later, as it could a file that is mapped into memory. Before that
its header is checked, on bytes alone, for what would be unsound, and for what the safetensors library lets pass (a
key given twice, boundless metadata) or would report in its own terms (a pickle under another name).
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clip.durable import aside

HEADER_CAP = 2_000_000  # bytes; the format allows 100 MB, the largest models have half of one
METADATA_CAP = 1_000_000  # bytes
SHOWN = 100  # characters of a name in a sentence
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def write_safetensors(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes weights, durably, in the dtype that they have."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with aside(path) as part:
        save_file(weights, part, {"format": "pt", **(metadata or {})})  # transformers asks for the format


@dataclass(frozen=True)
class Entry:
    """What a file's header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # bytes, after the header
    end: int


class Safetensors:
    """A safetensors file. Raises ValueError unless it is a header that describes exactly the bytes after it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():  # a pipe would be waited for
            raise ValueError(f"{path} is not a file; only safetensors files are read here.")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
            length = int.from_bytes(start[:8], "little")
            if start[8:9] != b"{" or length > HEADER_CAP:
                raise ValueError(f"{path} {kind(start)}; only safetensors files are read here{_advice(start)}.")
            file.seek(0)
            self._header = file.read(8 + length)
        if len(self._header) < 8 + length:
            raise ValueError(f"{path} is cut short: its header has {length} bytes, it {size}; fetch it again.")
        tensors = strict_json(self._header[8:], f"{path}: the header")
        self.metadata: dict[str, str] = tensors.pop("__metadata__", {})
        texts = isinstance(self.metadata, dict) and all(isinstance(text, str) for text in self.metadata.values())
        if not texts or len(json.dumps(self.metadata)) > METADATA_CAP:
            raise ValueError(f"{path} has metadata of another form, or more than {METADATA_CAP} bytes of them.")

        entries = {name: _entry(said, f"{path} is damaged: {shown(name)}") for name, said in tensors.items()}
        self.entries = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
        end = 0
        for name, entry in self.entries.items():
            if entry.begin != end:
                begins = f"{shown(name)} starts at byte {entry.begin}, not {end}"
                raise ValueError(f"{path} is damaged: {begins}; fetch it again.")
            end = entry.end
        if (described := 8 + length + end) != size:
            what = "cut short" if described > size else "damaged"
            raise ValueError(f"{path} is {what}: it describes {described} bytes and has {size}; fetch it again.")
        self.sha256: str | None = None  # once all of it was read

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, in the order of the file; each is of memory of its own."""
        digest = hashlib.sha256(self._header)
        with self.path.open("rb") as file:
            file.seek(len(self._header))
            for name, entry in self.entries.items():
                data = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
                if file.readinto(data.numpy().data) != len(data):
                    raise ValueError(f"{self.path} was cut short while it was read; fetch it again.")
                digest.update(data.numpy().data)
                tensor = data.view(entry.dtype).view(entry.shape)
                if not _finite(tensor):
                    raise ValueError(f"{self.path} is damaged: {shown(name)} holds what is no number; fetch it again.")
                yield name, tensor
        self.sha256 = digest.hexdigest()


def read_weights(files: Sequence[Safetensors], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of one file, or of the shards of one; floating-point ones in `dtype`, or as they are stored."""
    weights: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in file.tensors():
            weights[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return weights


def shapes(files: Iterable[Safetensors]) -> dict[str, Entry]:
    """The entries of one file, or of the shards of one."""
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in file.entries.items():
            if name in entries:
                raise ValueError(f"{file.path} has {shown(name)}, which another file of the same weights has, too.")
            entries[name] = entry
    return entries


def check_weights(network: nn.Module, found: Mapping[str, Entry | Tensor], where: Path) -> None:
    """Raises ValueError unless what was found is, by name and shape, what the network, maybe on `meta`, is made of."""
    expected = network.state_dict()
    for name, parameter in expected.items():
        if name not in found:
            raise ValueError(f"{where} has no {shown(name)}, which its config.json asks for.")
        if tuple(found[name].shape) != tuple(parameter.shape):
            shape, asked = list(found[name].shape), list(parameter.shape)
            raise ValueError(f"{where} has {name} of shape {shape}; its config.json asks for {asked}.")
        if not found[name].dtype.is_floating_point:
            raise ValueError(f"{where} has {name} as {found[name].dtype}; expected floating-point numbers.")
    if unknown := sorted(set(found) - set(expected)):
        raise ValueError(f"{where} has {shown(unknown[0])}, which its config.json does not ask for.")


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    tensor = tensor.half() if tensor.itemsize == 1 else tensor
    return all(math.isfinite(end) for end in torch.stack(tensor.aminmax()).tolist())


def _entry(said: Any, what: str) -> Entry:
    """What the header says of a tensor, whose bytes must be as many as dtype and shape ask for."""
    match said:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            sides = all(type(side) is int and side >= 0 for side in shape)
            if dtype in DTYPES and sides and begin >= 0 and end - begin == DTYPES[dtype].itemsize * math.prod(shape):
                return Entry(DTYPES[dtype], tuple(shape), begin, end)
    raise ValueError(f"{what} has a dtype, a shape and offsets that do not agree; fetch it again.")


def kind(start: bytes) -> str:
    """What a file that is not safetensors is by its first bytes, whatever its name."""
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "is a zip archive, as most .bin, .ckpt and .pt files are, and can run code when it is loaded"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "is a pickle, which can run code when it is loaded"
    if start[257:262] == b"ustar":
        return "is a tar archive"
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return "is an HDF5 file"
    return "is not a safetensors file" if start else "is empty"


def _advice(start: bytes) -> str:
    """How to come from such a file to one that is read."""
    if "can run code" not in kind(start):
        return ""
    return (
        ": take the .safetensors that its publisher offers beside it, or, in a container without network, write what "
        "torch.load(..., weights_only=True) gives with safetensors.torch.save_file"
    )


def strict_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object in which no key is given twice. Raises ValueError, naming `where`, for anything else."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(items)
        if len(values) < len(items):
            (twice, _), *_ = Counter(key for key, _ in items).most_common(1)
            raise ValueError(f"the key {shown(twice)!r} is given twice")
        return values

    try:
        values = json.loads(data.decode(), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON: {sentence(error)}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where} is not a JSON object.")
    return values


def shown(name: str) -> str:
    """A name out of a file, as it can stand in a sentence."""
    return name if name.isprintable() and len(name) <= SHOWN else f"{name[:SHOWN]!r}"


def sentence(error: BaseException) -> str:
    """What an exception says, of whatever length and form, as the middle of a sentence."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split()).rstrip(".")
    return text if len(text) <= 3 * SHOWN else f"{text[: 3 * SHOWN]} ..."
