import inspect
import json
from dataclasses import fields, replace

import pytest
import torch
from diffusers import AutoencoderKL
from networks import randomize, relative_error, starved

from diffusion.autoencoder import Autoencoder, AutoencoderConfig, PixelSpace

SD1 = AutoencoderConfig(block_out_channels=(8, 16, 24, 24), layers_per_block=2, norm_num_groups=4)
TINY = AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=3)
CONFIGS = {
    "sd1": SD1,
    "tiny": TINY,
    "shifted, without quantisation layers": replace(
        SD1, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159,
        use_quant_conv=False, use_post_quant_conv=False,
    ),
    "of channels apart": replace(
        SD1, scaling_factor=0.5, latents_mean=(-1.6, 1.1, 0.3, 0.2), latents_std=(8.4, 5.9, 4.4, 5.3)
    ),
    "without attention": replace(TINY, mid_block_add_attention=False, layers_per_block=3),
    "one level": replace(TINY, block_out_channels=(12,), use_post_quant_conv=False),
}


def images(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def pair(config: AutoencoderConfig) -> tuple[Autoencoder, AutoencoderKL]:
    """Ours and diffusers', with the same random weights."""
    theirs = AutoencoderKL.from_config(config.to_dict())
    randomize(theirs)
    ours = Autoencoder(config)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_same_moments_and_images_as_diffusers(config):
    ours, theirs = pair(config)
    x = images(3, 16, 24)
    mean, logvar = ours.moments(x)
    posterior = theirs.encode(x).latent_dist
    assert mean.shape == (3, ours.channels, 16 // ours.factor, 24 // ours.factor)
    assert relative_error(mean, posterior.mean) < 1e-5
    assert relative_error(logvar, posterior.logvar) < 1e-5

    # The arithmetic of a diffusers pipeline around its autoencoder.
    shift, scale = config.shift_factor or 0.0, config.scaling_factor
    if config.latents_mean:
        shift = torch.tensor(config.latents_mean).view(1, -1, 1, 1)
        scale = scale / torch.tensor(config.latents_std).view(1, -1, 1, 1)
    latents = (posterior.mean - shift) * scale
    assert relative_error(ours.encode(x), latents) < 1e-5
    decoded = theirs.decode(latents / scale + shift).sample
    assert relative_error(ours.decode(latents), decoded) < 1e-5


@torch.no_grad()
def test_log_variance_is_clamped_as_in_diffusers():
    ours, theirs = pair(TINY)
    ours.encoder.conv_out.weight *= 1e3
    theirs.encoder.conv_out.weight *= 1e3
    x = images(2, 8, 8)
    _, logvar = ours.moments(x)
    assert logvar.min() == -30
    assert logvar.max() == 20
    assert relative_error(logvar, theirs.encode(x).latent_dist.logvar) < 1e-5


@torch.no_grad()
def test_golden_slice():
    network = Autoencoder(SD1)
    randomize(network)
    latents = network.encode(images(1, 32, 32))
    pixels = network.decode(latents)
    torch.testing.assert_close(latents[0, 0, 0], torch.tensor(GOLDEN_LATENTS), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(pixels[0, 0, 0, :4], torch.tensor(GOLDEN_PIXELS), rtol=1e-3, atol=1e-4)


GOLDEN_LATENTS = [-0.076628, 0.013772, -0.087331, -0.10534]
GOLDEN_PIXELS = [-0.30605, -0.14571, -0.35849, -0.39116]


def test_every_parameter_learns():
    network = Autoencoder(SD1)
    randomize(network)
    mean, logvar = network.moments(images(2, 16, 16))
    (network.decode(network.scale(mean)).square().mean() + logvar.mean()).backward()
    # The keys' bias moves all of a query's scores alike, which the softmax does not see.
    assert [name for name in starved(network) if not name.endswith("to_k.bias")] == []


def test_fresh_residual_branches_add_nothing():
    network = Autoencoder(TINY)
    x = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(network.decoder.mid_block(x), x)
    assert network.decode(torch.randn(1, 3, 4, 4)).std() > 0


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_configuration_round_trips_through_json_and_diffusers(config):
    assert AutoencoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    theirs = AutoencoderKL.from_config(config.to_dict())
    assert AutoencoderConfig.from_dict(json.loads(theirs.to_json_string())) == config


def test_defaults_are_those_of_diffusers():
    defaults = {name: p.default for name, p in inspect.signature(AutoencoderKL.__init__).parameters.items()}
    for field in fields(AutoencoderConfig):
        assert defaults[field.name] == field.default, field.name
    for name, value in AutoencoderConfig.FIXED.items():
        assert defaults[name] == value, name
    assert {field.name for field in fields(AutoencoderConfig)}.union(
        AutoencoderConfig.FIXED, AutoencoderConfig.IGNORED, AutoencoderConfig.BLOCK_TYPES
    ) == set(defaults) - {"self"}


@pytest.mark.parametrize(("change", "message"), [
    ({"act_fn": "relu"}, "act_fn='relu'"),
    ({"latents_mean": [0.0] * 3}, r"latents_mean=\(0.0, 0.0, 0.0\) with latents_std=None"),
    ({"latents_mean": [0.0], "latents_std": [1.0]}, "expected 3 numbers in each"),
    ({"latents_mean": [0.0] * 3, "latents_std": [1.0, 0.0, 1.0]}, "above 0"),
    ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "AttnDownEncoderBlock2D"),
    ({"block_out_channels": [8, 18]}, "norm_num_groups=4"),
    ({"surprise": 1}, "surprise=1"),
    ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
])
def test_what_cannot_be_honoured_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig.from_dict(TINY.to_dict() | change)


def test_images_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"20x16 pixels.*multiples of 8"):
        Autoencoder(SD1).encode(images(1, 16, 20))


def test_pixel_space_changes_nothing():
    space, x = PixelSpace(), images(2, 5, 7)
    mean, logvar = space.moments(x)
    assert torch.equal(mean, x)
    assert torch.exp(logvar / 2).max() < 1e-6
    assert torch.equal(space.decode(space.encode(x)), x)
    assert torch.equal(space.scale(x), x)
    assert x.shape[1] == space.channels
    assert space.factor == 1
