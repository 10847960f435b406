"""The whole story on one page: Request => Picture."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffusion.adapters import Adapters, Lora
from diffusion.checkpoint import Model
from diffusion.denoiser import Denoiser
from diffusion.guidance import ALL, guide
from diffusion.metadata import describe
from diffusion.reader import Reader
from diffusion.request import Request, Resolved, resolve, sigmas
from diffusion.samplers import OPTIONS, Denoise, Sampler, sampler
from diffusion.seeds import Draw, seeded, varied
from diffusion.texts import encode_picture
from diffusion.threads import threads


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


class Pipeline:
    """A model on a device. It takes the model's networks over: they are moved there."""

    def __init__(
        self,
        model: Model,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        loras: Path | None = None,  # the folder that requests take theirs from
    ) -> None:
        self.model = model
        self.device = torch.device(device)
        self.dtype = dtype  # of the U-Net alone: it runs at every step, the others once a picture
        self.text_encoders = [encoder.to(self.device) for encoder in model.text_encoders]
        self.reader = Reader(model, self.text_encoders, dtype)
        self.autoencoder = model.autoencoder.to(self.device)
        unet = model.unet.to(self.device, dtype)
        self.denoiser = Denoiser(unet, model.noise, model.noise.config.prediction_type, dtype)
        self.adapters = Adapters(model, loras)
        self._adapted: tuple[tuple[Lora, ...], Pipeline] | None = None

    def resolve(self, request: Request) -> Resolved:
        """Fills a request up with the model's defaults. Raises ValueError for what the model cannot do."""
        resolved = resolve(request, self.model)
        return replace(resolved, loras=self.adapters.pin(resolved.loras))

    def generate(self, requests: Iterable[Request], progress: Report | None = None) -> Iterator[Picture]:
        """Makes one picture a request, in their order. A mistake in any is a ValueError before the first.

        A picture's bytes depend on its request alone: each is sampled by itself, from noise of its own seed.
        `progress` is called after every evaluation of the network; what it raises ends the work there.
        """
        resolved = [self.resolve(request) for request in requests]
        return (self._picture(request, index, progress) for index, request in enumerate(resolved))

    def _picture(self, request: Resolved, index: int, progress: Report | None) -> Picture:
        _, _, height, width = self.shape(request)
        with torch.inference_mode(), threads(height * width * self.model.unet.config.block_out_channels[0]):
            return self.adapted(request.loras)._generate(request, index, progress)

    def adapted(self, loras: tuple[Lora, ...]) -> "Pipeline":
        """The pipeline of the model with LoRAs beside its layers. The last one is kept."""
        if not loras:
            return self
        if self._adapted is None or self._adapted[0] != loras:
            adapted = Pipeline(self.adapters.adapt(loras), self.device, self.dtype)
            adapted.adapters = self.adapters
            self._adapted = loras, adapted
        return self._adapted[1]

    def _generate(self, request: Resolved, index: int, progress: Report | None) -> Picture:
        sigmas = self.sigmas(request)  # [steps + 1]
        texts, negative = self.reader.prompt(request, sigmas), self.reader.negative(request, sigmas)
        rescale, interval = request.guidance_rescale or 0.0, request.guidance_interval or ALL
        denoise = guide(self.denoiser, texts, negative, request.guidance, rescale, interval)  # (x, sigma) => x0
        if progress is not None:
            denoise = watch(denoise, progress, index, self.evaluations(request))

        noise = self.noise(request)
        x = noise() * self.model.noise.start(sigmas[0].item())  # [1, C, h, w]
        latents = self.sampler(request)(denoise, x, sigmas, noise)  # [1, C, h, w]
        return Picture(self.image(latents), request, self.describe(request))

    def sigmas(self, request: Resolved) -> Tensor:
        """The noise levels to sample at, [steps + 1]."""
        return sigmas(request, self.model)

    def sampler(self, request: Resolved) -> Sampler:
        """The sampler, told what the model's configuration and the request say to it."""
        asked = {option: value for option in OPTIONS if (value := getattr(request, option)) is not None}
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
    def image(self, latents: Tensor) -> Image.Image:
        """Latents [1, C, h, w] => picture."""
        pixels = self.autoencoder.decode(latents)[0]  # [3, H, W] in [-1, 1]
        if not pixels.isfinite().all():
            raise ValueError(f"The picture's numbers overflowed; {self.dtype} is too narrow for this model.")
        pixels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu()  # [H, W, 3]
        height, width, _ = pixels.shape
        return Image.frombytes("RGB", (width, height), bytes(pixels.flatten().tolist()))

    def describe(self, request: Resolved) -> dict[str, str]:
        more = self.adapters.describe(request.loras)
        return describe(request, self.model, self.device, self.dtype, more=more)

    def evaluations(self, request: Resolved) -> int:
        """How often the network will be evaluated: counted on a sampling of a single number."""
        count = 0

        def denoise(x: Tensor, sigma: float) -> Tensor:
            nonlocal count
            count += 1
            return x

        number = torch.ones(1)
        self.sampler(request)(denoise, number, self.sigmas(request), lambda: number)
        return count


def watch(denoise: Denoise, progress: Report, picture: int, evaluations: int) -> Denoise:
    """The same denoiser, which reports each evaluation."""
    done = 0

    def watched(x: Tensor, sigma: float) -> Tensor:
        nonlocal done
        x0 = denoise(x, sigma)
        done += 1
        progress(Progress(picture, done, evaluations, x0))
        return x0

    return watched
