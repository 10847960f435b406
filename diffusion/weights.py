"""safetensors in and out, and no other kind of weights.

The safetensors library checks most of a file by itself. What it lets pass (a key given twice, boundless
metadata), and what it would report in its own terms (a pickle under another name), is checked here first, on
bytes alone.
"""

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import nn
from torch.overrides import TorchFunctionMode

from diffusion.durable import write_atomically

HEADER_CAP = 100_000_000  # bytes; the format's own limit
METADATA_CAP = 1_000_000  # bytes
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip


def write_safetensors(path: Path, network: nn.Module) -> None:
    """Writes a network's weights, durably, in the dtype that they have."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_atomically(path, save(weights, metadata={"format": "pt"}))  # transformers asks for the format


class Undrawn(TorchFunctionMode):
    """Networks built inside keep their weights as they are allocated: those of a file will replace them.

    It goes with the meta device, which allocates nothing, but which would import PyTorch's compiler, several
    seconds' work, to draw normal numbers that do not exist.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def load_weights(network: nn.Module, path: Path, names: dict[str, str] | None = None) -> None:
    """Gives a network, which may be on the meta device, the weights of a safetensors file.

    `names` are parts of names in the file, and what stands for them in the network. Raises ValueError where
    the file is unsound, or where its weights are not, by name and shape, those of the network.
    """
    check_safetensors(path)
    weights = load_file(path)
    for old, new in (names or {}).items():
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    expected = network.state_dict()
    for name, parameter in expected.items():
        if name not in weights:
            raise ValueError(f"{path} has no {name}, which its config.json asks for.")
        if weights[name].shape != parameter.shape:
            found, asked = list(weights[name].shape), list(parameter.shape)
            raise ValueError(f"{path} has {name} of shape {found}; its config.json asks for {asked}.")
        if not weights[name].is_floating_point():
            raise ValueError(f"{path} has {name} as {weights[name].dtype}; expected floating-point numbers.")
    if unknown := sorted(set(weights) - set(expected)):
        raise ValueError(f"{path} has {unknown[0]}, which its config.json does not ask for.")
    network.load_state_dict(weights, assign=True)


def check_safetensors(path: Path) -> None:
    """Raises ValueError unless the file is a header that describes exactly the bytes that follow it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        length = int.from_bytes(start[:8], "little")
        if start[8:9] != b"{" or length > HEADER_CAP:
            raise ValueError(f"{path} {kind(start)}; only safetensors files are read here.")
        file.seek(8)
        header = file.read(length)
    if len(header) < length:
        raise ValueError(f"{path} is cut short: its header has {length} bytes, it {size}; fetch it again.")
    tensors = strict_json(header, f"{path}: the header")
    metadata = tensors.pop("__metadata__", {})
    if not isinstance(metadata, dict) or len(json.dumps(metadata)) > METADATA_CAP:
        raise ValueError(f"{path} has metadata of another form, or more than {METADATA_CAP} bytes of them.")

    end = 0
    extents = {name: _extent(entry, f"{path} is damaged: {name}") for name, entry in tensors.items()}
    for name, (begin, stop) in sorted(extents.items(), key=lambda item: item[1]):
        if begin != end:
            raise ValueError(f"{path} is damaged: {name} starts at byte {begin}, not {end}; fetch it again.")
        end = stop
    if (described := 8 + length + end) != size:
        what = "cut short" if described > size else "damaged"
        raise ValueError(f"{path} is {what}: it describes {described} bytes and has {size}; fetch it again.")


def _extent(entry: Any, what: str) -> tuple[int, int]:
    """First byte and end of a tensor, which must be as far apart as dtype and shape say."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            sides = all(type(side) is int and side >= 0 for side in shape)
            if dtype in BITS and sides and begin >= 0 and 8 * (end - begin) == BITS[dtype] * math.prod(shape):
                return begin, end
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


def strict_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object in which no key is given twice. Raises ValueError, naming `where`, for anything else."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in items:
            if key in values:
                raise ValueError(f"the key {key!r} is given twice")
            values[key] = value
        return values

    try:
        values = json.loads(data, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where} is not a JSON object.")
    return values
