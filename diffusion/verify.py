"""python -m diffusion.verify: makes pictures again and says whether they are what they say that they are."""

import argparse
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from clip.command import attempt
from clip.pictures import BadPicture, over_white, read_picture
from diffusion.adapters import loras_from_json
from diffusion.checkpoint import find_model
from diffusion.credentials import Seal, read_seal
from diffusion.denoiser import PREDICTION_TYPES
from diffusion.flags import DTYPES, find_device
from diffusion.metadata import record_of, request_of
from diffusion.open import AnyPipeline, open_pipeline
from diffusion.texts import read_texts

COMMAND = "python -m diffusion.verify"
TOLERANCE = 50.0  # dB, and
STEPS = 8  # of 255: what rounding in another order, on another processor or by another release, comes to
MOST_THREADS = 256
MOST_TOGETHER = 64  # pictures of a batch
EXAMPLES = f"""examples:
  python -m diffusion.verify outputs/*.png
  python -m diffusion.verify picture.jpg --model path/to/folder --json
  python -m diffusion.verify inpainted.png --file photo.png mask.png     # what the request began with

Each picture is made again of what it says about itself, and compared with itself:
  identical           every pixel is the same
  within tolerance    PSNR of {TOLERANCE:.0f} dB or more and no number off by more than {STEPS} of 255
  differs             more than that; "because" names all that is recorded and is not so here

exit codes: 0 all are identical or within tolerance; 1 one differs, or its signature is broken; 2 one could not be
made again, which is said in one sentence.
"""


@dataclass(frozen=True)
class Verdict:
    path: str
    verdict: str  # identical | within tolerance | differs
    largest: int  # difference of two numbers, of 255
    psnr: float | None  # dB; None where the pictures are the same, or not of one size
    because: list[str]  # what is recorded and is not so here
    seal: Seal | None

    @property
    def holds(self) -> bool:
        return self.verdict != "differs" and (self.seal is None or self.seal.whole)

    def __str__(self) -> str:
        said = f"{self.path}: {self.verdict}"
        if self.psnr is not None:
            said += f" (largest difference {self.largest} of 255, PSNR {self.psnr:.1f} dB)"
        if self.because:
            said += f"{' because' if self.verdict == 'differs' else ', though'} {'; '.join(self.because)}"
        elif self.verdict == "differs":
            said += ", and nothing recorded explains it"
        if self.seal is not None:
            state = "untouched since" if self.seal.whole else f"BROKEN ({self.seal.fault})"
            said += f"; signed by {self.seal.signer or 'nobody known'}: {state}"
        return f"{said}."


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Makes pictures again and says: identical, within tolerance, or differs because ...",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("pictures", nargs="+", type=Path, metavar="PICTURE", help="PNG, JPEG or WebP files")
    add("--model", help="a folder or a single file, in place of the model that is recorded by its name")
    add("--vae", type=Path, metavar="PATH", help="the autoencoder that it was made with, where it was not the model's")
    add("--prediction-type", choices=sorted(PREDICTION_TYPES), help="in place of what is recorded")
    add("--tokenizer", type=Path, metavar="FOLDER", help="a single file's vocabulary, where it is not CLIP's")
    add("--allow-download", action="store_true", help="fetch a model of the Hugging Face Hub that is not in its cache")
    add("--file", nargs="+", type=Path, default=[], help="images and masks that a request began with, in any order")
    add("--loras", type=Path, metavar="FOLDER", help="where the LoRAs are that a picture was made with")
    add("--embeddings", type=Path, metavar="FOLDER", help="where the textual inversions are")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: of the kind that is recorded, or the CPU)")
    add("--json", action="store_true", help="print a line of JSON a picture")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    return attempt(COMMAND, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    opened: dict[tuple[str, ...], AnyPipeline] = {}
    status = 0
    for path in args.pictures:
        try:
            verdict = verify(path, args, opened)
        except (OSError, ValueError) as mistake:
            said = f"{mistake.filename or path}: {mistake.strerror}." if isinstance(mistake, OSError) else mistake
            print(f"{COMMAND}: {path}: {said}", file=sys.stderr)
            status = 2
        except torch.OutOfMemoryError:
            print(f"{COMMAND}: {path}: the memory is too small for it; try --device cpu.", file=sys.stderr)
            status = 2
        except KeyboardInterrupt:
            return 130
        else:
            print(json.dumps(asdict(verdict)) if args.json else verdict, flush=True)
            status = max(status, int(not verdict.holds))
    return status


def verify(path: Path, args: argparse.Namespace, opened: dict[tuple[str, ...], AnyPipeline]) -> Verdict:
    """Makes one picture again. Raises ValueError where that cannot be done; `opened` are the pipelines so far."""
    file = path.read_bytes()
    texts = read_texts(file)
    picture, format = _pixels(file)
    then = record_of(texts)
    request = request_of(texts, [other.read_bytes() for other in args.file])
    # By their names: what their files are here is to be seen in the differences.
    request = replace(request, loras=tuple(lora._replace(sha256=None) for lora in request.loras), embeddings=())
    pipeline = _open(then, args, opened)
    with _threads(then.get("threads")):
        (again,) = pipeline.generate([request], batch=_count(then.get("batch"), MOST_TOGETHER) or 1)
    made, _ = _pixels(again.file(format))  # what the format loses, it lost then as well
    because = differences(then, record_of(again.texts))
    if picture.size != made.size:
        sizes = "x".join(map(str, picture.size)), "x".join(map(str, made.size))
        because.insert(0, f"it is {sizes[0]} pixels large and its request makes {sizes[1]}")
        return Verdict(str(path), "differs", 255, None, because, read_seal(file, format))
    largest, psnr = compare(picture, made)
    close = largest <= STEPS and (psnr is None or psnr >= TOLERANCE)
    verdict = "identical" if psnr is None else "within tolerance" if close else "differs"
    return Verdict(str(path), verdict, largest, psnr, because, read_seal(file, format))


def _pixels(file: bytes) -> tuple[Image.Image, str]:
    """A file's pixels, and its format."""
    try:
        picture = over_white(read_picture(file))
    except BadPicture as error:
        raise ValueError(f"{error}.") from None
    with Image.open(io.BytesIO(file)) as image:
        return picture, str(image.format)


def compare(one: Image.Image, other: Image.Image) -> tuple[int, float | None]:
    """The largest difference of two numbers, and PSNR in dB, None where there is no difference at all."""
    a, b = (torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int() for image in (one, other))
    difference = (a - b).abs()
    error = difference.square().double().mean().item()
    return int(difference.max()), 10 * math.log10(255**2 / error) if error else None


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is recorded of a picture and is not so of the one made again, a clause each."""
    if "versions" not in then:
        return ["it has no oboro chunk, and the rest tells only a part of how it was made"]
    was, here = _flat(then), _flat(now)
    names = [name for name in {**was, **here} if was.get(name) != here.get(name)]
    return [f"{name} was {was.get(name, 'missing')} and is {here.get(name, 'missing')} here" for name in names]


def _flat(record: Mapping[str, Any]) -> dict[str, str]:
    """A record's values by name, hashes shortened."""
    weights = {name: str(sum)[:10] for name, sum in record["model"]["weights"].items()}
    loras = {f"LoRA {lora.name}": str(lora.sha256)[:10] for lora in loras_from_json(record["request"].get("loras", ()))}
    embeddings = {f"embedding {name}": sum[:10] for name, sum in record["request"].get("embeddings", ())}
    others = {name: str(value) for name, value in record.items() if name not in ("model", "request", "versions")}
    return weights | loras | embeddings | {name: str(value) for name, value in record["versions"].items()} | others


def _open(then: Mapping[str, Any], args: argparse.Namespace, opened: dict[tuple[str, ...], AnyPipeline]) -> AnyPipeline:
    """The pipeline of a picture's record: its model, its dtype, a device of its kind."""
    name, dtype = then["model"]["name"], then.get("dtype", DTYPES[0])
    if dtype not in DTYPES:
        raise ValueError(f"It was made in {dtype!r}; expected one of {', '.join(DTYPES)}.")
    device = "cpu" if args.device == "auto" and then.get("device", "cpu") == "cpu" else args.device
    prediction = args.prediction_type or then["model"].get("prediction_type")
    key = (name, dtype, device, str(prediction))
    if key not in opened:
        if args.model is None:
            _check_here(name, then["model"]["weights"], args.allow_download)
        opened[key] = open_pipeline(
            args.model or name, find_device(device), getattr(torch, dtype), args.loras, args.embeddings,
            vae=args.vae, prediction_type=prediction, tokenizer=args.tokenizer, allow_download=args.allow_download,
        )  # fmt: skip
    return opened[key]


@contextmanager
def _threads(recorded: Any) -> Iterator[None]:
    """Inside, PyTorch has as many threads as a picture was made with, of however many processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(_count(recorded, MOST_THREADS) or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _count(recorded: Any, most: int) -> int:
    """A number from 1 to `most` that a picture records, or 0."""
    return recorded if type(recorded) is int and 0 < recorded <= most else 0


def _check_here(name: str, weights: Mapping[str, str], allow_download: bool) -> None:
    try:
        find_model(name, allow_download)
    except ValueError:
        hashes = ", ".join(f"{file} {sum[:10]}" for file, sum in weights.items())
        raise ValueError(
            f"It was made with the model {name!r}{f' ({hashes})' * bool(hashes)}, which is not here; "
            "give its path with --model."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
