"""What a single file tells of its noise process and of its latents: by marks among its weights, which are tensors that
belong to no network, and by its metadata; else by the rule of its kind.

Programs agree on these marks: of v-prediction and zero SNR, which hold nothing; of EDM's sigmas in CosXL; of the mean
and the spread of each channel of latents in Playground v2.5, which stand for all of its noise process.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffusion.autoencoder import AutoencoderConfig
from diffusion.schedulers import NoiseConfig
from diffusion.unet import UNet

V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
MEAN, SPREAD = "edm_mean", "edm_std"
HIGHEST, LOWEST = "edm_vpred.sigma_max", "edm_vpred.sigma_min"
MARKS = frozenset({V_PREDICTION, ZERO_SNR, MEAN, SPREAD, HIGHEST, LOWEST})
# What published files have in common, beside num_train_timesteps.
STABLE_DIFFUSION: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
}  # fmt: skip
PLAYGROUND_SCALE, PLAYGROUND_SPREAD = 0.5, 0.5  # its scaling_factor and sigma_data
# Training with v-prediction spread the biases of a certain norm wider: so ComfyUI, too, tells the kinds of 2.x apart.
V_SPREAD = 0.09


def noise_config(
    marks: Mapping[str, Tensor], metadata: Mapping[str, str], unet: UNet, second: bool, prediction_type: str | None
) -> NoiseConfig:
    """The noise process of a file; `second`: of 2.x's kind. `prediction_type` overrides what is told of it."""
    if MEAN in marks:
        return NoiseConfig(
            "EDMDPMSolverMultistepScheduler", prediction_type or "epsilon", sigma_data=PLAYGROUND_SPREAD
        )
    if HIGHEST in marks:
        told = {"sigma_max": HIGHEST, "sigma_min": LOWEST}
        sigmas: dict[str, Any] = {field: marks[mark].item() for field, mark in told.items() if mark in marks}
        return NoiseConfig(
            "EDMEulerScheduler", prediction_type or "v_prediction", sigma_schedule="exponential", **sigmas
        )
    if prediction_type is None:
        v = {"v": True, "v_prediction": True, "epsilon": False}.get(metadata.get("modelspec.prediction_type", ""))
        v = V_PREDICTION in marks or (_is_spread(unet) if v is None and second else v)
        prediction_type = "v_prediction" if v else "epsilon"
    scheduler = "LCMScheduler" if unet.config.time_cond_proj_dim else NoiseConfig.scheduler
    zero_snr = ZERO_SNR in marks
    spacing = "trailing" if zero_snr else "leading"
    settings = STABLE_DIFFUSION | {"rescale_betas_zero_snr": zero_snr, "timestep_spacing": spacing}
    return NoiseConfig(scheduler, prediction_type, **settings)


def latents(marks: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a file tells of its latents, in the fields of AutoencoderConfig."""
    if MEAN not in marks:
        return {}
    told = {"latents_mean": MEAN, "latents_std": SPREAD}
    channels = {field: tuple(marks[mark].flatten().tolist()) for field, mark in told.items() if mark in marks}
    return {"scaling_factor": PLAYGROUND_SCALE, **channels}


def marks_of(noise: NoiseConfig, autoencoder: AutoencoderConfig | None) -> dict[str, Tensor]:
    """The marks by which other programs know such a model."""
    if autoencoder and autoencoder.latents_mean and autoencoder.latents_std:
        return {MEAN: torch.tensor(autoencoder.latents_mean), SPREAD: torch.tensor(autoencoder.latents_std)}
    if noise.prediction_type != "v_prediction":
        return {}
    if noise.edm:
        return {HIGHEST: torch.tensor(noise.sigma_max), LOWEST: torch.tensor(noise.sigma_min)}
    return {mark: torch.zeros(0) for mark in [V_PREDICTION] + [ZERO_SNR] * noise.rescale_betas_zero_snr}


def _is_spread(unet: UNet) -> bool:
    """Whether a U-Net of 2.x predicts v: it is not told, and those for inpainting never do."""
    level = len(unet.config.block_out_channels) - 1
    attention = f"up_blocks.{level}.attentions.{unet.config.per_level('layers_per_block')[0]}"
    biases = unet.get_parameter(f"{attention}.transformer_blocks.0.norm1.bias")
    return unet.config.in_channels == unet.config.out_channels and biases.float().std(correction=0).item() > V_SPREAD
