"""The original layout's names of a U-Net, against diffusers' conversion of single files."""

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from test_unet import CONFIGS

from diffusion.original import original_name, original_names
from diffusion.unet import UNet


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl", "tiny"])
def test_diffusers_converts_them_to_ours(kind: str) -> None:
    config = CONFIGS[kind]
    with torch.device("meta"):
        ours = UNet(config).state_dict()
    names = original_names(config)
    original = {f"model.diffusion_model.{original_name(name, names)}": weight for name, weight in ours.items()}
    theirs = convert_ldm_unet_checkpoint(original, {"class_embed_type": None, **config.to_dict()})
    assert theirs.keys() == ours.keys()
    assert all(theirs[name] is weight for name, weight in ours.items())
