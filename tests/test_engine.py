"""Every twin does what its network does; large maps and recordings too."""

from dataclasses import replace

import pytest
import torch
from networks import randomize, relative_error
from test_autoencoder import CONFIGS as AUTOENCODERS
from test_unet import CONFIGS as UNETS
from test_unet import inputs, random_unet
from torch import nn

from diffusion import convolution, engine, recording
from diffusion.autoencoder import Autoencoder
from diffusion.blocks import Attention
from diffusion.convolution import convolve, doubled, normed
from diffusion.engine import accelerate
from diffusion.levels import FeedForward
from diffusion.recording import Recording, Recordings

CLOSE = 1e-5


@pytest.mark.parametrize("recorded", [0, engine.RECORDED], ids=["eager", "recorded"])
@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS.keys())
@torch.inference_mode()
def test_unet(config, recorded, monkeypatch):
    monkeypatch.setattr(engine, "RECORDED", recorded)
    network = random_unet(config)
    twin = accelerate(random_unet(config))
    for sides in [(8, 8), (5, 7), (8, 8)]:
        x, t, text = inputs(config, batch=2, sides=sides)
        t[:] = t[0]
        context, twins = network.context(text), twin.context(text)
        for noisy in (x, x.flip(0), x):
            assert relative_error(twin(noisy, t, twins), network(noisy, t, context)) < CLOSE
    assert len(twin.recordings.of) == (2 if recorded else 0)


@pytest.mark.parametrize("recorded", [0, engine.RECORDED], ids=["eager", "recorded"])
@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS.keys())
@torch.inference_mode()
def test_equal_rows_under_two_texts(config, recorded, monkeypatch):
    monkeypatch.setattr(engine, "RECORDED", recorded)
    network = random_unet(config)
    twin = accelerate(random_unet(config))
    x, t, text = inputs(config, batch=2)
    t[:] = t[0]
    equal = x[:1].expand(2, -1, -1, -1)
    expected = network(equal, t, network.context(text))
    assert relative_error(expected[:1], expected[1:]) > 1000 * CLOSE
    assert relative_error(twin(equal, t, twin.context(text)), expected) < CLOSE


@torch.inference_mode()
def test_recorded_steps_follow_time_and_text():
    network, config = random_unet(UNETS["tiny"]), UNETS["tiny"]
    twin = accelerate(random_unet(config))
    x, _, text = inputs(config, batch=2)
    other = replace(text, tokens=-text.tokens)
    for time, said in ((999.0, text), (10.5, text), (10.5, other), (999.0, other)):
        t = torch.full((2,), time)
        assert relative_error(twin(x, t, twin.context(said)), network(x, t, network.context(said))) < CLOSE
    assert len(twin.recordings.of) == 1
    assert set(twin.table) == {999.0, 10.5}


def test_weights_are_shared():
    network = random_unet(UNETS["sd1"])
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    twin = accelerate(network)
    after, twins = network.state_dict(), twin.state_dict()
    assert after.keys() == twins.keys() == before.keys()
    for name, weight in before.items():
        assert torch.equal(after[name], weight)
        assert twins[name].data_ptr() == after[name].data_ptr()


@torch.inference_mode()
def test_moved_weights_are_those_that_are_used():
    config = UNETS["sd1"]
    twin, network = accelerate(random_unet(config)), random_unet(config).double()
    x, t, text = inputs(config, batch=2)
    t[:] = t[0]
    text, x = replace(text, tokens=text.tokens.double()), x.double()
    twin.double()
    assert relative_error(twin(x, t, twin.context(text)), network(x, t, network.context(text))) < 1e-9


@pytest.mark.parametrize("absorbed", [True, False])
@torch.inference_mode()
def test_attention_to_short_and_long_texts(absorbed):
    network = Attention(16, heads=2, context_channels=12)
    randomize(network)
    x, text = torch.randn(2, 9, 16), torch.randn(2, 8 if absorbed else 9, 12)
    expected = network(x, network.keys_values(text))
    twin = accelerate(network)
    context = twin.keys_values(text)
    assert context[0].dim() == (3 if absorbed else 4)
    assert relative_error(twin(x, context), expected) < CLOSE


@torch.inference_mode()
def test_feed_forward_of_some_tokens_at_a_time(monkeypatch):
    monkeypatch.setattr(engine, "TOKENS", 4)
    network = FeedForward(16)
    x = torch.randn(2, 9, 16)
    assert relative_error(accelerate(network)(x), network(x)) < CLOSE


@pytest.mark.parametrize(
    ("band", "recorded"),
    [(convolution.BAND, 0), (600, 0), (convolution.BAND, engine.RECORDED)],
    ids=["whole", "in bands", "recorded"],
)
@pytest.mark.parametrize("config", AUTOENCODERS.values(), ids=AUTOENCODERS.keys())
@torch.inference_mode()
def test_autoencoder(config, band, recorded, monkeypatch):
    monkeypatch.setattr(convolution, "BAND", band)
    monkeypatch.setattr(engine, "RECORDED", recorded)
    network, other = Autoencoder(config), Autoencoder(config)
    randomize(network)
    randomize(other)
    twin = accelerate(other)
    images = torch.randn(2, 3, 4 * network.factor, 6 * network.factor)
    latents = network.encode(images)
    assert relative_error(twin.encode(images), latents) < CLOSE
    pictures = [twin.decode(each) for each in (latents, latents.flip(0))]
    for each, picture in zip((latents, latents.flip(0)), pictures, strict=True):
        assert relative_error(picture, network.decode(each)) < CLOSE
    assert len(twin.decoder.recordings.of) == bool(recorded)


@pytest.mark.parametrize("band", [1, 100, 1000, 10**9])
@torch.inference_mode()
def test_bands_meet(band, monkeypatch):
    norm, layer = nn.GroupNorm(2, 6), nn.Conv2d(6, 5, 3, padding=1)
    randomize(norm)
    x = 3 + torch.randn(2, 6, 11, 7)
    expected = layer(nn.functional.silu(norm(x)))
    monkeypatch.setattr(convolution, "BAND", band)
    assert relative_error(normed(x, norm, layer), expected) < CLOSE


@pytest.mark.parametrize("sides", [(1, 1), (3, 5), (9, 8)], ids=str)
@torch.inference_mode()
def test_doubled(sides):
    layer, x = nn.Conv2d(6, 5, 3, padding=1), torch.randn(2, 6, *sides)
    assert relative_error(doubled(x, layer), layer(x.repeat_interleave(2, 2).repeat_interleave(2, 3))) < CLOSE


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(1, 1), (7, 8), (9, 8)], ids=str)
@torch.inference_mode()
def test_convolve(sides, stride):
    layer, x = nn.Conv2d(6, 5, 3, stride, padding=1), torch.randn(2, 6, *sides)
    assert relative_error(convolve(x, layer), layer(x)) < CLOSE


def steps(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A bit of everything: constants, views, in-place changes, several results, a buffer that is filled anew."""
    constant = torch.arange(4.0).exp()
    h = (x * constant).transpose(0, 1).contiguous()
    h.add_(y)
    low, high = h.sort(dim=0)
    total = x.new_zeros(4, 4)
    total[1:3] += h[1:3]
    total = torch.cat([total, low, high.float()]).unflatten(0, (3, 4))
    return torch.softmax(torch.bmm(total, total), dim=-1).mean(0)


def test_recording():
    shape = (4, 4)
    recorded = Recording(steps, [torch.randn(shape), torch.randn(shape)])
    for _ in range(3):
        x, y = torch.randn(shape), torch.randn(shape)
        for _ in range(2):
            torch.testing.assert_close(recorded(x, y), steps(x, y))
    functions = [function for function, _, _ in recorded.program]
    assert torch.arange not in functions
    assert len(functions) <= 12  # of 18 calls, besides the constants'


def test_recordings_of_the_shapes_that_were_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(recording, "KEPT", 2)
    calls = []
    recordings = Recordings(lambda x: calls.append(len(x)) or x + 1)
    for length in (1, 2, 1, 3, 1, 2):
        assert torch.equal(recordings(torch.full((length,), 2.0)), torch.full((length,), 3.0))
    assert calls == [1, 2, 3, 2]
    assert len(recordings.of) == 2
