"""A second, larger pass over a picture: the first one's latents => larger ones, noised and sampled again."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffusion.autoencoder import Autoencoder, PixelSpace
from diffusion.checks import MAX_STEPS, check_name, check_needed, check_number
from diffusion.image import to_image, to_pixels
from diffusion.tiling import decode

MAX_SCALE = 8
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


def hires_settings(request: Any, steps: int) -> dict[str, Any]:
    """What a request leaves open of a second pass: those fields of it, checked; `steps` are the first one's."""
    if request.hires_scale is None:
        check_needed(request, ["hires_steps", "hires_strength", "hires_upscaler"], "a hires scale")
        return {}
    if request.image is not None:
        raise ValueError("A second pass cannot follow an image; leave out the hires scale, and ask for a larger size.")
    settings: dict[str, Any] = {"hires_steps": steps, "hires_strength": 0.7, "hires_upscaler": "latent"}
    settings |= {name: value for name in settings if (value := getattr(request, name)) is not None}
    check_number("The hires scale", request.hires_scale, 1, MAX_SCALE, whole=False)
    check_number("The number of hires steps", settings["hires_steps"], 1, MAX_STEPS, whole=True)
    check_number("The hires strength", settings["hires_strength"], 0, 1, whole=False)
    upscaler = next((ours for ours, theirs in UPSCALERS.items() if theirs == settings["hires_upscaler"]), None)
    settings["hires_upscaler"] = upscaler or settings["hires_upscaler"]
    check_name("upscaler", settings["hires_upscaler"], UPSCALERS)
    return settings


def passes(request: Any, factor: int) -> list[Any]:
    """The samplings that make up a picture: one, or a second one, larger, that begins where the first ended."""
    if request.hires_scale is None:
        return [request]
    width, height = (int(side * request.hires_scale) // factor * factor for side in (request.width, request.height))
    first = replace(request, hires_scale=None)
    steps, strength = request.hires_steps, request.hires_strength
    return [first, replace(first, width=width, height=height, steps=steps, strength=strength)]


def upscale(latents: Tensor, request: Any, autoencoder: Autoencoder | PixelSpace) -> Tensor:
    """Latents => those that the larger pass of a request begins with, both [1, C, h, w]."""
    width, height, how = request.width, request.height, request.hires_upscaler
    if how in LATENTS:
        return LATENTS[how](latents, size=(height // autoencoder.factor, width // autoencoder.factor))
    image = to_image(decode(autoencoder, latents, request.tile)[0].cpu()).resize((width, height), PIXELS[how])
    return autoencoder.encode(to_pixels(image)[None].to(latents))
