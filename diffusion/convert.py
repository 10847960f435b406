"""python -m diffusion.convert: a model in one layout => the same model in the other, or in another dtype.

With --check every network of the source and of what was written, read again, is given the same random input. The
result takes its place only where their outputs agree.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from clip.command import attempt
from clip.durable import aside
from clip.language_encoder import LanguageEncoder
from clip.text import TextEncoder
from diffusion.autoencoder import Autoencoder
from diffusion.checkpoint import Model, find_model, load_model, save_model
from diffusion.conditioning import SIZES, Conditioning
from diffusion.denoiser import PREDICTION_TYPES
from diffusion.lora import networks
from diffusion.single_file import save_single_file
from diffusion.unet import UNet
from diffusion.vocabulary import SIZE

LAYOUTS = ("folder", "single")
# The most by which an output may differ, of its largest number: where dtypes are kept or widened, and where weights
# are rounded to a narrower one.
KEPT, ROUNDED = 1e-5, {"float16": 1e-2, "bfloat16": 1e-1}
DTYPES = ("float32", *ROUNDED)
COMMAND = "python -m diffusion.convert"
EXAMPLES = """examples:
  python -m diffusion.convert path/to/folder model.safetensors --check
  python -m diffusion.convert model.safetensors path/to/folder --dtype float16 --check
  python -m diffusion.convert model.safetensors path/to/folder --prediction-type v_prediction
  python -m diffusion.convert path/to/folder other --vae path/to/vae.safetensors
  python -m diffusion.convert emoji-64 emoji.safetensors --dry-run

exit codes: 0 done; 2 a mistake in what was asked, or a check that failed, said in one sentence; 130 stopped by Ctrl-C.
Whatever it ends with but 0, nothing is written.
"""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="A model in one layout => the same model in the other, or in another dtype.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a model, named as for python -m diffusion.sample")
    add("destination", type=Path, metavar="DESTINATION", help="a new folder, or a new .safetensors file")
    add("--layout", choices=LAYOUTS, help="of the destination (default: by its suffix)")
    add("--dtype", choices=DTYPES, help="of the weights (default: as they are)")
    add("--check", action="store_true", help="compare the outputs of all networks before the result takes its place")
    add("--vae", type=Path, metavar="PATH", help="another autoencoder: a folder or a single file")
    add("--prediction-type", choices=sorted(PREDICTION_TYPES), help="where the source says it wrong, or not at all")
    add("--tokenizer", type=Path, metavar="FOLDER", help="a single file's vocabulary, where it is not CLIP's")
    add("--allow-download", action="store_true", help="fetch a model of the Hugging Face Hub that is not in its cache")
    add("--dry-run", action="store_true", help="read the source, print what would be written, and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    try:
        return attempt(COMMAND, lambda: convert(args))
    except KeyboardInterrupt:
        print("Stopped; nothing is written.", file=sys.stderr)
        return 130


def convert(args: argparse.Namespace) -> None:
    destination: Path = args.destination
    single = args.layout == "single" or (args.layout is None and destination.suffix == ".safetensors")
    if destination.exists():
        raise ValueError(f"{destination} is there already; name a file or a folder that is not.")
    path = find_model(args.source, args.allow_download)
    options = {"vae": args.vae, "prediction_type": args.prediction_type, "tokenizer": args.tokenizer}
    with tqdm(total=5 if args.check else 3, unit="step", disable=None, file=sys.stderr) as bar:
        bar.set_description("reading")
        model = load_model(path, None, others=None, **options)
        clip = model.tokenizers[0].vocab_size == SIZE
        needed = sum(_bytes(network, args.dtype) for network in parts(model).values())
        if (free := shutil.disk_usage(_existing(destination)).free) < needed:
            raise ValueError(f"{destination} takes {needed:,} bytes, and its disk has {free:,} left; make room there.")
        if args.dry_run:
            bar.close()
            describe(model, destination, single, args.dtype, needed)
            return
        _next(bar, "computing")
        before = outputs(model) if args.check else {}
        kept = {name: not _narrows(network, args.dtype) for name, network in parts(model).items()}
        if args.dtype is not None:
            for network in parts(model).values():
                network.to(getattr(torch, args.dtype))
        _next(bar, "writing")
        destination.parent.mkdir(parents=True, exist_ok=True)
        with aside(destination) as part:
            save(model, part, single)
            if args.check:
                vocabulary = args.tokenizer or (path if path.is_dir() else None)
                del model  # so that no two models are ever in memory
                _next(bar, "reading back")
                again = load_model(part, None, others=None, tokenizer=vocabulary)
                _next(bar, "computing again")
                lines = list(compare(before, outputs(again), kept, args.dtype))
        _next(bar, "done")
    print("\n".join(lines) if args.check else destination)
    if single and not clip:
        print(f"The vocabulary is not CLIP's, and not in the file: open it with --tokenizer {path}.", file=sys.stderr)


def save(model: Model, path: Path, single: bool) -> None:
    if single:
        save_single_file(path, model)
    else:
        made = model.tokenizers, model.text_encoders, model.unet, model.autoencoder
        save_model(path, *made, model.noise, model.defaults, model.reading)


def parts(model: Model) -> dict[str, nn.Module]:
    """The networks of a model that have weights, as a folder names them."""
    vae: dict[str, nn.Module] = {"vae": model.autoencoder} if isinstance(model.autoencoder, Autoencoder) else {}
    return {**networks(model), **vae}


def outputs(model: Model) -> dict[str, Tensor]:
    """What every network makes, in float32, of inputs that its configuration alone determines."""
    return {name: probe(network) for name, network in parts(model).items()}


@torch.inference_mode()
def probe(network: nn.Module) -> Tensor:
    """All numbers that a network gives for a random input, in a row."""
    if any(parameter.dtype != torch.float32 for parameter in network.parameters()):
        network = deepcopy(network).float()
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if isinstance(network, TextEncoder | LanguageEncoder):
        ids = torch.randint(network.config.vocab_size, (1, network.config.length), generator=generator)
        if isinstance(network, TextEncoder):
            ids[0, -1] = network.config.eos_token_id
        found = tuple(network(ids))
    elif isinstance(network, UNet):
        config, side = network.config, 2 ** len(network.config.block_out_channels)
        pooled = draw(1, config.pooled_channels(SIZES)) if config.addition_embed_type else None
        text = Conditioning(draw(1, 8, config.text_channels), pooled).sized(512, 768).guided(7.5)
        found = (network(draw(1, config.in_channels, side, side), torch.tensor([500.0]), text),)
    else:
        assert isinstance(network, Autoencoder)
        side = 4 * network.factor
        found = *network.moments(draw(1, 3, side, side)), network.decode(draw(1, network.channels, 4, 4))
    return torch.cat([tensor.flatten() for tensor in found])


def compare(
    before: dict[str, Tensor], after: dict[str, Tensor], kept: dict[str, bool], dtype: str | None
) -> Iterator[str]:
    """A line a network. Raises ValueError for the first whose outputs differ by more than its dtype explains."""
    for name, expected in before.items():
        difference, largest = (after[name] - expected).abs().max().item(), expected.abs().max().item()
        limit = KEPT if kept[name] else ROUNDED[dtype or ""]
        if not difference <= limit * largest:  # nor where it is no number
            raise ValueError(
                f"The {name} that was written differs by {difference:.3g} in an output of {largest:.3g} at most, where "
                f"{limit:g} of that is allowed; it is taken back."
            )
        yield f"{name}: largest difference {difference:.3g}, of outputs up to {largest:.3g}; at most {limit:g} of that"


def describe(model: Model, destination: Path, single: bool, dtype: str | None, needed: int) -> None:
    layout = "a single file" if single else "a folder"
    print(f"{destination} would be {layout} of {needed:,} bytes of weights, {dtype or 'as they are'}:")
    for name, network in parts(model).items():
        print(f"  {name}: {sum(parameter.numel() for parameter in network.parameters()):,} parameters")
    print(f"  prediction type: {model.noise.config.prediction_type}")


def _bytes(network: nn.Module, dtype: str | None) -> int:
    wanted = getattr(torch, dtype) if dtype else None
    return sum(p.numel() * (wanted or p.dtype).itemsize for p in network.parameters())


def _narrows(network: nn.Module, dtype: str | None) -> bool:
    """Whether some weight of a network cannot be held by a dtype as it is."""
    wanted = getattr(torch, dtype) if dtype else None
    return wanted is not None and any(torch.promote_types(p.dtype, wanted) != wanted for p in network.parameters())


def _existing(path: Path) -> Path:
    """The innermost folder around a path that is there."""
    return next(parent for parent in path.resolve().parents if parent.is_dir())


def _next(bar: tqdm, description: str) -> None:
    bar.update()
    bar.set_description(description)


if __name__ == "__main__":
    sys.exit(main())
