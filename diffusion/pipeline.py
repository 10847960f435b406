"""The whole story on one page: Request => Picture.

`Pipeline.sample` is it: texts that guide a denoiser, and a sampler that follows it from noise down to latents.
What may stand before it, an image, is in inpainting.py; what may follow, a larger pass, in upscale.py.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from diffusion.adapters import Adapters, Lora
from diffusion.batching import draws, filled, gathered, rows, together
from diffusion.canvas import Canvas
from diffusion.checkpoint import Model
from diffusion.denoiser import Denoiser
from diffusion.embeddings import Embeddings
from diffusion.embeddings import describe as describe_embeddings
from diffusion.engine import accelerate
from diffusion.guidance import ALL, guide
from diffusion.image import to_image
from diffusion.inpainting import Start
from diffusion.metadata import describe
from diffusion.reader import Reader
from diffusion.request import Request, Resolved, resolve, sigmas
from diffusion.samplers import OPTIONS, Sampler, sampler
from diffusion.schedules import leap
from diffusion.seeds import Draw, seeded, varied
from diffusion.steps import Denoise
from diffusion.texts import encode_picture
from diffusion.threads import threads
from diffusion.tiling import decode
from diffusion.upscale import passes, upscale


@dataclass(frozen=True)
class Picture:
    image: Image.Image
    request: Resolved  # makes the same bytes again
    texts: dict[str, str]  # what its file says about itself, by name

    def file(self, format: str) -> bytes:
        """As a file of a format in texts.FORMATS."""
        return encode_picture(self.image, self.texts, format)

    def png(self) -> bytes:
        return self.file("PNG")


@dataclass(frozen=True)
class Progress:
    """One evaluation of the network, just made."""

    picture: int  # from 0, in the order of the requests
    evaluation: int  # from 1, of this picture
    evaluations: int
    # The clean latents expected now, [1, C, h, w]; `Pipeline.image` makes a preview of them. None where a foreign
    # model has no latents that can be shown.
    x0: Tensor | None


Report = Callable[[Progress], None]
Seen = Callable[[Tensor], None]


class Pipeline:
    """A model on a device. It takes the model's networks over: they are moved there."""

    def __init__(
        self,
        model: Model,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        loras: Path | None = None,  # the folder that requests take theirs from
        embeddings: Path | None = None,  # the folder of words with vectors of their own
        offload: bool = False,  # each network is on the device in its own phase alone, and on the CPU else
        fast: bool = True,  # False: the networks as they were trained, as a measure of what the engine gives
    ) -> None:
        self.model = model
        self.device = torch.device(device)
        self.fast = fast
        self.dtype = dtype  # of the U-Net alone: it runs at every step, the others once a picture
        self.offload = offload
        home = torch.device("cpu") if offload else self.device
        self.text_encoders = [encoder.to(home) for encoder in model.text_encoders]
        self.embeddings = Embeddings(model, embeddings)
        self.reader = Reader(model, self.text_encoders, dtype, self.embeddings)
        autoencoder, unet = model.autoencoder.to(home), model.unet.to(home, dtype)
        if fast:
            autoencoder, unet = accelerate(autoencoder), accelerate(unet)
        self.autoencoder = autoencoder
        self.inpaints = unet.config.in_channels > autoencoder.channels  # is shown a mask and an image beside x
        self.denoiser = Denoiser(unet, model.noise, dtype)
        self.adapters = Adapters(model, loras)
        self._adapted: tuple[tuple[Lora, ...], Pipeline] | None = None

    def resolve(self, request: Request) -> Resolved:
        """Fills a request up with the model's defaults. Raises ValueError for what the model cannot do."""
        resolved = resolve(request, self.model)
        embeddings = self.embeddings.pin(self.reader.used(resolved), resolved.embeddings)
        return replace(resolved, loras=self.adapters.pin(resolved.loras), embeddings=embeddings)

    def generate(
        self, requests: Iterable[Request], progress: Report | None = None, batch: int = 1
    ) -> Iterator[Picture]:
        """Makes one picture a request, in their order. A mistake in any is a ValueError before the first.

        `batch` neighbours of one shape go through the network together, always so many: a picture's bytes depend on
        its request, and on that number, alone. Each begins with noise of its own seed. `progress` is called after
        every evaluation of the network; what it raises ends the work there.
        """
        resolved = [self.resolve(request) for request in requests]
        return self._groups(resolved, progress, batch)

    def _groups(self, requests: Sequence[Resolved], progress: Report | None, batch: int) -> Iterator[Picture]:
        numbers = itertools.count()
        for group in gathered(requests, batch, self.reader.outline):
            whole, pipeline = filled(group, batch), self.adapted(group[0].loras)
            seen = [self.seen(request, next(numbers), progress) for request in group]
            _, _, height, width = self.shape(passes(group[0], self.autoencoder.factor)[-1])
            with torch.inference_mode(), threads(
                len(whole) * height * width * self.model.unet.config.block_out_channels[0]
            ):
                images = pipeline.images(whole, seen)
                texts = [pipeline.describe(request, len(whole)) for request in group]
            yield from map(Picture, images, group, texts)

    def images(self, requests: Sequence[Resolved], seen: Sequence[Seen]) -> list[Image.Image]:
        """The pictures of one group; as many as are `seen` are looked at."""
        latents, steps = None, 0
        for group in zip(*(passes(request, self.autoencoder.factor) for request in requests), strict=True):
            with self.there(self.autoencoder):
                start = self.start(group[0], latents)
            latents = self.sample(group, start, seen, steps)  # [B, C, h, w]
            steps += group[0].steps
        assert latents is not None
        return [start.finish(self.image(one, group[0].tile)) for one in rows(latents, len(seen))]

    def sample(self, requests: Sequence[Resolved], start: Start, seen: Sequence[Seen], steps: int) -> Tensor:
        """One way down the sigmas => latents [B, C, h, w]; `steps` are those of the passes before."""
        request = requests[0]  # what all have in common
        sigmas = self.sigmas(request)  # [steps + 1]
        with self.there(*self.text_encoders):
            texts = together([self.reader.prompt(one, sigmas, steps) for one in requests])
            (negative,) = together([[self.reader.negative(one, sigmas, steps)] for one in requests])
        rescale, interval = request.guidance_rescale or 0.0, request.guidance_interval or ALL
        scale = 1.0 if self.model.distilled else request.guidance  # which the texts tell a network that imitates it
        denoise = guide(start.show(self.denoiser), texts, negative, scale, rescale, interval)
        denoise = watch(start.hold(denoise), seen)  # (x, sigma) => x0

        noise = draws([self.noise(one) for one in requests])
        x = start.noised(noise(), sigmas[0].item(), self.model.noise)  # [B, C, h, w]
        with self.there(self.denoiser.network):
            return self.sampler(request)(denoise, x, sigmas, noise)

    @contextmanager
    def there(self, *networks: nn.Module) -> Iterator[None]:
        """Inside, the networks are on the device; a preview's autoencoder joins the U-Net there."""
        moved = networks if self.offload else ()
        for network in moved:
            network.to(self.device)
        try:
            yield
        finally:
            for network in moved:
                network.to("cpu")

    def start(self, request: Resolved, before: Tensor | None) -> Start:
        """What is under the noise: nothing, an image, or the latents of the pass before, enlarged."""
        if request.image is not None:
            canvas = Canvas.of(request)
        elif self.inpaints:  # its network is shown that nothing is known
            canvas = Canvas.blank((request.width, request.height))
        else:
            canvas = None
        start = Start.of(canvas, request.strength, self.autoencoder, self.inpaints, self.noise(request)())
        return start if before is None else replace(start, latents=upscale(before, request, self.autoencoder))

    def adapted(self, loras: tuple[Lora, ...]) -> "Pipeline":
        """The pipeline of the model with LoRAs beside its layers. The last one is kept."""
        if not loras:
            return self
        if self._adapted is None or self._adapted[0] != loras:
            adapted = Pipeline(
                self.adapters.adapt(loras), self.device, self.dtype,
                embeddings=self.embeddings.folder, offload=self.offload, fast=self.fast,
            )  # fmt: skip
            adapted.adapters = self.adapters
            self._adapted = loras, adapted
        return self._adapted[1]

    def sigmas(self, request: Resolved) -> Tensor:
        """The noise levels to sample at, [steps + 1]."""
        return sigmas(request, self.model)

    def sampler(self, request: Resolved) -> Sampler:
        """The sampler, told what the model's configuration and the request say to it."""
        asked: dict[str, Any] = {"earlier": self.model.noise.earlier, "time": self.model.noise.time}
        asked |= {option: value for option in OPTIONS if (value := getattr(request, option)) is not None}
        if (request.sampler, request.schedule) == (self.model.noise.config.sampler, "automatic"):
            asked["leap"] = leap(self.model.noise, request.steps)
        return sampler(request.sampler, self.model.noise.config.options | asked)

    def noise(self, request: Resolved) -> Draw:
        """Draws standard normal latents, all that is random in the picture."""
        draw = seeded(request.seed, self.shape(request), self.device)
        if request.variation_seed is None or request.variation_strength is None:
            return draw
        other = seeded(request.variation_seed, self.shape(request), self.device)
        return varied(draw, other, request.variation_strength)

    def shape(self, request: Resolved) -> tuple[int, int, int, int]:
        """Of the picture's latents: 1, C, h, w."""
        factor = self.autoencoder.factor
        return 1, self.autoencoder.channels, request.height // factor, request.width // factor

    @torch.inference_mode()
    def image(self, latents: Tensor, tile: int | None = None) -> Image.Image:
        """Latents [1, C, h, w] => picture, decoded whole or by tiles of so many pixels a side."""
        with self.there(self.autoencoder):
            pixels = decode(self.autoencoder, latents, tile)[0]  # [3, H, W] in [-1, 1]
        if not pixels.isfinite().all():
            raise ValueError(f"The picture's numbers overflowed; {self.dtype} is too narrow for this model.")
        return to_image(pixels.cpu())

    def describe(self, request: Resolved, batch: int) -> dict[str, str]:
        more = self.model.describe() | self.adapters.describe(request.loras)
        more |= describe_embeddings(request.embeddings)
        if (vae := self.model.vae) is not None:
            (hash,) = (sum for name, sum in self.model.hashes.items() if name.startswith("vae/"))
            more = {"VAE hash": hash[:10], "VAE": vae.name} | more
        prediction_type = self.model.noise.config.prediction_type
        return describe(
            request, self.model, self.device, self.dtype, more=more, prediction_type=prediction_type, batch=batch
        )

    def evaluations(self, request: Resolved) -> int:
        """How often the network will be evaluated: counted on a sampling of a single number."""
        count, number = 0, torch.ones(1)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            nonlocal count
            count += 1
            return x

        for one in passes(request, self.autoencoder.factor):
            self.sampler(one)(denoise, number, self.sigmas(one), lambda: number)
        return count

    def seen(self, request: Resolved, picture: int, progress: Report | None) -> Seen:
        """What is called with the x0 of each evaluation, and tells of it."""
        if progress is None:
            return lambda x0: None
        numbers, evaluations = itertools.count(1), self.evaluations(request)
        return lambda x0: progress(Progress(picture, next(numbers), evaluations, x0))


def watch(denoise: Denoise, seen: Sequence[Seen]) -> Denoise:
    """The same denoiser, each of whose evaluations is seen, row by row."""

    def watched(x: Tensor, sigma: float) -> Tensor:
        x0 = denoise(x, sigma)
        for see, row in zip(seen, rows(x0, len(seen)), strict=True):
            see(row)
        return x0

    return watched
