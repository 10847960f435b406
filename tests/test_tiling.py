from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from networks import randomize, relative_error

from diffusion.autoencoder import Autoencoder, AutoencoderConfig, PixelSpace
from diffusion.checkpoint import load_model
from diffusion.pipeline import Pipeline
from diffusion.request import Request
from diffusion.tiling import decode, tile_of

# A factor of 4: tiles of 64 pixels are 16 latents, and begin every 12.
CONFIG = AutoencoderConfig(block_out_channels=(8, 16, 16), norm_num_groups=4, sample_size=64)


@pytest.fixture(scope="module")
def pair() -> tuple[Autoencoder, AutoencoderKL]:
    theirs = AutoencoderKL.from_config(CONFIG.to_dict())
    randomize(theirs)
    ours = Autoencoder(CONFIG)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def latents(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("turned", [False, True])
@torch.no_grad()
def test_a_strip_of_tiles_is_that_of_diffusers(pair, turned):
    ours, theirs = pair
    theirs.enable_tiling()
    z = latents(16, 40)
    z = z.mT.contiguous() if turned else z
    found, expected = decode(ours, z, 64), theirs.decode(z / CONFIG.scaling_factor).sample
    found, expected = (x.mT if turned else x for x in (found, expected))
    # diffusers goes on with tiles that see 4 latents alone, at both ends: what those touch is left out.
    assert relative_error(found[:, :, :48, :144], expected[:, :, :48, :144]) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 40), (55, 29), (5, 90), (64, 64)])
def test_weights_add_up_to_one(height, width):
    pixels = latents(height, width)[:, :3]
    assert torch.allclose(decode(PixelSpace(), pixels, 16), pixels, atol=1e-6)


def test_a_tile_is_a_multiple_of_four_latents_and_unsaid_where_it_holds_all():
    assert tile_of(512, (768, 512), 8) == 512
    assert tile_of(512, (512, 512), 8) is None
    assert tile_of(None, (2048, 2048), 8) is None
    with pytest.raises(ValueError, match="tile 500 is not a multiple of 32"):
        tile_of(500, (768, 512), 8)
    with pytest.raises(ValueError, match="tile is 0"):
        tile_of(0, (768, 512), 8)


def test_a_request_asks_for_it(tiny_model):
    pipeline = Pipeline(load_model(tiny_model))
    whole = Request("a red apple", width=32, height=16, seed=3)
    first, tiled, same = (p for p in pipeline.generate([whole, replace(whole, tile=16), replace(whole, tile=32)]))
    assert tiled.request.tile == 16
    assert tiled.png() != first.png()
    assert same.png() == first.png()
    larger = replace(whole, width=16, hires_scale=2, hires_upscaler="lanczos", tile=16)
    (picture,) = pipeline.generate([larger])
    assert picture.image.size == (32, 32)
    assert picture.request.tile == 16
