"""AUTOMATIC1111's payloads => requests.

What changes nothing is ignored, nulls and whatever of plugins is off; what would change the picture and cannot be done
is refused by name.
"""

import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Self

from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffusion.image import has_empty, read_image
from diffusion.request import DRAWN, RANDOM, Request
from diffusion.samplers import OPTIONS, SAMPLERS, options, our_sampler
from diffusion.texts import encode_picture
from ui.wire import MAX_PROMPT, from_base64

FILLS = ("fill", "original", "noise", "nothing")  # inpainting_fill 0, 1, 2, 3
RESIZE = ("stretch", "crop", "pad")  # resize_mode 0, 1, 2
# What must stay as it is, and the values that leave it so, besides nothing at all: with others, the picture would be
# another one.
ONLY: dict[str, tuple[Any, ...]] = {
    "hr_checkpoint_name": ("Use same checkpoint",),
    "hr_sampler_name": ("Use same sampler",),
    "hr_scheduler": ("Use same scheduler", "automatic", "Automatic"),
    "refiner_checkpoint": ("None",),
    "initial_noise_multiplier": (1,),
    "seed_resize_from_h": (-1,),
    "seed_resize_from_w": (-1,),
    "s_min_uncond_all": (),
}
# What changes nothing here, whatever it is.
IGNORED = {
    "sampler_index", "script_args", "send_images", "save_images", "do_not_save_samples", "do_not_save_grid",
    "override_settings_restore_afterwards", "disable_extra_networks", "comments", "force_task_id", "image_cfg_scale",
    "refiner_switch_at", "include_init_images", "alwayson_scripts", "override_settings",
}  # fmt: skip
# Settings, and the values with which pictures are as they are here.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "sd_vae": ("Automatic", "None"),
    "samples_format": ("png",),
    "eta_noise_seed_delta": (0,),
    "randn_source": ("CPU",),
    "enable_emphasis": (True,),
    "emphasis": ("Original",),
    "upcast_attn": (False,),
    "sd_unet": ("Automatic", "None"),
    "sd_lora": ("None",),
    "sd_hypernetwork": ("None",),
    "s_min_uncond": (0,),
    "token_merging_ratio": (0,),
    "token_merging_ratio_hr": (0,),
    "img2img_color_correction": (False,),
    "use_old_emphasis_implementation": (False,),
}
CLIP_SKIP = "CLIP_stop_at_last_layers"
MODEL = "sd_model_checkpoint"
HARMLESS = ("save_", "show_", "grid_", "live_preview", "outdir_", "return_", "do_not_", "enable_pnginfo", "font", "ui_")


class Missing(ValueError):
    """What is asked for by a name that there is not."""


class Payload(BaseModel):
    """What both calls take."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: str = Field("", max_length=MAX_PROMPT)
    negative_prompt: str = Field("", max_length=MAX_PROMPT)
    seed: int = RANDOM
    subseed: int = RANDOM
    subseed_strength: float = 0
    sampler_name: str = Field("", description="of `samplers`; Euler where none is said")
    sampler_index: str = "Euler"
    scheduler: str = "automatic"
    batch_size: int = Field(1, ge=1, le=64)
    n_iter: int = Field(1, ge=1, le=1000)
    steps: int = 50
    cfg_scale: float = 7.0
    width: int | None = Field(None, description="pixels; the model's own where none are said")
    height: int | None = None
    denoising_strength: float = 0.75
    eta: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None
    script_name: str = ""
    override_settings: dict[str, Any] = {}
    alwayson_scripts: dict[str, Any] = {}
    send_images: bool = True

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, said: Any) -> Any:
        return {key: value for key, value in said.items() if value is not None} if isinstance(said, dict) else said

    @model_validator(mode="after")
    def checked(self) -> Self:
        if self.script_name and self.script_name != "None":
            raise ValueError(f"The script {self.script_name!r:.80} is not here; leave script_name out.")
        for name, value in self.alwayson_scripts.items():
            args = value.get("args") if isinstance(value, dict) else value
            if args and not _is_off(args):
                raise ValueError(f"The script {name!r:.80} is not here; leave it out of alwayson_scripts.")
        for name, value in (self.model_extra or {}).items():
            if name not in IGNORED and not _nothing(value) and value not in ONLY.get(name, ()):
                if name in self.same() and value == self.same()[name]:
                    continue
                raise ValueError(f"{name[:80]!r} would change the picture and cannot be done here; leave it out.")
        return self

    def same(self) -> dict[str, Any]:
        """Of a second pass, what it shares with the first one."""
        sampler = self.sampler_name or self.sampler_index
        said = {"hr_prompt": self.prompt, "hr_negative_prompt": self.negative_prompt, "hr_scheduler": self.scheduler}
        return said | {"hr_sampler_name": sampler}

    def requests(self, settings: Mapping[str, Any], **more: Any) -> list[Request]:
        """One a picture; `settings` are those of the server, by which those of the payload are filled up.

        Raises Missing for a sampler that there is not, ValueError for what cannot be done.
        """
        name, _ = our_sampler(self.sampler_name or self.sampler_index)
        if name not in SAMPLERS:
            raise Missing(f"Sampler not found: {name!r:.80}; /sdapi/v1/samplers lists them.")
        known = options(name)
        said: dict[str, Any] = {
            "negative": self.negative_prompt,
            "steps": self.steps,
            "sampler": self.sampler_name or self.sampler_index,
            "schedule": self.scheduler,
            "guidance": self.cfg_scale,
            "width": self.width,
            "height": self.height,
            **{option: getattr(self, option) for option in OPTIONS if option in known},
            **more,
        }
        skip = {**settings, **self.override_settings}.get(CLIP_SKIP)
        if isinstance(skip, int | float) and skip > 1:
            said["clip_skip"] = int(skip)
        seed, subseed = (secrets.randbelow(DRAWN) if seed == RANDOM else seed for seed in (self.seed, self.subseed))
        count = range(self.batch_size * self.n_iter)
        if self.subseed_strength == 0:
            return [Request(self.prompt, seed=seed + i, **said) for i in count]
        said |= {"seed": seed, "variation_strength": self.subseed_strength}  # it is the second seed that goes on
        return [Request(self.prompt, variation_seed=subseed + i, **said) for i in count]


class Txt2Img(Payload):
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0

    def hires(self, side: int) -> dict[str, Any]:
        """The fields of a request for a second pass; `side` is the model's own size."""
        if not self.enable_hr:
            return {}
        width, height = self.width or side, self.height or side
        scales = {x / own for x, own in ((self.hr_resize_x, width), (self.hr_resize_y, height)) if x}
        if len(scales) > 1:
            raise ValueError(
                f"hr_resize_x and hr_resize_y are {self.hr_resize_x}x{self.hr_resize_y}, which has not the shape of "
                f"{width}x{height}; give one of them, or hr_scale."
            )
        return {
            "hires_scale": scales.pop() if scales else self.hr_scale,
            "hires_steps": self.hr_second_pass_steps or None,
            "hires_strength": self.denoising_strength,
            "hires_upscaler": self.hr_upscaler,
        }


class Img2Img(Payload):
    init_images: list[str] = Field([], description="one, in base64")
    mask: str = Field("", description="in base64: white changes, or else what is not transparent")
    resize_mode: int = Field(0, ge=0, le=3)
    mask_blur: float | None = None
    mask_blur_x: float = 4
    mask_blur_y: float = 4
    inpainting_fill: int = Field(0, ge=0, le=3)
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = Field(0, ge=0, le=1)
    include_init_images: bool = False

    def from_image(self) -> dict[str, Any]:
        """The fields of a request that say what it begins with. Raises Missing where there is no image."""
        if not self.init_images:
            raise Missing("Init image not found: init_images is empty.")
        if len(self.init_images) > 1:
            raise ValueError(f"init_images has {len(self.init_images)} images; send one a call.")
        if self.resize_mode >= len(RESIZE):
            raise ValueError("resize_mode 3 resizes latents, which cannot be done here; choose 0, 1 or 2.")
        image = from_base64(self.init_images[0], "The image in init_images")
        said = {"image": image, "strength": self.denoising_strength, "resize": RESIZE[self.resize_mode]}
        if not self.mask:
            return said
        blur = self.mask_blur
        if blur is None:
            if self.mask_blur_x != self.mask_blur_y:
                raise ValueError("mask_blur_x and mask_blur_y differ, which cannot be done here; give mask_blur.")
            blur = self.mask_blur_x
        shape = read_image(image, "The image in init_images").size
        return said | {
            "mask": white_mask(from_base64(self.mask, "The mask"), shape, bool(self.inpainting_mask_invert)),
            "mask_blur": blur,
            "fill": FILLS[self.inpainting_fill],
            "padding": self.inpaint_full_res_padding if self.inpaint_full_res else None,
        }


def white_mask(data: bytes, shape: tuple[int, int], invert: bool) -> bytes:
    """A mask as that program reads it => one of the image's size whose white part changes.

    Where something of it is transparent, what is painted changes, whatever its colour.
    """
    image = read_image(data, "The mask")
    alpha = image.getchannel("A").point(lambda value: 255 * (value > 128))
    mask = alpha if has_empty(image) else image.convert("L")
    if mask.size != shape:
        mask = mask.resize(shape, Image.Resampling.LANCZOS)
    return encode_picture(ImageOps.invert(mask) if invert else mask, {})


def check_settings(said: Mapping[str, Any], models: Iterable[str]) -> None:
    """Raises Missing for a model that there is not, ValueError for a setting that would change pictures."""
    for name, value in said.items():
        if name == MODEL:
            if value and str(value).removesuffix(".safetensors") not in (known := [*models]):
                raise Missing(f"Model not found: {value!r:.80}; there is {known[0]!r}.")
        elif name == CLIP_SKIP:
            if type(value) not in (int, float) or not 1 <= value <= 12:
                raise ValueError(f"{CLIP_SKIP} is {value!r:.80}; expected 1 to 12.")
        elif not name.startswith(HARMLESS) and not _nothing(value) and value not in SETTINGS.get(name, ()):
            raise ValueError(f"The setting {name!r:.80} cannot be {value!r:.80} here; leave it out.")


def _nothing(value: Any) -> bool:
    return value is None or value is False or value == 0 or value in ("", [], {}) or value == "None"


def _is_off(args: Any) -> bool:
    """Whether a script's arguments say that it is to do nothing, in the ways that plugins say it."""
    if isinstance(args, dict):
        return args.get("enabled", args.get("enable", True)) is False
    return isinstance(args, list) and (args[0] is False or all(isinstance(a, dict) and _is_off(a) for a in args))
