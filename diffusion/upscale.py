"""Latents => larger latents, for the second pass of a high-resolution picture."""

from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffusion.autoencoder import Autoencoder, PixelSpace
from diffusion.image import to_image, to_pixels

# Our names, and AUTOMATIC1111's.
UPSCALERS = {
    "latent": "Latent",
    "latent_antialiased": "Latent (antialiased)",
    "latent_bicubic": "Latent (bicubic)",
    "latent_bicubic_antialiased": "Latent (bicubic antialiased)",
    "latent_nearest": "Latent (nearest)",
    "latent_nearest_exact": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
    "nearest": "Nearest",
}
# As latents, each by one call of PyTorch; or as pixels, decoded and encoded again.
LATENTS: dict[str, Callable[..., Tensor]] = {
    "latent": partial(F.interpolate, mode="bilinear"),
    "latent_antialiased": partial(F.interpolate, mode="bilinear", antialias=True),
    "latent_bicubic": partial(F.interpolate, mode="bicubic"),
    "latent_bicubic_antialiased": partial(F.interpolate, mode="bicubic", antialias=True),
    "latent_nearest": partial(F.interpolate, mode="nearest"),
    "latent_nearest_exact": partial(F.interpolate, mode="nearest-exact"),
}
PIXELS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}


def upscale(latents: Tensor, request: Any, autoencoder: Autoencoder | PixelSpace) -> Tensor:
    """Latents => those that the larger pass of a request begins with, both [1, C, h, w]."""
    width, height, how = request.width, request.height, request.hires_upscaler
    if how in LATENTS:
        return LATENTS[how](latents, size=(height // autoencoder.factor, width // autoencoder.factor))
    image = to_image(autoencoder.decode(latents)[0].cpu()).resize((width, height), PIXELS[how])
    return autoencoder.encode(to_pixels(image)[None].to(latents))
