import inspect
import json
from dataclasses import fields, replace

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from networks import randomize, relative_error, starved
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

from diffusion.conditioning import Conditioning, stack
from diffusion.unet import UNet, UNetConfig

SD1 = UNetConfig(
    block_out_channels=(8, 16, 24, 24), norm_num_groups=4, attention_head_dim=2, cross_attention_dim=12,
    sample_size=8,
)
TINY = UNetConfig(
    block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=2, cross_attention_dim=12,
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
)
POOLED = 20
XL = replace(
    SD1, block_out_channels=(8, 16, 24), attention_head_dim=(1, 2, 4), transformer_layers_per_block=(1, 2, 3),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=6,
    projection_class_embeddings_input_dim=POOLED + 6 * 6,
)
CONFIGS = {
    "sd1": SD1,
    "sd2": replace(SD1, attention_head_dim=(1, 2, 4, 4), use_linear_projection=True),
    "xl": XL,
    "tiny": TINY,
    "every field apart from its default": replace(
        TINY, in_channels=5, out_channels=3, layers_per_block=(1, 3), transformer_layers_per_block=(2, 1),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        norm_eps=1e-4, flip_sin_to_cos=False, freq_shift=1,
    ),
    "distilled": replace(TINY, time_cond_proj_dim=10),
    "distilled xl": replace(XL, time_cond_proj_dim=8),
    "one level": replace(
        TINY, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    ),
}


def inputs(
    config: UNetConfig, batch: int = 3, sides: tuple[int, int] = (8, 8)
) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    """Latents, timesteps and text."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, *sides, generator=generator)
    t = torch.rand(batch, generator=generator) * 999
    tokens = torch.randn(batch, 5, config.cross_attention_dim, generator=generator)
    text = stack(*(Conditioning(row[None]).guided(scale) for row, scale in zip(tokens, (7.5, 1, 2.3), strict=False)))
    if config.addition_embed_type is None:
        return x, t, text
    pooled = torch.randn(batch, POOLED, generator=generator)
    return x, t, replace(text, pooled=pooled).sized(768, 1344)


def random_unet(config: UNetConfig) -> UNet:
    network = UNet(config)
    randomize(network)
    return network


@pytest.mark.parametrize("sides", [(8, 8), (8, 16), (5, 7)], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_same_output_as_diffusers(config, sides):
    theirs = UNet2DConditionModel.from_config(config.to_dict())
    randomize(theirs)
    ours = UNet(config)
    ours.load_state_dict(theirs.state_dict())
    x, t, text = inputs(config, sides=sides)
    added = {"text_embeds": text.pooled, "time_ids": text.sizes}
    told = None
    if (channels := config.time_cond_proj_dim) is not None:
        told = StableDiffusionPipeline.get_guidance_scale_embedding(None, text.guidance, channels)
    expected = theirs(x, t, text.tokens, timestep_cond=told, added_cond_kwargs=added).sample
    assert relative_error(ours(x, t, text), expected) < 1e-5


@torch.no_grad()
def test_golden_slice():
    x, t, text = inputs(SD1, batch=1)
    out = random_unet(SD1)(x, t, text)
    torch.testing.assert_close(out[0, 0, 0, :4], torch.tensor(GOLDEN), rtol=1e-3, atol=1e-4)


GOLDEN = [-0.19368, -0.51011, 0.26178, 0.31217]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_context_stands_for_the_text(config):
    network = random_unet(config)
    x, t, text = inputs(config)
    context = network.context(text)
    assert torch.equal(network(x, t, context), network(x, t, text))
    assert all(tensor.shape[0] == 3 and tensor.shape[2] == 5 for pair in context.keys_values for tensor in pair)
    others = replace(text, tokens=-text.tokens)
    assert relative_error(network(x, t, network.context(others)), network(x, t, text)) > 1e-3


@torch.no_grad()
def test_a_distilled_network_heeds_the_guidance_that_it_is_told():
    network = random_unet(CONFIGS["distilled"])
    x, t, text = inputs(CONFIGS["distilled"])
    assert relative_error(network(x, t, text.guided(7.5)), network(x, t, text.guided(2))) > 1e-2


@torch.no_grad()
def test_each_sample_depends_on_itself_alone():
    network = random_unet(SD1)
    x, t, text = inputs(SD1)
    alone = torch.cat([network(x[i:i + 1], t[i:i + 1], text.tokens[i:i + 1]) for i in range(3)])
    assert relative_error(network(x, t, text), alone) < 1e-5


def test_fresh_network_predicts_zero_and_still_learns():
    network = UNet(TINY)
    x, t, text = inputs(TINY)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(4):
        out = network(x, t, text)
        loss = (out - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(x.square().mean().item())
    assert losses == sorted(losses, reverse=True)
    # Each zeroed layer hides what lies behind it for one step: after three, all of the network learns.
    assert starved(network) == []


def test_compiles_as_one_graph():
    network = random_unet(TINY)
    x, t, text = inputs(TINY)
    compiled = torch.compile(network, fullgraph=True, backend="eager")  # fullgraph: a graph break is an error
    torch.testing.assert_close(compiled(x, t, text), network(x, t, text))
    torch.testing.assert_close(compiled(x, t, network.context(text)), network(x, t, text))


def test_trains_under_distributed_data_parallel():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        network = random_unet(TINY)
        x, t, text = inputs(TINY)
        DistributedDataParallel(network)(x, t, text.tokens).square().mean().backward()
        assert starved(network) == []
    finally:
        destroy_process_group()


@pytest.mark.parametrize("cast", [UNet.bfloat16, UNet.half])
@pytest.mark.parametrize("config", [SD1, XL], ids=["sd1", "xl"])
@torch.no_grad()
def test_half_precision(config, cast):
    network = random_unet(config)
    x, t, text = inputs(config)
    exact = network(x, t, text)
    network = cast(network)
    dtype = network.conv_in.weight.dtype
    out = network(x.to(dtype), t, text.to(dtype))
    assert out.dtype == dtype
    assert relative_error(out.float(), exact) < 0.1


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_configuration_round_trips_through_json_and_diffusers(config):
    assert UNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    theirs = UNet2DConditionModel.from_config(config.to_dict())
    assert UNetConfig.from_dict(json.loads(theirs.to_json_string())) == config


def test_defaults_are_those_of_diffusers():
    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    for field in fields(UNetConfig):
        assert defaults[field.name] == field.default, field.name
    for name, value in UNetConfig.FIXED.items():
        assert defaults[name] == value, name
    assert {field.name for field in fields(UNetConfig)}.union(
        UNetConfig.FIXED, UNetConfig.IGNORED
    ) == set(defaults) - {"self"}


@pytest.mark.parametrize(("change", "message"), [
    ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
    ({"addition_embed_type": "image"}, "addition_embed_type='image'"),
    ({"addition_embed_type": "text_time"}, "addition_time_embed_dim=None"),
    ({"dual_cross_attention": True}, "dual_cross_attention=True"),
    ({"cross_attention_dim": None}, "cross_attention_dim is None"),
    ({"cross_attention_dim": [12, 12]}, r"cross_attention_dim is \(12, 12\)"),
    ({"transformer_layers_per_block": [[1], [1]]}, "transformer_layers_per_block"),
    ({"attention_head_dim": 3}, "number of heads"),
    ({"attention_head_dim": [1, 2, 3]}, "3 values"),
    ({"down_block_types": ["DownBlock2D"]}, "down_block_types names 1 levels"),
    ({"up_block_types": ["AttnUpBlock2D"] * 2}, "up_block_types with 'AttnUpBlock2D'"),
    ({"block_out_channels": [8, 18]}, "norm_num_groups=4"),
    ({"block_out_channels": [9, 18], "norm_num_groups": 9}, "even"),
    ({"time_cond_proj_dim": 7}, "time_cond_proj_dim=7"),
    ({"surprise": 1}, "surprise=1"),
    ({"_class_name": "UNet2DModel"}, "UNet2DModel"),
])
def test_what_cannot_be_honoured_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig.from_dict(TINY.to_dict() | change)
