"""Flags that commands share: the model, what it runs on, and the files and sizes that are named on a command line."""

import argparse
from pathlib import Path

import torch

from diffusion.adapters import parse_lora
from diffusion.checkpoint import DEFAULT_MODEL
from diffusion.denoiser import PREDICTION_TYPES
from diffusion.open import AnyPipeline, open_pipeline

DTYPES = ("float32", "float16", "bfloat16")
MAX_FILE = 2**26  # bytes of an image to begin with


def add_model(parser: argparse.ArgumentParser, lora: bool = True) -> None:
    """What `open_model` reads; and --lora, but where every request names its own."""
    add = parser.add_argument_group("the model, and what it runs on").add_argument
    add("--model", default=DEFAULT_MODEL, help="a folder or a single file, or a name (default: %(default)s)")
    add("--vae", type=Path, metavar="PATH", help="another autoencoder: a folder or a single file")
    add("--prediction-type", choices=sorted(PREDICTION_TYPES), help="where the model says it wrong, or not at all")
    add("--tokenizer", type=Path, metavar="FOLDER", help="a single file's vocabulary, where it is not CLIP's")
    add("--allow-download", action="store_true", help="fetch a model of the Hugging Face Hub that is not in its cache")
    if lora:
        add("--lora", action="append", type=parse_lora, dest="loras", metavar="NAME[:WEIGHT]", help="again for more")
    add("--loras", type=Path, dest="folder_of_loras", metavar="FOLDER", help="where the LoRAs are")
    add("--embeddings", type=Path, dest="folder_of_embeddings", metavar="FOLDER", help="of textual inversion's words")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: cuda where there is one)")
    add("--offload", action="store_true", help="each network on the device in its own phase alone: less of its memory")
    add("--dtype", choices=DTYPES, default="float32", help="what the U-Net runs in (default: %(default)s)")


def open_model(args: argparse.Namespace) -> AnyPipeline:
    """The pipeline that the flags of `add_model` name."""
    device, dtype = find_device(args.device), getattr(torch, args.dtype)
    folders = args.folder_of_loras, args.folder_of_embeddings
    return open_pipeline(
        args.model, device, dtype, *folders, vae=args.vae, prediction_type=args.prediction_type,
        tokenizer=args.tokenizer, allow_download=args.allow_download, offload=args.offload,
    )  # fmt: skip


def find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"There is no device {name!r}; expected cpu, cuda, cuda:1 or mps.") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        raise ValueError(f"--device {name} is not there, or this PyTorch cannot use it; try --device cpu.")
    return device


def read_file(path: Path) -> bytes:
    """The file's bytes; ValueError for one that is too large to be a picture's."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"{path} is larger than {MAX_FILE >> 20} MiB; expected a PNG, JPEG or WebP.")
    return data
